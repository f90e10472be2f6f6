package import IaaS
import JSON
package import Kubernetes

/// Everything that is known about a snapshot of a machine.
package struct MachineSnapshotView: Sendable {
  package var snapshot: BareMetalMachineSnapshot
  package var machine: BareMetalMachine?
  /// The machine as the API server has it; read once all disks are captured.
  package var current: BareMetalMachine?
  /// Claims of the machine, by name.
  package var claims: [String: PersistentVolumeClaim] = [:]
  package var persistentVolumes: [String: PersistentVolume] = [:]
  /// Attachments that carry the machine's UID.
  package var attachments: [VolumeAttachment] = []
  package var hosts: [String: BareMetalHost] = [:]
  /// What hosts are asked for by snapshots that are not there any more.
  package var abandoned: Set<String> = []
  /// Those that are named in the status, as the API server has them.
  package var volumeSnapshots: [String: VolumeSnapshot] = [:]
  package var now: MicroTimestamp

  package init(snapshot: BareMetalMachineSnapshot, now: MicroTimestamp) {
    self.snapshot = snapshot
    self.now = now
  }
}

/// Decides what to do for a snapshot of a machine: no I/O, no clock, no randomness.
///
/// While the machine has its disks attached, they are captured together by the data plane, and the VolumeSnapshots are
/// made of that. While it is off, nobody writes, and each VolumeSnapshot is taken by itself; that it was off all the time
/// is looked at again at the end.
package func plan(_ view: MachineSnapshotView) -> LifePlan<BareMetalMachineSnapshot.Status> {
  var planner = MachineSnapshotPlanner(view)
  planner.run()
  return planner.plan
}

struct MachineSnapshotPlanner {
  typealias Kind = BareMetalMachineSnapshot.ConditionType

  let view: MachineSnapshotView
  let object: BareMetalMachineSnapshot
  var plan: LifePlan<BareMetalMachineSnapshot.Status>

  /// The longest pause between attempts, and how long a VolumeSnapshot may have an error before there is another one.
  private static let longestPause: Int64 = 60_000_000
  private static let errorTime: Int64 = 30_000_000

  init(_ view: MachineSnapshotView) {
    self.view = view
    object = view.snapshot
    plan = LifePlan(status: view.snapshot.status ?? .init())
  }

  private var uid: String { object.metadata.uid ?? "" }
  private var token: String { "\(uid)-\(plan.status.attempt ?? 0)" }
  private var sinceAttempt: Int64 {
    plan.status.attemptedAt.map { max(0, view.now.microseconds - $0.microseconds) } ?? .max
  }

  private mutating func set(_ type: String, _ holds: Bool, _ reason: String, _ message: String) {
    var conditions = plan.status.conditions ?? []
    conditions.set(
      type, Condition.Status(holds), reason: reason, message: message, observedGeneration: object.metadata.generation,
      now: Timestamp(view.now.date))
    plan.status.conditions = conditions
    if type != Kind.ready { set(Kind.ready, plan.status.readyToUse == true, reason, message) }
    plan.status.message = plan.status.phase == .ready ? nil : message
  }

  private mutating func wait(_ phase: BareMetalMachineSnapshot.Phase, _ reason: String, _ message: String) {
    plan.status.phase = phase
    plan.status.readyToUse = false
    set(Kind.captured, false, reason, message)
  }

  mutating func run() {
    if object.metadata.isBeingDeleted { return planDeletion() }
    guard object.metadata.hasFinalizer(Names.lifeFinalizer) else {
      plan.steps = [.addFinalizer]
      return
    }
    plan.status.observedGeneration = object.metadata.generation
    switch plan.status.phase {
    case .ready: lookAfter()
    case .capturing: capture()
    case .failed where !mayGoOn: return
    default: begin()
    }
  }

  /// What failed because the data plane cannot is done by itself where that is asked for now.
  private var mayGoOn: Bool { object.spec.consistency == .perDisk && plan.status.consistency == .crash }

  // MARK: Begin

