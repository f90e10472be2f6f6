import Synchronization

/// The metrics of one process, rendered as Prometheus text exposition format 0.0.4.
///
/// Asking twice for the same name gives the same family, so that parts of a process need not pass families around.
public final class MetricsRegistry: Sendable {
  private struct State {
    var families: [String: any MetricFamily] = [:]
    var collectors: [@Sendable () -> Void] = []
  }

  private let state = Mutex(State())
  private let maximumSeries: Int

  /// - Parameter maximumSeries: How many label combinations one family keeps; what comes later is counted in
  ///   `metrics_series_dropped_total` only, so that a label taken from foreign input cannot fill the memory.
  public init(maximumSeries: Int = 4096) {
    self.maximumSeries = maximumSeries
  }

  /// A value that only grows. By convention its name ends in `_total`.
  public func counter(_ name: String, help: String, labels: [String] = []) -> CounterFamily {
    family(name) { CounterFamily(head: head(name, help, labels)) }
  }

  /// A value that goes up and down.
  public func gauge(_ name: String, help: String, labels: [String] = []) -> GaugeFamily {
    family(name) { GaugeFamily(head: head(name, help, labels)) }
  }

  /// A distribution in cumulative buckets.
  /// - Parameter buckets: Upper bounds in rising order; `+Inf` is added.
  public func histogram(
    _ name: String, help: String, labels: [String] = [], buckets: [Double] = HistogramFamily.secondsBuckets
  ) -> HistogramFamily {
    family(name) { HistogramFamily(head: head(name, help, labels), buckets: buckets) }
  }

  /// Values that are kept elsewhere; `collect` reads them for each rendering.
  public func collected(
    _ name: String, help: String, labels: [String] = [], kind: CollectedFamily.Kind,
    collect: @escaping @Sendable () -> [MetricSample]
  ) {
    _ = family(name) { CollectedFamily(head: head(name, help, labels), kind: kind, collect: collect) }
  }

  /// Calls `collector` before each rendering, for values that are read rather than counted (memory, queue depth).
  public func onRender(_ collector: @escaping @Sendable () -> Void) {
    state.withLock { $0.collectors.append(collector) }
  }

  /// All families in the order of their names.
  public func render() -> String {
    let collectors = state.withLock { $0.collectors }
    for collector in collectors { collector() }
    let families = state.withLock { $0.families.values.sorted { $0.head.name < $1.head.name } }
    var text = ""
    for family in families { family.render(to: &text) }
    let dropped = families.reduce(0) { $0 + $1.dropped }
    if dropped > 0 {
      text += "# HELP metrics_series_dropped_total Observations dropped because a family had too many series.\n"
      text += "# TYPE metrics_series_dropped_total counter\nmetrics_series_dropped_total \(dropped)\n"
    }
    return text
  }

  private func head(_ name: String, _ help: String, _ labels: [String]) -> MetricHead {
    MetricHead(name: name, help: help, labels: labels, maximumSeries: maximumSeries)
  }

  private func family<F: MetricFamily>(_ name: String, _ make: () -> F) -> F {
    state.withLock { state in
      if let present = state.families[name] as? F { return present }
      let fresh = make()
      // The same name for two kinds of metric is a mistake of the program: the first one is rendered.
      assert(state.families[name] == nil, "metric \(name) is registered as two kinds")
      if state.families[name] == nil { state.families[name] = fresh }
      return fresh
    }
  }
}
