import JSON
import JSONRPC

/// The JSON parser, the cutting of a stream into texts, and the messages of JSON-RPC.
final class JSONTarget: FuzzTarget {
  func run(_ input: [UInt8]) throws {
    if let value = try? JSONParser.parse(input) {
      let text = value.serialize()
      guard let again = try? JSONParser.parse(text) else {
        throw FuzzFailure("what was written is not read: \(String(decoding: text.prefix(200), as: UTF8.self))")
      }
      guard again == value else {
        throw FuzzFailure("what was written reads as something else: \(String(decoding: text, as: UTF8.self))")
      }
      _ = Request.parse(value)
      _ = Response(value)
    }
    let whole = split(input, step: input.count)
    let step = 1 + Int(input.first ?? 0) % 7
    let pieces = split(input, step: step)
    guard whole.values == pieces.values, whole.isBroken == pieces.isBroken else {
      throw FuzzFailure("pieces of \(step) bytes give \(pieces.values.count) texts, the whole \(whole.values.count)")
    }
  }

  private func split(_ input: [UInt8], step: Int) -> (values: [JSONValue], isBroken: Bool) {
    var splitter = JSONSplitter(maximumLength: 2048)
    var values: [JSONValue] = []
    var position = 0
    repeat {
      let end = min(input.count, position + max(1, step))
      splitter.append(input[position..<end])
      position = end
      do {
        while let value = try splitter.next() { values.append(value) }
      } catch {
        return (values, true)
      }
    } while position < input.count
    return (values, false)
  }
}
