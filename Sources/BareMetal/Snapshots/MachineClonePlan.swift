package import IaaS
import JSON
package import Kubernetes

/// Everything that is known about a clone.
package struct MachineCloneView: Sendable {
  package var clone: BareMetalMachineClone
  /// The snapshot that it is made from: the one that the spec names, or its own.
  package var snapshot: BareMetalMachineSnapshot?
  /// Machines that have the names of the new ones.
  package var machines: [String: BareMetalMachine] = [:]
  /// What csi-controller says about claims of these machines, by the machine's name.
  package var claimMessages: [String: String] = [:]
  package var now: MicroTimestamp

  package init(clone: BareMetalMachineClone, now: MicroTimestamp) {
    self.clone = clone
    self.now = now
  }
}

/// Decides what to do for a clone: no I/O, no clock, no randomness.
///
/// A new machine is one of its own: its disks are templates that are made from the snapshots, its MAC addresses and its
/// cloud-init instance are derived from its own UID.
package func plan(_ view: MachineCloneView) -> LifePlan<BareMetalMachineClone.Status> {
  var planner = MachineClonePlanner(view)
  planner.run()
  return planner.plan
}

struct MachineClonePlanner {
  typealias Kind = BareMetalMachineClone.ConditionType

  /// So many machines at a time are made whose disks are not whole: a full pool leaves no more than these behind.
  static let incompleteMax = 4

  let view: MachineCloneView
  let object: BareMetalMachineClone
  var plan: LifePlan<BareMetalMachineClone.Status>

  init(_ view: MachineCloneView) {
    self.view = view
    object = view.clone
    plan = LifePlan(status: view.clone.status ?? .init())
  }

  private var uid: String { object.metadata.uid ?? "" }

  private mutating func set(_ type: String, _ holds: Bool, _ reason: String, _ message: String) {
    var conditions = plan.status.conditions ?? []
    conditions.set(
      type, Condition.Status(holds), reason: reason, message: message, observedGeneration: object.metadata.generation,
      now: Timestamp(view.now.date))
    plan.status.conditions = conditions
  }

  private mutating func wait(_ phase: BareMetalMachineClone.Phase, _ type: String, _ reason: String, _ message: String)
  {
    plan.status.phase = phase
    plan.status.message = message
    set(type, false, reason, message)
    if type != Kind.ready { set(Kind.ready, false, reason, message) }
  }

  mutating func run() {
    if object.metadata.isBeingDeleted { return planDeletion() }
    guard object.metadata.hasFinalizer(Names.lifeFinalizer) else {
      plan.steps = [.addFinalizer]
      return
    }
    // What has succeeded is over: machines that somebody deletes afterwards stay deleted.
    if plan.status.phase == .succeeded, plan.status.observedGeneration == object.metadata.generation {
      return count(names: plan.status.machines?.map(\.name) ?? [])
    }
    plan.status.observedGeneration = object.metadata.generation
    plan.status.replicas = object.spec.replicas
    switch cloneNames(object) {
    case .failure(let problem): wait(.failed, Kind.sourceReady, problem.reason, problem.message)
    case .success(let names):
      guard let captured = source() else { return }
      make(names, captured)
    }
  }

  // MARK: Source

  /// The snapshot's status once it is ready.
  private mutating func source() -> BareMetalMachineSnapshot.Status? {
    let spec = object.spec.source
    let name = spec.snapshotName ?? "\(object.key.name)-source"
    plan.status.snapshotName = name
    guard let snapshot = view.snapshot else {
      if let machine = spec.machineName {
        var metadata = ObjectMeta(name: name, namespace: object.key.namespace)
        metadata.labels = [Names.makerUIDLabel: uid]
        metadata.ownerReferences = OwnerReference(owner: object).map { [$0] }
        plan.steps.append(.createSnapshot(.init(metadata: metadata, spec: .init(machineName: machine))))
        wait(.capturing, Kind.sourceReady, "Capturing", "the machine '\(machine)' is being captured")
      } else {
        wait(
          .pending, Kind.sourceReady, "SnapshotNotFound",
          "spec.source.snapshotName: there is no BareMetalMachineSnapshot '\(name)' in this namespace")
      }
      return nil
    }
    if spec.machineName != nil, snapshot.metadata.labels?[Names.makerUIDLabel] != uid {
      wait(
        .failed, Kind.sourceReady, "NameTaken",
        "there is a BareMetalMachineSnapshot '\(name)' that was not made for this; rename the clone")
      return nil
    }
    guard let status = snapshot.status, status.readyToUse == true, status.disks?.isEmpty == false else {
      let failed = snapshot.status?.phase == .failed
      wait(
        failed ? .failed : .capturing, Kind.sourceReady, failed ? "SnapshotFailed" : "Capturing",
        "the snapshot '\(name)' is not ready to use: \(snapshot.status?.message ?? "it is being taken")")
      return nil
    }
    set(Kind.sourceReady, true, "Ready", "the snapshot '\(name)' is ready to use")
    return status
  }

