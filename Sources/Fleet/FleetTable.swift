/// A report as text.
public enum FleetTable {
  /// A table for a terminal.
  public static func lines(_ report: FleetReport) -> [String] {
    var lines = [
      "simulation, \(seconds(report.elapsed)) s; \(Int(report.bmcRequestsPerSecond.rounded())) requests to BMCs a second"
    ]
    for (name, shares) in [("hosts", report.hosts), ("machines", report.machines)] {
      lines.append(
        padded("\(name) (\(shares.reduce(0) { $0 + $1.count }))", 16) + right("count", 8) + right("per s", 10))
      for share in shares {
        lines.append("  " + padded(share.phase, 14) + right("\(share.count)", 8) + right(rate(share.perSecond), 10))
      }
    }
    return lines
  }

  /// One line for a log.
  public static func line(_ report: FleetReport) -> String {
    func text(_ shares: [FleetReport.Share]) -> String {
      let present = shares.filter { $0.count > 0 }
      guard !present.isEmpty else { return "none" }
      return present.map { share in
        let rate = rate(share.perSecond)
        return "\(share.count) \(share.phase)" + (rate.isEmpty ? "" : " (\(rate)/s)")
      }.joined(separator: ", ")
    }
    return "\(seconds(report.elapsed)) s: hosts \(text(report.hosts)); machines \(text(report.machines))"
  }

  private static func seconds(_ duration: Duration) -> String { tenths(duration / .seconds(1)) }

  private static func rate(_ value: Double) -> String {
    guard abs(value) >= 0.05 else { return "" }
    return (value > 0 ? "+" : "-") + tenths(abs(value))
  }

  private static func tenths(_ value: Double) -> String {
    let tenths = Int((value * 10).rounded())
    return "\(tenths / 10).\(tenths % 10)"
  }

  private static func padded(_ text: String, _ width: Int) -> String {
    text + String(repeating: " ", count: max(0, width - text.utf8.count))
  }

  private static func right(_ text: String, _ width: Int) -> String {
    String(repeating: " ", count: max(0, width - text.utf8.count)) + text
  }
}