  private mutating func begin() {
    guard let machine = view.machine else {
      wait(
        .pending, "MachineNotFound",
        "spec.machineName: there is no machine '\(object.spec.machineName)' in this namespace; check the name")
      return
    }
    guard !machine.metadata.isBeingDeleted else {
      wait(.pending, "MachineBeingDeleted", "the machine '\(machine.key.name)' is being deleted")
      return
    }
    if let pause = pauseBeforeNext {
      wait(.pending, "Retrying", plan.status.message ?? "tries again")
      plan.lookAgain = pause
      return
    }
    guard let disks = disks(of: machine) else { return }
    let attached = attachments(of: disks, machine)
    let consistency: BareMetalMachineSnapshot.Consistency
    if machine.isParked {
      consistency = .clean
    } else if let host = attached {
      consistency = disks.count > 1 && object.spec.consistency == .perDisk ? .perDisk : .crash
      plan.status.host = host
    } else {
      wait(
        .pending, "MachineOnItsWay",
        "the machine '\(machine.key.name)' is \(machine.status?.phase?.rawValue ?? "new"); its disks are captured when "
          + "they are all attached, or when it is stopped")
      return
    }
    plan.status.consistency = consistency
    plan.status.machineUID = machine.metadata.uid
    plan.status.machineGeneration = machine.metadata.generation
    plan.status.machineBoot = machine.status?.boot
    plan.status.machineSpec = try? MergePatch.json(machine.spec)
    plan.status.disks = disks
    plan.status.attempt = (plan.status.attempt ?? 0) + 1
    plan.status.attemptedAt = view.now
    plan.status.creationTime = nil
    plan.status.pauseMicroseconds = nil
    wait(.capturing, "Capturing", "the disks are being captured")
    // What is to be done follows from the status, so that has to be there first.
    plan.lookAgain = .zero
  }

  private var pauseBeforeNext: Duration? {
    guard let attempt = plan.status.attempt, attempt > 0 else { return nil }
    let pause = min(Self.longestPause, 500_000 << min(attempt, 10))
    let left = pause - sinceAttempt
    return left > 0 ? .microseconds(left) : nil
  }

  /// The disks with their volumes; nil, and told, where one has none that can be captured.
  private mutating func disks(of machine: BareMetalMachine) -> [BareMetalMachineSnapshot.Disk]? {
    var disks: [BareMetalMachineSnapshot.Disk] = []
    for disk in machine.spec.disks {
      let name = disk.existingClaim?.claimName ?? Names.claim(machine: machine.key.name, disk: disk.name)
      guard let claim = view.claims[name], claim.status?.phase == "Bound", !claim.metadata.isBeingDeleted,
        let volume = claim.spec?.volumeName, let source = view.persistentVolumes[volume]?.spec?.csi
      else {
        wait(.pending, "VolumeNotReady", "the claim '\(name)' of disk '\(disk.name)' has no volume yet")
        return nil
      }
      guard source.driver == Names.storageDriver else {
        wait(
          .failed, "UnsupportedDriver",
          "the claim '\(name)' of disk '\(disk.name)' is one of the driver '\(source.driver)'; only volumes of "
            + "\(Names.storageDriver) can be captured")
        return nil
      }
      guard VolumeSharing(handle: source.volumeHandle) != .writers else {
        wait(
          .failed, "SharedDisk",
          "disk '\(disk.name)' (claim '\(name)') is shared with other machines, which go on writing to it; remove it from "
            + "spec.disks while the snapshot is taken, and capture the claim by a VolumeSnapshot of its own")
        return nil
      }
      var entry = BareMetalMachineSnapshot.Disk(
        name: disk.name, claim: name, volume: volume, volumeSnapshot: "\(object.key.name)-\(disk.name)")
      entry.storageClassName = claim.spec?.storageClassName
      entry.bootOrder = disk.bootOrder
      entry.readOnly = disk.readOnly ? true : nil
      entry.ownedByMachine = claim.metadata.ownerReferences?.contains { $0.uid == machine.metadata.uid } == true
      disks.append(entry)
    }
    return disks
  }

  /// The one host on which all the disks are attached.
  private func attachments(of disks: [BareMetalMachineSnapshot.Disk], _ machine: BareMetalMachine) -> String? {
    var hosts: Set<String> = []
    for disk in disks {
      guard
        let attachment = view.attachments.first(where: { $0.volume == disk.volume }), attachment.isAttached,
        !attachment.metadata.isBeingDeleted, let host = attachment.host
      else { return nil }
      hosts.insert(host)
    }
    guard hosts.count == 1, let host = hosts.first,
      view.hosts[host]?.status?.claim?.uid == machine.metadata.uid
    else { return nil }
    return host
  }

  // MARK: Capture

  /// Whether the data plane captures the disks together. One disk needs nobody's help for one moment.
  private var isGroup: Bool { plan.status.consistency == .crash && (plan.status.disks?.count ?? 0) > 1 }

  private mutating func capture() {
    guard let machine = view.machine, machine.metadata.uid == plan.status.machineUID else {
      // What was captured is whole all the same.
      if plan.status.creationTime == nil {
        withdraw()
        wait(.failed, "MachineGone", "the machine went while it was being captured; delete this snapshot")
      } else {
        collect()
      }
      return
    }
    if isGroup, plan.status.creationTime == nil {
      askHost(machine)
    } else {
      withdraw()
      collect()
    }
  }

