import Glibc
import Synchronization

extension ReflinkPool {
  public func create(_ handle: VolumeHandle, sizeBytes: Int64) async throws(StorageError) -> Volume {
    let operation = "create volume \(handle)"
    return try await blocking(operation) { () throws(StorageError) in
      try self.make(handle, sizeBytes: sizeBytes, operation: operation) { (_) throws(StorageError) in }
    }
  }

  public func clone(
    _ source: VolumeHandle, to handle: VolumeHandle, sizeBytes: Int64
  ) async throws(StorageError) -> Volume {
    let operation = "clone volume \(source) to \(handle)"
    return try await blocking(operation) { () throws(StorageError) in
      try self.make(handle, sizeBytes: sizeBytes, operation: operation) { (file) throws(StorageError) in
        try self.requireNoUpload(source, operation: operation)
        let name = ReflinkPool.fileName(source)
        guard let content = try self.volumesFolder.openFile(name, flags: O_RDONLY, operation: operation) else {
          throw self.noVolume(source, operation: operation)
        }
        try self.fill(file, with: content, atMost: sizeBytes, operation: operation)
      }
    }
  }

  public func clone(
    snapshot source: SnapshotHandle, to handle: VolumeHandle, sizeBytes: Int64
  ) async throws(StorageError) -> Volume {
    let operation = "clone snapshot \(source) to \(handle)"
    return try await blocking(operation) { () throws(StorageError) in
      try self.make(handle, sizeBytes: sizeBytes, operation: operation) { (file) throws(StorageError) in
        let name = ReflinkPool.fileName(source)
        guard let content = try self.snapshotsFolder.openFile(name, flags: O_RDONLY, operation: operation) else {
          throw StorageError(
            .notFound, operation: operation, message: "the pool '\(self.path)' has no snapshot '\(source)'")
        }
        try self.fill(file, with: content, atMost: sizeBytes, operation: operation)
      }
    }
  }

  private func fill(
    _ file: borrowing OpenFile, with content: borrowing OpenFile, atMost sizeBytes: Int64, operation: String
  ) throws(StorageError) {
    let sourceSize = try content.sizeBytes(operation: operation)
    guard sourceSize <= sizeBytes else {
      throw StorageError(
        .invalidSize, operation: operation,
        message: "\(sizeBytes) bytes are asked for, but the source has \(sourceSize)")
    }
    try file.shareContent(of: content, operation: operation)
  }

  func requireNoUpload(_ source: VolumeHandle, operation: String) throws(StorageError) {
    guard state.withLock({ $0.uploads[source] }) == nil else {
      throw StorageError(
        .busy, operation: operation, message: "an upload into volume \(source) is in progress; wait until it is done")
    }
  }

  func noVolume(_ handle: VolumeHandle, operation: String) -> StorageError {
    StorageError(.notFound, operation: operation, message: "the pool '\(path)' has no volume '\(handle)'")
  }

  public func grow(_ handle: VolumeHandle, toBytes sizeBytes: Int64) async throws(StorageError) -> Volume {
    let operation = "grow volume \(handle)"
    return try await blocking(operation) { () throws(StorageError) in
      let name = ReflinkPool.fileName(handle)
      guard let present = try self.find(handle, operation: operation),
        let file = try self.volumesFolder.openFile(name, flags: O_RDWR, operation: operation)
      else { throw self.noVolume(handle, operation: operation) }
      if present.sizeBytes < sizeBytes {
        let added = sizeBytes - present.sizeBytes
        try self.admit(sizeBytes, adding: added, operation: operation)
        defer { self.state.withLock { $0.reservedBytes -= added } }
        try self.extend(file, handle, to: sizeBytes, operation: operation)
      }
      // Also where it had the size already: who gave it that may have died before this.
      try file.sync(operation: operation)
      return try self.find(handle, operation: operation) ?? present
    }
  }

  /// In one step with what an upload's commit does, so that neither undoes the other.
  private func extend(
    _ file: borrowing OpenFile, _ handle: VolumeHandle, to sizeBytes: Int64, operation: String
  ) throws(StorageError) {
    let descriptor = file.descriptor
    let path = file.path
    let failure = state.withLock { state -> StorageError? in
      guard state.uploads[handle] == nil else {
        return StorageError(
          .busy, operation: operation, message: "an upload into volume \(handle) is in progress; wait until it is done")
      }
      guard ftruncate(descriptor, off_t(sizeBytes)) == 0 else {
        return .system(operation, "set the size of '\(path)' to \(sizeBytes) bytes", errno)
      }
      state.sizes[handle] = sizeBytes
      return nil
    }
    if let failure { throw failure }
  }

