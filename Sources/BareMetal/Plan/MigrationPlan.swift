package import IaaS
package import Kubernetes
import Reconciler

/// Everything that a migration's plan looks at.
package struct MigrationView: Sendable {
  package var migration: BareMetalMachineMigration
  /// Nil where the machine is gone for sure.
  package var machine: BareMetalMachine?
  package var hosts: [BareMetalHost]
  /// Other migrations that name the same machine.
  package var others: [BareMetalMachineMigration]
  /// The power of the source.
  package var sourcePower: PowerView
  package var now: MicroTimestamp

  package init(migration: BareMetalMachineMigration, now: MicroTimestamp) {
    self.migration = migration
    self.now = now
    hosts = []
    others = []
    sourcePower = PowerView()
  }
}

/// Decides what a migration's status says: which target, how far, and how it ended. The steps are the machine's, whose
/// plan looks at this status; so a migration that is deleted or forgotten leaves a machine that knows what to do.
package func plan(_ view: MigrationView) -> BareMetalMachineMigration.Status {
  var planner = MigrationPlanner(view)
  planner.plan()
  return planner.status
}

private struct MigrationPlanner {
  typealias Kind = BareMetalMachineMigration.ConditionType

  let view: MigrationView
  let migration: BareMetalMachineMigration
  var status: BareMetalMachineMigration.Status
  var conditions: [Condition]

  init(_ view: MigrationView) {
    self.view = view
    migration = view.migration
    status = migration.status ?? .init()
    conditions = status.conditions ?? []
  }

  private var name: String { migration.spec.machineName }

  private func host(_ name: String?) -> BareMetalHost? { view.hosts.first { $0.metadata.name == name } }

  private mutating func set(_ type: String, _ holds: Bool, _ reason: String, _ message: String) {
    conditions.set(
      type, Condition.Status(holds), reason: reason, message: message,
      observedGeneration: migration.metadata.generation,
      now: Timestamp(view.now.date))
  }

  private mutating func go(_ phase: BareMetalMachineMigration.Phase, _ reason: String, _ message: String) {
    status.phase = phase
    status.reason = reason
    status.message = message
  }

  private mutating func fail(_ reason: String, _ message: String) {
    go(.failed, reason, message)
    set(Kind.complete, false, reason, message)
  }

  mutating func plan() {
    guard !migration.isFinished else { return }
    if status.timeline == nil { status.timeline = .init() }
    if status.timeline?.accepted == nil { status.timeline?.accepted = view.now }
    follow()
    if !migration.isFinished, status.phase != .failed, status.phase != .succeeded {
      set(Kind.complete, false, status.reason ?? "Pending", status.message ?? "")
    }
    status.conditions = conditions
  }

  private mutating func follow() {
    guard let machine = view.machine, let uid = machine.metadata.uid else {
      return fail("MachineNotFound", "spec.machineName: there is no machine '\(name)' in this namespace")
    }
    if let known = status.machineUID, known != uid {
      return fail("MachineGone", "the machine '\(name)' was deleted; the one that has its name now is another")
    }
    status.machineUID = uid
    guard !machine.metadata.isBeingDeleted else {
      return fail("MachineDeleted", "the machine '\(name)' is being deleted")
    }
    if migration.isUnderWay, status.phase != .reserving, let target = status.targetHost {
      return followMove(of: machine, uid: uid, to: target)
    }
    // Nothing has happened yet: everything is looked at anew.
    if let first = view.others.filter({ $0.isOpen && $0.goesBefore(migration) }).min(by: { $0.goesBefore($1) }) {
      status.targetHost = nil
      return go(.pending, "AnotherFirst", "waits for the migration '\(first.key.name)' of the same machine")
    }
    choose(for: machine, uid: uid)
  }

  // MARK: Before the target is held

