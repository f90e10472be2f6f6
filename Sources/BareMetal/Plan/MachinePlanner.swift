import IaaS
import Kubernetes

/// Decides what to do for a machine and what its status says: no I/O, no clock, no randomness.
package func plan(_ view: MachineView) -> MachinePlan {
  var planner = MachinePlanner(view)
  if view.machine.metadata.isBeingDeleted {
    planner.planDeletion()
  } else if !view.machine.metadata.hasFinalizer(Names.machineFinalizer) {
    planner.steps = [.addFinalizer]
  } else {
    planner.planLife()
  }
  return MachinePlan(steps: planner.steps, status: planner.status)
}

/// Whether the plan depends on the user data: before a boot, where boot data has to be written again, and while the spec
/// may differ from what the machine booted with.
package func needsUserData(_ view: MachineView) -> Bool {
  let machine = view.machine
  guard !machine.metadata.isBeingDeleted else { return false }
  guard machine.status?.bootedAt != nil, machine.spec.cloudInit?.userDataSecretRef != nil else { return true }
  if machine.metadata.generation != machine.status?.observedGeneration { return true }
  if machine.status?.conditions?.isTrue(BareMetalMachine.ConditionType.restartNeeded) == true { return true }
  guard let host = machine.status?.host, let data = view.bootData[host].flatMap({ try? BootData($0) }) else {
    return true
  }
  return data.machineUID != machine.metadata.uid || data.isWithdrawn
}

/// The state of one planning: the steps and the status grow while the parts look at the view.
struct MachinePlanner {
  let view: MachineView
  let machine: BareMetalMachine
  let uid: String
  let key: ObjectKey
  var status: BareMetalMachine.Status
  var conditions: [Condition]
  var steps: [MachineStep] = []
  /// Disks with a bound volume: name to the PersistentVolume's.
  var volumes: [String: String] = [:]
  /// The handles of these volumes, by the PersistentVolume's name.
  var handles: [String: String] = [:]
  /// Fields of the spec that differ from what the running machine was booted with.
  var changedFields: [String] = []
  /// Whether the machine is being taken from its host to get another one.
  var isLeaving = false
  let orders: [String: Int]

  typealias Kind = BareMetalMachine.ConditionType

  init(_ view: MachineView) {
    self.view = view
    machine = view.machine
    uid = machine.metadata.uid ?? ""
    key = machine.key
    status = machine.status ?? BareMetalMachine.Status()
    conditions = status.conditions ?? []
    orders = bootOrders(machine.spec.disks)
  }

  /// How long the guest has to shut down. A restart that was asked for may say so; a stop has the usual time.
  var grace: Duration {
    guard machine.spec.running, restartWanted, let asked = machine.metadata.annotations?[Names.restartAnnotation] else {
      return view.shutdownGrace
    }
    return RestartRequest(asked).grace(usual: view.shutdownGrace)
  }
  var boot: Int64 { status.boot ?? 1 }
  var token: String { BootData.token(machineUID: uid, boot: boot) }

  mutating func set(_ type: String, _ holds: Bool, _ reason: String, _ message: String) {
    conditions.set(
      type, Condition.Status(holds), reason: reason, message: message, observedGeneration: machine.metadata.generation,
      now: Timestamp(view.now.date))
  }

  /// The hosts that the machine holds; the one that counts first.
  var heldHosts: [BareMetalHost] {
    let held = view.hosts.filter { $0.status?.claim?.uid == uid }
    return held.sorted { left, right in
      let leftCounts = left.metadata.name == status.host
      let rightCounts = right.metadata.name == status.host
      return leftCounts != rightCounts ? leftCounts : (left.metadata.name ?? "") < (right.metadata.name ?? "")
    }
  }

  // MARK: Life

