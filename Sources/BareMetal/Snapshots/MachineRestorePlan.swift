package import IaaS
package import Kubernetes

/// Everything that is known about a restore.
package struct MachineRestoreView: Sendable {
  package var restore: BareMetalMachineRestore
  package var machine: BareMetalMachine?
  package var snapshot: BareMetalMachineSnapshot?
  /// The snapshots that were made for this of what was there before, by name.
  package var previous: [String: BareMetalMachineSnapshot] = [:]
  /// Other restores of the same machine that are not at their end and are older.
  package var before: [String] = []
  /// Claims of the machine's namespace that the restore makes or replaces, by name.
  package var claims: [String: PersistentVolumeClaim] = [:]
  /// Attachments that carry the machine's UID.
  package var attachments: [VolumeAttachment] = []
  package var now: MicroTimestamp

  package init(restore: BareMetalMachineRestore, now: MicroTimestamp) {
    self.restore = restore
    self.now = now
  }
}

/// Decides what to do for a restore: no I/O, no clock, no randomness.
///
/// New volumes are made from the snapshots beside those that the machine has; then one change of the machine's spec
/// names all of them in place of the old. That change holds only for the version of a machine that is off, and what it
/// had then has been kept in a snapshot. So at any moment the machine has all the old disks or all the new ones.
package func plan(_ view: MachineRestoreView) -> LifePlan<BareMetalMachineRestore.Status> {
  var planner = MachineRestorePlanner(view)
  planner.run()
  return planner.plan
}

struct MachineRestorePlanner {
  typealias Kind = BareMetalMachineRestore.ConditionType

  let view: MachineRestoreView
  let object: BareMetalMachineRestore
  var plan: LifePlan<BareMetalMachineRestore.Status>

  init(_ view: MachineRestoreView) {
    self.view = view
    object = view.restore
    plan = LifePlan(status: view.restore.status ?? .init())
  }

  private var uid: String { object.metadata.uid ?? "" }

  private mutating func set(_ type: String, _ holds: Bool, _ reason: String, _ message: String) {
    var conditions = plan.status.conditions ?? []
    conditions.set(
      type, Condition.Status(holds), reason: reason, message: message, observedGeneration: object.metadata.generation,
      now: Timestamp(view.now.date))
    plan.status.conditions = conditions
  }

  private mutating func wait(_ phase: BareMetalMachineRestore.Phase, _ reason: String, _ message: String) {
    plan.status.phase = phase
    plan.status.message = message
    set(Kind.ready, false, reason, message)
  }

  mutating func run() {
    if object.metadata.isBeingDeleted { return planDeletion() }
    guard object.metadata.hasFinalizer(Names.lifeFinalizer) else {
      plan.steps = [.addFinalizer]
      return
    }
    plan.status.observedGeneration = object.metadata.generation
    switch plan.status.phase {
    case .failed: return
    case .succeeded: cleanUp()
    default: work()
    }
  }