  // MARK: Machines

  private mutating func make(_ names: [String], _ captured: BareMetalMachineSnapshot.Status) {
    guard let json = captured.machineSpec, let spec = try? MergePatch.value(BareMetalMachine.Spec.self, from: json)
    else {
      return wait(.failed, Kind.created, "SnapshotWithoutSpec", "the snapshot does not have the machine's spec")
    }
    count(names: names)
    let taken = names.filter { name in view.machines[name].map { !isOwn($0) } ?? false }
    var unfinished = names.count { name in view.machines[name].map { isOwn($0) && !isWhole($0) } ?? false }
    var left = 0
    for (index, name) in names.enumerated() where view.machines[name] == nil {
      guard unfinished < Self.incompleteMax else {
        left += 1
        continue
      }
      unfinished += 1
      plan.steps.append(.createMachine(machine(name, index: index, spec, captured.disks ?? [])))
    }
    let whole = plan.status.ready ?? 0
    guard taken.isEmpty else {
      return wait(
        .failed, Kind.created, "NameTaken",
        "there are machines already that were not made for this: \(taken.joined(separator: ", ")); delete them, or change "
          + "spec.namePattern or spec.firstIndex")
    }
    guard whole == names.count else {
      // What csi-controller refuses is told before what only takes its time.
      let incomplete = names.filter { name in view.machines[name].map { isOwn($0) && !isWhole($0) } ?? false }
      let refused = incomplete.first { view.claimMessages[$0] != nil }
      var message = "\(whole) of \(names.count) machines have their disks"
      if let name = refused ?? incomplete.first(where: { view.machines[$0]?.status?.message != nil }),
        let text = view.claimMessages[name] ?? view.machines[name]?.status?.message
      {
        message += "; \(name): \(text)"
      }
      return wait(.creating, Kind.created, refused == nil ? "Creating" : "Refused", message)
    }
    plan.status.phase = .succeeded
    plan.status.message = nil
    set(Kind.created, true, "Created", "all \(names.count) machines have their disks")
    set(Kind.ready, true, "Created", "all \(names.count) machines have their disks")
  }

  private mutating func count(names: [String]) {
    let machines = names.map { name -> BareMetalMachineClone.Machine in
      guard let machine = view.machines[name], isOwn(machine) else { return .init(name: name) }
      return .init(
        name: name, phase: machine.status?.phase?.rawValue ?? "New", volumesReady: isWhole(machine),
        message: view.claimMessages[name] ?? machine.status?.message)
    }
    plan.status.machines = machines
    plan.status.created = machines.count { $0.phase != nil }
    plan.status.ready = machines.count { $0.volumesReady == true }
    plan.status.running = machines.count { $0.phase == BareMetalMachine.Phase.running.rawValue }
  }

  private func isOwn(_ machine: BareMetalMachine) -> Bool { machine.metadata.labels?[Names.makerUIDLabel] == uid }

  private func isWhole(_ machine: BareMetalMachine) -> Bool { machine.status?.timeline?.volumesReady != nil }

