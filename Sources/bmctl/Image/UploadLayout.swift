import Glibc

/// A part of a file that is no hole, in bytes.
package struct DataExtent: Sendable, Hashable {
  package var offset: Int64
  package var length: Int64

  package init(offset: Int64, length: Int64) {
    self.offset = offset
    self.length = length
  }

  package var end: Int64 { offset + length }
}

/// How a file travels: as it is, or without its holes.
///
/// Without holes each extent has a head of 16 bytes, its offset and length in big-endian, and the last one, which is
/// empty, tells the size. csi-controller's `ExtentStream` reads it.
package struct UploadLayout: Sendable, Hashable {
  package static let extentsType = "application/vnd.ycloud.extents"
  package static let rawType = "application/octet-stream"
  static let headBytes: Int64 = 16
  /// Shorter holes are sent: they cost less than the list of them.
  package static let holeBytesMin: Int64 = 64 << 10

  package let size: Int64
  /// In order, without overlaps; nil where the file is sent as it is.
  package let extents: [DataExtent]?

  /// - Parameter data: Where the file has data, in order; nil where that is not known.
  package init(size: Int64, data: [DataExtent]?) {
    self.size = size
    guard let data else {
      extents = nil
      return
    }
    var merged: [DataExtent] = []
    for extent in data where extent.length > 0 {
      if let last = merged.last, extent.offset - last.end < Self.holeBytesMin {
        merged[merged.count - 1].length = extent.end - last.offset
      } else {
        merged.append(extent)
      }
    }
    let bytes = Self.bytes(of: merged)
    extents = bytes < size ? merged : nil
  }

  private static func bytes(of extents: [DataExtent]) -> Int64 {
    extents.reduce(headBytes) { $0 + headBytes + $1.length }
  }

  /// The length of the body.
  package var bodyBytes: Int64 { extents.map { Self.bytes(of: $0) } ?? size }

  package var contentType: String { extents == nil ? Self.rawType : Self.extentsType }

  /// The pieces of the body in order, none longer than `chunkBytes` and its head.
  package func pieces(chunkBytes: Int64) -> Pieces { Pieces(layout: self, chunkBytes: chunkBytes) }

  /// One piece: what comes before the bytes of the file, and which bytes.
  package struct Piece: Sendable, Hashable {
    package var head: [UInt8]
    package var offset: Int64
    package var length: Int64
  }

  package struct Pieces: Sequence, IteratorProtocol, Sendable {
    private let layout: UploadLayout
    private let chunkBytes: Int64
    private var index = 0
    /// Within the extent, or the file.
    private var position: Int64 = 0
    private var isAtEnd = false

    fileprivate init(layout: UploadLayout, chunkBytes: Int64) {
      self.layout = layout
      self.chunkBytes = chunkBytes
    }

    package mutating func next() -> Piece? {
      guard let extents = layout.extents else {
        guard position < layout.size else { return nil }
        let length = Swift.min(chunkBytes, layout.size - position)
        defer { position += length }
        return Piece(head: [], offset: position, length: length)
      }
      guard index < extents.count else {
        guard !isAtEnd else { return nil }
        isAtEnd = true
        return Piece(head: Self.head(layout.size, 0), offset: layout.size, length: 0)
      }
      let extent = extents[index]
      let length = Swift.min(chunkBytes, extent.length - position)
      let piece = Piece(
        head: position == 0 ? Self.head(extent.offset, extent.length) : [], offset: extent.offset + position,
        length: length)
      position += length
      if position == extent.length {
        index += 1
        position = 0
      }
      return piece
    }

    private static func head(_ offset: Int64, _ length: Int64) -> [UInt8] {
      [offset, length].flatMap { value in
        stride(from: 56, through: 0, by: -8).map { UInt8(truncatingIfNeeded: value >> Int64($0)) }
      }
    }
  }
}