  private mutating func askHost(_ machine: BareMetalMachine) {
    guard let name = plan.status.host, let host = view.hosts[name],
      host.status?.claim?.uid == plan.status.machineUID
    else {
      return failAttempt("HostLost", "the machine left its host while it was being captured; tries again")
    }
    if let answer = host.status?.dpu?.snapshot, answer.token == token { return take(answer, of: name) }
    guard let asked = host.status?.snapshot else {
      let volumes = (plan.status.disks ?? []).map(\.volume)
      plan.steps.append(
        .ask(host: name, .init(token: token, machineUID: plan.status.machineUID ?? "", volumes: volumes)))
      wait(.capturing, "Capturing", "asks bm-handler of \(name) to capture the disks together")
      plan.lookAgain = .seconds(1)
      return
    }
    // What an earlier attempt of this one asked for stands there if taking it back has failed.
    let isStale = view.abandoned.contains(asked.token) || (asked.token != token && asked.token.hasPrefix("\(uid)-"))
    if isStale { plan.steps.append(.withdraw(host: name, token: asked.token)) }
    if asked.token != token {
      wait(.capturing, "Waiting", "another snapshot is being taken on \(name)")
    } else {
      wait(.capturing, "Capturing", "waits for bm-handler of \(name) to capture the disks together; is it running?")
    }
    plan.lookAgain = .seconds(1)
  }

  private mutating func take(_ answer: BareMetalHost.SnapshotAnswer, of host: String) {
    guard let taken = answer.takenAt else {
      let reason = answer.error ?? "no reason was told"
      guard answer.unsupported == true else { return failAttempt("CaptureFailed", "\(host): \(reason); tries again") }
      withdraw()
      wait(
        .failed, "DataPlaneCannot",
        "the data plane of \(host) cannot capture several disks at one moment (\(reason)); stop the machine for a clean "
          + "snapshot, or set spec.consistency to PerDisk")
      return
    }
    plan.status.creationTime = taken
    plan.status.pauseMicroseconds = answer.pauseMicroseconds
    wait(.capturing, "Captured", "the disks are captured; their snapshots are being entered")
    plan.lookAgain = .zero
  }

  private mutating func withdraw() {
    guard let name = plan.status.host, let asked = view.hosts[name]?.status?.snapshot,
      asked.token.hasPrefix("\(uid)-")
    else { return }
    plan.steps.append(.withdraw(host: name, token: asked.token))
  }

  private mutating func failAttempt(_ reason: String, _ message: String) {
    withdraw()
    deleteVolumeSnapshots()
    plan.status.creationTime = nil
    plan.status.pauseMicroseconds = nil
    wait(.pending, reason, message)
    plan.lookAgain = pauseBeforeNext ?? .zero
  }

  /// Makes the VolumeSnapshots, and waits for them.
  private mutating func collect() {
    var disks = plan.status.disks ?? []
    var waits: [String] = []
    for index in disks.indices {
      let disk = disks[index]
      guard let present = view.volumeSnapshots[disk.volumeSnapshot] else {
        plan.steps.append(.createVolumeSnapshot(volumeSnapshot(disk)))
        waits.append("disk '\(disk.name)' is being captured")
        continue
      }
      guard isOwn(present) else {
        wait(
          .failed, "NameTaken",
          "there is a VolumeSnapshot '\(disk.volumeSnapshot)' that was not made for this; delete it or this snapshot")
        return
      }
      guard !present.metadata.isBeingDeleted, present.metadata.annotations?[Self.attemptAnnotation] == token else {
        if !present.metadata.isBeingDeleted, let uid = present.metadata.uid {
          plan.steps.append(.deleteVolumeSnapshot(present.key, uid: uid))
        }
        waits.append("what an earlier attempt left of disk '\(disk.name)' is being deleted")
        continue
      }
      if present.status?.readyToUse == true {
        disks[index].readyToUse = true
        disks[index].restoreSize = present.status?.restoreSize?.description
      } else if let error = present.status?.error?.message {
        waits.append("disk '\(disk.name)': \(error)")
        if sinceAttempt > Self.errorTime {
          return failAttempt("CaptureFailed", waits.joined(separator: "; "))
        }
      } else {
        waits.append("disk '\(disk.name)' is being captured")
      }
    }
    guard waits.isEmpty else {
      wait(.capturing, "Capturing", waits.joined(separator: "; "))
      plan.lookAgain = .milliseconds(sinceAttempt < 5_000_000 ? 50 : 1000)
      return
    }
    if plan.status.consistency == .clean {
      guard let current = view.current, current.metadata.uid == plan.status.machineUID, current.isParked,
        current.metadata.generation == plan.status.machineGeneration, current.status?.boot == plan.status.machineBoot
      else {
        return failAttempt("MachineStarted", "the machine was started while it was being captured; tries again")
      }
    }
    plan.status.disks = disks
    plan.status.phase = .ready
    plan.status.readyToUse = true
    plan.status.creationTime =
      plan.status.creationTime
      ?? disks.compactMap { view.volumeSnapshots[$0.volumeSnapshot]?.status?.creationTime }.max {
        $0.secondsSince1970 < $1.secondsSince1970
      }.map { MicroTimestamp($0.date) } ?? view.now
    let count = disks.count == 1 ? "the disk is" : "all \(disks.count) disks are"
    set(Kind.captured, true, "Ready", "\(count) captured (\(plan.status.consistency?.rawValue ?? ""))")
    plan.lookAgain = nil
  }

