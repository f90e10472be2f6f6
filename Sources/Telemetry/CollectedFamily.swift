/// What a family of values that are kept elsewhere tells of one thing.
public struct MetricSample: Sendable {
  public enum Value: Sendable {
    case number(Double)
    /// A distribution: how many observations lay below each bound, and beyond all of them; their sum.
    case distribution(bounds: [Double], counts: [UInt64], sum: Double)
  }

  /// In the order of the family's labels.
  public var labels: [String]
  public var value: Value

  public init(_ labels: [String], _ value: Value) {
    self.labels = labels
    self.value = value
  }

  public init(_ labels: [String], _ number: Double) { self.init(labels, .number(number)) }
}

/// Values that are kept elsewhere and read for each rendering: what is gone there is gone here.
public final class CollectedFamily: MetricFamily {
  public enum Kind: String, Sendable { case counter, gauge, histogram }

  let head: MetricHead
  private let kind: Kind
  private let collect: @Sendable () -> [MetricSample]

  init(head: MetricHead, kind: Kind, collect: @escaping @Sendable () -> [MetricSample]) {
    self.head = head
    self.kind = kind
    self.collect = collect
  }

  var dropped: Int { 0 }

  func render(to text: inout String) {
    head.renderHead(kind: kind.rawValue, to: &text)
    for sample in collect().prefix(head.maximumSeries) {
      switch sample.value {
      case .number(let value):
        text += "\(head.name)\(head.labelText(sample.labels)) \(MetricHead.number(value))\n"
      case .distribution(let bounds, let counts, let sum):
        var total: UInt64 = 0
        for (index, count) in counts.enumerated() {
          total &+= count
          let bound = index < bounds.count ? MetricHead.number(bounds[index]) : "+Inf"
          text += "\(head.name)_bucket\(head.labelText(sample.labels, extra: ("le", bound))) \(total)\n"
        }
        text += "\(head.name)_sum\(head.labelText(sample.labels)) \(MetricHead.number(sum))\n"
        text += "\(head.name)_count\(head.labelText(sample.labels)) \(total)\n"
      }
    }
  }
}
