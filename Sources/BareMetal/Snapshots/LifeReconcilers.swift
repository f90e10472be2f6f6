import IaaS
import JSON
package import Kubernetes
package import Logging
package import Reconciler

/// Carries out plans: the status first, because what is done follows from it, then the steps, then the next look.
struct LifeExecutor: Sendable {
  let cluster: any LifeCluster
  let events: EventRecorder?
  let logger: Logger

  func carryOut<T: LifeObject>(_ plan: LifePlan<T.Status>, for object: T) async throws -> ReconcileResult {
    do {
      if plan.steps == [.removeFinalizer] {
        try await cluster.removeFinalizer(from: object)
        return .done
      }
      if plan.steps == [.addFinalizer] {
        try await cluster.addFinalizer(to: object)
        return .requeue(after: .zero)
      }
      let isWritten = try await writeStatus(plan.status, of: object)
      // What is done by an old picture may be wrong by now; a status that was taken proves that it is not old.
      if !isWritten, !plan.steps.isEmpty, try await !cluster.isCurrent(object) {
        return .requeue(after: .milliseconds(20))
      }
      for step in plan.steps {
        logger.info("step", metadata: ["object": "\(object.key)", "step": "\(step.summary)"])
        try await execute(step)
      }
    } catch let error as KubernetesError where error.code == .conflict {
      // Somebody was faster; what they did is looked at.
      return .requeue(after: .milliseconds(20))
    }
    if let pause = plan.lookAgain { return .requeue(after: pause) }
    return .done
  }

  /// Whether there was anything to write.
  private func writeStatus<T: LifeObject>(_ status: T.Status, of object: T) async throws -> Bool {
    let old = try MergePatch.json(object.status)
    let new = try MergePatch.json(status)
    guard let patch = MergePatch.difference(from: old, to: new) else { return false }
    try await cluster.patchStatus(of: object, patch)
    guard let phase = new["phase"]?.stringValue, phase != old["phase"]?.stringValue else { return true }
    let message = new["message"]?.stringValue ?? "done"
    events?.event(
      regarding: object, type: phase == "Failed" ? .warning : .normal, reason: phase, message: message)
    return true
  }

  private func execute(_ step: LifeStep) async throws {
    switch step {
    case .addFinalizer, .removeFinalizer: break
    case .ask(let host, let request): try await cluster.ask(host: host, request)
    case .withdraw(let host, let token): try await cluster.withdraw(host: host, token: token)
    case .createVolumeSnapshot(let snapshot): try await making { try await cluster.create(snapshot) }
    case .deleteVolumeSnapshot(let key, let uid):
      try await removing { try await cluster.deleteVolumeSnapshot(key, uid: uid) }
    case .disownVolumeSnapshot(let key, let uid):
      try await removing { try await cluster.disownVolumeSnapshot(key, uid: uid) }
    case .createSnapshot(let snapshot): try await making { try await cluster.create(snapshot) }
    case .createClaim(let claim): try await making { try await cluster.create(claim) }
    case .deleteClaim(let key, let uid): try await removing { try await cluster.deleteClaim(key, uid: uid) }
    case .setRunning(let key, let version, let running):
      try await removing {
        try await cluster.patch(
          machine: key,
          ["metadata": ["resourceVersion": .string(version)], "spec": ["running": .bool(running)]])
      }
    case .switchDisks(let key, let version, let disks, let running):
      let list = try disks.map { try MergePatch.json($0) }
      try await cluster.patch(
        machine: key,
        [
          "metadata": ["resourceVersion": .string(version)],
          "spec": ["disks": .array(list), "running": .bool(running)],
        ])
    case .createMachine(let machine): try await making { try await cluster.create(machine) }
    case .deleteMachine(let key, let uid): try await removing { try await cluster.deleteMachine(key, uid: uid) }
    }
  }

