import Dispatch
import Glibc
import JSON
import JSONRPC
import Logging
import Synchronization

/// SPDK's JSON-RPC methods, as far as this data plane has them, with SPDK's parameters, results and errors.
struct Methods: Sendable {
  typealias Reply = @Sendable (Result<JSONValue, ResponseError>) -> Void
  typealias Method = @Sendable (_ methods: Methods, _ request: Request, _ reply: @escaping Reply) throws -> Void

  let inventory: Inventory
  /// What `spdk_get_version` calls this program.
  let version: String

  static let table: [String: Method] = [
    application, devices, files, memory, layers, lvols, vhost, nbd, nvmf, nvme, crypto, slow, groupSnapshots,
  ].reduce(into: [:]) { $0.merge($1) { first, _ in first } }

  /// Answers one request. No answer leaves before what was changed until then is on disk: not one that tells of a
  /// change, and not one that shows what another call has just changed.
  func handle(_ request: Request, _ reply: @escaping Reply) {
    let reply: Reply = { result in
      inventory.whenDurable { failure in
        // The disk failed, and what the call did is there: the next change writes all of it anew.
        guard let failure else { return reply(result) }
        reply(.failure(answer(failure, request.method)))
      }
    }
    guard let method = Methods.table[request.method] else { return reply(.failure(.methodNotFound)) }
    do {
      try method(self, request, reply)
    } catch {
      reply(.failure(answer(error, request.method)))
    }
  }

  /// The answer to a request that failed.
  func answer(_ error: any Error, _ method: String) -> ResponseError {
    switch error {
    case let error as ResponseError: return error
    case is Parameters.Failure: return Methods.undecodable
    case let error as SoftDPUError:
      inventory.logger.warning("a call failed", metadata: ["method": "\(method)", "error": "\(error)"])
      return Methods.systemError(error.errorNumber)
    default: return .internalError("\(error)")
    }
  }

  /// What SPDK answers where parameters do not decode.
  static let undecodable = ResponseError.internalError("spdk_json_decode_object failed")

  /// Most of SPDK's methods answer with the negative error number and its text.
  static func systemError(_ number: CInt) -> ResponseError {
    ResponseError(code: -Int(number), message: systemText(number))
  }

  /// Runs `body`; its errors have the code "invalid parameters" and the text of their number, as many of SPDK's methods
  /// answer.
  func withInvalidParameters<Value>(_ method: String, _ body: () throws -> Value) throws -> Value {
    do {
      return try body()
    } catch let error as SoftDPUError {
      inventory.logger.warning("a call failed", metadata: ["method": "\(method)", "error": "\(error)"])
      throw ResponseError.invalidParams(systemText(error.errorNumber))
    }
  }

  // MARK: Restoring

  /// Makes again what the last process had. A call that fails is told, and stays written down for the next start.
  func restore() throws(SoftDPUError) {
    try inventory.restoreKeys()
    let calls = try inventory.savedCalls()
    inventory.withoutSaving {
      for call in calls { restore(call) }
    }
    inventory.nvmf.open()
    inventory.removeOrphans()
    guard !calls.isEmpty else { return }
    inventory.logger.info(
      "configuration restored",
      metadata: ["bdevs": "\(inventory.devices.count)", "controllers": "\(inventory.controllers.count)"])
  }

  private func restore(_ call: ConfigurationCall) {
    let request = Request(id: .null, method: call.method, params: call.parameters)
    for attempt in 0... {
      let outcome = Outcome()
      handle(request) { outcome.set($0) }
      guard case .failure(let error) = outcome.wait() else { return }
      // After a kill the kernel may take a moment to let go of its requests, and with them of a file's lock or a
      // listening socket.
      let isBusy = [EBUSY, EADDRINUSE].contains { error.code == -Int($0) || error.message == systemText($0) }
      if isBusy, attempt < 100 {
        usleep(50_000)
        continue
      }
      inventory.logger.error(
        "a part of the configuration could not be restored",
        metadata: [
          "method": "\(call.method)", "name": "\(call.subject)", "error": "\(error.message)",
        ])
      inventory.keep(unrestored: call)
      return
    }
  }
}

/// What a method answers, at once or in a moment.
private final class Outcome: Sendable {
  private let state = Mutex<Result<JSONValue, ResponseError>?>(nil)
  private let latch = Latch()

  func wait() -> Result<JSONValue, ResponseError>? {
    latch.wait()
    return state.withLock { $0 }
  }

  func set(_ value: Result<JSONValue, ResponseError>) {
    state.withLock { $0 = value }
    latch.open()
  }
}