  /// By which attempt a VolumeSnapshot was made.
  static let attemptAnnotation = "iaas.yusur.io/snapshot-attempt"

  private func isOwn(_ present: VolumeSnapshot) -> Bool { present.metadata.labels?[Names.makerUIDLabel] == uid }

  private func volumeSnapshot(_ disk: BareMetalMachineSnapshot.Disk) -> VolumeSnapshot {
    var metadata = ObjectMeta(name: disk.volumeSnapshot, namespace: object.key.namespace)
    metadata.labels = [Names.makerUIDLabel: uid]
    metadata.annotations = [Self.attemptAnnotation: token]
    if isGroup { metadata.annotations?[Names.snapshotGroupAnnotation] = token }
    if object.spec.deletionPolicy == .delete { metadata.ownerReferences = OwnerReference(owner: object).map { [$0] } }
    return VolumeSnapshot(
      metadata: metadata,
      spec: .init(
        source: .init(persistentVolumeClaimName: disk.claim),
        volumeSnapshotClassName: object.spec.volumeSnapshotClassName))
  }

  private mutating func deleteVolumeSnapshots() {
    for disk in plan.status.disks ?? [] {
      guard let present = view.volumeSnapshots[disk.volumeSnapshot], isOwn(present),
        !present.metadata.isBeingDeleted, let uid = present.metadata.uid
      else { continue }
      plan.steps.append(.deleteVolumeSnapshot(present.key, uid: uid))
    }
  }

  // MARK: Afterwards

  /// Whether the VolumeSnapshots are still there.
  private mutating func lookAfter() {
    withdraw()
    let lost = (plan.status.disks ?? []).filter { disk in
      view.volumeSnapshots[disk.volumeSnapshot].map { !isOwn($0) || $0.status?.readyToUse != true } ?? true
    }
    plan.status.readyToUse = lost.isEmpty
    plan.lookAgain = .seconds(600)
    guard !lost.isEmpty else { return }
    for index in plan.status.disks?.indices ?? 0..<0
    where lost.contains(where: { $0.name == plan.status.disks?[index].name }) {
      plan.status.disks?[index].readyToUse = false
    }
    set(
      Kind.ready, false, "VolumeSnapshotLost",
      "the VolumeSnapshots \(lost.map(\.volumeSnapshot).joined(separator: ", ")) are not there or not ready")
  }

  private mutating func planDeletion() {
    guard object.metadata.hasFinalizer(Names.lifeFinalizer) else { return }
    plan.status.phase = .deleting
    plan.status.readyToUse = false
    withdraw()
    var waits: [String] = []
    for disk in plan.status.disks ?? [] {
      guard let present = view.volumeSnapshots[disk.volumeSnapshot], isOwn(present), let uid = present.metadata.uid
      else { continue }
      if object.spec.deletionPolicy == .retain {
        guard present.metadata.ownerReferences?.isEmpty == false else { continue }
        plan.steps.append(.disownVolumeSnapshot(present.key, uid: uid))
        waits.append("keeps the VolumeSnapshot \(disk.volumeSnapshot)")
        continue
      }
      waits.append("waits for the VolumeSnapshot \(disk.volumeSnapshot) to be deleted")
      if !present.metadata.isBeingDeleted { plan.steps.append(.deleteVolumeSnapshot(present.key, uid: uid)) }
    }
    guard !waits.isEmpty || !plan.steps.isEmpty else {
      plan.steps = [.removeFinalizer]
      return
    }
    set(Kind.deleted, false, "Waiting", waits.joined(separator: "; "))
    plan.lookAgain = .milliseconds(200)
  }
}
