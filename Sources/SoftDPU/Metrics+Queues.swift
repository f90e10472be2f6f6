import Synchronization
import Telemetry

// What queues and connections do, by what the reactors' ledgers hold. An ended connection's counters stay.
extension Metrics {
  /// What all reactors have counted, in the order of the labels.
  static func totals(of reactors: [Reactor]) -> [(key: QueueLedger.Key, counters: QueueCounters)] {
    var totals: [QueueLedger.Key: QueueCounters] = [:]
    for reactor in reactors {
      totals.merge(reactor.sync { reactor.ledger.totals }) { one, other in
        var sum = one
        sum.add(other)
        return sum
      }
    }
    return totals.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }
  }

  func registerQueues(_ registry: MetricsRegistry) {
    registry.collected(
      "ycloud_softdpu_connection_operations_total",
      help: "Requests that the devices have ended for a host's queue (nvme_tcp) or a client's connection (nbd).",
      labels: ["front_end", "peer", "queue", "kind"], kind: .counter
    ) { [self] in connections { .number(Double($0.operations)) } }
    registry.collected(
      "ycloud_softdpu_connection_bytes_total",
      help: "Bytes of the requests that the devices have ended for a queue or connection.",
      labels: ["front_end", "peer", "queue", "kind"],
      kind: .counter
    ) { [self] in connections { .number(Double($0.bytes)) } }
    registry.collected(
      "ycloud_softdpu_connection_latency_seconds",
      help: "Time that the devices took for the requests of a queue or connection, their wait for limits included.",
      labels: ["front_end", "peer", "queue", "kind"], kind: .histogram
    ) { [self] in connections { Metrics.distribution($0.histogram, sum: $0.sum) } }
    registry.collected(
      "ycloud_softdpu_vhost_queue_operations_total",
      help: "Requests that the device has ended for a queue of a vhost-user controller.",
      labels: ["controller", "queue", "kind"], kind: .counter
    ) { [self] in vhostQueues { .number(Double($0.operations)) } }
    registry.collected(
      "ycloud_softdpu_vhost_queue_bytes_total",
      help: "Bytes of the requests that the device has ended for a queue of a vhost-user controller.",
      labels: ["controller", "queue", "kind"],
      kind: .counter
    ) { [self] in vhostQueues { .number(Double($0.bytes)) } }
    registry.collected(
      "ycloud_softdpu_vhost_queue_latency_seconds",
      help:
        "Time that the device took for the requests of a vhost-user controller's queue, their wait for limits included.",
      labels: ["controller", "queue", "kind"], kind: .histogram
    ) { [self] in vhostQueues { Metrics.distribution($0.histogram, sum: $0.sum) } }
  }

  private func connections(_ value: (QueueCounters.Of) -> MetricSample.Value?) -> [MetricSample] {
    samples(value) {
      $0.frontEnd == .vhost ? nil : [$0.frontEnd.rawValue, $0.peer, $0.queue.map(String.init) ?? "other"]
    }
  }

  private func vhostQueues(_ value: (QueueCounters.Of) -> MetricSample.Value?) -> [MetricSample] {
    samples(value) { $0.frontEnd == .vhost ? [$0.peer, String($0.queue ?? 0)] : nil }
  }

  private func samples(
    _ value: (QueueCounters.Of) -> MetricSample.Value?, _ labels: (QueueLedger.Key) -> [String]?
  ) -> [MetricSample] {
    queues.withLock { $0 }.flatMap { key, counters -> [MetricSample] in
      guard let labels = labels(key) else { return [] }
      return BlockIO.Kind.groups.indices.compactMap { group in
        value(counters.groups[group]).map { MetricSample(labels + [BlockIO.Kind.groups[group]], $0) }
      }
    }
  }
}