  public func delete(_ handle: VolumeHandle) async throws(StorageError) {
    let operation = "delete volume \(handle)"
    try await blocking(operation) { () throws(StorageError) in
      let name = ReflinkPool.fileName(handle)
      guard try self.withdraw(handle, to: self.trash, operation: operation) else { return }
      try self.volumesFolder.sync(operation: operation)
      try self.trash.remove(name, operation: operation)
    }
  }

  public func retain(_ handle: VolumeHandle) async throws(StorageError) {
    let operation = "retain volume \(handle)"
    try await blocking(operation) { () throws(StorageError) in
      let name = ReflinkPool.fileName(handle)
      if try self.volumesFolder.status(name, operation: operation) != nil,
        try self.retained.status(name, operation: operation) != nil
      {
        throw StorageError(
          .conflict, operation: operation,
          message: "'\(self.retained.path)/\(name)' is there already and is not overwritten; move it elsewhere")
      }
      guard try self.withdraw(handle, to: self.retained, operation: operation) else { return }
      try self.retained.sync(operation: operation)
      try self.volumesFolder.sync(operation: operation)
    }
  }

  public func restore(_ handle: VolumeHandle) async throws(StorageError) -> Bool {
    let operation = "restore volume \(handle)"
    return try await blocking(operation) { () throws(StorageError) in
      let name = ReflinkPool.fileName(handle)
      guard let status = try self.retained.status(name, operation: operation),
        try self.volumesFolder.status(name, operation: operation) == nil
      else { return false }
      guard try self.retained.move(name, to: self.volumesFolder, as: name, operation: operation) else { return false }
      self.state.withLock { $0.sizes[handle] = status.sizeBytes }
      try self.volumesFolder.sync(operation: operation)
      try self.retained.sync(operation: operation)
      return true
    }
  }

  public func volume(_ handle: VolumeHandle) async throws(StorageError) -> Volume? {
    let operation = "look at volume \(handle)"
    return try await blocking(operation) { () throws(StorageError) in
      try self.find(handle, operation: operation)
    }
  }

  public func volumes() async throws(StorageError) -> [Volume] {
    let operation = "list volumes"
    return try await blocking(operation) { () throws(StorageError) in
      try ReflinkPool.scan(self.volumesFolder, operation: operation)
    }
  }

  public func capacity() async throws(StorageError) -> PoolCapacity {
    let operation = "read the pool's capacity"
    return try await blocking(operation) { () throws(StorageError) in try self.usage().capacity }
  }

  /// Capacity and number of volumes; a few microseconds on the caller's thread.
  func usage() throws(StorageError) -> (capacity: PoolCapacity, volumes: Int) {
    let (total, free) = try space(operation: "read the pool's capacity")
    let (provisioned, volumes) = state.withLock { (ReflinkPool.promised($0), $0.sizes.count) }
    let capacity = PoolCapacity(
      totalBytes: total, freeBytes: free, provisionedBytes: provisioned, provisionableBytes: provisionable(total: total)
    )
    return (capacity, volumes)
  }

  func find(_ handle: VolumeHandle, operation: String) throws(StorageError) -> Volume? {
    guard let status = try volumesFolder.status(ReflinkPool.fileName(handle), operation: operation) else { return nil }
    guard status.isRegular else {
      throw StorageError(
        .io, operation: operation,
        message: "'\(volumesFolder.path)/\(ReflinkPool.fileName(handle))' is not a regular file; move it away")
    }
    return Volume(handle: handle, sizeBytes: status.sizeBytes, allocatedBytes: status.allocatedBytes)
  }

  /// Total and free bytes of the pool's file system.
  func space(operation: String) throws(StorageError) -> (total: Int64, free: Int64) {
    var info = statvfs()
    guard fstatvfs(root.descriptor, &info) == 0 else {
      throw .system(operation, "read the capacity of '\(path)'", errno)
    }
    let total = UInt64(info.f_blocks).multipliedReportingOverflow(by: UInt64(info.f_frsize)).partialValue
    let free = UInt64(info.f_bavail).multipliedReportingOverflow(by: UInt64(info.f_frsize)).partialValue
    return (Int64(clamping: total), Int64(clamping: free))
  }

  /// What all volumes and snapshots may come to take.
  static func promised(_ state: State) -> Int64 {
    saturatingSum([saturatingSum(state.sizes.values), saturatingSum(state.snapshots.values)])
  }