  mutating func planLife() {
    status.observedGeneration = machine.metadata.generation
    stampApplied()
    let problems = specProblems(machine)
    set(
      Kind.valid, problems.isEmpty, problems.first?.reason ?? "Valid",
      problems.isEmpty ? "the spec makes sense" : problems.map(\.message).joined(separator: "; "))
    tellRivals()
    let volumesAreComing = planVolumes(mayCreate: problems.isEmpty)

    let held = heldHosts
    let current = held.first
    let move = view.move
    evacuateOthers(than: current, sparing: move?.target)
    if move == nil { conditions.remove(Kind.migrating) }

    if let host = current, let name = host.metadata.name {
      // Another host is another boot, whatever became of the last one.
      if let before = status.host, before != name, status.bootedAt != nil { nextBoot() }
      status.host = name
      if status.timeline?.hostClaimed == nil { status.timeline?.hostClaimed = view.now }
      set(Kind.hostClaimed, true, "Claimed", "the machine holds \(name)")
      if let move, move.target != name {
        planMove(move, from: host, name: name, mayStart: problems.isEmpty)
      } else {
        planOnHost(host, name: name, mayStart: problems.isEmpty)
      }
    } else {
      planWithoutHost(mayClaim: problems.isEmpty && volumesAreComing)
    }
    finish()
  }

  /// Two machines that ask for one address disturb each other where they share a network, which is not known here. So it
  /// is told, and both may run.
  private mutating func tellRivals() {
    let conflicts = machine.spec.interfaces.flatMap { interface in
      [("macAddress", interface.macAddress?.lowercased()), ("address", interface.address)].compactMap { field, asked in
        asked.flatMap { asked in
          view.rivals[asked]?.first.map { "\(field) \(asked) of interface '\(interface.name)' is asked for by \($0)" }
        }
      }
    }
    if conflicts.isEmpty {
      conditions.remove(Kind.addressesUnique)
    } else {
      set(
        Kind.addressesUnique, false, "Duplicate",
        conflicts.joined(separator: "; ") + " as well; change one of them if they share a network")
    }
  }

  private mutating func stampApplied() {
    if status.timeline == nil { status.timeline = BareMetalMachine.Timeline() }
    guard status.timeline?.applied == nil else { return }
    // The API server's time has whole seconds; what is seen at once is known better than that.
    guard let created = machine.metadata.creationTimestamp else {
      status.timeline?.applied = view.now
      return
    }
    let exact = MicroTimestamp(created.date)
    let isFresh = view.now.microseconds - exact.microseconds < 2_000_000
    status.timeline?.applied = isFresh ? view.now : exact
  }

  /// Takes the machine's attachments and claims back from hosts that are not, or no longer, its host.
  private mutating func evacuateOthers(than current: BareMetalHost?, sparing target: String?) {
    var names = Set(view.attachments.compactMap(\.host))
    names.formUnion(heldHosts.dropFirst().compactMap(\.metadata.name))
    if let name = current?.metadata.name { names.remove(name) }
    if let target { names.remove(target) }
    // A host that was lost keeps what is on it until somebody decides: see `planWithoutHost`.
    if current == nil, let lost = status.host { names.remove(lost) }
    for name in names.sorted() { steps += evacuation(of: name, keeping: current?.metadata.name).steps }
  }

  func evacuation(of name: String, grace: Duration = .zero, keeping kept: String? = nil) -> Evacuation {
    evacuate(
      hostName: name, host: view.hosts.first { $0.metadata.name == name }, uid: uid,
      attachments: view.attachments.filter { $0.host == name }, bootData: view.bootData[name],
      power: view.power[name], grace: grace, keeping: kept)
  }

