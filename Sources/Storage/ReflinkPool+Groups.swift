import Glibc
import Synchronization

// Snapshots that the data plane takes of several volumes at one moment:
//
//     <pool>/groups/<group>/<volume>.img
//
// The data plane gives a group's folder its name when everything in it is durable. From there its files become snapshots
// like others, one after the other.
extension ReflinkPool {
  public func adoptSnapshot(
    of source: VolumeHandle, from group: SnapshotHandle, as handle: SnapshotHandle
  ) async throws(StorageError) -> Snapshot {
    let operation = "take snapshot \(handle) of volume \(source) from the group \(group)"
    return try await blocking(operation) { () throws(StorageError) in
      guard self.state.withLock({ $0.taking.insert(handle).inserted }) else {
        throw StorageError(.busy, operation: operation, message: "the snapshot is being taken already")
      }
      defer { _ = self.state.withLock { $0.taking.remove(handle) } }
      if let present = try self.findSnapshot(handle, operation: operation) {
        try self.snapshotsFolder.sync(operation: operation)
        return present
      }
      let name = ReflinkPool.fileName(source)
      guard let folder = try PoolDirectory(existing: group.name, in: self.groups, operation: operation),
        let status = try folder.status(name, operation: operation), status.isRegular,
        let file = try folder.openFile(name, flags: O_RDONLY, operation: operation)
      else {
        throw StorageError(
          .notFound, operation: operation,
          message: "the pool has no content of volume \(source) in the group \(group); take the snapshot anew")
      }
      let promised = status.sizeBytes
      try self.admit(promised, adding: promised, operation: operation)
      defer { self.state.withLock { $0.reservedBytes -= promised } }
      // The data plane has done both; who put it there may have been another.
      try file.makeReadOnly(operation: operation)
      try file.sync(operation: operation)
      try folder.link(name, to: self.snapshotsFolder, as: ReflinkPool.fileName(handle), operation: operation)
      self.state.withLock { $0.snapshots[handle] = promised }
      try self.snapshotsFolder.sync(operation: operation)
      try folder.remove(name, operation: operation)
      // The last one takes the folder along.
      _ = unlinkat(self.groups.descriptor, group.name, AT_REMOVEDIR)
      guard let snapshot = try self.findSnapshot(handle, operation: operation) else {
        throw StorageError(
          .discarded, operation: operation, message: "the snapshot was deleted while it was being taken")
      }
      return snapshot
    }
  }

  /// The folders of groups, those that are being made too.
  package func groupNames() async throws(StorageError) -> [String] {
    let operation = "list groups"
    return try await blocking(operation) { () throws(StorageError) in
      try self.groups.names(operation: operation)
    }
  }

  /// Removes a group with what nobody has taken of it.
  package func removeGroup(_ name: String) async throws(StorageError) {
    let operation = "remove group \(name)"
    try await blocking(operation) { () throws(StorageError) in
      guard let folder = try PoolDirectory(existing: name, in: self.groups, operation: operation) else { return }
      for file in try folder.names(operation: operation) { try folder.remove(file, operation: operation) }
      guard unlinkat(self.groups.descriptor, name, AT_REMOVEDIR) == 0 || errno == ENOENT else {
        throw .system(operation, "remove folder '\(self.groups.path)/\(name)'", errno)
      }
    }
  }
}

/// Finds groups of snapshots that nobody has taken for a whole grace period: who asked for them is gone.
package struct GroupCollector: Sendable {
  private let pool: ReflinkPool
  private let grace: Duration
  private var firstSeen: [String: ContinuousClock.Instant] = [:]

  package init(pool: ReflinkPool, grace: Duration) {
    self.pool = pool
    self.grace = grace
  }

  /// Looks once; returns what was removed.
  package mutating func sweep(now: ContinuousClock.Instant) async throws -> [String] {
    var seen: [String: ContinuousClock.Instant] = [:]
    var removed: [String] = []
    for name in try await pool.groupNames() {
      let since = firstSeen[name] ?? now
      if now - since >= grace {
        try await pool.removeGroup(name)
        removed.append(name)
      } else {
        seen[name] = since
      }
    }
    firstSeen = seen
    return removed
  }
}