  func reserveBytes(total: Int64) -> Int64 { Int64(Double(total) * policy.reserveFraction) }

  private func provisionable(total: Int64) -> Int64 {
    let bytes = Double(total) * policy.overcommitRatio
    return bytes < Double(Int64.max) ? Int64(bytes) : Int64.max
  }

  /// Completes a volume in staging and gives it its name.
  private func make(
    _ handle: VolumeHandle, sizeBytes: Int64, operation: String,
    fill: (borrowing OpenFile) throws(StorageError) -> Void
  ) throws(StorageError) -> Volume {
    guard state.withLock({ $0.making.insert(handle).inserted }) else {
      throw StorageError(.busy, operation: operation, message: "the volume is being made already")
    }
    defer { _ = state.withLock { $0.making.remove(handle) } }
    if let present = try find(handle, operation: operation) {
      guard present.sizeBytes >= sizeBytes else {
        throw StorageError(
          .conflict, operation: operation,
          message: "the volume is there with \(present.sizeBytes) bytes, but \(sizeBytes) are asked for")
      }
      return present
    }
    try admit(sizeBytes, adding: sizeBytes, operation: operation)
    defer { state.withLock { $0.reservedBytes -= sizeBytes } }

    let name = ReflinkPool.fileName(handle)
    let file = try staging.makeFile(name, operation: operation)
    do throws(StorageError) {
      try fill(file)
      try file.truncate(to: sizeBytes, operation: operation)
      try file.sync(operation: operation)
      try staging.link(name, to: volumesFolder, as: name, operation: operation)
    } catch {
      try? staging.remove(name, operation: operation)
      throw error
    }
    state.withLock { $0.sizes[handle] = sizeBytes }
    try volumesFolder.sync(operation: operation)
    try staging.remove(name, operation: operation)
    guard let volume = try find(handle, operation: operation) else {
      throw StorageError(.discarded, operation: operation, message: "the volume was deleted while it was being made")
    }
    return volume
  }

  /// Promises room for a volume or a snapshot of `sizeBytes`, which is that much more than before, or says why not.
  func admit(_ sizeBytes: Int64, adding: Int64, operation: String) throws(StorageError) {
    guard sizeBytes > 0 else {
      throw StorageError(.invalidSize, operation: operation, message: "a volume of \(sizeBytes) bytes is not possible")
    }
    let (total, free) = try space(operation: operation)
    guard sizeBytes <= total else {
      throw StorageError(
        .exceedsPool, operation: operation,
        message: "\(sizeBytes) bytes are asked for, but the whole pool has \(total); ask for less or enlarge the pool")
    }
    let reserve = reserveBytes(total: total)
    guard free > reserve else {
      throw StorageError(
        .poolFull, operation: operation,
        message: """
          the pool is full: no more than its reserve of \(reserve) bytes is free; delete volumes or snapshots, or enlarge \
          it
          """)
    }
    let limit = provisionable(total: total)
    let admitted = state.withLock { state -> Bool in
      guard saturatingSum([ReflinkPool.promised(state), state.reservedBytes, adding]) <= limit else { return false }
      state.reservedBytes += adding
      return true
    }
    guard admitted else {
      throw StorageError(
        .overcommitted, operation: operation,
        message: """
          with \(adding) bytes more the pool would promise more than \(limit) bytes \
          (overcommit ratio \(policy.overcommitRatio)); delete volumes or snapshots, enlarge the pool or raise the ratio
          """)
    }
  }

  /// Takes a volume out of `volumes`, and the ground from under an upload into it. False where there is none.
  private func withdraw(
    _ handle: VolumeHandle, to folder: PoolDirectory, operation: String
  ) throws(StorageError) -> Bool {
    let name = ReflinkPool.fileName(handle)
    // In one step with what an upload's commit does, so that no commit can bring the volume back.
    let result = state.withLock { state -> Result<Bool, StorageError> in
      do throws(StorageError) {
        let moved = try volumesFolder.move(name, to: folder, as: name, operation: operation)
        state.uploads[handle] = nil
        state.sizes[handle] = nil
        return .success(moved)
      } catch {
        return .failure(error)
      }
    }
    return try result.get()
  }
}

/// A sum that stays at the largest number instead of passing it: a sparse file may claim to have any size.
private func saturatingSum(_ sizes: some Sequence<Int64>) -> Int64 {
  sizes.reduce(0) { sum, size in
    let (total, overflow) = sum.addingReportingOverflow(size)
    return overflow ? Int64.max : total
  }
}
