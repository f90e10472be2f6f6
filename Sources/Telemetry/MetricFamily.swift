import Synchronization

/// What every family has: its name, and the names of its labels.
struct MetricHead: Sendable {
  let name: String
  let help: String
  let labels: [String]
  let maximumSeries: Int

  func renderHead(kind: String, to text: inout String) {
    let escaped = help.split(separator: "\\", omittingEmptySubsequences: false).joined(separator: "\\\\")
      .split(separator: "\n", omittingEmptySubsequences: false).joined(separator: "\\n")
    text += "# HELP \(name) \(escaped)\n# TYPE \(name) \(kind)\n"
  }

  func labelText(_ values: [String], extra: (String, String)? = nil) -> String {
    var parts: [String] = []
    for (index, label) in labels.enumerated() {
      parts.append("\(label)=\"\(MetricHead.escape(index < values.count ? values[index] : ""))\"")
    }
    if let extra { parts.append("\(extra.0)=\"\(extra.1)\"") }
    return parts.isEmpty ? "" : "{\(parts.joined(separator: ","))}"
  }

  static func escape(_ value: String) -> String {
    var result = ""
    for character in value.unicodeScalars {
      switch character {
      case "\\": result += "\\\\"
      case "\"": result += "\\\""
      case "\n": result += "\\n"
      default: result.unicodeScalars.append(character)
      }
    }
    return result
  }

  static func number(_ value: Double) -> String {
    if value.isNaN { return "NaN" }
    if value.isInfinite { return value < 0 ? "-Inf" : "+Inf" }
    if let integer = Int64(exactly: value) { return "\(integer)" }
    return "\(value)"
  }
}

protocol MetricFamily: Sendable {
  var head: MetricHead { get }
  /// Observations that found no room for a new series.
  var dropped: Int { get }
  func render(to text: inout String)
}

/// Values by label combination, bounded.
struct Series<Value: Sendable>: Sendable {
  private(set) var values: [[String]: Value] = [:]
  private(set) var dropped = 0

  mutating func update(_ labels: [String], limit: Int, initial: Value, _ change: (inout Value) -> Void) {
    if values[labels] == nil, values.count >= limit {
      dropped += 1
      return
    }
    change(&values[labels, default: initial])
  }

  mutating func remove(_ labels: [String]) { values[labels] = nil }

  var sorted: [([String], Value)] {
    values.sorted { $0.key.lexicographicallyPrecedes($1.key) }.map { ($0.key, $0.value) }
  }
}

/// Counters with one name and different label values.
public final class CounterFamily: MetricFamily {
  let head: MetricHead
  private let series = Mutex(Series<Double>())

  init(head: MetricHead) { self.head = head }

  var dropped: Int { series.withLock { $0.dropped } }

  /// Adds `amount`, which must not be negative, to the series with these label values.
  public func increment(by amount: Double = 1, _ labelValues: String...) {
    guard amount >= 0 else { return }
    series.withLock { $0.update(labelValues, limit: head.maximumSeries, initial: 0) { $0 += amount } }
  }

  /// The present value of one series; 0 where it was never incremented.
  public func value(_ labelValues: String...) -> Double {
    series.withLock { $0.values[labelValues] ?? 0 }
  }

  /// The sum over all series.
  public var total: Double { series.withLock { $0.values.values.reduce(0, +) } }

  func render(to text: inout String) {
    head.renderHead(kind: "counter", to: &text)
    for (labels, value) in series.withLock({ $0.sorted }) {
      text += "\(head.name)\(head.labelText(labels)) \(MetricHead.number(value))\n"
    }
  }
}

/// Gauges with one name and different label values.
public final class GaugeFamily: MetricFamily {
  let head: MetricHead
  private let series = Mutex(Series<Double>())

  init(head: MetricHead) { self.head = head }

  var dropped: Int { series.withLock { $0.dropped } }

  /// Sets the series with these label values.
  public func set(_ value: Double, _ labelValues: String...) {
    series.withLock { $0.update(labelValues, limit: head.maximumSeries, initial: 0) { $0 = value } }
  }

  /// Adds `amount`, which may be negative.
  public func add(_ amount: Double, _ labelValues: String...) {
    series.withLock { $0.update(labelValues, limit: head.maximumSeries, initial: 0) { $0 += amount } }
  }

  /// Forgets a series, for a thing that is gone.
  public func remove(_ labelValues: String...) {
    series.withLock { $0.remove(labelValues) }
  }

  /// The present value of one series; 0 where it was never set.
  public func value(_ labelValues: String...) -> Double {
    series.withLock { $0.values[labelValues] ?? 0 }
  }

  func render(to text: inout String) {
    head.renderHead(kind: "gauge", to: &text)
    for (labels, value) in series.withLock({ $0.sorted }) {
      text += "\(head.name)\(head.labelText(labels)) \(MetricHead.number(value))\n"
    }
  }
}

/// Histograms with one name and different label values.
public final class HistogramFamily: MetricFamily {
  /// From 1 ms to 5 minutes, for things that a person waits for.
  public static let secondsBuckets: [Double] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300,
  ]

  struct Value: Sendable {
    var buckets: [UInt64]
    var sum = 0.0
    var count: UInt64 = 0
  }

  let head: MetricHead
  private let bounds: [Double]
  private let series = Mutex(Series<Value>())

  init(head: MetricHead, buckets: [Double]) {
    self.head = head
    bounds = buckets.filter(\.isFinite).sorted()
  }

  var dropped: Int { series.withLock { $0.dropped } }

  /// Counts one observation.
  public func observe(_ observation: Double, _ labelValues: String...) {
    let initial = Value(buckets: Array(repeating: 0, count: bounds.count))
    series.withLock { series in
      series.update(labelValues, limit: head.maximumSeries, initial: initial) { value in
        if let index = bounds.firstIndex(where: { observation <= $0 }) { value.buckets[index] += 1 }
        value.sum += observation
        value.count += 1
      }
    }
  }

  /// Counts one observation in seconds.
  public func observe(_ duration: Duration, _ labelValues: String...) {
    let (seconds, attoseconds) = duration.components
    let observation = Double(seconds) + Double(attoseconds) * 1e-18
    let initial = Value(buckets: Array(repeating: 0, count: bounds.count))
    series.withLock { series in
      series.update(labelValues, limit: head.maximumSeries, initial: initial) { value in
        if let index = bounds.firstIndex(where: { observation <= $0 }) { value.buckets[index] += 1 }
        value.sum += observation
        value.count += 1
      }
    }
  }

  func render(to text: inout String) {
    head.renderHead(kind: "histogram", to: &text)
    for (labels, value) in series.withLock({ $0.sorted }) {
      var cumulative: UInt64 = 0
      for (bound, count) in zip(bounds, value.buckets) {
        cumulative += count
        text += "\(head.name)_bucket\(head.labelText(labels, extra: ("le", MetricHead.number(bound)))) \(cumulative)\n"
      }
      text += "\(head.name)_bucket\(head.labelText(labels, extra: ("le", "+Inf"))) \(value.count)\n"
      text += "\(head.name)_sum\(head.labelText(labels)) \(MetricHead.number(value.sum))\n"
      text += "\(head.name)_count\(head.labelText(labels)) \(value.count)\n"
    }
  }
}
