package import IaaS
package import Kubernetes
import Synchronization
package import Telemetry

/// How far a fleet is, at one moment.
public struct FleetReport: Sendable, Hashable {
  /// Since the simulation began.
  public var elapsed: Duration
  /// Hosts by phase, in the order of a host's life.
  public var hosts: [Share]
  /// Machines by phase, in the order of a machine's life.
  public var machines: [Share]
  /// Requests to BMCs since the last report, each second.
  public var bmcRequestsPerSecond: Double

  /// How many are in a phase, and how many more or fewer than at the last report, each second.
  public struct Share: Sendable, Hashable {
    public var phase: String
    public var count: Int
    public var perSecond: Double
  }
}

/// Counts hosts and machines by phase as they change.
package final class FleetTally: Sendable {
  private struct State {
    var hosts: [ObjectKey: BareMetalHost.Phase] = [:]
    var machines: [ObjectKey: BareMetalMachine.Phase] = [:]
    var hostCounts: [BareMetalHost.Phase: Int] = [:]
    var machineCounts: [BareMetalMachine.Phase: Int] = [:]
    var last: (at: ContinuousClock.Instant, report: FleetReport, requests: Double)?
  }

  private let start = ContinuousClock.now
  private let state = Mutex(State())
  private let phases: GaugeFamily
  private let requests: CounterFamily

  private static let hostPhases: [BareMetalHost.Phase] = [.registering, .available, .claimed, .maintenance, .error]

  package init(
    hosts: ObjectCache<BareMetalHost>, machines: ObjectCache<BareMetalMachine>, registry: MetricsRegistry
  ) {
    phases = registry.gauge("fleet_hosts", help: "Simulated hosts by phase.", labels: ["phase"])
    requests = registry.counter(
      "softhost_bmc_requests_total", help: "Requests to the BMC.", labels: ["method", "status"])
    hosts.onChange { change in
      switch change {
      case .added(let host), .updated(_, let host): self.note(host.key, host.status?.phase ?? .registering)
      case .deleted(let host): self.note(host.key, nil as BareMetalHost.Phase?)
      }
    }
    machines.onChange { change in
      switch change {
      case .added(let machine), .updated(_, let machine): self.note(machine.key, machine.status?.phase ?? .pending)
      case .deleted(let machine): self.note(machine.key, nil as BareMetalMachine.Phase?)
      }
    }
  }

  private func note(_ key: ObjectKey, _ phase: BareMetalHost.Phase?) {
    state.withLock { state in
      Self.move(key, to: phase, in: &state.hosts, counts: &state.hostCounts)
      for phase in Self.hostPhases { phases.set(Double(state.hostCounts[phase] ?? 0), phase.rawValue) }
    }
  }

  private func note(_ key: ObjectKey, _ phase: BareMetalMachine.Phase?) {
    state.withLock { Self.move(key, to: phase, in: &$0.machines, counts: &$0.machineCounts) }
  }

  private static func move<Phase: Hashable>(
    _ key: ObjectKey, to phase: Phase?, in known: inout [ObjectKey: Phase], counts: inout [Phase: Int]
  ) {
    let before = known[key]
    guard before != phase else { return }
    known[key] = phase
    if let before { counts[before, default: 0] -= 1 }
    if let phase { counts[phase, default: 0] += 1 }
  }

  /// How far it is now, with the rates since the last report.
  package func report() -> FleetReport {
    let now = ContinuousClock.now
    let total = requests.total
    return state.withLock { state in
      let before = state.last
      let seconds = before.map { max(($0.at.duration(to: now)) / .seconds(1), 0.001) } ?? 1
      func shares(_ counts: [(String, Int)], _ old: [FleetReport.Share]?) -> [FleetReport.Share] {
        counts.map { phase, count in
          let earlier = old?.first { $0.phase == phase }?.count ?? (before == nil ? count : 0)
          return .init(phase: phase, count: count, perSecond: Double(count - earlier) / seconds)
        }
      }
      let report = FleetReport(
        elapsed: start.duration(to: now),
        hosts: shares(Self.hostPhases.map { ($0.rawValue, state.hostCounts[$0] ?? 0) }, before?.report.hosts),
        machines: shares(
          BareMetalMachine.Phase.allCases.map { ($0.rawValue, state.machineCounts[$0] ?? 0) }, before?.report.machines),
        bmcRequestsPerSecond: before.map { (total - $0.requests) / seconds } ?? 0)
      state.last = (now, report, total)
      return report
    }
  }
}
