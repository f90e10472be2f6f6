package import Logging
import Synchronization

/// Brings one volume to where its claim and its PersistentVolume want it: looks, plans, executes.
///
/// Work on one volume is never done twice at a time (the work queue sees to it); different volumes are independent.
package final class VolumeReconciler<Backend: VolumeBackend, Cluster: VolumeCluster>: Sendable {
  /// When to look again without being told of a change.
  package enum Outcome: Sendable, Hashable {
    case settled
    /// Room in the pool, or an operation in progress, is waited for.
    case retry(after: Duration)
  }

  private struct State {
    /// Claims whose deletion was seen, by the handle of their volume; an entry goes when it has been dealt with.
    var deletedClaims: [VolumeHandle: ClaimKey] = [:]
    /// The last warning about each PersistentVolume, so that it is given once.
    var warnings: [String: Refusal] = [:]
  }

  package let backend: Backend
  package let cluster: Cluster
  let metrics: StorageMetrics
  let logger: Logger
  /// Whether an upload is in progress, up to the last word about it being written.
  private let isUploading: @Sendable (VolumeHandle) -> Bool
  let retryDelay: Duration
  private let state = Mutex(State())

  package init(
    backend: Backend, cluster: Cluster, metrics: StorageMetrics, logger: Logger, retryDelay: Duration = .seconds(15),
    isUploading: @escaping @Sendable (VolumeHandle) -> Bool = { _ in false }
  ) {
    self.backend = backend
    self.cluster = cluster
    self.metrics = metrics
    self.logger = logger
    self.retryDelay = retryDelay
    self.isUploading = isUploading
  }

  /// Notes that a claim has gone; the volume's turn comes with ``reconcile(_:)``.
  package func claimDeleted(_ handle: VolumeHandle, _ key: ClaimKey) {
    state.withLock { $0.deletedClaims[handle] = key }
  }

  package func reconcile(_ handle: VolumeHandle) async throws -> Outcome {
    let view = try await observe(handle)
    for step in plan(view) {
      do {
        try await execute(step, handle)
      } catch let error as StorageError {
        return try await failed(error, step, view)
      }
    }
    forget(handle, view)
    return .settled
  }

  package func observe(_ handle: VolumeHandle) async throws -> VolumeView {
    var view = VolumeView(handle: handle)
    if let claim = handle.claimUID.flatMap({ cluster.claim(uid: $0) }), claim.ownHandle ?? handle == handle {
      view.claim = claim
    }
    view.persistentVolumes = cluster.persistentVolumes(handle: handle.name).sorted { $0.name < $1.name }
    if view.claim == nil, let volume = view.persistentVolumes.first, let uid = volume.claimUID {
      view.claim = cluster.claim(uid: uid)
    }
    view.file = try await backend.volume(handle)
    view.attachments = cluster.attachments(persistentVolumes: view.persistentVolumes.map(\.name))
    // Before the question whether an upload is active: one that is seen holding the volume was active before.
    view.uploadHold = cluster.uploadHold(handle)
    view.isUploading = isUploading(handle)
    view.claimWasDeleted = state.withLock { $0.deletedClaims[handle] != nil }
    guard let claim = view.claim else { return view }
    if let name = claim.volumeName, let request = claim.requestBytes, let capacity = claim.capacityBytes,
      request > capacity
    {
      view.attached = cluster.attached(persistentVolume: name)
    }
    guard view.persistentVolumes.isEmpty else { return view }
    view.storageClass = claim.className.flatMap(cluster.storageClass)
    if claim.sourceKeys.count == 1, view.storageClass != nil, view.file == nil {
      view.source = try await observeSource(claim.sourceKeys[0])
    }
    if let key = claim.snapshotKey, view.storageClass != nil, view.file == nil {
      view.snapshotSource = try await observeSnapshot(key)
    }
    return view
  }

  private func observeSnapshot(_ key: SnapshotKey) async throws -> VolumeView.SnapshotSource {
    var source = VolumeView.SnapshotSource(snapshot: cluster.snapshot(key))
    source.content = source.snapshot?.status.contentName.flatMap(cluster.snapshotContent)
    if let handle = source.content?.status.handle.flatMap({ try? SnapshotHandle($0) }) {
      source.file = try await backend.snapshot(handle)
    }
    return source
  }

  private func observeSource(_ key: ClaimKey) async throws -> VolumeView.Source {
    var source = VolumeView.Source(claim: cluster.claim(key))
    guard let claim = source.claim, claim.isBound, let volumeName = claim.volumeName else { return source }
    // The cache of PersistentVolumes may be behind that of claims.
    source.persistentVolume = cluster.persistentVolume(boundTo: claim.uid, named: volumeName)
    if source.persistentVolume == nil {
      let current = try await cluster.currentPersistentVolume(volumeName)
      if current?.claimUID == claim.uid { source.persistentVolume = current }
    }
    if let volume = source.persistentVolume, let handle = try? VolumeHandle(volume.handle) {
      source.file = try await backend.volume(handle)
      source.isUploading = isUploading(handle)
    }
    return source
  }

  private func forget(_ handle: VolumeHandle, _ view: VolumeView) {
    state.withLock { state in
      // An entry that was made after looking is for the next run.
      if view.claimWasDeleted, view.claim == nil { state.deletedClaims[handle] = nil }
      if view.persistentVolumes.isEmpty { state.warnings[handle.name] = nil }
    }
  }

  /// Whether this warning is new.
  private func remember(_ refusal: Refusal, _ handle: VolumeHandle) -> Bool {
    state.withLock { state in
      guard state.warnings[handle.name] != refusal else { return false }
      state.warnings[handle.name] = refusal
      return true
    }
  }
}