  private mutating func choose(for machine: BareMetalMachine, uid: String) {
    guard let sourceName = machine.status?.host else {
      return fail(
        "NoHost", "the machine '\(name)' holds no host, so nothing is to be moved; where it starts is up to its spec")
    }
    guard let source = host(sourceName), source.status?.claim?.uid == uid else {
      return fail(
        "HostLost",
        "the machine does not hold its host \(sourceName) any more, and whether its server is off cannot be known; "
          + "see the condition HostClaimed of the machine")
    }
    status.sourceHost = sourceName
    if let problem = refusal(of: machine, source: source) { return fail(problem.reason, problem.message) }

    if status.phase == .reserving, let target = host(status.targetHost) {
      if target.status?.claim?.uid == uid {
        status.timeline?.reserved = view.now
        set(Kind.targetReserved, true, "Reserved", "\(target.key.name) is held for the machine")
        return followMove(of: machine, uid: uid, to: target.key.name)
      }
      if objection(to: target, for: machine, from: source) == nil {
        return go(.reserving, "Reserving", "takes the host \(target.key.name)")
      }
    }
    var wanted = machine
    wanted.spec.hostName = migration.spec.targetHost
    if wanted.spec.hostName != nil {
      wanted.spec.hostSelector = nil
    } else if let labels = migration.spec.hostSelector?.matchLabels {
      var all = wanted.spec.hostSelector?.matchLabels ?? [:]
      all.merge(labels) { _, new in new }
      wanted.spec.hostSelector = .init(matchLabels: all)
    }
    let fitting = view.hosts.filter { misfit($0, from: source) == nil && $0.metadata.name != sourceName }
    switch Scheduler.decide(wanted, hosts: fitting) {
    case .place(let target):
      status.targetHost = target
      set(Kind.targetReserved, false, "Reserving", "takes the host \(target)")
      go(.reserving, "Reserving", "takes the host \(target)")
    case .wait(let reason, let message):
      status.targetHost = nil
      set(Kind.targetReserved, false, reason, message)
      go(.pending, reason, "\(message); the machine stays on \(sourceName) until a host is free")
    }
  }

  /// Why this can never be done, whatever becomes free.
  private func refusal(of machine: BareMetalMachine, source: BareMetalHost) -> SpecProblem? {
    let sourceName = source.key.name
    if let target = migration.spec.targetHost {
      if migration.spec.hostSelector != nil {
        return SpecProblem(
          "TargetAmbiguous", "spec.targetHost is '\(target)' and spec.hostSelector is set as well; remove one of them")
      }
      if target == sourceName { return SpecProblem("AlreadyThere", "spec.targetHost: the machine is on \(target)") }
      guard let host = host(target) else {
        return SpecProblem("HostNotFound", "spec.targetHost is '\(target)', but there is no such host")
      }
      if let misfit = misfit(host, from: source) {
        return SpecProblem("DoesNotFit", "spec.targetHost: \(target) \(misfit); choose another host")
      }
      if let labels = machine.spec.hostSelector?.matchLabels,
        let missing = labels.sorted(by: { $0.key < $1.key }).first(where: { host.metadata.labels?[$0.key] != $0.value })
      {
        return SpecProblem(
          "NotSelected",
          "spec.targetHost: \(target) lacks the label \(missing.key)=\(missing.value), which the machine's "
            + "spec.hostSelector asks for")
      }
    } else if let labels = machine.spec.hostSelector?.matchLabels, let more = migration.spec.hostSelector?.matchLabels,
      let clash = labels.sorted(by: { $0.key < $1.key }).first(where: { more[$0.key] ?? $0.value != $0.value })
    {
      return SpecProblem(
        "NotSelected",
        "spec.hostSelector asks for \(clash.key)=\(more[clash.key] ?? ""), and the machine's own for \(clash.value)")
    }
    if let pinned = machine.spec.hostName, pinned != migration.spec.targetHost {
      return SpecProblem(
        "Pinned",
        "the machine's spec.hostName is '\(pinned)': name that host as the target, or remove the field from the machine"
      )
    }
    if machine.spec.running, let problem = specProblems(machine).first {
      return SpecProblem(
        "MachineInvalid", "the machine would not start again on another host: \(problem.message)")
    }
    return nil
  }

  /// Why the hardware of a host is not what the guest was on, or nil. What a BMC does not tell is no objection.
  private func misfit(_ target: BareMetalHost, from source: BareMetalHost) -> String? {
    guard let there = target.status?.hardware, let here = source.status?.hardware else { return nil }
    if let wanted = here.cpu?.architecture, let has = there.cpu?.architecture, wanted != has {
      return "has \(has) processors, and the guest runs on \(wanted)"
    }
    if let wanted = here.firmwareMode, let has = there.firmwareMode, wanted != has {
      return "boots by \(has), and the guest was booted by \(wanted)"
    }
    // Somebody who names the host knows how much it has.
    if migration.spec.targetHost == nil, let wanted = here.memoryMiB, let has = there.memoryMiB, has < wanted {
      return "has less memory (\(has) MiB) than \(source.key.name) (\(wanted) MiB)"
    }
    return nil
  }

  private func objection(
    to target: BareMetalHost, for machine: BareMetalMachine, from source: BareMetalHost
  ) -> String? {
    misfit(target, from: source) ?? Scheduler.objection(to: target, for: machine)
  }

  // MARK: With the target held

