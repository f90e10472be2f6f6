package import IaaS
package import Kubernetes
import Synchronization
package import Telemetry

/// What bm-controller counts about machines.
package final class MachineMetrics: Sendable {
  private let durations: HistogramFamily
  private let phases: GaugeFamily
  private let tally = Mutex(Tally())

  private struct Tally {
    var known: [ObjectKey: BareMetalMachine.Phase] = [:]
    var counts: [BareMetalMachine.Phase: Int] = [:]
  }

  package init(registry: MetricsRegistry) {
    durations = registry.histogram(
      "ycloud_machine_start_seconds",
      help: "Seconds from apply to power on (own), from there to the first ping (guest), and both (total).",
      labels: ["part"], buckets: [0.25, 0.5, 1, 2, 3, 5, 10, 20, 30, 60, 90, 120, 180, 300, 600])
    phases = registry.gauge("ycloud_machines", help: "Machines by phase.", labels: ["phase"])
    for phase in BareMetalMachine.Phase.allCases { phases.set(0, phase.rawValue) }
  }

  package func seen(_ machine: BareMetalMachine) {
    change(machine.key, machine.status?.phase ?? .pending)
  }

  package func forget(_ key: ObjectKey) { change(key, nil) }

  private func change(_ key: ObjectKey, _ phase: BareMetalMachine.Phase?) {
    // Told under the lock, so that an older count never comes last.
    tally.withLock { tally in
      let before = tally.known[key]
      guard before != phase else { return }
      tally.known[key] = phase
      if let before { tally.counts[before, default: 0] -= 1 }
      if let phase { tally.counts[phase, default: 0] += 1 }
      for changed in [before, phase].compactMap({ $0 }) {
        phases.set(Double(tally.counts[changed] ?? 0), changed.rawValue)
      }
    }
  }

  package func observe(from old: BareMetalMachine.Status?, to new: BareMetalMachine.Status) {
    let parts: [(String, WritableKeyPath<BareMetalMachine.Timeline, Double?>)] = [
      ("own", \.ownSeconds), ("guest", \.guestSeconds), ("total", \.totalSeconds),
    ]
    for (name, path) in parts {
      guard let seconds = new.timeline?[keyPath: path], old?.timeline?[keyPath: path] == nil else { continue }
      durations.observe(seconds, name)
    }
  }
}