  private func making(_ body: () async throws -> Void) async throws {
    do { try await body() } catch let error as KubernetesError where error.code == .alreadyExists {}
  }

  private func removing(_ body: () async throws -> Void) async throws {
    do { try await body() } catch let error as KubernetesError where error.code == .notFound {}
  }
}

/// Snapshots of machines.
package struct MachineSnapshotReconciler: Reconcile {
  let cluster: any LifeCluster
  let executor: LifeExecutor
  let now: @Sendable () -> MicroTimestamp

  package init(
    cluster: any LifeCluster, events: EventRecorder?, logger: Logger,
    now: @escaping @Sendable () -> MicroTimestamp = { .now() }
  ) {
    self.cluster = cluster
    executor = LifeExecutor(cluster: cluster, events: events, logger: logger)
    self.now = now
  }

  package func reconcile(_ key: ObjectKey) async throws -> ReconcileResult {
    guard let snapshot = cluster.machineSnapshot(key) else { return .done }
    let view = try await view(of: snapshot)
    return try await executor.carryOut(plan(view), for: snapshot)
  }

  private func view(of snapshot: BareMetalMachineSnapshot) async throws -> MachineSnapshotView {
    var view = MachineSnapshotView(snapshot: snapshot, now: now())
    let namespace = snapshot.key.namespace
    let machineKey = ObjectKey(namespace: namespace, name: snapshot.spec.machineName)
    view.machine = cluster.machine(machineKey)
    if let machine = view.machine, let uid = machine.metadata.uid {
      for key in ControllerCaches.claims(of: machine) where key.namespace == namespace {
        guard let claim = cluster.claim(key) else { continue }
        view.claims[key.name] = claim
        if let volume = claim.spec?.volumeName {
          view.persistentVolumes[volume] = cluster.persistentVolume(volume)
        }
      }
      view.attachments = cluster.attachments(ofMachine: uid)
    }
    for name in Set(view.attachments.compactMap(\.host) + [snapshot.status?.host].compactMap(\.self)) {
      // What is left behind at the end is found by nobody else.
      view.hosts[name] =
        snapshot.metadata.isBeingDeleted ? try await cluster.currentHost(name) : cluster.host(name)
      if let asked = view.hosts[name]?.status?.snapshot?.token, let end = asked.lastIndex(of: "-"),
        !cluster.hasMachineSnapshot(uid: String(asked[..<end]))
      {
        view.abandoned.insert(asked)
      }
    }
    for disk in snapshot.status?.disks ?? [] {
      let key = ObjectKey(namespace: namespace, name: disk.volumeSnapshot)
      view.volumeSnapshots[disk.volumeSnapshot] = try await cluster.volumeSnapshot(key)
    }
    let isComplete = !view.volumeSnapshots.isEmpty && view.volumeSnapshots.count == snapshot.status?.disks?.count
    if snapshot.status?.phase == .capturing, snapshot.status?.consistency == .clean, isComplete {
      view.current = try await cluster.currentMachine(machineKey)
    }
    return view
  }
}

