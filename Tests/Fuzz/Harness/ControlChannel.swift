import Glibc
import JSON
import JSONRPC

/// SPDK's JSON-RPC as a caller of fixed calls needs it: one call, one answer.
final class ControlChannel {
  let wire: Wire
  private var number: Int64 = 0
  private var splitter = JSONSplitter()

  init(_ path: String) throws { wire = try Wire.unix(path) }

  /// Sends a call; `answer` takes its result.
  func begin(_ method: String, _ parameters: JSONValue = [:]) throws {
    number += 1
    try wire.send(Request(id: .integer(number), method: method, params: parameters).json.serialize())
  }

  /// The answer to the last call, where it has come.
  func answer() throws -> Result<JSONValue, ResponseError>? {
    wire.receive()
    splitter.append(wire.take(wire.received.count))
    while let value = try splitter.next() {
      if let response = Response(value), response.id == .integer(number) { return response.result }
    }
    if wire.isEnded { throw FuzzFailure("the RPC server closed the connection") }
    return nil
  }

  @discardableResult
  func call(_ method: String, _ parameters: JSONValue = [:]) throws -> Result<JSONValue, ResponseError> {
    try begin(method, parameters)
    while true {
      if let answer = try answer() { return answer }
      guard wire.wait(for: 1, milliseconds: Wire.patience) else {
        throw FuzzFailure("no answer to \(method) within \(Wire.patience) ms")
      }
    }
  }

  /// A call that has to succeed.
  @discardableResult
  func require(_ method: String, _ parameters: JSONValue = [:]) throws -> JSONValue {
    switch try call(method, parameters) {
    case .success(let value): return value
    case .failure(let error): throw FuzzFailure("\(method): \(error.message)")
    }
  }
}
