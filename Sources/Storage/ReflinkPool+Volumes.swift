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
        guard self.state.withLock({ $0.uploads[source] }) == nil else {
          throw StorageError(
            .busy, operation: operation, message: "an upload into the source is in progress; clone it when it is done")
        }
        let name = ReflinkPool.fileName(source)
        guard let content = try self.volumesFolder.openFile(name, flags: O_RDONLY, operation: operation) else {
          throw StorageError(
            .notFound, operation: operation, message: "the pool '\(self.path)' has no volume '\(source)'")
        }
        let sourceSize = try content.sizeBytes(operation: operation)
        guard sourceSize <= sizeBytes else {
          throw StorageError(
            .invalidSize, operation: operation,
            message: "\(sizeBytes) bytes are asked for, but the source has \(sourceSize)")
        }
        try file.shareContent(of: content, operation: operation)
      }
    }
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
    let (provisioned, volumes) = state.withLock { (saturatingSum($0.sizes.values), $0.sizes.count) }
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
    try admit(sizeBytes, operation: operation)
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

  /// Promises room for a volume, or says why not.
  private func admit(_ sizeBytes: Int64, operation: String) throws(StorageError) {
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
        message: "the pool is full: no more than its reserve of \(reserve) bytes is free; delete volumes or enlarge it")
    }
    let limit = provisionable(total: total)
    let admitted = state.withLock { state -> Bool in
      let promised = saturatingSum(state.sizes.values)
      guard saturatingSum([promised, state.reservedBytes, sizeBytes]) <= limit else { return false }
      state.reservedBytes += sizeBytes
      return true
    }
    guard admitted else {
      throw StorageError(
        .overcommitted, operation: operation,
        message: """
          with this volume of \(sizeBytes) bytes the pool would promise more than \(limit) bytes \
          (overcommit ratio \(policy.overcommitRatio)); delete volumes, enlarge the pool or raise the ratio
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
