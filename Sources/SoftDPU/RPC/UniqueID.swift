/// UUIDs as text (RFC 9562).
enum UniqueID {
  /// A new one of version 4.
  static func random() -> String {
    var bytes = (0..<16).map { _ in UInt8.random(in: 0...255) }
    bytes[6] = bytes[6] & 0x0F | 0x40
    bytes[8] = bytes[8] & 0x3F | 0x80
    let digits = Array("0123456789abcdef")
    var text = ""
    for (index, byte) in bytes.enumerated() {
      if [4, 6, 8, 10].contains(index) { text.append("-") }
      text.append(digits[Int(byte >> 4)])
      text.append(digits[Int(byte & 15)])
    }
    return text
  }

  /// Whether the text is a UUID: 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12.
  static func isValid(_ text: String) -> Bool {
    let groups = text.split(separator: "-", omittingEmptySubsequences: false)
    return groups.map(\.utf8.count) == [8, 4, 4, 4, 12] && groups.allSatisfy { $0.allSatisfy(\.isHexDigit) }
      && text.utf8.count == 36
  }

  /// The sixteen bytes of a UUID; nil where the text is none.
  static func bytes(_ text: String) -> [UInt8]? { isValid(text) ? hexadecimal(text.filter { $0 != "-" }) : nil }

  /// The bytes that pairs of hexadecimal digits stand for; nil where there are others.
  static func hexadecimal(_ text: String) -> [UInt8]? {
    let digits = text.compactMap(\.hexDigitValue)
    guard digits.count == text.count, digits.count % 2 == 0, text.utf8.count == digits.count else { return nil }
    return stride(from: 0, to: digits.count, by: 2).map { UInt8(digits[$0] << 4 | digits[$0 + 1]) }
  }

  /// Upper-case hexadecimal digits.
  static func text(_ bytes: [UInt8]) -> String {
    let digits = Array("0123456789ABCDEF")
    return String(bytes.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] })
  }
}

extension UniqueID {
  /// A UUID's text from its sixteen bytes.
  static func format(_ bytes: [UInt8]) -> String {
    let digits = Array(text(bytes).lowercased())
    var result = ""
    for (index, digit) in digits.enumerated() {
      if [8, 12, 16, 20].contains(index) { result.append("-") }
      result.append(digit)
    }
    return result
  }
}

extension UniqueID {
  /// A UUID that is always the same for the same two texts (in the manner of version 8 of RFC 9562).
  static func derived(from text: String, _ more: String) -> String {
    var bytes = fingerprint("\(text) \(more)")
    bytes[6] = bytes[6] & 0x0F | 0x80
    bytes[8] = bytes[8] & 0x3F | 0x80
    return format(bytes)
  }

  /// Sixteen bytes made from a text: FNV-1a, twice, with different beginnings. Not a secret, and the same everywhere.
  static func fingerprint(_ text: String) -> [UInt8] {
    [0xCBF2_9CE4_8422_2325, 0x8422_2325_CBF2_9CE4].flatMap { (start: UInt64) -> [UInt8] in
      let sum = text.utf8.reduce(start) { ($0 ^ UInt64($1)) &* 0x100_0000_01B3 }
      return (0..<8).map { UInt8(truncatingIfNeeded: sum >> UInt64(8 * $0)) }
    }
  }
}
