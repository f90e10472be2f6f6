import TestSupport
import Testing
import bmctl

@Suite("How an image's file travels")
struct UploadLayoutTests {
  private let mebibyte: Int64 = 1 << 20

  @Test("A file of which nothing is known, or that has no holes worth it, is sent as it is")
  func raw() {
    let whole = [DataExtent(offset: 0, length: 3 * mebibyte)]
    let nearlyWhole = [
      DataExtent(offset: 0, length: mebibyte), DataExtent(offset: mebibyte + 4096, length: 2 * mebibyte - 4096),
    ]
    for data in [nil, whole, nearlyWhole] {
      let layout = UploadLayout(size: 3 * mebibyte, data: data)
      #expect(layout.contentType == "application/octet-stream")
      #expect(layout.bodyBytes == 3 * mebibyte)
      let pieces = Array(layout.pieces(chunkBytes: 2 * mebibyte))
      #expect(pieces.map(\.offset) == [0, 2 * mebibyte] && pieces.map(\.length) == [2 * mebibyte, mebibyte])
      #expect(pieces.allSatisfy { $0.head.isEmpty })
    }
  }

  @Test("An empty file costs one head")
  func empty() {
    let layout = UploadLayout(size: 1 << 40, data: [])
    #expect(layout.bodyBytes == 16)
    #expect(
      layout.pieces(chunkBytes: mebibyte).map(\.head) == [[0, 0, 1, 0, 0, 0, 0, 0] + [UInt8](repeating: 0, count: 8)])
  }

  @Test("The pieces cover the data once and in order, are as long as announced, and long holes are left out")
  func extents() {
    var random = SeededGenerator(seed: 5)
    for _ in 0..<300 {
      var data: [DataExtent] = []
      var position: Int64 = 0
      for _ in 0..<Int.random(in: 1...8, using: &random) {
        position += Int64.random(in: 0...(4 * UploadLayout.holeBytesMin), using: &random)
        let length = Int64.random(in: 1...300_000, using: &random)
        data.append(DataExtent(offset: position, length: length))
        position += length
      }
      let size = position + 8 * mebibyte
      let layout = UploadLayout(size: size, data: data)
      #expect(layout.contentType == "application/vnd.ycloud.extents")
      var sent: Int64 = 0
      var end: Int64 = 0
      var covered: [DataExtent] = []
      for piece in layout.pieces(chunkBytes: 100_000) {
        sent += Int64(piece.head.count) + piece.length
        #expect(piece.length <= 100_000 && piece.offset >= end)
        if piece.head.isEmpty {
          #expect(piece.offset == end, "without a head it goes on where the last piece ended")
        } else {
          #expect(piece.offset - end >= UploadLayout.holeBytesMin || end == 0 || piece.length == 0)
        }
        end = piece.offset + piece.length
        covered.append(DataExtent(offset: piece.offset, length: piece.length))
      }
      #expect(sent == layout.bodyBytes && end == size)
      for extent in data {
        let inside = covered.filter { $0.offset < extent.end && $0.end > extent.offset }
        let bytes = inside.reduce(0) { $0 + min($1.end, extent.end) - max($1.offset, extent.offset) }
        #expect(bytes == extent.length, "every byte of data is sent")
      }
    }
  }
}
