import JSON
import TestSupport
import Testing

@Suite struct JSONParserTests {
  @Test(
    arguments: [
      ("null", JSONValue.null), (" true ", true), ("-0", 0), ("9223372036854775807", .integer(.max)),
      ("9223372036854775808", .number(9_223_372_036_854_775_808)), ("1.5e3", 1500.0), ("\"\\u00e9\\n\\/\"", "é\n/"),
      ("\"\\ud83d\\ude00\"", "😀"), ("[1,[2,{}],\"\"]", .array([1, .array([2, .object([:])]), ""])),
      ("{\"a\": {\"b\": [null]}, \"a\": 1}", .object(["a": 1])),
    ] as [(String, JSONValue)])
  func parsesWhatTheGrammarAllows(text: String, value: JSONValue) throws {
    #expect(try JSONValue.parse(text) == value)
  }

  @Test(arguments: [
    "", " ", "nul", "nulll", "01", "1.", "1e", "-", "+1", ".5", "[1,]", "[1 2]", "{\"a\":}", "{a:1}", "{\"a\":1,}",
    "\"\u{1}\"", "\"\\x\"", "\"\\u12\"", "\"\\ud83d\"", "\"\\ud83dx\"", "\"\\ude00\"", "\"abc", "1 2", "[", "{",
    "1e999",
  ])
  func refusesWhatItForbids(text: String) {
    #expect(throws: JSONError.self) { try JSONValue.parse(text) }
  }

  @Test func refusesWhatIsNotUTF8() {
    #expect(throws: JSONError.self) { try JSONValue.parse([0x22, 0xC3, 0x28, 0x22] as [UInt8]) }
    #expect(throws: JSONError.self) { try JSONValue.parse([0x22, 0xED, 0xA0, 0x80, 0x22] as [UInt8]) }
  }

  @Test func boundsDepth() throws {
    let deep = String(repeating: "[", count: 64) + String(repeating: "]", count: 64)
    #expect(throws: JSONError.self) { try JSONValue.parse("[" + deep + "]") }
    _ = try JSONValue.parse(String(repeating: "[", count: 63) + String(repeating: "]", count: 63))
    let error = #expect(throws: JSONError.self) { try JSONValue.parse(String(repeating: "[", count: 1_000_000)) }
    #expect(error?.code == .limit)
  }

  @Test func tellsIncompleteFromMalformed() {
    #expect(#expect(throws: JSONError.self) { try JSONValue.parse("{\"a\": [1, 2") }?.code == .incomplete)
    #expect(#expect(throws: JSONError.self) { try JSONValue.parse("{\"a\" 1}") }?.code == .malformed)
  }

  @Test func writesWhatItReads() throws {
    var generator = SeededGenerator(seed: 1)
    for _ in 0..<2000 {
      let value = randomValue(&generator, depth: 0)
      #expect(try JSONValue.parse(value.serialize()) == value)
    }
  }

  @Test func survivesRandomBytes() {
    var generator = SeededGenerator(seed: 2)
    let alphabet = Array("{}[]\",:\\u0123e+-.truefalsn \n\u{e9}".utf8)
    for _ in 0..<20000 {
      let length = Int.random(in: 0...40, using: &generator)
      let isJSONLike = Bool.random(using: &generator)
      let bytes = (0..<length).map { _ -> UInt8 in
        isJSONLike
          ? alphabet[Int.random(in: 0..<alphabet.count, using: &generator)] : .random(in: 0...255, using: &generator)
      }
      if let value = try? JSONValue.parse(bytes) {
        #expect((try? JSONValue.parse(value.serialize())) == value)
      }
    }
  }

  private func randomValue(_ generator: inout SeededGenerator, depth: Int) -> JSONValue {
    switch Int.random(in: 0..<(depth < 5 ? 7 : 5), using: &generator) {
    case 0: return .null
    case 1: return .bool(Bool.random(using: &generator))
    case 2: return .integer(.random(in: .min ... .max, using: &generator))
    case 3: return .number(Double.random(in: -1e9...1e9, using: &generator) + 0.5)
    case 4:
      let scalars = (0..<Int.random(in: 0...8, using: &generator)).compactMap { _ in
        Unicode.Scalar(UInt32.random(in: 0...0x10FFFF, using: &generator))
      }
      return .string(String(String.UnicodeScalarView(scalars)))
    case 5: return .array((0..<3).map { _ in randomValue(&generator, depth: depth + 1) })
    default:
      return .object(
        Dictionary(
          (0..<3).map { ("k\($0)", randomValue(&generator, depth: depth + 1)) }, uniquingKeysWith: { $1 }))
    }
  }
}
