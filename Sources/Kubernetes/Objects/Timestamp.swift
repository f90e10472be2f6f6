import Telemetry

#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// A moment in RFC 3339 with seconds, as `metav1.Time` is written.
public struct Timestamp: Sendable, Hashable, Comparable, CustomStringConvertible {
  public var date: Date

  /// The moment `date`; fractions of a second are cut off, because the API server cuts them off too.
  public init(_ date: Date) {
    self.date = Date(timeIntervalSince1970: date.timeIntervalSince1970.rounded(.down))
  }

  /// Parses RFC 3339 with any offset and any number of fraction digits; nil where `text` is something else.
  public init?(_ text: String) {
    guard let moment = RFC3339.parse(text) else { return nil }
    self.init(Date(timeIntervalSince1970: Double(moment.seconds)))
  }

  public init(secondsSince1970 seconds: Int64) { self.init(Date(timeIntervalSince1970: Double(seconds))) }

  public var secondsSince1970: Int64 { Int64(date.timeIntervalSince1970) }

  public static func now() -> Timestamp { Timestamp(Date()) }

  /// `2026-01-31T23:59:59Z`.
  public var description: String {
    CivilTime(secondsSince1970: Int64(date.timeIntervalSince1970)).text() + "Z"
  }

  public static func < (left: Timestamp, right: Timestamp) -> Bool { left.date < right.date }
}

extension Timestamp: Codable {
  public init(from decoder: any Decoder) throws {
    let container = try decoder.singleValueContainer()
    let text = try container.decode(String.self)
    guard let value = Timestamp(text) else {
      throw DecodingError.dataCorruptedError(in: container, debugDescription: "'\(text)' is not an RFC 3339 time")
    }
    self = value
  }

  public func encode(to encoder: any Encoder) throws {
    var container = encoder.singleValueContainer()
    try container.encode(description)
  }
}

/// A moment in RFC 3339 with microseconds, as `metav1.MicroTime` is written (leases, events).
public struct MicroTimestamp: Sendable, Hashable, Comparable, CustomStringConvertible {
  /// Microseconds since 1970.
  public var microseconds: Int64

  public init(microseconds: Int64) { self.microseconds = microseconds }

  public init(_ date: Date) {
    microseconds = Int64((date.timeIntervalSince1970 * 1_000_000).rounded(.down))
  }

  /// Parses RFC 3339 with any offset and any number of fraction digits; nil where `text` is something else.
  public init?(_ text: String) {
    guard let moment = RFC3339.parse(text) else { return nil }
    microseconds = moment.seconds * 1_000_000 + Int64(moment.nanoseconds / 1000)
  }

  public static func now() -> MicroTimestamp {
    let (seconds, nanoseconds) = CivilTime.now()
    return MicroTimestamp(microseconds: seconds * 1_000_000 + Int64(nanoseconds / 1000))
  }

  public var date: Date { Date(timeIntervalSince1970: Double(microseconds) / 1_000_000) }

  /// `2026-01-31T23:59:59.123456Z`.
  public var description: String {
    var seconds = microseconds / 1_000_000
    if microseconds % 1_000_000 < 0 { seconds -= 1 }
    let fraction = Int(microseconds - seconds * 1_000_000)
    return CivilTime(secondsSince1970: seconds).text(fraction: fraction, digits: 6) + "Z"
  }

  public static func < (left: MicroTimestamp, right: MicroTimestamp) -> Bool { left.microseconds < right.microseconds }
}

extension MicroTimestamp: Codable {
  public init(from decoder: any Decoder) throws {
    let container = try decoder.singleValueContainer()
    let text = try container.decode(String.self)
    guard let value = MicroTimestamp(text) else {
      throw DecodingError.dataCorruptedError(in: container, debugDescription: "'\(text)' is not an RFC 3339 time")
    }
    self = value
  }

  public func encode(to encoder: any Encoder) throws {
    var container = encoder.singleValueContainer()
    try container.encode(description)
  }
}

/// The parser of RFC 3339 date-times (section 5.6).
enum RFC3339 {
  static func parse(_ text: String) -> (seconds: Int64, nanoseconds: Int)? {
    let bytes = Array(text.utf8)
    var position = 0

    func number(_ digits: Int) -> Int? {
      guard position + digits <= bytes.count else { return nil }
      var value = 0
      for _ in 0..<digits {
        let byte = bytes[position]
        guard byte >= UInt8(ascii: "0"), byte <= UInt8(ascii: "9") else { return nil }
        value = value * 10 + Int(byte - UInt8(ascii: "0"))
        position += 1
      }
      return value
    }
    func take(_ accepted: UInt8...) -> Bool {
      guard position < bytes.count, accepted.contains(bytes[position]) else { return false }
      position += 1
      return true
    }

    guard let year = number(4), take(UInt8(ascii: "-")), let month = number(2), take(UInt8(ascii: "-")),
      let day = number(2), take(UInt8(ascii: "T"), UInt8(ascii: "t"), UInt8(ascii: " ")),
      let hour = number(2), take(UInt8(ascii: ":")), let minute = number(2), take(UInt8(ascii: ":")),
      let second = number(2)
    else { return nil }
    guard (1...12).contains(month), (1...daysIn(month: month, year: year)).contains(day), hour < 24, minute < 60,
      second <= 60
    else { return nil }

    var nanoseconds = 0
    if take(UInt8(ascii: ".")) {
      var scale = 100_000_000
      var digits = 0
      while position < bytes.count, let digit = number(1) {
        nanoseconds += digit * scale
        scale /= 10
        digits += 1
      }
      guard digits > 0 else { return nil }
    }

    var offset = 0
    if !take(UInt8(ascii: "Z"), UInt8(ascii: "z")) {
      let negative = position < bytes.count && bytes[position] == UInt8(ascii: "-")
      guard take(UInt8(ascii: "+"), UInt8(ascii: "-")), let hours = number(2), take(UInt8(ascii: ":")),
        let minutes = number(2), hours < 24, minutes < 60
      else { return nil }
      offset = (hours * 3600 + minutes * 60) * (negative ? -1 : 1)
    }
    guard position == bytes.count else { return nil }
    let civil = CivilTime(year: year, month: month, day: day, hour: hour, minute: minute, second: min(second, 59))
    return (civil.secondsSince1970 - Int64(offset), nanoseconds)
  }

  private static func daysIn(month: Int, year: Int) -> Int {
    switch month {
    case 2: year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) ? 29 : 28
    case 4, 6, 9, 11: 30
    default: 31
    }
  }
}
