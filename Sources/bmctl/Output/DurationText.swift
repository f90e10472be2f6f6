/// Spans of time for people.
package enum DurationText {
  /// An age as kubectl writes it: `5s`, `3m20s`, `2h5m`, `3d4h`, `40d`, `2y30d`.
  package static func age(seconds: Double) -> String {
    guard seconds.isFinite, seconds < 1e11 else { return "<unknown>" }
    // A clock that is a little ahead is no reason to print a negative age.
    let total = max(0, Int(seconds))
    switch total {
    case ..<120: return "\(total)s"
    case ..<600: return join(total / 60, "m", total % 60, "s")
    case ..<10_800: return "\(total / 60)m"
    case ..<28_800: return join(total / 3600, "h", total % 3600 / 60, "m")
    case ..<172_800: return "\(total / 3600)h"
    case ..<691_200: return join(total / 86_400, "d", total % 86_400 / 3600, "h")
    case ..<63_072_000: return "\(total / 86_400)d"
    case ..<252_288_000: return join(total / 31_536_000, "y", total % 31_536_000 / 86_400, "d")
    default: return "\(total / 31_536_000)y"
    }
  }

  private static func join(_ large: Int, _ largeUnit: String, _ small: Int, _ smallUnit: String) -> String {
    small == 0 ? "\(large)\(largeUnit)" : "\(large)\(largeUnit)\(small)\(smallUnit)"
  }

  /// A measured span: `0.04 s`, `12.3 s`, `2 min 05 s`.
  package static func measured(seconds: Double) -> String {
    guard seconds.isFinite, abs(seconds) < 1e9 else { return "?" }
    if seconds < 0 { return "-" + measured(seconds: -seconds) }
    if seconds < 9.995 { return "\(fixed(seconds, digits: 2)) s" }
    if seconds < 119.95 { return "\(fixed(seconds, digits: 1)) s" }
    let whole = Int(seconds.rounded())
    return "\(whole / 60) min \(whole % 60 < 10 ? "0" : "")\(whole % 60) s"
  }

  /// Decimal digits without a formatter.
  package static func fixed(_ value: Double, digits: Int) -> String {
    var scale = 1.0
    for _ in 0..<digits { scale *= 10 }
    guard value.isFinite, abs(value * scale) < 9e18 else { return "?" }
    let scaled = Int64((abs(value) * scale).rounded())
    let whole = scaled / Int64(scale)
    guard digits > 0 else { return "\(value < 0 && whole > 0 ? "-" : "")\(whole)" }
    let fraction = String(scaled % Int64(scale))
    let zeros = String(repeating: "0", count: digits - fraction.count)
    return "\(value < 0 && scaled > 0 ? "-" : "")\(whole).\(zeros)\(fraction)"
  }

  /// An amount of bytes: `512 B`, `1.5 GiB`.
  package static func bytes(_ count: Int64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    var value = Double(count)
    var unit = 0
    while abs(value) >= 1023.95, unit < units.count - 1 {
      value /= 1024
      unit += 1
    }
    if unit == 0 { return "\(count) B" }
    let text = fixed(value, digits: 1)
    return "\(text.hasSuffix(".0") ? String(text.dropLast(2)) : text) \(units[unit])"
  }
}
