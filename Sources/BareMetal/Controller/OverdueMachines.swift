package import IaaS
package import Kubernetes
import Synchronization
package import Telemetry

/// How long machines have been in their phases. Pure; times are monotonic, from any beginning.
package struct PhaseClock: Sendable {
  /// How long a machine may be in a phase. Phases in which machines rest have no limit.
  package static let limits: [BareMetalMachine.Phase: Duration] = [
    .pending: .seconds(600), .provisioning: .seconds(300), .starting: .seconds(900), .stopping: .seconds(300),
    .deleting: .seconds(600),
  ]

  private var entries: [ObjectKey: (phase: BareMetalMachine.Phase, since: Duration)] = [:]

  package init() {}

  /// Notes the phase of a machine; nil where it is gone. What was there before the first look counts from that look on.
  package mutating func observe(_ key: ObjectKey, _ phase: BareMetalMachine.Phase?, at time: Duration) {
    guard let phase else {
      entries[key] = nil
      return
    }
    guard entries[key]?.phase != phase else { return }
    entries[key] = (phase, time)
  }

  /// How many machines are longer in their phase than its limit, for every phase that has one.
  package func overdue(at time: Duration) -> [BareMetalMachine.Phase: Int] {
    var counts = Self.limits.mapValues { _ in 0 }
    for (phase, since) in entries.values {
      if let limit = Self.limits[phase], time - since > limit { counts[phase, default: 0] += 1 }
    }
    return counts
  }
}

/// Tells how many machines are longer in a phase than they should be.
package final class OverdueMachines: Sendable {
  private let gauge: GaugeFamily
  private let clock = Mutex(PhaseClock())
  private let start = ContinuousClock.now

  package init(registry: MetricsRegistry) {
    gauge = registry.gauge(
      "ycloud_machines_overdue",
      help:
        "Machines that are longer in a phase than its limit: Pending and Deleting 10 min, Provisioning and Stopping "
        + "5 min, Starting 15 min; counted from when this process saw them in it.",
      labels: ["phase"])
    for phase in PhaseClock.limits.keys { gauge.set(0, phase.rawValue) }
  }

  package func observe(_ key: ObjectKey, _ phase: BareMetalMachine.Phase?) {
    let time = start.duration(to: .now)
    clock.withLock { $0.observe(key, phase, at: time) }
  }

  /// Counts every now and then, until the task is cancelled.
  package func run() async throws {
    while true {
      let time = start.duration(to: .now)
      for (phase, count) in clock.withLock({ $0.overdue(at: time) }) { gauge.set(Double(count), phase.rawValue) }
      try await Task.sleep(for: .seconds(15))
    }
  }
}
