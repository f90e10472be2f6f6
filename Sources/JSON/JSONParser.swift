/// Why a text is not JSON, and where.
public struct JSONError: Error, Hashable, CustomStringConvertible {
  public enum Code: Sendable, Hashable {
    /// The text ends before the value does: more bytes may complete it.
    case incomplete
    /// The text breaks the grammar.
    case malformed
    /// The text is deeper or longer than the parser's limits.
    case limit
  }

  public let code: Code
  /// Offset in bytes from the start of the text.
  public let offset: Int
  public let reason: String

  public init(code: Code, offset: Int, reason: String) {
    self.code = code
    self.offset = offset
    self.reason = reason
  }

  public var description: String { "\(reason) at byte \(offset)" }
}

/// A parser for one JSON value at the start of a byte sequence, with a bound on depth.
///
/// The bytes come from peers and are hostile: nothing is read outside of the buffer, and recursion is bounded.
public struct JSONParser {
  private let bytes: UnsafeRawBufferPointer
  private var position: Int
  private let maximumDepth: Int

  /// Parses the whole of `bytes` as one value; only white space may follow it.
  public static func parse(_ bytes: some Collection<UInt8>, maximumDepth: Int = 64) throws(JSONError) -> JSONValue {
    let (value, end) = try parsePrefix(bytes, maximumDepth: maximumDepth)
    for (offset, byte) in bytes.enumerated().dropFirst(end) where !isSpace(byte) {
      throw JSONError(code: .malformed, offset: offset, reason: "text after the value")
    }
    return value
  }

  /// Parses the value at the start of `bytes` and tells how many bytes it took, leading white space included.
  ///
  /// A number that touches the end of the bytes is taken as complete.
  public static func parsePrefix(
    _ bytes: some Collection<UInt8>, maximumDepth: Int = 64
  ) throws(JSONError) -> (value: JSONValue, length: Int) {
    let result = Array(bytes).withUnsafeBytes { buffer -> Result<(JSONValue, Int), JSONError> in
      var parser = JSONParser(bytes: buffer, position: 0, maximumDepth: maximumDepth)
      do throws(JSONError) {
        let value = try parser.value(depth: 0)
        return .success((value, parser.position))
      } catch {
        return .failure(error)
      }
    }
    let (value, length) = try result.get()
    return (value, length)
  }

  private static func isSpace(_ byte: UInt8) -> Bool {
    byte == 0x20 || byte == 0x0A || byte == 0x0D || byte == 0x09
  }

  private func failure(_ code: JSONError.Code, _ reason: String) -> JSONError {
    JSONError(code: code, offset: position, reason: reason)
  }

  private mutating func skipSpace() {
    while position < bytes.count, JSONParser.isSpace(bytes[position]) { position += 1 }
  }

  private func peek() throws(JSONError) -> UInt8 {
    guard position < bytes.count else { throw failure(.incomplete, "the text ends inside a value") }
    return bytes[position]
  }

  private mutating func value(depth: Int) throws(JSONError) -> JSONValue {
    guard depth < maximumDepth else { throw failure(.limit, "nested deeper than \(maximumDepth)") }
    skipSpace()
    switch try peek() {
    case UInt8(ascii: "{"): return try object(depth: depth)
    case UInt8(ascii: "["): return try array(depth: depth)
    case UInt8(ascii: "\""): return .string(try string())
    case UInt8(ascii: "t"): return try word("true", .bool(true))
    case UInt8(ascii: "f"): return try word("false", .bool(false))
    case UInt8(ascii: "n"): return try word("null", .null)
    case UInt8(ascii: "-"), UInt8(ascii: "0")...UInt8(ascii: "9"): return try number()
    default: throw failure(.malformed, "a value was expected")
    }
  }

  private mutating func word(_ word: StaticString, _ value: JSONValue) throws(JSONError) -> JSONValue {
    for expected in word.description.utf8 {
      guard try peek() == expected else { throw failure(.malformed, "'\(word)' was expected") }
      position += 1
    }
    return value
  }

  private mutating func object(depth: Int) throws(JSONError) -> JSONValue {
    position += 1
    var members: [String: JSONValue] = [:]
    skipSpace()
    if try peek() == UInt8(ascii: "}") {
      position += 1
      return .object(members)
    }
    while true {
      skipSpace()
      guard try peek() == UInt8(ascii: "\"") else { throw failure(.malformed, "a member name was expected") }
      let name = try string()
      skipSpace()
      guard try peek() == UInt8(ascii: ":") else { throw failure(.malformed, "':' was expected") }
      position += 1
      members[name] = try value(depth: depth + 1)
      skipSpace()
      switch try peek() {
      case UInt8(ascii: ","): position += 1
      case UInt8(ascii: "}"):
        position += 1
        return .object(members)
      default: throw failure(.malformed, "',' or '}' was expected")
      }
    }
  }

  private mutating func array(depth: Int) throws(JSONError) -> JSONValue {
    position += 1
    var elements: [JSONValue] = []
    skipSpace()
    if try peek() == UInt8(ascii: "]") {
      position += 1
      return .array(elements)
    }
    while true {
      elements.append(try value(depth: depth + 1))
      skipSpace()
      switch try peek() {
      case UInt8(ascii: ","): position += 1
      case UInt8(ascii: "]"):
        position += 1
        return .array(elements)
      default: throw failure(.malformed, "',' or ']' was expected")
      }
    }
  }