/// Restores of machines.
package struct MachineRestoreReconciler: Reconcile {
  let cluster: any LifeCluster
  let executor: LifeExecutor
  let now: @Sendable () -> MicroTimestamp

  package init(
    cluster: any LifeCluster, events: EventRecorder?, logger: Logger,
    now: @escaping @Sendable () -> MicroTimestamp = { .now() }
  ) {
    self.cluster = cluster
    executor = LifeExecutor(cluster: cluster, events: events, logger: logger)
    self.now = now
  }

  package func reconcile(_ key: ObjectKey) async throws -> ReconcileResult {
    guard let restore = cluster.restore(key) else { return .done }
    var plan = plan(try await view(of: restore))
    if plan.lookAgain == nil, restore.status?.phase != .succeeded, restore.status?.phase != .failed {
      // What is waited for comes by watches; this is for restores that stand before this one.
      plan.lookAgain = .seconds(5)
    }
    return try await executor.carryOut(plan, for: restore)
  }

  private func view(of restore: BareMetalMachineRestore) async throws -> MachineRestoreView {
    var view = MachineRestoreView(restore: restore, now: now())
    let namespace = restore.key.namespace ?? ""
    let machineKey = ObjectKey(namespace: namespace, name: restore.spec.machineName)
    // What is left behind at the end is found by nobody else.
    let isLast = restore.metadata.isBeingDeleted
    view.machine = isLast ? try await cluster.currentMachine(machineKey) : cluster.machine(machineKey)
    view.snapshot = cluster.machineSnapshot(ObjectKey(namespace: namespace, name: restore.spec.snapshotName))
    if let name = restore.status?.previousSnapshot {
      view.previous[name] = cluster.machineSnapshot(ObjectKey(namespace: namespace, name: name))
    }
    if let uid = view.machine?.metadata.uid { view.attachments = cluster.attachments(ofMachine: uid) }
    for disk in restore.status?.disks ?? [] {
      for name in [disk.claim, disk.replaces].compactMap(\.self) {
        let key = ObjectKey(namespace: namespace, name: name)
        view.claims[name] = isLast ? try await cluster.currentClaim(key) : cluster.claim(key)
      }
    }
    let isOver: Set<BareMetalMachineRestore.Phase?> = [.succeeded, .failed]
    view.before = cluster.restores(in: namespace).filter { other in
      other.spec.machineName == restore.spec.machineName && other.key != restore.key
        && !isOver.contains(other.status?.phase) && Self.isOlder(other, than: restore)
    }.map(\.key.name).sorted()
    return view
  }

  private static func isOlder(_ a: BareMetalMachineRestore, than b: BareMetalMachineRestore) -> Bool {
    let left = a.metadata.creationTimestamp?.secondsSince1970 ?? 0
    let right = b.metadata.creationTimestamp?.secondsSince1970 ?? 0
    return (left, a.key.name) < (right, b.key.name)
  }
}

/// Clones of machines.
package struct MachineCloneReconciler: Reconcile {
  let cluster: any LifeCluster
  let executor: LifeExecutor
  let now: @Sendable () -> MicroTimestamp

  package init(
    cluster: any LifeCluster, events: EventRecorder?, logger: Logger,
    now: @escaping @Sendable () -> MicroTimestamp = { .now() }
  ) {
    self.cluster = cluster
    executor = LifeExecutor(cluster: cluster, events: events, logger: logger)
    self.now = now
  }

  package func reconcile(_ key: ObjectKey) async throws -> ReconcileResult {
    guard let clone = cluster.clone(key) else { return .done }
    return try await executor.carryOut(plan(try await view(of: clone)), for: clone)
  }

  private func view(of clone: BareMetalMachineClone) async throws -> MachineCloneView {
    var view = MachineCloneView(clone: clone, now: now())
    let namespace = clone.key.namespace
    let name = clone.spec.source.snapshotName ?? "\(clone.key.name)-source"
    view.snapshot = cluster.machineSnapshot(ObjectKey(namespace: namespace, name: name))
    var names = Set(clone.status?.machines?.map(\.name) ?? [])
    if case .success(let wanted) = cloneNames(clone) { names.formUnion(wanted) }
    for name in names {
      let key = ObjectKey(namespace: namespace, name: name)
      let found = clone.metadata.isBeingDeleted ? try await cluster.currentMachine(key) : cluster.machine(key)
      guard let machine = found else { continue }
      view.machines[name] = machine
      guard machine.status?.timeline?.volumesReady == nil else { continue }
      view.claimMessages[name]  // Not lazily: that would look twice, and a cache may have changed between.
      =
        ControllerCaches.claims(of: machine).compactMap { key in
          cluster.claim(key)?.metadata.annotations?[Names.provisioningMessageAnnotation]
        }.first
    }
    return view
  }
}