  private mutating func followMove(of machine: BareMetalMachine, uid: String, to target: String) {
    let source = status.sourceHost ?? ""
    let holdsSource = host(source)?.status?.claim?.uid == uid
    let holdsTarget = host(target)?.status?.claim?.uid == uid
    guard holdsTarget else {
      set(Kind.targetReserved, false, "TargetLost", "\(target) is not held for the machine any more")
      let stays = holdsSource ? "; the machine stays on \(source)" : "; see the condition HostClaimed of the machine"
      return fail("TargetLost", "the target \(target) is not the machine's any more\(stays)")
    }
    if holdsSource, machine.status?.host != target {
      if let trouble = trouble(of: target) {
        return fail(
          "TargetFailed", "the target \(target) \(trouble); nothing was moved, the machine stays on \(source)")
      }
      noteStopping(machine, source: source, target: target)
      return
    }
    status.beyondReturn = true
    if status.timeline?.released == nil { status.timeline?.released = view.now }
    noteStopped()
    set(Kind.sourceReleased, true, "Released", "nothing of the machine is on \(source) any more")
    guard machine.status?.host == target else {
      return go(.starting, "Starting", "the machine is on its way to \(target)")
    }
    guard machine.spec.running else { return succeed("the machine is stopped, and \(target) is its host now", at: nil) }
    guard let booted = machine.status?.bootedAt else {
      return go(.starting, "Starting", machine.status?.message ?? "the machine is being started on \(target)")
    }
    succeed("the machine was booted on \(target)", at: booted)
  }

  private mutating func noteStopping(_ machine: BareMetalMachine, source: String, target: String) {
    if status.timeline?.wentOff == nil, view.sourcePower.power == .off { status.timeline?.wentOff = view.now }
    guard machine.status?.bootedAt == nil || view.sourcePower.fencedOff else {
      let problem = view.sourcePower.problem.map { ", but \($0)" } ?? ""
      set(Kind.sourceStopped, false, "Stopping", "\(source) reads \(view.sourcePower.power.rawValue)\(problem)")
      return go(
        .stopping, "Stopping",
        "waits for the server \(source) to be seen off several times in a row (it reads "
          + "\(view.sourcePower.power.rawValue))\(problem)")
    }
    guard view.sourcePower.fencedOff else {
      return go(.stopping, "Stopping", machine.status?.message ?? "waits for the server \(source) to be seen off")
    }
    noteStopped()
    go(.moving, "Moving", machine.status?.message ?? "takes disks and network from \(source)")
  }

  private mutating func noteStopped() {
    var timeline = status.timeline ?? .init()
    let wentOff = timeline.wentOff ?? view.now
    timeline.wentOff = wentOff
    if timeline.stopped == nil {
      timeline.stopped = view.now
      timeline.fenceSeconds = seconds(wentOff, view.now)
    }
    status.timeline = timeline
    set(Kind.sourceStopped, true, "Off", "\(status.sourceHost ?? "the source") was seen off several times in a row")
  }

  private mutating func succeed(_ message: String, at booted: MicroTimestamp?) {
    if let booted {
      var timeline = status.timeline ?? .init()
      timeline.poweredOn = booted
      timeline.ownSeconds = timeline.stopped.map { seconds($0, booted) }
      timeline.downSeconds = timeline.wentOff.map { seconds($0, booted) }
      status.timeline = timeline
    }
    go(.succeeded, "Done", message)
    set(Kind.complete, true, "Done", message)
  }

  /// Why a host that is held cannot take the machine now.
  private func trouble(of name: String) -> String? {
    guard let host = host(name) else { return "is gone" }
    if host.metadata.isBeingDeleted { return "is being removed" }
    let conditions = host.status?.conditions ?? []
    if conditions.condition(BareMetalHost.ConditionType.bmcReachable)?.status == .false {
      return "has a BMC that does not answer"
    }
    if conditions.condition(BareMetalHost.ConditionType.dpuReady)?.status == .false {
      return "has a DPU that is not ready"
    }
    return nil
  }

  private func seconds(_ from: MicroTimestamp, _ to: MicroTimestamp) -> Double {
    (Double(max(0, to.microseconds - from.microseconds)) / 1000).rounded() / 1000
  }
}

extension BareMetalMachineMigration {
  package var isOpen: Bool { !isFinished && !metadata.isBeingDeleted }
}

/// The events of a change of a migration's status.
package func migrationEvents(
  from old: BareMetalMachineMigration.Status?, to new: BareMetalMachineMigration.Status
) -> [PlannedEvent] {
  guard let phase = new.phase, phase != old?.phase || (phase == .pending && new.reason != old?.reason) else {
    return []
  }
  let isTrouble = phase == .failed || (phase == .pending && new.reason != "AnotherFirst")
  return [
    PlannedEvent(
      type: isTrouble ? .warning : .normal, reason: phase == .failed ? new.reason ?? "Failed" : phase.rawValue,
      message: new.message ?? phase.rawValue)
  ]
}