  private func machine(
    _ name: String, index: Int, _ source: BareMetalMachine.Spec, _ disks: [BareMetalMachineSnapshot.Disk]
  ) -> BareMetalMachine {
    var metadata = ObjectMeta(name: name, namespace: object.key.namespace)
    metadata.labels = [Names.makerUIDLabel: uid]
    var spec = source
    spec.running = object.spec.running
    spec.hostName = nil
    spec.disks = disks.map { disk in
      .init(
        name: disk.name, bootOrder: disk.bootOrder, readOnly: disk.readOnly ?? false,
        limits: source.disks.first { $0.name == disk.name }?.limits,
        template: .init(
          size: disk.restoreSize ?? "0", storageClassName: disk.storageClassName,
          source: .init(volumeSnapshot: .init(name: disk.volumeSnapshot))))
    }
    for place in spec.interfaces.indices {
      spec.interfaces[place].macAddress = nil
      spec.interfaces[place].address = nil
    }
    if object.spec.addresses.indices.contains(index), !spec.interfaces.isEmpty {
      spec.interfaces[0].address = object.spec.addresses[index]
    }
    // It names the addresses of the machine that was captured.
    spec.cloudInit?.networkData = nil
    return BareMetalMachine(metadata: metadata, spec: spec)
  }

  // MARK: Deletion

  /// Machines whose disks are whole are machines like others, and stay; the others go with the clone.
  private mutating func planDeletion() {
    guard object.metadata.hasFinalizer(Names.lifeFinalizer) else { return }
    var waits: [String] = []
    for (name, machine) in view.machines.sorted(by: { $0.key < $1.key }) where isOwn(machine) && !isWhole(machine) {
      waits.append(name)
      if !machine.metadata.isBeingDeleted, let machineUID = machine.metadata.uid {
        plan.steps.append(.deleteMachine(machine.key, uid: machineUID))
      }
    }
    guard waits.isEmpty else {
      return wait(
        .deleting, Kind.ready, "Deleting",
        "machines whose disks are not whole go first: \(waits.joined(separator: ", "))")
    }
    plan.steps = [.removeFinalizer]
  }
}

/// The names of the machines that a clone asks for, or what is wrong with what it asks for.
package func cloneNames(_ clone: BareMetalMachineClone) -> Result<[String], CloneProblem> {
  let spec = clone.spec
  guard (spec.source.machineName == nil) != (spec.source.snapshotName == nil) else {
    return .failure(CloneProblem("SourceAmbiguous", "spec.source takes either machineName or snapshotName; give one"))
  }
  guard (1...100).contains(spec.replicas), spec.firstIndex >= 0 else {
    return .failure(CloneProblem("InvalidReplicas", "spec.replicas is from 1 to 100, and spec.firstIndex not negative"))
  }
  let pattern = spec.namePattern ?? "\(clone.key.name)-{index}"
  guard spec.replicas == 1 || pattern.contains("{index}") else {
    return .failure(
      CloneProblem("InvalidPattern", "spec.namePattern '\(pattern)' has to have {index}, as there are several machines")
    )
  }
  guard spec.addresses.isEmpty || spec.addresses.count >= spec.replicas else {
    return .failure(
      CloneProblem(
        "TooFewAddresses",
        "spec.addresses has \(spec.addresses.count), but \(spec.replicas) machines are asked for; give one for each"))
  }
  let names = (0..<spec.replicas).map { offset in
    let parts = pattern.split(separator: "{index}", omittingEmptySubsequences: false)
    return parts.joined(separator: "\(spec.firstIndex + offset)")
  }
  for name in names where !isLabel(name) {
    return .failure(
      CloneProblem(
        "InvalidPattern",
        "spec.namePattern '\(pattern)' gives '\(name.prefix(80))', which is no name of a machine: it takes 1 to 63 of a-z, "
          + "0-9 and '-', with a letter or digit at both ends"))
  }
  return .success(names)
}

/// What cannot be in a clone's spec.
package struct CloneProblem: Error, Sendable, Hashable {
  package var reason: String
  package var message: String

  init(_ reason: String, _ message: String) {
    self.reason = reason
    self.message = message
  }
}

/// Whether a text can be a DNS label.
private func isLabel(_ text: String) -> Bool { text.utf8.count <= 63 && Names.isVolumeHandle(text) }
