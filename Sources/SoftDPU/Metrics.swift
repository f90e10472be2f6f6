import Synchronization
import Telemetry

/// What the data plane tells Prometheus: per device, subsystem and controller, read when it is asked for.
final class Metrics: Sendable {
  private let inventory: Inventory
  /// Read once for all families of a rendering.
  private let snapshot = Mutex<[(name: String, size: UInt64, counters: IOCounters)]>([])
  let queues = Mutex<[(key: QueueLedger.Key, counters: QueueCounters)]>([])

  init(_ inventory: Inventory) { self.inventory = inventory }

  func register(_ registry: MetricsRegistry) {
    registry.onRender { [self] in
      let devices = inventory.devices
      let values = zip(devices, BlockDevice.counters(of: devices)).map { ($0.name, $0.size, $1) }
      snapshot.withLock { $0 = values }
      let totals = Metrics.totals(of: inventory.reactors)
      queues.withLock { $0 = totals }
    }
    registerQueues(registry)
    registry.collected(
      "ycloud_softdpu_bdev_operations_total", help: "Requests that a block device has ended.",
      labels: ["bdev", "operation"], kind: .counter
    ) { [self] in eachOperation { Double($0.operations) } }
    registry.collected(
      "ycloud_softdpu_bdev_bytes_total", help: "Bytes of the requests that a block device has ended.",
      labels: ["bdev", "operation"], kind: .counter
    ) { [self] in eachOperation { Double($0.bytes) } }
    registry.collected(
      "ycloud_softdpu_bdev_errors_total", help: "Requests that a block device has ended with an error.",
      labels: ["bdev"], kind: .counter
    ) { [self] in each { .number(Double($0.counters.errors)) } }
    registry.collected(
      "ycloud_softdpu_bdev_slow_total",
      help: "Requests of a block device that took longer than the threshold of the trace of slow requests.",
      labels: ["bdev"], kind: .counter
    ) { [self] in each { .number(Double($0.counters.slow)) } }
    registry.collected(
      "ycloud_softdpu_bdev_latency_seconds",
      help: "Time from the start of a request on a block device to its end, its wait for limits included.",
      labels: ["bdev", "kind"], kind: .histogram
    ) { [self] in
      snapshot.withLock { $0 }.flatMap { entry in
        let all = entry.counters
        let sums = [all.read.sum, all.write.sum, all.unmap.sum &+ all.writeZeroes.sum &+ all.flush.sum]
        return BlockIO.Kind.groups.indices.compactMap { group in
          Metrics.distribution(all.histograms[group], sum: sums[group]).map {
            MetricSample([entry.name, BlockIO.Kind.groups[group]], $0)
          }
        }
      }
    }
    registry.collected(
      "ycloud_softdpu_bdev_size_bytes", help: "Size of a block device.", labels: ["bdev"], kind: .gauge
    ) { [self] in each { .number(Double($0.size)) } }
    registry.collected(
      "ycloud_softdpu_vhost_connected", help: "Whether a front end is connected to a vhost-user controller.",
      labels: ["controller"], kind: .gauge
    ) { [self] in inventory.controllers.map { MetricSample([$0.name], $0.isConnected ? 1 : 0) } }
    registry.collected(
      "ycloud_softdpu_nvmf_controllers", help: "Hosts that are connected to a subsystem.", labels: ["subsystem"],
      kind: .gauge
    ) { [self] in
      let nvmf = inventory.nvmf
      let counts = Dictionary(nvmf.controllers.map { ($0.subsystemNQN, 1.0) }, uniquingKeysWith: +)
      return nvmf.subsystems.map { MetricSample([$0.nqn], counts[$0.nqn] ?? 0) }
    }
    registry.collected(
      "ycloud_softdpu_nvme_paths", help: "Paths to a remote subsystem, by state.", labels: ["controller", "state"],
      kind: .gauge
    ) { [self] in
      inventory.nvmeAttachments.flatMap { attachment in
        let counts = Dictionary(attachment.controller.reports.map { ($0.state, 1.0) }, uniquingKeysWith: +)
        return counts.sorted { $0.key < $1.key }.map { MetricSample([attachment.controller.name, $0.key], $0.value) }
      }
    }
  }

  /// A histogram of nanoseconds; nil where nothing was counted, which would be many lines for nothing.
  static func distribution(_ histogram: IOCounters.Histogram, sum: UInt64) -> MetricSample.Value? {
    let counts = histogram.indices.map { histogram[$0] }
    guard counts.contains(where: { $0 > 0 }) else { return nil }
    return .distribution(
      bounds: IOCounters.bounds.map { Double($0) / 1_000_000 }, counts: counts, sum: Double(sum) / 1_000_000_000)
  }

  private typealias Entry = (name: String, size: UInt64, counters: IOCounters)

  private func each(_ value: (Entry) -> MetricSample.Value) -> [MetricSample] {
    snapshot.withLock { $0 }.map { MetricSample([$0.name], value($0)) }
  }

  private func eachOperation(_ value: (IOCounters.Of) -> Double) -> [MetricSample] {
    snapshot.withLock { $0 }.flatMap { entry in
      [
        ("flush", entry.counters.flush), ("read", entry.counters.read), ("unmap", entry.counters.unmap),
        ("write", entry.counters.write), ("write_zeroes", entry.counters.writeZeroes),
      ].map { MetricSample([entry.name, $0.0], value($0.1)) }
    }
  }
}