  private mutating func number() throws(JSONError) -> JSONValue {
    let start = position
    var integral = true
    func isDigit(_ byte: UInt8) -> Bool { byte >= UInt8(ascii: "0") && byte <= UInt8(ascii: "9") }
    if bytes[position] == UInt8(ascii: "-") { position += 1 }
    let firstDigit = try peek()
    guard isDigit(firstDigit) else { throw failure(.malformed, "a digit was expected") }
    position += 1
    if firstDigit == UInt8(ascii: "0") {
      if position < bytes.count, isDigit(bytes[position]) { throw failure(.malformed, "a number has a leading zero") }
    } else {
      while position < bytes.count, isDigit(bytes[position]) { position += 1 }
    }
    if position < bytes.count, bytes[position] == UInt8(ascii: ".") {
      integral = false
      position += 1
      guard isDigit(try peek()) else { throw failure(.malformed, "a digit was expected") }
      while position < bytes.count, isDigit(bytes[position]) { position += 1 }
    }
    if position < bytes.count, bytes[position] | 0x20 == UInt8(ascii: "e") {
      integral = false
      position += 1
      let sign = try peek()
      if sign == UInt8(ascii: "+") || sign == UInt8(ascii: "-") { position += 1 }
      guard isDigit(try peek()) else { throw failure(.malformed, "a digit was expected") }
      while position < bytes.count, isDigit(bytes[position]) { position += 1 }
    }
    let text = String(decoding: bytes[start..<position], as: UTF8.self)
    if integral, let value = Int64(text) { return .integer(value) }
    guard let value = Double(text), value.isFinite else { throw failure(.malformed, "a number is out of range") }
    return .number(value)
  }

  private mutating func string() throws(JSONError) -> String {
    position += 1
    var content: [UInt8] = []
    while true {
      let runStart = position
      while position < bytes.count, bytes[position] != UInt8(ascii: "\""), bytes[position] != UInt8(ascii: "\\"),
        bytes[position] >= 0x20
      {
        position += 1
      }
      content.append(contentsOf: bytes[runStart..<position])
      let byte = try peek()
      if byte == UInt8(ascii: "\"") {
        position += 1
        guard let text = String(validating: content, as: UTF8.self) else {
          throw failure(.malformed, "a string is not UTF-8")
        }
        return text
      }
      guard byte == UInt8(ascii: "\\") else { throw failure(.malformed, "a control character in a string") }
      position += 1
      try escape(into: &content)
    }
  }

  private mutating func escape(into content: inout [UInt8]) throws(JSONError) {
    let kind = try peek()
    position += 1
    switch kind {
    case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): content.append(kind)
    case UInt8(ascii: "b"): content.append(0x08)
    case UInt8(ascii: "f"): content.append(0x0C)
    case UInt8(ascii: "n"): content.append(0x0A)
    case UInt8(ascii: "r"): content.append(0x0D)
    case UInt8(ascii: "t"): content.append(0x09)
    case UInt8(ascii: "u"):
      var scalar = try hexQuad()
      if (0xD800..<0xDC00).contains(scalar) {
        guard try peek() == UInt8(ascii: "\\") else { throw failure(.malformed, "half a surrogate pair") }
        position += 1
        guard try peek() == UInt8(ascii: "u") else { throw failure(.malformed, "half a surrogate pair") }
        position += 1
        let low = try hexQuad()
        guard (0xDC00..<0xE000).contains(low) else { throw failure(.malformed, "half a surrogate pair") }
        scalar = 0x10000 + ((scalar - 0xD800) << 10) + (low - 0xDC00)
      }
      guard let character = Unicode.Scalar(scalar) else { throw failure(.malformed, "half a surrogate pair") }
      content.append(contentsOf: String(Character(character)).utf8)
    default: throw failure(.malformed, "an unknown escape")
    }
  }

  private mutating func hexQuad() throws(JSONError) -> UInt32 {
    var value: UInt32 = 0
    for _ in 0..<4 {
      let byte = try peek()
      switch byte {
      case UInt8(ascii: "0")...UInt8(ascii: "9"): value = value << 4 | UInt32(byte - UInt8(ascii: "0"))
      case UInt8(ascii: "a")...UInt8(ascii: "f"): value = value << 4 | UInt32(byte - UInt8(ascii: "a") + 10)
      case UInt8(ascii: "A")...UInt8(ascii: "F"): value = value << 4 | UInt32(byte - UInt8(ascii: "A") + 10)
      default: throw failure(.malformed, "a hexadecimal digit was expected")
      }
      position += 1
    }
    return value
  }
}

extension JSONValue {
  /// Parses one JSON text; only white space may follow it.
  public static func parse(_ bytes: some Collection<UInt8>) throws(JSONError) -> JSONValue {
    try JSONParser.parse(bytes)
  }

  /// Parses one JSON text; only white space may follow it.
  public static func parse(_ text: String) throws(JSONError) -> JSONValue {
    try JSONParser.parse(Array(text.utf8))
  }
}