extension VolumeReconciler {
  private func execute(_ step: VolumeStep, _ handle: VolumeHandle) async throws {
    switch step {
    case .create(let sizeBytes):
      _ = try await backend.create(handle, sizeBytes: sizeBytes)
      logger.info("volume created", metadata: ["volume": "\(handle)", "bytes": "\(sizeBytes)"])
    case .clone(let source, let sizeBytes):
      let start = ContinuousClock.now
      _ = try await backend.clone(source, to: handle, sizeBytes: sizeBytes)
      let taken = ContinuousClock.now - start
      metrics.cloned(taken)
      logger.info(
        "volume cloned",
        metadata: ["volume": "\(handle)", "source": "\(source)", "bytes": "\(sizeBytes)", "took": "\(taken)"])
    case .cloneSnapshot(let source, let sizeBytes):
      let start = ContinuousClock.now
      _ = try await backend.clone(snapshot: source, to: handle, sizeBytes: sizeBytes)
      let taken = ContinuousClock.now - start
      metrics.cloned(taken)
      logger.info(
        "volume made from a snapshot",
        metadata: ["volume": "\(handle)", "snapshot": "\(source)", "bytes": "\(sizeBytes)", "took": "\(taken)"])
    case .grow, .raiseCapacity, .askForRescan, .setGrowth, .finishGrowth:
      try await executeGrowth(step, handle)
    case .publish(let draft):
      try await cluster.publish(draft)
    case .announce(let claim):
      if claim.provisioningMessage != nil {
        try await cluster.annotate(claim, [StorageNames.provisioningMessage: nil], unchanged: false)
      }
      cluster.record(
        claim, isWarning: false, reason: "ProvisioningSucceeded", message: "volume \(handle) is provisioned")
    case .refuse(let claim, let refusal):
      try await refuse(claim, refusal)
    case .setUploadPhase(let claim, let phase, let message):
      try await cluster.annotate(
        claim, [StorageNames.uploadPhase: phase.rawValue, StorageNames.uploadMessage: message], unchanged: true)
    case .release(let hold):
      try await cluster.release(hold)
      logger.notice("released from an upload that is no more", metadata: ["volume": "\(handle)"])
    case .addFinalizer(let volume):
      try await cluster.addFinalizer(volume)
    case .restore(let volume):
      try await restore(volume, handle)
    case .delete(let volume):
      try await delete(volume, handle)
    case .retain:
      try await backend.retain(handle)
      logger.notice("volume retained: its PersistentVolume was deleted", metadata: ["volume": "\(handle)"])
    case .withdraw(let volume):
      try await cluster.withdraw(volume)
    case .warn(let volume, let refusal):
      warn(volume, refusal, handle)
    case .discardUnclaimed:
      try await discardUnclaimed(handle)
    }
  }

