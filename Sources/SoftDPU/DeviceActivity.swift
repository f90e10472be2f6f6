public import JSON

/// What a block device does, by two answers to `bdev_get_iostat`, of SPDK or of this data plane.
public struct DeviceActivity: Sendable, Hashable {
  public var name: String
  /// Requests a second.
  public var reads: Double
  public var writes: Double
  /// Bytes a second.
  public var readBytes: Double
  public var writtenBytes: Double
  /// The mean time of the requests in between, in microseconds; nil where there was none.
  public var latency: Double?

  /// The devices that both answers have, the busiest first.
  public static func between(_ old: JSONValue, _ new: JSONValue) -> [DeviceActivity] {
    guard let rate = new["tick_rate"]?.int64Value, rate > 0, let then = old["ticks"]?.int64Value,
      let now = new["ticks"]?.int64Value, now > then
    else { return [] }
    let seconds = Double(now - then) / Double(rate)
    var before: [String: JSONValue] = [:]
    for entry in old["bdevs"]?.arrayValue ?? [] { before[entry["name"]?.stringValue ?? ""] = entry }
    let activities = (new["bdevs"]?.arrayValue ?? []).compactMap { entry -> DeviceActivity? in
      guard let name = entry["name"]?.stringValue, let earlier = before[name] else { return nil }
      // Counters that were set back count from there.
      func difference(_ key: String) -> Double {
        let value = entry[key]?.int64Value ?? 0
        let base = earlier[key]?.int64Value ?? 0
        return Double(value >= base ? value - base : value)
      }
      let (reads, writes) = (difference("num_read_ops"), difference("num_write_ops"))
      let ticks = difference("read_latency_ticks") + difference("write_latency_ticks")
      return DeviceActivity(
        name: name, reads: reads / seconds, writes: writes / seconds, readBytes: difference("bytes_read") / seconds,
        writtenBytes: difference("bytes_written") / seconds,
        latency: reads + writes > 0 ? ticks / (reads + writes) / Double(rate) * 1_000_000 : nil)
    }
    return activities.sorted { ($1.reads + $1.writes, $0.name) < ($0.reads + $0.writes, $1.name) }
  }

  /// Lines of a table, at most `rows` of devices, each as wide as its numbers need.
  public static func table(_ activities: [DeviceActivity], rows: Int = .max) -> [String] {
    func number(_ value: Double) -> String { value < 10 && value > 0 ? oneDigit(value) : "\(Int64(value.rounded()))" }
    let head = ["BDEV", "READ/s", "WRITE/s", "READ MiB/s", "WRITE MiB/s", "LATENCY us"]
    let body = activities.prefix(rows).map { device in
      [
        device.name, number(device.reads), number(device.writes), number(device.readBytes / 1_048_576),
        number(device.writtenBytes / 1_048_576), device.latency.map(number) ?? "-",
      ]
    }
    return TextTable.lines([head] + body, leftAligned: [0])
  }

  private static func oneDigit(_ value: Double) -> String {
    let tenths = Int64((value * 10).rounded())
    return "\(tenths / 10).\(tenths % 10)"
  }
}