  private mutating func planWithoutHost(mayClaim: Bool) {
    if let lost = status.host {
      let host = view.hosts.first { $0.metadata.name == lost }
      set(Kind.powered, false, "HostLost", "the host \(lost) is not the machine's any more")
      guard let host else {
        set(
          Kind.hostClaimed, false, "HostGone",
          "the host \(lost) was removed while the machine held it, and its server may still be running; register it "
            + "again under the same name, or delete the machine")
        return
      }
      if let claim = host.status?.claim, status.bootedAt == nil, view.attachments.isEmpty {
        // Given back in good order by one who did not write it down, and taken by another: nothing is left there.
        status.host = nil
        set(
          Kind.hostClaimed, false, "Waiting",
          "the host \(lost) is held by \(claim.namespace)/\(claim.name) now; takes another")
        return
      }
      if let claim = host.status?.claim {
        set(
          Kind.hostClaimed, false, "HostLost",
          "the host \(lost) is held by \(claim.namespace)/\(claim.name) now; delete this machine")
        return
      }
      if host.metadata.isBeingDeleted {
        set(Kind.hostClaimed, false, "HostGone", "the host \(lost) is being removed; delete the machine")
        return
      }
      // Its claim was lost, for example with the host object, which is back: take it again.
      set(Kind.hostClaimed, false, "Reclaiming", "takes the host \(lost) again")
      steps.append(.claimHost(lost))
      return
    }
    guard machine.spec.running else {
      set(Kind.hostClaimed, false, "NotNeeded", "the machine is not wanted to run yet")
      return
    }
    guard mayClaim else {
      set(Kind.hostClaimed, false, "Waiting", "no host is claimed before the spec and the volumes are in order")
      return
    }
    switch Scheduler.decide(machine, hosts: view.hosts) {
    case .place(let name):
      set(Kind.hostClaimed, false, "Claiming", "takes the host \(name)")
      steps.append(.claimHost(name))
    case .wait(let reason, let message):
      set(Kind.hostClaimed, false, reason, message)
    }
  }

  // MARK: The end of a plan

  /// Derives phase, message and Ready from the conditions.
  private mutating func finish() {
    tellChanges()
    let wantsToRun = machine.spec.running
    let order = [
      Kind.valid, Kind.volumesReady, Kind.hostClaimed, Kind.attached, Kind.powered, Kind.reachable,
    ]
    let unmet = order.compactMap { conditions.condition($0) }.first { $0.status != .true }

    status.phase = phase()
    switch status.phase {
    case .running:
      let asked = unmet == nil || unmet?.type == Kind.reachable
      set(Kind.ready, asked, asked ? "Running" : "Degraded", unmet?.message ?? "the machine runs")
      status.message = unmet?.message
    case .stopped where !wantsToRun:
      let invalid = conditions.condition(Kind.valid)?.status != .true
      set(
        Kind.ready, !invalid, invalid ? "Invalid" : "Stopped",
        invalid ? unmet?.message ?? "" : "the machine is off, as wanted")
      status.message = invalid ? unmet?.message : nil
    default:
      set(Kind.ready, false, status.phase?.rawValue ?? "Pending", unmet?.message ?? "on its way")
      status.message = unmet?.message
    }
    status.conditions = conditions
  }

  private func phase() -> BareMetalMachine.Phase {
    let isOnHost = conditions.isTrue(Kind.hostClaimed)
    let power = status.host.flatMap { view.power[$0]?.power } ?? .unknown
    if stopWanted {
      if status.bootedAt != nil { return .stopping }
      if !machine.spec.running { return isOnHost && power == .on ? .stopping : .stopped }
    }
    guard isOnHost else { return .pending }
    if isLeaving, status.bootedAt != nil { return .stopping }
    guard status.bootedAt != nil else {
      return conditions.isTrue(Kind.attached) ? .starting : .provisioning
    }
    guard conditions.isTrue(Kind.powered) else { return .starting }
    if machine.spec.interfaces.isEmpty || conditions.isTrue(Kind.reachable) { return .running }
    // Once it was seen running in this boot, a guest that stops answering is a matter of its condition.
    return machine.status?.phase == .running && machine.status?.boot == status.boot ? .running : .starting
  }

  /// A restart was asked for that has not been acted on.
  var restartWanted: Bool {
    guard let asked = machine.metadata.annotations?[Names.restartAnnotation] else { return false }
    return asked != status.observedRestart
  }

  var stopWanted: Bool { !machine.spec.running || (restartWanted && status.bootedAt != nil) }
}
