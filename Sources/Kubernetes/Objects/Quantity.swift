/// An amount with a suffix, as resource lists carry it (`resource.Quantity`), in units and thousandths.
///
/// Amounts below one unit are kept in thousandths (`500m`); volumes and memory are bytes.
public struct Quantity: Sendable, Hashable, Comparable, CustomStringConvertible {
  /// The amount in thousandths of the unit.
  private var milli: Int128
  private var format: Format

  private enum Format: Sendable, Hashable { case binary, decimal }

  /// So many bytes (or other whole units), printed with the largest binary suffix that keeps them exact.
  public init(bytes: Int64) {
    milli = Int128(bytes) * 1000
    format = .binary
  }

  /// Parses `10Gi`, `1.5G`, `100M`, `1e9`, `500m`; nil where the text is no quantity or does not fit 64 bits of units.
  public init?(_ text: String) {
    var bytes = Array(text.utf8)[...]
    guard !bytes.isEmpty, bytes.count <= 64 else { return nil }
    var negative = false
    if let sign = bytes.first, sign == UInt8(ascii: "-") || sign == UInt8(ascii: "+") {
      negative = sign == UInt8(ascii: "-")
      bytes.removeFirst()
    }

    func digit(_ byte: UInt8?) -> Int128? {
      guard let byte, byte >= UInt8(ascii: "0"), byte <= UInt8(ascii: "9") else { return nil }
      return Int128(byte - UInt8(ascii: "0"))
    }

    // The number without its point, and how many digits stood behind it.
    var mantissa: Int128 = 0
    var fractionDigits = 0
    var digits = 0
    var seenPoint = false
    while let byte = bytes.first {
      if byte == UInt8(ascii: "."), !seenPoint {
        seenPoint = true
      } else if let value = digit(byte) {
        digits += 1
        guard digits <= 30 else { return nil }
        mantissa = mantissa * 10 + value
        if seenPoint { fractionDigits += 1 }
      } else {
        break
      }
      bytes.removeFirst()
    }
    guard digits > 0 else { return nil }

    let suffix = String(decoding: bytes, as: UTF8.self)
    guard let (multiplier, exponent, format) = Quantity.scale(suffix) else { return nil }
    self.format = format

    var (value, overflow) = mantissa.multipliedReportingOverflow(by: multiplier)
    guard !overflow else { return nil }
    let shift = exponent + 3 - fractionDigits
    if shift >= 0 {
      guard shift <= 36 else { return nil }
      for _ in 0..<shift {
        (value, overflow) = value.multipliedReportingOverflow(by: 10)
        guard !overflow else { return nil }
      }
    } else {
      // Finer than a thousandth: away from zero, as the API server rounds.
      for _ in 0..<(-shift) where value != 0 {
        let (quotient, remainder) = value.quotientAndRemainder(dividingBy: 10)
        value = quotient + (remainder > 0 ? 1 : 0)
      }
    }
    guard value <= Int128(Int64.max) * 1000 else { return nil }
    milli = negative ? -value : value
  }

  private static func scale(_ suffix: String) -> (multiplier: Int128, exponent: Int, format: Format)? {
    switch suffix {
    case "": return (1, 0, .decimal)
    case "n": return (1, -9, .decimal)
    case "u": return (1, -6, .decimal)
    case "m": return (1, -3, .decimal)
    case "k": return (1, 3, .decimal)
    case "M": return (1, 6, .decimal)
    case "G": return (1, 9, .decimal)
    case "T": return (1, 12, .decimal)
    case "P": return (1, 15, .decimal)
    case "E": return (1, 18, .decimal)
    case "Ki": return (1 << 10, 0, .binary)
    case "Mi": return (1 << 20, 0, .binary)
    case "Gi": return (1 << 30, 0, .binary)
    case "Ti": return (1 << 40, 0, .binary)
    case "Pi": return (1 << 50, 0, .binary)
    case "Ei": return (1 << 60, 0, .binary)
    default:
      guard let first = suffix.first, first == "e" || first == "E", suffix.utf8.count <= 4,
        let exponent = Int(suffix.dropFirst()), abs(exponent) <= 30
      else { return nil }
      return (1, exponent, .decimal)
    }
  }

  /// The amount in whole units, rounded up.
  public var bytes: Int64 {
    let (quotient, remainder) = milli.quotientAndRemainder(dividingBy: 1000)
    return Int64(clamping: quotient + (remainder > 0 ? 1 : 0))
  }

  /// The canonical form: no fraction, and the largest suffix that keeps the amount exact.
  public var description: String {
    if milli % 1000 != 0 { return "\(milli)m" }
    var value = milli / 1000
    guard value != 0 else { return "0" }
    let suffixes: [String]
    let base: Int128
    switch format {
    case .binary where value.magnitude >= 1024: (suffixes, base) = (["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"], 1024)
    case .binary, .decimal: (suffixes, base) = (["", "k", "M", "G", "T", "P", "E"], 1000)
    }
    var index = 0
    while index + 1 < suffixes.count, value % base == 0 {
      value /= base
      index += 1
    }
    return "\(value)\(suffixes[index])"
  }

  public static func < (left: Quantity, right: Quantity) -> Bool { left.milli < right.milli }
  public static func == (left: Quantity, right: Quantity) -> Bool { left.milli == right.milli }
  public func hash(into hasher: inout Hasher) { hasher.combine(milli) }
}

extension Quantity: Codable {
  /// A quantity is a string; a plain number is accepted too, as the API server does.
  public init(from decoder: any Decoder) throws {
    let container = try decoder.singleValueContainer()
    if let number = try? container.decode(Int64.self) {
      self.init(bytes: number)
      format = .decimal
      return
    }
    let text = try container.decode(String.self)
    guard let value = Quantity(text) else {
      throw DecodingError.dataCorruptedError(in: container, debugDescription: "'\(text)' is not a quantity")
    }
    self = value
  }

  public func encode(to encoder: any Encoder) throws {
    var container = encoder.singleValueContainer()
    try container.encode(description)
  }
}
