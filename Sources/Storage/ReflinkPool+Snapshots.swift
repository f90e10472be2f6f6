import Glibc
import Synchronization

extension ReflinkPool {
  /// The file system locks out writers while it shares the extents, waits for direct I/O that is under way and writes
  /// back what the page cache has: so what the snapshot holds is the volume at one moment, whoever writes to it.
  public func takeSnapshot(
    of source: VolumeHandle, as handle: SnapshotHandle
  ) async throws(StorageError) -> Snapshot {
    let operation = "take snapshot \(handle) of volume \(source)"
    return try await blocking(operation) { () throws(StorageError) in
      guard self.state.withLock({ $0.taking.insert(handle).inserted }) else {
        throw StorageError(.busy, operation: operation, message: "the snapshot is being taken already")
      }
      defer { _ = self.state.withLock { $0.taking.remove(handle) } }
      if let present = try self.findSnapshot(handle, operation: operation) {
        // Whoever took it may have died before this.
        try self.snapshotsFolder.sync(operation: operation)
        return present
      }
      try self.requireNoUpload(source, operation: operation)
      let name = ReflinkPool.fileName(source)
      guard let content = try self.volumesFolder.openFile(name, flags: O_RDONLY, operation: operation) else {
        throw self.noVolume(source, operation: operation)
      }
      let promised = try content.sizeBytes(operation: operation)
      try self.admit(promised, adding: promised, operation: operation)
      defer { self.state.withLock { $0.reservedBytes -= promised } }
      return try self.take(content, as: handle, operation: operation)
    }
  }

  /// Completes a snapshot in staging and gives it its name.
  private func take(
    _ content: borrowing OpenFile, as handle: SnapshotHandle, operation: String
  ) throws(StorageError) -> Snapshot {
    let name = ReflinkPool.fileName(handle)
    let stagingName = "\(handle.name).snapshot"
    let file = try staging.makeFile(stagingName, operation: operation)
    do throws(StorageError) {
      try file.shareContent(of: content, operation: operation)
      try file.makeReadOnly(operation: operation)
      try file.sync(operation: operation)
      try staging.link(stagingName, to: snapshotsFolder, as: name, operation: operation)
    } catch {
      try? staging.remove(stagingName, operation: operation)
      throw error
    }
    let size = try file.sizeBytes(operation: operation)
    state.withLock { $0.snapshots[handle] = size }
    try snapshotsFolder.sync(operation: operation)
    try staging.remove(stagingName, operation: operation)
    guard let snapshot = try findSnapshot(handle, operation: operation) else {
      throw StorageError(.discarded, operation: operation, message: "the snapshot was deleted while it was being taken")
    }
    return snapshot
  }

  public func snapshot(_ handle: SnapshotHandle) async throws(StorageError) -> Snapshot? {
    let operation = "look at snapshot \(handle)"
    return try await blocking(operation) { () throws(StorageError) in
      try self.findSnapshot(handle, operation: operation)
    }
  }

  public func deleteSnapshot(_ handle: SnapshotHandle) async throws(StorageError) {
    let operation = "delete snapshot \(handle)"
    try await blocking(operation) { () throws(StorageError) in
      let name = ReflinkPool.fileName(handle)
      let rubbish = "\(handle.name).snapshot"
      let moved = try self.snapshotsFolder.move(name, to: self.trash, as: rubbish, operation: operation)
      self.state.withLock { $0.snapshots[handle] = nil }
      guard moved else { return }
      try self.snapshotsFolder.sync(operation: operation)
      try self.trash.remove(rubbish, operation: operation)
    }
  }

  var snapshotCount: Int { state.withLock { $0.snapshots.count } }

  func findSnapshot(_ handle: SnapshotHandle, operation: String) throws(StorageError) -> Snapshot? {
    let name = ReflinkPool.fileName(handle)
    guard let status = try snapshotsFolder.status(name, operation: operation) else { return nil }
    guard status.isRegular else {
      throw StorageError(
        .io, operation: operation, message: "'\(snapshotsFolder.path)/\(name)' is not a regular file; move it away")
    }
    return Snapshot(handle: handle, sizeBytes: status.sizeBytes, creationTime: status.modificationTime)
  }

  static func scanSnapshots(
    _ folder: PoolDirectory, operation: String
  ) throws(StorageError) -> [SnapshotHandle: Int64] {
    var sizes: [SnapshotHandle: Int64] = [:]
    for name in try folder.names(operation: operation) where name.hasSuffix(".img") {
      guard let handle = try? SnapshotHandle(String(name.dropLast(4))),
        let status = try folder.status(name, operation: operation), status.isRegular
      else { continue }
      sizes[handle] = status.sizeBytes
    }
    return sizes
  }
}
