package import Logging

/// Brings VolumeSnapshots and their contents together: looks, plans, executes.
package struct SnapshotReconciler: Sendable {
  private let cluster: any SnapshotCluster
  private let isUploading: @Sendable (VolumeHandle) -> Bool
  private let logger: Logger

  package init(
    cluster: any SnapshotCluster, logger: Logger,
    isUploading: @escaping @Sendable (VolumeHandle) -> Bool = { _ in false }
  ) {
    self.cluster = cluster
    self.logger = logger
    self.isUploading = isUploading
  }

  package func reconcile(_ key: SnapshotKey) async throws {
    let view = try await observe(key)
    try await removeStrays(key, present: view?.snapshot.uid)
    guard let view else { return try await releaseClaims() }
    for step in plan(view) { try await execute(step, view.snapshot) }
  }

  /// A content whose VolumeSnapshot is gone goes too, by its policy. It happens where somebody removed finalizers by
  /// force.
  private func removeStrays(_ key: SnapshotKey, present uid: String?) async throws {
    let strays = cluster.snapshotContents(for: key).filter {
      $0.snapshotUID != uid && !($0.isMarked && $0.isBeingDeleted)
    }
    guard !strays.isEmpty else { return }
    let current = try await cluster.currentSnapshot(key)
    for content in strays where content.snapshotUID != current?.uid {
      if !content.isMarked { try await cluster.mark(content) }
      if content.deletionPolicy == "Delete", !content.isBeingDeleted { try await cluster.delete(content) }
    }
  }

  package func observe(_ key: SnapshotKey) async throws -> SnapshotSituation? {
    guard let snapshot = cluster.snapshot(key) else { return nil }
    var view = SnapshotSituation(snapshot: snapshot)
    view.content = cluster.snapshotContent(
      snapshot.status.contentName ?? snapshot.contentName ?? SnapshotNames.content(snapshotUID: snapshot.uid))
    view.classes = cluster.snapshotClasses()
    if snapshot.isBeingDeleted {
      // A claim that is refused is not being made.
      view.restoring = cluster.claims(from: key).filter { $0.isHandedOver && $0.provisioningMessage == nil }.map(\.key)
    }
    guard let claimKey = snapshot.claimKey, let claim = cluster.claim(claimKey) else { return view }
    view.claim = claim
    guard claim.isBound else { return view }
    (view.volume, view.volumeDriver) = try await cluster.volume(of: claim)
    view.hasSiblings = isBeingTaken(of: view.volume, claimKey, except: snapshot.uid)
    view.isUploading = view.volume.flatMap { try? VolumeHandle($0.handle) }.map(isUploading) ?? false
    return view
  }

  /// Whether a snapshot of the volume that the claim has now is being taken.
  private func isBeingTaken(of volume: PersistentVolumeView?, _ claim: ClaimKey, except uid: String? = nil) -> Bool {
    guard let volume else { return false }
    return cluster.snapshots(ofClaim: claim).contains { snapshot in
      guard snapshot.uid != uid,
        let content = cluster.snapshotContent(SnapshotNames.content(snapshotUID: snapshot.uid))
      else { return false }
      return !content.isTaken && !content.isBeingDeleted && content.volumeHandle == volume.handle
    }
  }

  /// A VolumeSnapshot whose finalizers somebody removed by force leaves its claim protected for ever otherwise.
  private func releaseClaims() async throws {
    for claim in cluster.protectedClaims() {
      let volume = try await cluster.volume(of: claim).volume
      guard !isBeingTaken(of: volume, claim.key) else { continue }
      try await cluster.setProtection(of: claim, present: false)
    }
  }

  private func execute(_ step: SnapshotStep, _ snapshot: SnapshotView) async throws {
    switch step {
    case .chooseClass(let name): try await cluster.setClass(of: snapshot, name)
    case .addFinalizers: try await cluster.setFinalizers(of: snapshot, present: true)
    case .removeFinalizers: try await release(snapshot)
    case .protectClaim(let claim): try await cluster.setProtection(of: claim, present: true)
    case .unprotectClaim(let claim): try await cluster.setProtection(of: claim, present: false)
    case .createContent(let draft):
      try await cluster.create(draft)
      cluster.record(
        snapshot, isWarning: false, reason: "CreatingSnapshot",
        message: "a snapshot of volume \(draft.volumeHandle) is being taken")
    case .adopt(let content): try await cluster.adopt(content, for: snapshot)
    case .markContent(let content): try await cluster.mark(content)
    case .deleteContent(let content): try await cluster.delete(content)
    case .setStatus(let status): try await setStatus(snapshot, status)
    case .fail(let refusal):
      guard snapshot.status.error != refusal.message || snapshot.status.isReady != false else { return }
      try await cluster.fail(snapshot, message: refusal.message)
      cluster.record(snapshot, isWarning: true, reason: refusal.reason, message: refusal.message)
      logger.warning("no snapshot", metadata: ["snapshot": "\(snapshot.key)", "reason": "\(refusal.text)"])
    case .tell(let refusal):
      cluster.record(snapshot, isWarning: true, reason: refusal.reason, message: refusal.message)
    }
  }

  private func setStatus(_ snapshot: SnapshotView, _ status: SnapshotView.Status) async throws {
    try await cluster.setStatus(of: snapshot, status)
    if status.isReady == true, snapshot.status.isReady != true {
      cluster.record(
        snapshot, isWarning: false, reason: "SnapshotReady",
        message: "the snapshot is ready to use; a volume made from it takes \(formatBytes(status.restoreBytes ?? 0))")
      logger.info("snapshot ready", metadata: ["snapshot": "\(snapshot.key)"])
    }
    if let error = status.error, error != snapshot.status.error {
      cluster.record(snapshot, isWarning: true, reason: "SnapshotCreationFailed", message: error)
    }
  }

  /// Lets the VolumeSnapshot go, having asked the cluster itself whether its content has gone.
  private func release(_ snapshot: SnapshotView) async throws {
    let name = snapshot.status.contentName ?? SnapshotNames.content(snapshotUID: snapshot.uid)
    if let content = try await cluster.currentSnapshotContent(name), content.isBound(to: snapshot),
      content.deletionPolicy == "Delete"
    {
      throw StorageError(
        .busy, operation: "delete VolumeSnapshot \(snapshot.key)",
        message: "VolumeSnapshotContent \(name) is there still")
    }
    try await cluster.setFinalizers(of: snapshot, present: false)
  }
}

