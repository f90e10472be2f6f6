package import DPU
import IaaS
import JSON
package import Kubernetes
package import Logging
package import Reconciler
import Synchronization

/// Makes the DPU show what is wanted on its server, and reports what it shows.
package struct HandlerReconciler: Reconcile {
  let hostName: String
  let caches: HandlerCaches
  let cluster: any HandlerCluster
  let dpu: any DPU
  let network: any NetworkPlugger
  let seeds: any SeedStore
  let guest: any GuestSight
  let volumesDirectory: String
  /// Where snapshots of several volumes are put.
  let groupsDirectory: String
  let logger: Logger
  let memory = Memory()

  package init(
    hostName: String, caches: HandlerCaches, cluster: any HandlerCluster, dpu: any DPU, network: any NetworkPlugger,
    seeds: any SeedStore, guest: any GuestSight, volumesDirectory: String, groupsDirectory: String, logger: Logger
  ) {
    self.hostName = hostName
    self.caches = caches
    self.cluster = cluster
    self.dpu = dpu
    self.network = network
    self.seeds = seeds
    self.guest = guest
    self.volumesDirectory = volumesDirectory
    self.groupsDirectory = groupsDirectory
    self.logger = logger
  }

  /// What it remembers from one look to the next; nothing depends on it but how often and how loudly it tries.
  final class Memory: Sendable {
    let pace = Mutex(RetryPace())
    let reports = Mutex(ReportPace())
    let start = ContinuousClock.now
    /// The steps that failed the last time, with what was said.
    let failed = Mutex<[HandlerStep: String]>([:])
  }

  package func reconcile(_ key: ObjectKey) async throws -> ReconcileResult {
    var failures: [HandlerFailure] = []
    var view = HandlerView(host: caches.hosts.get(name: hostName), volumesDirectory: volumesDirectory)
    view.seedDirectory = seeds.directory
    view.attachments = caches.attachments(onHost: hostName).filter { $0.spec.attacher == Names.storageDriver }
    let secret = caches.bootData.get(name: Names.bootData(host: hostName), namespace: Names.systemNamespace)
    if let secret {
      do { view.bootData = try BootData(secret) } catch { failures.append(HandlerFailure(step: nil, error: error)) }
    }
    if let data = HandlerPlan.effectiveBootData(view.bootData, host: view.host) {
      do { view.seedFile = try await seeds.make(for: data) } catch {
        failures.append(HandlerFailure(step: nil, error: error))
      }
    }

    var version: String?
    do {
      try await readBack(&view)
      failures += await carryOut(HandlerPlan.steps(view))
      try await readBack(&view)
      version = try await dpu.version()
    } catch let error as DPUError {
      failures.append(HandlerFailure(step: nil, error: error))
      try await report(view, version: nil, failures: failures)
      return .requeue(after: memory.pace.withLock { $0.next(.unavailable) })
    }
    if HandlerPlan.isBootReady(view) || HandlerPlan.bootWish(view.bootData, host: view.host) == .remove {
      try seeds.removeOthers(than: view.seedFile)
    }

    try await reportAttachments(view, failures: failures)
    let waits = try await report(view, version: version, failures: failures)
    let pause = memory.pace.withLock { $0.next(failures.isEmpty ? .calm : .failed) }
    return .requeue(after: min(waits ?? pause, pause))
  }

  private func readBack(_ view: inout HandlerView) async throws {
    view.functions = try await dpu.functions()
    view.volumes = try await dpu.volumes()
    view.interfaces = try await network.plugged()
  }

  /// Carries the steps out, one after the other; a step that fails does not hold up those for other volumes.
  private func carryOut(_ steps: [HandlerStep]) async -> [HandlerFailure] {
    var failures: [HandlerFailure] = []
    let before = memory.failed.withLock { $0 }
    defer {
      let now = failures.compactMap { failure in failure.step.map { ($0, "\(failure.error)") } }
      memory.failed.withLock { $0 = Dictionary(now, uniquingKeysWith: { first, _ in first }) }
    }
    for step in steps {
      if let volume = step.volume, failures.contains(where: { $0.step?.volume == volume }) { continue }
      if let index = step.interfaceIndex, failures.contains(where: { $0.step?.interfaceIndex == index }) { continue }
      do {
        logger.log(level: before[step] == nil ? .info : .debug, "step", metadata: ["step": "\(step)"])
        switch step {
        case .unplug(let function, let force): try await dpu.unplug(function: function, force: force)
        case .deleteVolume(let name): try await dpu.deleteVolume(name: name)
        case .createVolume(let name, let file, let readOnly, let shared):
          try await dpu.createVolume(name: name, file: file, readOnly: readOnly, shared: shared)
        case .growVolume(let name, let bytes): try await grow(name, bytes)
        case .limitVolume(let name, let limits): try await dpu.limitVolume(name: name, limits)
        case .plug(let function, let volume, let readOnly):
          try await dpu.plug(function: function, volume: volume, readOnly: readOnly)
        case .unplugInterface(let interface): try await network.unplug(interface)
        case .plugInterface(let index, let interface): try await network.plug(index: index, interface)
        }
      } catch {
        // The same again is no news.
        logger.log(
          level: before[step] == "\(error)" ? .debug : .warning, "step failed",
          metadata: ["step": "\(step)", "error": "\(error)"])
        failures.append(HandlerFailure(step: step, error: error))
      }
    }
    return failures
  }

  /// The data plane may not see yet what was written elsewhere: it is done when it shows the size.
  private func grow(_ name: String, _ bytes: UInt64) async throws {
    try await dpu.rescanVolume(name: name)
    let shown = try await dpu.volumes().first { $0.name == name }?.capacity ?? 0
    guard shown >= bytes else {
      throw BareMetalError(
        .missing, operation: "grow volume \(name)",
        message: "the data plane sees \(shown) bytes, \(bytes) are wanted; does it see the same pool?")
    }
  }

  // MARK: Attachments

  private func reportAttachments(_ view: HandlerView, failures: [HandlerFailure]) async throws {
    for attachment in view.attachments {
      do {
        try await report(attachment, view, failures)
      } catch let error as KubernetesError where error.code == .notFound || error.code == .conflict {
        // It is gone or newer: the watch tells.
      }
    }
  }

  private func report(_ attachment: VolumeAttachment, _ view: HandlerView, _ failures: [HandlerFailure]) async throws {
    let failure = failures.first { $0.step?.volume == attachment.volume }.map { "\($0.error)" }
    if attachment.metadata.isBeingDeleted {
      guard HandlerPlan.isGone(volume: attachment.volume, volumes: view.volumes, functions: view.functions) else {
        let message = failure ?? "the DPU still shows the volume"
        guard attachment.status?.detachError?.message != message else { return }
        try await cluster.patchStatus(of: attachment, ["attached": true, "detachError": ["message": .string(message)]])
        return
      }
      if attachment.metadata.hasFinalizer(Names.attachmentFinalizer) {
        try await cluster.removeFinalizer(from: attachment)
      }
      return
    }
    if HandlerPlan.isShown(attachment, functions: view.functions),
      HandlerPlan.objection(to: attachment, host: view.host) == nil
    {
      let shown = view.volumes.first { $0.name == attachment.volume }
      let seen: [String: String?] = [
        Names.shownFunction: Names.blockFunction(bootOrder: attachment.bootOrder ?? 0, volume: attachment.volume),
        Names.shownCapacity: shown.map { "\($0.capacity)" }, Names.shownSerial: shown?.serial,
        Names.shownLimits: shown?.limits.text,
      ]
      // The disk is there, and what failed of it, such as a limit, is told beside that.
      guard
        !attachment.isAttached || attachment.status?.attachError?.message != failure
          || seen.contains(where: { attachment.shown($0.key) != $0.value })
      else { return }
      try await cluster.patchStatus(
        of: attachment,
        [
          "attached": true, "attachError": failure.map { ["message": .string($0)] } ?? .null,
          "attachmentMetadata": .object(seen.mapValues { value in value.map { .string($0) } ?? .null }),
        ])
      return
    }
    // An attachment that is in effect stays so in the record until the DPU shows it no more.
    let isShown = view.functions.contains { $0.volume == attachment.volume }
    let objection = HandlerPlan.objection(to: attachment, host: view.host).map { "not attached: \($0)" }
    guard let message = failure ?? objection else { return }
    guard attachment.status?.attachError?.message != message || attachment.isAttached != isShown else { return }
    try await cluster.patchStatus(
      of: attachment, ["attached": .bool(isShown), "attachError": ["message": .string(message)]])
  }

  // MARK: The host's status

  /// Returns after how long there is something to report that waits for more.
  @discardableResult
  private func report(_ view: HandlerView, version: String?, failures: [HandlerFailure]) async throws -> Duration? {
    guard let host = view.host else {
      guest.follow(boot: nil, isOn: false, interfaces: [], known: (nil, []))
      return nil
    }
    let old = host.status?.dpu
    // While the data plane does not answer, the guest may well go on.
    let followed = version == nil ? old?.boot : HandlerPlan.bootInEffect(view)
    var interfaces: [GuestInterface] = []
    switch HandlerPlan.bootWish(view.bootData, host: host) {
    case .show(let data): interfaces = data.interfaces
    case .keep:
      interfaces = old?.interfaces?.map { GuestInterface(name: $0.name, mac: $0.mac, address: $0.address) } ?? []
    case .remove: break
    }
    guest.follow(
      boot: followed, isOn: host.status?.power != .off, interfaces: interfaces,
      known: (old?.boot, old?.interfaces ?? []))

    var new = BareMetalHost.DPUStatus()
    new.ready = version != nil
    new.version = version ?? old?.version
    new.boot = followed
    new.slots = version == nil ? old?.slots : slots(view)
    new.interfaces = followed == nil ? nil : guest.interfaces
    new.snapshot = await snapshotAnswer(view, isAvailable: version != nil)
    new.conditions = conditions(old?.conditions ?? [], version: version, failures: failures)
    let verdict = memory.reports.withLock { [new] in
      $0.consider(old: old, new: new, at: memory.start.duration(to: .now))
    }
    switch verdict {
    case .nothing: return nil
    case .wait(let time): return time
    case .write: break
    }
    do {
      try await cluster.report(new, host: hostName)
    } catch let error as KubernetesError where error.code == .notFound {
      // It goes with the object.
    }
    return nil
  }

  private func slots(_ view: HandlerView) -> [BareMetalHost.Slot]? {
    var slots = view.functions.map { function in
      BareMetalHost.Slot(
        name: function.name, kind: function.name == Names.seedFunction ? .seed : .disk, device: function.volume,
        volume: function.name == Names.seedFunction ? nil : function.volume, state: "Plugged")
    }
    slots += view.interfaces.map { interface in
      BareMetalHost.Slot(
        name: Names.networkFunction(index: interface.index, interface: interface.name), kind: .nic,
        device: interface.tap, state: interface.fault ?? "Plugged")
    }
    return slots.isEmpty ? nil : slots.sorted { $0.name < $1.name }
  }

  private func conditions(_ old: [Condition], version: String?, failures: [HandlerFailure]) -> [Condition] {
    var conditions = old
    let unavailable = version == nil ? failures.last.map { "\($0.error)" } : nil
    conditions.set(
      "DataPlane", Condition.Status(version != nil), reason: version != nil ? "Answers" : "Silent",
      message: unavailable ?? "the data plane answers")
    let broken = failures.filter { $0.step != nil || version != nil }.map { "\($0.error)" }
    conditions.set(
      "Functions", Condition.Status(broken.isEmpty), reason: broken.isEmpty ? "InPlace" : "Failed",
      message: broken.isEmpty ? "the server sees what it should" : broken.joined(separator: "; "))
    let conflicts = guest.conflicts
    if conflicts.isEmpty {
      conditions.remove(HandlerPlan.addressesCondition)
    } else {
      conditions.set(
        HandlerPlan.addressesCondition, .false, reason: "Conflict", message: conflicts.joined(separator: "; "))
    }
    return conditions
  }
}

/// A step that did not work.
struct HandlerFailure: Sendable {
  var step: HandlerStep?
  var error: any Error
}
