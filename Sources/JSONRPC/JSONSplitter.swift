public import JSON

/// Cuts a stream of bytes into the JSON texts that follow one another in it, without any framing between them.
///
/// SPDK's JSON-RPC and QEMU's QMP both write their objects one after the other, compact, pretty-printed or with blank
/// lines between them. Only objects and arrays stand at the top level of such a stream, so a text ends where its
/// first bracket is closed. The bytes come from a peer: the length of one text is bounded, and the parser bounds its
/// depth.
public struct JSONSplitter: Sendable {
  /// The longest text that is accepted, in bytes.
  public let maximumLength: Int
  private var buffer: [UInt8] = []
  /// Where the text that is being collected starts in `buffer`.
  private var start = 0
  /// The first byte that was not looked at yet.
  private var position = 0
  private var depth = 0
  private var inString = false
  private var escaped = false

  public init(maximumLength: Int = 32 << 20) {
    self.maximumLength = maximumLength
  }

  /// The bytes that are held back until the rest of their text arrives.
  public var pendingLength: Int { buffer.count - start }

  /// Takes the next bytes of the stream.
  public mutating func append(_ bytes: some Sequence<UInt8>) {
    if start > 0, start == buffer.count || start >= 1 << 16 {
      buffer.removeFirst(start)
      position -= start
      start = 0
    }
    buffer.append(contentsOf: bytes)
  }

  /// The next complete value, or nil where more bytes are needed.
  ///
  /// After an error the stream has no boundary to go on from: the connection has to be closed.
  public mutating func next() throws(JSONError) -> JSONValue? {
    guard try advance() else { return nil }
    defer { start = position }
    return try JSONParser.parse(buffer[start..<position])
  }

  /// Moves `position` behind the end of the current text; false where that end has not arrived.
  private mutating func advance() throws(JSONError) -> Bool {
    while position < buffer.count {
      let byte = buffer[position]
      if depth == 0 {
        switch byte {
        case 0x20, 0x0A, 0x0D, 0x09:
          position += 1
          start = position
          continue
        case UInt8(ascii: "{"), UInt8(ascii: "["): break
        default: throw JSONError(code: .malformed, offset: 0, reason: "an object or an array was expected")
        }
      }
      position += 1
      if inString {
        if escaped {
          escaped = false
        } else if byte == UInt8(ascii: "\\") {
          escaped = true
        } else if byte == UInt8(ascii: "\"") {
          inString = false
        }
        continue
      }
      switch byte {
      case UInt8(ascii: "\""): inString = true
      case UInt8(ascii: "{"), UInt8(ascii: "["): depth += 1
      case UInt8(ascii: "}"), UInt8(ascii: "]"):
        depth -= 1
        if depth == 0 {
          guard position - start <= maximumLength else { throw tooLong }
          return true
        }
      default: break
      }
    }
    guard position - start <= maximumLength else { throw tooLong }
    return false
  }

  private var tooLong: JSONError {
    JSONError(code: .limit, offset: maximumLength, reason: "a text longer than \(maximumLength) bytes")
  }
}
