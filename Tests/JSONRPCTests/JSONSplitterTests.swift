import JSON
import JSONRPC
import TestSupport
import Testing

@Suite struct JSONSplitterTests {
  private func split(_ bytes: [UInt8], pieces: [Int]) throws -> [JSONValue] {
    var splitter = JSONSplitter()
    var values: [JSONValue] = []
    var position = 0
    for piece in pieces + [bytes.count] where position < bytes.count {
      let end = min(bytes.count, position + piece)
      splitter.append(bytes[position..<end])
      position = end
      while let value = try splitter.next() { values.append(value) }
    }
    #expect(splitter.pendingLength == 0)
    return values
  }

  @Test func findsTextsWithoutFramingBetweenThem() throws {
    let text = "{\"a\": \"}\\\"{\"}[1]\n\n{\n  \"b\": [\n    {}\n  ]\n}\r\n[[],[]]"
    let expected: [JSONValue] = [["a": "}\"{"], [1], ["b": [[:]]], [[], []]]
    let bytes = Array(text.utf8)
    #expect(try split(bytes, pieces: []) == expected)
    #expect(try split(bytes, pieces: Array(repeating: 1, count: bytes.count)) == expected)
    #expect(try split(bytes, pieces: [3, 1, 9, 2]) == expected)
  }

  @Test(arguments: ["5", "x", "\"text\"", "}", "{]", "{\"a\" 1}"])
  func refusesWhatIsNoObjectOrArray(text: String) {
    var splitter = JSONSplitter()
    splitter.append(Array(text.utf8))
    #expect(throws: JSONError.self) { try splitter.next() }
  }

  @Test func boundsTheLengthOfOneText() throws {
    var splitter = JSONSplitter(maximumLength: 10)
    splitter.append(Array("[1,2,3,4] [1]".utf8))
    #expect(try splitter.next() == [1, 2, 3, 4])
    #expect(try splitter.next() == [1])
    splitter.append(Array("[\"0123456789".utf8))
    let error = #expect(throws: JSONError.self) { try splitter.next() }
    #expect(error?.code == .limit)
  }

  @Test func findsTheSameTextsHoweverTheyAreCut() throws {
    var generator = SeededGenerator(seed: 3)
    for _ in 0..<200 {
      let values = (0..<5).map { index -> JSONValue in
        [
          "id": .integer(Int64(index)),
          "text": .string(String(repeating: "\\{\"", count: Int.random(in: 0...9, using: &generator))),
        ]
      }
      let bytes = values.reduce(into: [UInt8]()) { $0 += $1.serialize() + [0x0A] }
      let pieces = (0..<bytes.count).map { _ in Int.random(in: 1...20, using: &generator) }
      var splitter = JSONSplitter()
      var found: [JSONValue] = []
      var position = 0
      for piece in pieces where position < bytes.count {
        splitter.append(bytes[position..<min(bytes.count, position + piece)])
        position += piece
        while let value = try splitter.next() { found.append(value) }
      }
      #expect(found == values)
    }
  }

  @Test func survivesRandomBytes() {
    var generator = SeededGenerator(seed: 4)
    for _ in 0..<5000 {
      var splitter = JSONSplitter(maximumLength: 64)
      splitter.append([UInt8(ascii: "[")])
      for _ in 0..<4 { splitter.append(generator.bytes(20)) }
      while (try? splitter.next()) ?? nil != nil {}
    }
  }
}