  private mutating func work() {
    guard let snapshot = view.snapshot else {
      return wait(
        .pending, "SnapshotNotFound",
        "spec.snapshotName: there is no BareMetalMachineSnapshot '\(object.spec.snapshotName)' in this namespace")
    }
    guard let machine = view.machine, !machine.metadata.isBeingDeleted else {
      if plan.status.machineUID != nil { return wait(.failed, "MachineGone", "the machine is gone") }
      return wait(
        .pending, "MachineNotFound",
        "spec.machineName: there is no machine '\(object.spec.machineName)' in this namespace; check the name")
    }
    guard plan.status.machineUID == nil || plan.status.machineUID == machine.metadata.uid else {
      return wait(.failed, "MachineGone", "the machine '\(machine.key.name)' is another one by now; make a new restore")
    }
    if isSwitched(machine) { return finish() }
    guard snapshot.status?.readyToUse == true, let captured = snapshot.status?.disks, !captured.isEmpty else {
      return wait(
        .pending, "SnapshotNotReady",
        "the snapshot '\(snapshot.key.name)' is not ready to use: \(snapshot.status?.message ?? "it is being taken")")
    }
    guard plan.status.snapshotUID == nil || plan.status.snapshotUID == snapshot.metadata.uid else {
      return wait(.failed, "SnapshotGone", "the snapshot '\(snapshot.key.name)' is another one by now")
    }
    guard view.before.isEmpty else {
      return wait(
        .pending, "Waiting", "another restore of the machine comes first: \(view.before.joined(separator: ", "))")
    }
    guard plan.status.disks != nil else {
      plan.status.machineUID = machine.metadata.uid
      plan.status.snapshotUID = snapshot.metadata.uid
      plan.status.startedAt = view.now
      plan.status.disks = captured.map { disk in
        BareMetalMachineRestore.Disk(name: disk.name, claim: claimName(disk.name, machine))
      }
      wait(.preparing, "Preparing", "volumes are being made from the snapshots")
      plan.lookAgain = .zero
      return
    }
    guard makeClaims(captured, machine) else { return }
    guard park(machine), let previous = keepPrevious(machine) else { return }
    switchDisks(machine, captured, previous: previous)
  }

  // MARK: New disks

  private func claimName(_ disk: String, _ machine: BareMetalMachine) -> String {
    "\(machine.key.name)-\(disk)-\(uid.prefix(8))"
  }

  /// Makes the claims, while the machine may still run: so a full pool is noticed before anything is stopped.
  private mutating func makeClaims(
    _ captured: [BareMetalMachineSnapshot.Disk], _ machine: BareMetalMachine
  ) -> Bool {
    var waits: [String] = []
    for (index, disk) in (plan.status.disks ?? []).enumerated() {
      guard let source = captured.first(where: { $0.name == disk.name }) else { continue }
      guard let claim = view.claims[disk.claim] else {
        plan.steps.append(.createClaim(self.claim(disk.claim, from: source, machine)))
        waits.append("the claim \(disk.claim) is being made")
        continue
      }
      guard claim.metadata.labels?[Names.makerUIDLabel] == uid else {
        wait(.failed, "NameTaken", "there is a claim '\(disk.claim)' that was not made for this; delete it")
        return false
      }
      if claim.status?.phase == "Bound" {
        plan.status.disks?[index].bound = true
      } else {
        let reason = claim.metadata.annotations?[Names.provisioningMessageAnnotation]
        waits.append("the claim \(disk.claim) has no volume yet" + (reason.map { ": \($0)" } ?? ""))
      }
    }
    guard waits.isEmpty else {
      let message = waits.joined(separator: "; ")
      set(Kind.claimsReady, false, "Waiting", message)
      wait(.preparing, "Preparing", message)
      return false
    }
    set(Kind.claimsReady, true, "Bound", "the volumes with the content of the snapshot are there")
    return true
  }

  private func claim(
    _ name: String, from disk: BareMetalMachineSnapshot.Disk, _ machine: BareMetalMachine
  ) -> PersistentVolumeClaim {
    var metadata = ObjectMeta(name: name, namespace: object.key.namespace)
    metadata.labels = [Names.makerUIDLabel: uid]
    if disk.ownedByMachine == true {
      metadata.labels?[Names.machineUIDLabel] = machine.metadata.uid
      metadata.ownerReferences = OwnerReference(owner: machine).map { [$0] }
    }
    return PersistentVolumeClaim(
      metadata: metadata,
      spec: .init(
        accessModes: ["ReadWriteOnce"],
        resources: .init(requests: disk.restoreSize.flatMap { Quantity($0) }.map { ["storage": $0] } ?? [:]),
        storageClassName: disk.storageClassName, volumeMode: "Block",
        dataSource: TypedLocalObjectReference(
          apiGroup: VolumeSnapshot.definition.group, kind: VolumeSnapshot.definition.kind, name: disk.volumeSnapshot)))
  }

  // MARK: The machine is off

