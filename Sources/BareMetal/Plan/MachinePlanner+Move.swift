import IaaS
import Kubernetes

/// A machine on its way to another host. The order is the safe one: the target is held, then the source is stopped and
/// cleared behind the same fence as at a machine's end, and only a source that is given back makes the target count.
extension MachinePlanner {
  /// Plans on the source. Until the target is held, the machine goes on as if nothing were.
  mutating func planMove(_ move: MachineMove, from host: BareMetalHost, name: String, mayStart: Bool) {
    let target = view.hosts.first { $0.metadata.name == move.target }
    guard let target, target.status?.claim?.uid == uid else {
      if let target, target.status?.claim == nil, !target.metadata.isBeingDeleted {
        steps.append(.claimHost(move.target))
      }
      planOnHost(host, name: name, mayStart: mayStart)
      return
    }
    isLeaving = true
    let power = (view.power[name] ?? PowerView()).trusting(host)
    let leaving = evacuation(of: name, grace: move.grace ?? grace, keeping: move.target)
    steps += leaving.steps
    let message = "moves from \(name) to \(move.target) (migration \(move.migration))"
    set(Kind.migrating, true, "Migrating", message)
    let detail = leaving.waitsFor.map { "\(message): \($0)" } ?? message
    set(Kind.powered, power.power == .on, "Migrating", detail)
    set(Kind.reachable, false, "Migrating", detail)
    guard power.fencedOff else { return }
    set(Kind.attached, false, "Migrating", detail)
    guard status.bootedAt != nil else { return }
    if restartWanted { status.observedRestart = machine.metadata.annotations?[Names.restartAnnotation] }
    nextBoot()
  }
}
