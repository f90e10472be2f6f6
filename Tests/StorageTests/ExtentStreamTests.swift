import NIOCore
import Storage
import TestSupport
import Testing

/// Content without its holes, in whatever pieces it arrives.
@Suite struct ExtentStreamTests {
  private func head(_ offset: UInt64, _ length: UInt64) -> [UInt8] {
    [offset, length].flatMap { value in (0..<8).map { UInt8(truncatingIfNeeded: value >> (56 - 8 * $0)) } }
  }

  /// The content of a body that arrives in pieces of random lengths.
  private func read(
    _ body: [UInt8], limit: Int64, _ random: inout SeededGenerator
  ) throws -> (content: [UInt8], isComplete: Bool) {
    var stream = ExtentStream(limit: limit)
    var content: [UInt8] = []
    var rest = body[...]
    while !rest.isEmpty {
      let part = rest.prefix(Int.random(in: 1...20, using: &random))
      rest = rest.dropFirst(part.count)
      var buffer = ByteBuffer(bytes: part)
      while let piece = try stream.next(&buffer) {
        switch piece {
        case .zeros(let count): content += [UInt8](repeating: 0, count: Int(count))
        case .data(let data): content += Array(data.readableBytesView)
        }
      }
      #expect(Int64(content.count) == stream.offset)
    }
    return (content, stream.isComplete)
  }

  @Test func holesBecomeZeros() throws {
    var random = SeededGenerator(seed: 1)
    for _ in 0..<200 {
      var content: [UInt8] = []
      var body: [UInt8] = []
      for _ in 0..<Int.random(in: 0...5, using: &random) {
        content += [UInt8](repeating: 0, count: Int.random(in: 0...30, using: &random))
        let data = random.bytes(Int.random(in: 1...40, using: &random))
        body += head(UInt64(content.count), UInt64(data.count)) + data
        content += data
      }
      content += [UInt8](repeating: 0, count: Int.random(in: 0...30, using: &random))
      body += head(UInt64(content.count), 0)
      let result = try read(body, limit: Int64(content.count), &random)
      #expect(result.content == content && result.isComplete)
      // Cut off anywhere, it is not complete.
      let cut = Array(body.prefix(Int.random(in: 0..<body.count, using: &random)))
      #expect(try read(cut, limit: Int64(content.count), &random).isComplete == false)
    }
  }

  @Test func whatMakesNoSenseIsRefused() {
    var random = SeededGenerator(seed: 2)
    let cases: [(body: [UInt8], status: Int)] = [
      (head(90, 11), 413), (head(101, 0), 413), (head(.max, 1), 413), (head(0, .max), 413), (head(.max, .max), 413),
      (head(10, 2) + [1, 2] + head(11, 1), 400), (head(20, 0) + [0], 400), (head(20, 0) + head(30, 0), 400),
    ]
    for (index, item) in cases.enumerated() {
      let error = #expect(throws: UploadReply.self, "case \(index)") { try read(item.body, limit: 100, &random) }
      #expect(error?.status == item.status, "case \(index)")
    }
  }

  @Test func randomBytesAreNeverMoreThanTheVolume() {
    var random = SeededGenerator(seed: 3)
    for _ in 0..<5_000 {
      var body: [UInt8] = []
      for _ in 0..<Int.random(in: 1...4, using: &random) {
        body += head(UInt64.random(in: 0...120, using: &random), UInt64.random(in: 0...60, using: &random))
        body += random.bytes(Int.random(in: 0...60, using: &random))
      }
      if let result = try? read(body, limit: 100, &random) { #expect(result.content.count <= 100) }
    }
  }
}