  private mutating func park(_ machine: BareMetalMachine) -> Bool {
    guard !machine.isParked else {
      set(Kind.machineStopped, true, "Stopped", "the server was seen off")
      return true
    }
    guard machine.spec.running else {
      let message = "waits for the server of '\(machine.key.name)' to be seen off"
      set(Kind.machineStopped, false, "Stopping", message)
      wait(.stopping, "Stopping", message)
      return false
    }
    guard object.spec.stopMachine else {
      let message =
        "the machine '\(machine.key.name)' is to run; stop it (bmctl stop \(machine.key.name)), or set spec.stopMachine "
        + "to true, which starts it again afterwards"
      set(Kind.machineStopped, false, "MachineRuns", message)
      wait(.stopping, "MachineRuns", message)
      return false
    }
    wait(.stopping, "Stopping", "the machine '\(machine.key.name)' is being stopped")
    set(Kind.machineStopped, false, "Stopping", "the machine '\(machine.key.name)' is being stopped")
    guard plan.status.startsMachine == true else {
      // Who stops it has to know later that it was running.
      plan.status.startsMachine = true
      plan.lookAgain = .zero
      return false
    }
    plan.steps.append(.setRunning(machine.key, version: machine.metadata.resourceVersion ?? "", false))
    return false
  }

  /// The name of a snapshot of what the machine has now; nil while there is none.
  private mutating func keepPrevious(_ machine: BareMetalMachine) -> String? {
    let attempt = plan.status.previousAttempt ?? 1
    let name = "\(object.key.name)-before" + (attempt == 1 ? "" : "-\(attempt)")
    guard let present = view.previous[name] else {
      guard plan.status.previousSnapshot == name else {
        plan.status.previousSnapshot = name
        wait(.saving, "Saving", "the disks of before are being captured")
        plan.lookAgain = .zero
        return nil
      }
      var metadata = ObjectMeta(name: name, namespace: object.key.namespace)
      metadata.labels = [Names.makerUIDLabel: uid]
      metadata.annotations = [Names.machineAnnotation: machine.key.description]
      plan.steps.append(
        .createSnapshot(BareMetalMachineSnapshot(metadata: metadata, spec: .init(machineName: machine.key.name))))
      wait(.saving, "Saving", "the disks of before are being captured")
      return nil
    }
    guard present.metadata.labels?[Names.makerUIDLabel] == uid else {
      wait(.failed, "NameTaken", "there is a BareMetalMachineSnapshot '\(name)' that was not made for this")
      return nil
    }
    let status = present.status
    guard status?.phase != .failed else {
      wait(.failed, "NotSaved", "what the machine has now could not be captured: \(status?.message ?? "")")
      return nil
    }
    guard status?.readyToUse == true else {
      wait(.saving, "Saving", "the disks of before are being captured: \(status?.message ?? "")")
      return nil
    }
    guard status?.consistency == .clean, status?.machineUID == machine.metadata.uid,
      status?.machineGeneration == machine.metadata.generation, status?.machineBoot == machine.status?.boot
    else {
      // It has been on since.
      plan.status.previousAttempt = attempt + 1
      wait(.saving, "Saving", "the machine has changed since; its disks are captured again")
      plan.lookAgain = .zero
      return nil
    }
    return name
  }

  // MARK: The change

  /// The machine's spec as the snapshot has it.
  private var capturedSpec: BareMetalMachine.Spec? {
    view.snapshot?.status?.machineSpec.flatMap { try? MergePatch.value(BareMetalMachine.Spec.self, from: $0) }
  }

  private func isSwitched(_ machine: BareMetalMachine) -> Bool {
    guard let disks = plan.status.disks, !disks.isEmpty else { return false }
    return disks.allSatisfy { disk in
      machine.spec.disks.contains { $0.name == disk.name && $0.existingClaim?.claimName == disk.claim }
    }
  }