/// Takes and removes the snapshots in the pool that VolumeSnapshotContents stand for.
package struct ContentReconciler: Sendable {
  private let backend: any VolumeBackend
  private let cluster: any SnapshotCluster
  private let metrics: StorageMetrics
  private let logger: Logger
  private let retryDelay: Duration

  package init(
    backend: any VolumeBackend, cluster: any SnapshotCluster, metrics: StorageMetrics, logger: Logger,
    retryDelay: Duration = .seconds(15)
  ) {
    self.backend = backend
    self.cluster = cluster
    self.metrics = metrics
    self.logger = logger
    self.retryDelay = retryDelay
  }

  /// - Returns: when to look again without being told of a change; nil for not.
  package func reconcile(_ name: String) async throws -> Duration? {
    guard let content = cluster.snapshotContent(name) else { return nil }
    let view = try await observe(content)
    for step in plan(view) {
      do {
        try await execute(step, content)
      } catch let error as StorageError {
        return try await failed(error, content)
      }
    }
    return nil
  }

  package func observe(_ content: ContentView) async throws -> ContentSituation {
    var view = ContentSituation(content: content)
    if let handle = content.snapshotHandle.flatMap({ try? SnapshotHandle($0) }), !content.isTaken,
      !content.isBeingDeleted
    {
      view.file = try await backend.snapshot(handle)
    }
    if let key = content.snapshotKey, content.volumeHandle != nil, !content.isTaken, !content.isBeingDeleted {
      // Without it the volume would be captured by itself, which is another thing than what was asked for.
      var snapshot = cluster.snapshot(key)
      if snapshot == nil { snapshot = try await cluster.currentSnapshot(key) }
      if snapshot?.uid == content.snapshotUID { view.group = snapshot?.group }
    }
    guard content.isBeingDeleted else { return view }
    if let key = content.snapshotKey {
      // The cache may be behind that of the contents, so that what it does not have may be there.
      var snapshot = cluster.snapshot(key)
      if snapshot == nil { snapshot = try await cluster.currentSnapshot(key) }
      view.hasSnapshot = snapshot?.uid == content.snapshotUID
    }
    if let handle = content.handle {
      view.isShared = cluster.snapshotContents(handle: handle).contains { $0.uid != content.uid }
    }
    return view
  }

  private func execute(_ step: ContentStep, _ content: ContentView) async throws {
    switch step {
    case .addFinalizer: try await cluster.setFinalizer(of: content, present: true)
    case .removeFinalizer: try await cluster.setFinalizer(of: content, present: false)
    case .take(let source, let handle):
      try await take(content, source, handle) { backend in try await backend.takeSnapshot(of: source, as: handle) }
    case .adopt(let source, let group, let handle):
      try await take(content, source, handle) { backend in
        try await backend.adoptSnapshot(of: source, from: group, as: handle)
      }
    case .setStatus(let status): try await cluster.setStatus(of: content, status)
    case .fail(let refusal): try await fail(content, refusal)
    case .tell(let refusal):
      cluster.record(content, isWarning: true, reason: refusal.reason, message: refusal.message)
    case .remove(let handle): try await remove(handle, content)
    }
  }

  private func take(
    _ content: ContentView, _ source: VolumeHandle, _ handle: SnapshotHandle,
    _ make: (any VolumeBackend) async throws -> Snapshot
  ) async throws {
    let start = ContinuousClock.now
    let snapshot = try await make(backend)
    let taken = ContinuousClock.now - start
    metrics.tookSnapshot(taken)
    logger.info(
      "snapshot taken",
      metadata: [
        "snapshot": "\(handle)", "volume": "\(source)", "bytes": "\(snapshot.sizeBytes)", "took": "\(taken)",
      ])
    try await cluster.setStatus(of: content, ContentView.Status(snapshot))
  }

  /// Removes a snapshot from the pool, having asked the cluster itself whether another content has it too.
  private func remove(_ handle: SnapshotHandle, _ content: ContentView) async throws {
    let others = try await cluster.currentSnapshotContents().filter {
      $0.driver == StorageNames.driver && $0.handle == handle.name && $0.uid != content.uid
    }
    guard others.isEmpty else { return }
    try await backend.deleteSnapshot(handle)
    logger.info("snapshot deleted", metadata: ["snapshot": "\(handle)"])
  }

  private func fail(_ content: ContentView, _ refusal: Refusal) async throws {
    guard content.status.error != refusal.message else { return }
    try await cluster.fail(content, message: refusal.message)
    cluster.record(content, isWarning: true, reason: refusal.reason, message: refusal.message)
    logger.warning("no snapshot", metadata: ["content": "\(content.name)", "reason": "\(refusal.text)"])
  }

  private func failed(_ error: StorageError, _ content: ContentView) async throws -> Duration? {
    metrics.failed(error)
    if content.isBeingDeleted {
      cluster.record(content, isWarning: true, reason: "SnapshotDeleteError", message: error.message)
      throw error
    }
    try await fail(content, Refusal("SnapshotCreationFailed", "\(error.code.reason): \(error.message)"))
    switch error.code {
    case .overcommitted, .poolFull, .busy, .notFound: return retryDelay
    case .exceedsPool, .invalidSize, .invalidHandle: return nil
    default: throw error
    }
  }
}
