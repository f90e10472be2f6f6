/// An input as a program: targets read numbers from it and do what they say, so that any bytes are some conversation.
/// Behind the end everything is zero.
struct FuzzInput {
  private let content: [UInt8]
  private var position = 0

  init(_ content: [UInt8]) { self.content = content }

  var isAtEnd: Bool { position >= content.count }
  var remaining: Int { max(0, content.count - position) }

  mutating func u8() -> UInt8 {
    defer { position += 1 }
    return position < content.count ? content[position] : 0
  }

  mutating func u16() -> UInt16 { UInt16(u8()) | UInt16(u8()) << 8 }
  mutating func u32() -> UInt32 { UInt32(u16()) | UInt32(u16()) << 16 }
  mutating func u64() -> UInt64 { UInt64(u32()) | UInt64(u32()) << 32 }

  /// Up to `count` bytes, as many as there are.
  mutating func bytes(_ count: Int) -> [UInt8] {
    let end = min(content.count, position + max(0, count))
    defer { position = max(position, end) }
    return position < end ? Array(content[position..<end]) : []
  }

  /// A number that is small, near a power of two, or anything: what lengths and offsets go wrong with.
  mutating func interesting() -> UInt64 {
    let kind = u8()
    switch kind >> 6 {
    case 0: return UInt64(kind & 63)
    case 1: return UInt64(u16())
    case 2: return (1 << UInt64(kind & 63)) &+ UInt64(bitPattern: Int64(Int8(bitPattern: u8())))
    default: return kind & 1 == 0 ? UInt64(u32()) : u64()
    }
  }
}

/// Numbers appended to bytes.
extension Array where Element == UInt8 {
  mutating func appendLittle(_ value: some FixedWidthInteger) {
    for index in 0..<value.bitWidth / 8 { append(UInt8(truncatingIfNeeded: value >> (8 * index))) }
  }

  mutating func appendBig(_ value: some FixedWidthInteger) {
    for index in (0..<value.bitWidth / 8).reversed() { append(UInt8(truncatingIfNeeded: value >> (8 * index))) }
  }

  /// Puts a number over what stands at an offset, as far as there are bytes.
  mutating func setLittle(_ value: some FixedWidthInteger, at offset: Int) {
    for index in 0..<value.bitWidth / 8 where offset + index < count {
      self[offset + index] = UInt8(truncatingIfNeeded: value >> (8 * index))
    }
  }

  func little<Number: FixedWidthInteger>(_ offset: Int, as type: Number.Type) -> Number {
    var value: Number = 0
    for index in 0..<Number.bitWidth / 8 where offset + index < count {
      value |= Number(truncatingIfNeeded: self[offset + index]) << (8 * index)
    }
    return value
  }
}