  /// Says why a claim waits: in an annotation, which stays, and in an event. Once per reason.
  private func refuse(_ claim: ClaimView, _ refusal: Refusal) async throws {
    guard claim.provisioningMessage != refusal.text else { return }
    try await cluster.annotate(claim, [StorageNames.provisioningMessage: refusal.text], unchanged: false)
    cluster.record(claim, isWarning: true, reason: "ProvisioningFailed", message: refusal.text)
    logger.warning("claim refused", metadata: ["claim": "\(claim.key)", "reason": "\(refusal.text)"])
  }

  private func warn(_ volume: PersistentVolumeView, _ refusal: Refusal, _ handle: VolumeHandle) {
    guard remember(refusal, handle) else { return }
    cluster.record(volume, isWarning: true, reason: refusal.reason, message: refusal.message)
    logger.warning("\(refusal.message)", metadata: ["persistentVolume": "\(volume.name)"])
  }

  private func restore(_ volume: PersistentVolumeView, _ handle: VolumeHandle) async throws {
    if try await backend.restore(handle) {
      logger.notice("retained volume restored", metadata: ["volume": "\(handle)"])
      return
    }
    guard try await backend.volume(handle) == nil else { return }
    warn(
      volume,
      Refusal(
        "VolumeMissing",
        "PersistentVolume \(volume.name): the pool has no volume '\(handle)'; bring its file back, or delete the claim"),
      handle)
  }

  /// Removes a volume from the pool, having asked the cluster itself whether it is in use.
  private func delete(_ volume: PersistentVolumeView, _ handle: VolumeHandle) async throws {
    let current = try await cluster.currentPersistentVolumes().filter { $0.handle == handle.name }
    let attachments = try await cluster.currentAttachments(persistentVolumes: current.map(\.name))
    guard attachments.isEmpty, current.allSatisfy({ $0.uid == volume.uid && $0.mayLoseVolume }) else {
      throw StorageError(
        .busy, operation: "delete volume \(handle)", message: "its PersistentVolume has changed in the meantime")
    }
    try await backend.delete(handle)
    logger.info("volume deleted", metadata: ["volume": "\(handle)"])
  }

  /// Removes what was made for a claim that went before its PersistentVolume was made.
  private func discardUnclaimed(_ handle: VolumeHandle) async throws {
    guard let key = state.withLock({ $0.deletedClaims[handle] }) else { return }
    if let claim = try await cluster.currentClaim(key), claim.uid == handle.claimUID { return }
    let current = try await cluster.currentPersistentVolumes()
    guard !current.contains(where: { $0.handle == handle.name }) else { return }
    try await backend.delete(handle)
    logger.info("volume of a deleted claim removed", metadata: ["volume": "\(handle)", "claim": "\(key)"])
  }

  /// What a failed step means: something the claim's owner has to know, something to wait for, or a fault to retry.
  private func failed(_ error: StorageError, _ step: VolumeStep, _ view: VolumeView) async throws -> Outcome {
    metrics.failed(error)
    if case .grow(let claim, let bytes) = step { return try await growthFailed(error, claim, toBytes: bytes) }
    let isMaking: Bool
    switch step {
    case .create, .clone, .cloneSnapshot, .publish: isMaking = true
    default: isMaking = false
    }
    let reason = error.code.reason
    guard isMaking, let claim = view.claim else {
      if error.code == .busy { return .retry(after: retryDelay) }
      if let volume = view.persistentVolumes.first {
        warn(volume, Refusal(reason, "PersistentVolume \(volume.name): \(error)"), view.handle)
      }
      throw error
    }
    try await refuse(claim, Refusal(reason, "claim \(claim.key): \(error.message)"))
    switch error.code {
    case .overcommitted, .poolFull, .busy, .conflict: return .retry(after: retryDelay)
    case .exceedsPool, .invalidSize, .invalidHandle: return .settled
    default: throw error
    }
  }
}
