package import Logging

/// Finds volumes that belong to nobody, which a crash or a removed finalizer can leave behind.
///
/// A volume is an orphan when the cluster itself, asked after the pool was listed, knows neither a PersistentVolume
/// with its handle nor a claim that it could have been made for. It is removed when it has been one for the whole
/// grace period. When the cluster cannot be asked, nothing is removed. The caches only tell whether asking is worth it.
package struct OrphanCollector<Backend: VolumeBackend, Cluster: VolumeCluster>: Sendable {
  private let backend: Backend
  private let cluster: Cluster
  private let grace: Duration
  private let logger: Logger
  /// When each orphan was first seen as one.
  private var firstSeen: [VolumeHandle: ContinuousClock.Instant] = [:]

  package init(backend: Backend, cluster: Cluster, grace: Duration, logger: Logger) {
    self.backend = backend
    self.cluster = cluster
    self.grace = grace
    self.logger = logger
  }

  /// Looks once.
  ///
  /// - Returns: the volumes that were removed.
  package mutating func sweep(now: ContinuousClock.Instant) async throws -> [VolumeHandle] {
    // The pool first: a volume made after this is not looked at, and the objects that it was made for are older.
    let volumes = try await backend.volumes().filter { !isKnown($0.handle) }
    guard !volumes.isEmpty else {
      firstSeen = [:]
      return []
    }
    // The claims before the PersistentVolumes: what passes from one to the other in between is seen in one of them.
    let claimUIDs = try await cluster.currentClaimUIDs()
    let handles = Set(try await cluster.currentPersistentVolumes().map(\.handle))

    var orphans: [VolumeHandle: ContinuousClock.Instant] = [:]
    var removed: [VolumeHandle] = []
    for volume in volumes where !handles.contains(volume.handle.name) {
      if let uid = volume.handle.claimUID, claimUIDs.contains(uid) { continue }
      let since = firstSeen[volume.handle] ?? now
      guard now - since >= grace else {
        orphans[volume.handle] = since
        continue
      }
      try await backend.delete(volume.handle)
      logger.warning(
        "orphaned volume removed: no PersistentVolume has its handle, and its claim does not exist",
        metadata: ["volume": "\(volume.handle)", "bytes": "\(volume.allocatedBytes)"])
      removed.append(volume.handle)
    }
    firstSeen = orphans
    return removed
  }

  private func isKnown(_ handle: VolumeHandle) -> Bool {
    if !cluster.persistentVolumes(handle: handle.name).isEmpty { return true }
    return handle.claimUID.map { cluster.claim(uid: $0) != nil } ?? false
  }
}
