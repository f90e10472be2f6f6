/// A page of fields at fixed offsets, in NVMe's byte order.
struct LittleEndianPage {
  private(set) var bytes: [UInt8]

  init(_ length: Int) { bytes = [UInt8](repeating: 0, count: length) }

  mutating func set(_ value: UInt8, at offset: Int) { bytes[offset] = value }

  mutating func set<Number: FixedWidthInteger & UnsignedInteger>(_ value: Number, at offset: Int) {
    for index in 0..<Number.bitWidth / 8 {
      bytes[offset + index] = UInt8(truncatingIfNeeded: value >> Number(8 * index))
    }
  }

  /// Text of a fixed width, filled up with `filler` (spaces in NVMe's ASCII fields, zeros in its names).
  mutating func set(_ text: String, at offset: Int, width: Int, filler: UInt8) {
    let content = Array(text.utf8.prefix(width))
    for index in 0..<width { bytes[offset + index] = index < content.count ? content[index] : filler }
  }

  mutating func set(_ content: [UInt8], at offset: Int) {
    for (index, byte) in content.enumerated() { bytes[offset + index] = byte }
  }
}