  private mutating func switchDisks(
    _ machine: BareMetalMachine, _ captured: [BareMetalMachineSnapshot.Disk], previous: String
  ) {
    var changes = plan.status.disks ?? []
    var disks = machine.spec.disks
    for index in changes.indices {
      let name = changes[index].name
      let claim = BareMetalMachine.ExistingClaim(claimName: changes[index].claim)
      if let place = disks.firstIndex(where: { $0.name == name }) {
        changes[index].replaces =
          disks[place].existingClaim?.claimName ?? Names.claim(machine: machine.key.name, disk: name)
        disks[place].existingClaim = claim
        disks[place].template = nil
      } else {
        let source = captured.first { $0.name == name }
        disks.append(
          .init(
            name: name, bootOrder: source?.bootOrder, readOnly: source?.readOnly ?? false,
            limits: capturedSpec?.disks.first { $0.name == name }?.limits, existingClaim: claim))
      }
    }
    wait(.switching, "Switching", "the machine gets the disks of the snapshot")
    guard plan.status.disks == changes else {
      plan.status.disks = changes
      plan.lookAgain = .zero
      return
    }
    plan.steps.append(
      .switchDisks(
        machine.key, version: machine.metadata.resourceVersion ?? "", disks,
        running: plan.status.startsMachine == true))
  }

  private mutating func finish() {
    plan.status.phase = .succeeded
    plan.status.completedAt = view.now
    plan.status.message = nil
    set(
      Kind.ready, true, "Restored",
      "the machine has the disks of the snapshot '\(object.spec.snapshotName)'; those of before are in the snapshot "
        + "'\(plan.status.previousSnapshot ?? "")'")
    plan.lookAgain = .zero
  }

  /// Removes the machine's own disks of before, which a snapshot has, once no server sees them any more. Claims that
  /// belong to somebody else stay.
  private mutating func cleanUp() {
    var waits: [String] = []
    for disk in plan.status.disks ?? [] {
      guard let name = disk.replaces, let claim = view.claims[name], let claimUID = claim.metadata.uid,
        claim.metadata.ownerReferences?.contains(where: { $0.uid == plan.status.machineUID }) == true,
        let machine = view.machine, machine.metadata.uid == plan.status.machineUID,
        !machine.spec.disks.contains(where: {
          $0.existingClaim?.claimName == name
            || ($0.template != nil && Names.claim(machine: machine.key.name, disk: $0.name) == name)
        })
      else { continue }
      if view.attachments.contains(where: { $0.volume == claim.spec?.volumeName }) {
        waits.append("the claim \(name) of before is removed once it is detached, at the next start")
      } else if !claim.metadata.isBeingDeleted {
        plan.steps.append(.deleteClaim(claim.key, uid: claimUID))
      }
    }
    set(
      Kind.cleaned, waits.isEmpty, waits.isEmpty ? "Done" : "Waiting",
      waits.isEmpty ? "the disks of before are gone; their snapshot stays" : waits.joined(separator: "; "))
  }

  // MARK: Deletion

  /// What the machine does not use is removed; a machine that was stopped for nothing is started again.
  private mutating func planDeletion() {
    guard object.metadata.hasFinalizer(Names.lifeFinalizer) else { return }
    let machine = view.machine.flatMap { $0.metadata.uid == plan.status.machineUID ? $0 : nil }
    let isSwitched = machine.map { self.isSwitched($0) } ?? false
    if !isSwitched, plan.status.phase != .succeeded {
      for disk in plan.status.disks ?? [] {
        guard let claim = view.claims[disk.claim], claim.metadata.labels?[Names.makerUIDLabel] == uid,
          !claim.metadata.isBeingDeleted, let claimUID = claim.metadata.uid,
          !(machine?.spec.disks.contains { $0.existingClaim?.claimName == disk.claim } ?? false)
        else { continue }
        plan.steps.append(.deleteClaim(claim.key, uid: claimUID))
      }
      if plan.status.startsMachine == true, let machine, !machine.spec.running, !machine.metadata.isBeingDeleted {
        plan.steps.append(.setRunning(machine.key, version: machine.metadata.resourceVersion ?? "", true))
      }
    }
    if plan.steps.isEmpty { plan.steps = [.removeFinalizer] }
  }
}
