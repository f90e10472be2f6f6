package import NIOCore

/// Content without its holes, as uploads may send it (`Content-Type: application/vnd.ycloud.extents`).
///
/// The body is a row of extents: 8 bytes with the offset and 8 bytes with the length, both big-endian, then so many
/// bytes of data. Offsets ascend and extents do not overlap; what lies between them reads as zeros. The last extent has
/// no bytes, and its offset is the size of the whole content.
package struct ExtentStream: Sendable {
  package static let contentType = "application/vnd.ycloud.extents"
  package static let headerBytes = 16

  package enum Piece: Sendable, Hashable {
    /// So many zeros come next.
    case zeros(Int64)
    case data(ByteBuffer)
  }

  /// What follows comes after this offset.
  package private(set) var offset: Int64 = 0
  /// Whether the last extent has been read: nothing may follow.
  package private(set) var isComplete = false
  /// Bytes of the present extent that are still to come.
  private var dataLeft: Int64 = 0
  private var header = ByteBuffer()
  private let limit: Int64

  /// - Parameter limit: The largest content that is taken, in bytes.
  package init(limit: Int64) { self.limit = limit }

  /// Takes the next piece out of `input`; nil where it needs more bytes.
  package mutating func next(_ input: inout ByteBuffer) throws(UploadReply) -> Piece? {
    while input.readableBytes > 0 {
      guard !isComplete else { throw UploadReply(400, "bytes follow the last extent") }
      if dataLeft > 0 {
        let count = Int(min(dataLeft, Int64(input.readableBytes)))
        guard let data = input.readSlice(length: count) else { return nil }
        dataLeft -= Int64(count)
        offset += Int64(count)
        return .data(data)
      }
      guard let hole = try takeHeader(&input) else { return nil }
      if hole > 0 { return .zeros(hole) }
    }
    return nil
  }

  /// Reads the head of an extent. Returns the zeros before it, nil where it is not all there.
  private mutating func takeHeader(_ input: inout ByteBuffer) throws(UploadReply) -> Int64? {
    var rest =
      input.readSlice(length: min(Self.headerBytes - header.readableBytes, input.readableBytes)) ?? ByteBuffer()
    header.writeBuffer(&rest)
    guard header.readableBytes == Self.headerBytes, let start = header.readInteger(as: UInt64.self),
      let length = header.readInteger(as: UInt64.self)
    else { return nil }
    header.clear()
    guard start <= UInt64(limit), length <= UInt64(limit) - start else {
      throw UploadReply(413, "an extent ends behind the volume's \(limit) bytes")
    }
    guard Int64(start) >= offset else {
      throw UploadReply(400, "the extent at \(start) begins before the end of the one before it, \(offset)")
    }
    let hole = Int64(start) - offset
    offset = Int64(start)
    dataLeft = Int64(length)
    isComplete = length == 0
    return hole
  }
}
