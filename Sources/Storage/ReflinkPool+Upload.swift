import Glibc
import NIOCore
import Synchronization

extension ReflinkPool {
  public func beginUpload(_ handle: VolumeHandle) async throws(StorageError) -> any VolumeUpload {
    let operation = "upload into volume \(handle)"
    return try await blocking(operation) { () throws(StorageError) in
      guard let volume = try self.find(handle, operation: operation) else {
        throw StorageError(
          .notFound, operation: operation, message: "the pool '\(self.path)' has no volume '\(handle)'")
      }
      let number = self.state.withLock { state -> UInt64? in
        guard state.uploads[handle] == nil else { return nil }
        state.uploads[handle] = state.nextUpload
        state.nextUpload += 1
        return state.uploads[handle]
      }
      guard let number else {
        throw StorageError(.busy, operation: operation, message: "another upload into the volume is in progress")
      }
      do throws(StorageError) {
        let name = "\(handle.name).upload-\(number)"
        let file = try self.staging.makeFile(name, operation: operation)
        try file.truncate(to: volume.sizeBytes, operation: operation)
        return PoolUpload(
          pool: self, handle: handle, number: number, stagingName: name, file: file, sizeBytes: volume.sizeBytes)
      } catch {
        self.endUpload(handle, number: number)
        throw error
      }
    }
  }

  public func isUploading(_ handle: VolumeHandle) async -> Bool {
    state.withLock { $0.uploads[handle] != nil }
  }

  fileprivate func endUpload(_ handle: VolumeHandle, number: UInt64) {
    state.withLock { state in
      if state.uploads[handle] == number { state.uploads[handle] = nil }
    }
  }

  fileprivate func replaceContent(
    of handle: VolumeHandle, number: UInt64, stagingName: String, operation: String
  ) throws(StorageError) -> Volume {
    let name = ReflinkPool.fileName(handle)
    // In one step with deletion: a volume that has been deleted is not brought back.
    let result = state.withLock { state -> Result<Bool, StorageError> in
      guard state.uploads[handle] == number else { return .success(false) }
      do throws(StorageError) {
        return .success(try staging.move(stagingName, to: volumesFolder, as: name, operation: operation))
      } catch {
        return .failure(error)
      }
    }
    guard try result.get() else { throw .discardedUpload(operation) }
    try volumesFolder.sync(operation: operation)
    guard let volume = try find(handle, operation: operation) else { throw .discardedUpload(operation) }
    return volume
  }
}

extension StorageError {
  fileprivate static func discardedUpload(_ operation: String) -> StorageError {
    StorageError(.discarded, operation: operation, message: "the volume was deleted during the upload")
  }
}

/// An upload into a file in staging that takes the volume's place when it is complete.
private final class PoolUpload: VolumeUpload {
  /// Data is started on its way to the disk in steps of this size, so that the final sync has little left to do.
  private static let writeBackStepBytes: Int64 = 32 << 20
  private static let blockBytes = 4096

  private struct Progress {
    var offset: Int64 = 0
    var writeBackFrom: Int64 = 0
  }

  let sizeBytes: Int64
  private let pool: ReflinkPool
  private let handle: VolumeHandle
  private let number: UInt64
  private let stagingName: String
  private let file: OpenFile
  private let progress = Mutex(Progress())
  private let operation: String

  init(
    pool: ReflinkPool, handle: VolumeHandle, number: UInt64, stagingName: String, file: consuming OpenFile,
    sizeBytes: Int64
  ) {
    self.pool = pool
    self.handle = handle
    self.number = number
    self.stagingName = stagingName
    self.file = file
    self.sizeBytes = sizeBytes
    operation = "upload into volume \(handle)"
  }

  func append(_ bytes: ByteBuffer) async throws(StorageError) {
    try await pool.blocking(operation, on: ReflinkPool.transferThreads) { () throws(StorageError) in
      try self.write(bytes)
    }
  }

  func skip(_ bytes: Int64) async throws(StorageError) {
    let isInside = progress.withLock { progress -> Bool in
      guard bytes >= 0, bytes <= sizeBytes - progress.offset else { return false }
      progress.offset += bytes
      return true
    }
    guard isInside else {
      throw StorageError(
        .contentMismatch, operation: operation, message: "the content is longer than the volume's \(sizeBytes) bytes")
    }
  }

  func sync() async throws(StorageError) {
    try await pool.blocking(operation, on: ReflinkPool.transferThreads) { () throws(StorageError) in
      try self.file.sync(operation: self.operation)
    }
  }

  func commit() async throws(StorageError) -> Volume {
    try await pool.blocking(operation, on: ReflinkPool.transferThreads) { () throws(StorageError) in
      // The volume may have grown between being looked at and the beginning of the upload.
      if let present = try self.pool.find(self.handle, operation: self.operation), present.sizeBytes > self.sizeBytes {
        try self.file.truncate(to: present.sizeBytes, operation: self.operation)
      }
      try self.file.sync(operation: self.operation)
      let volume = try self.pool.replaceContent(
        of: self.handle, number: self.number, stagingName: self.stagingName, operation: self.operation)
      self.pool.endUpload(self.handle, number: self.number)
      return volume
    }
  }

  func abort() async {
    // A few microseconds on the caller's thread: abandoning must work while the process is stopping, too. What cannot
    // be removed now is removed when the pool is opened next.
    try? pool.staging.remove(stagingName, operation: operation)
    pool.endUpload(handle, number: number)
  }

  private func write(_ bytes: ByteBuffer) throws(StorageError) {
    guard pool.state.withLock({ $0.uploads[handle] }) == number else { throw .discardedUpload(operation) }
    let start = progress.withLock { $0.offset }
    guard Int64(bytes.readableBytes) <= sizeBytes - start else {
      throw StorageError(
        .contentMismatch, operation: operation, message: "the content is longer than the volume's \(sizeBytes) bytes")
    }
    let result = bytes.withUnsafeReadableBytes { content -> Result<Void, StorageError> in
      do throws(StorageError) { return .success(try writeData(content, at: start)) } catch { return .failure(error) }
    }
    try result.get()
    let end = start + Int64(bytes.readableBytes)
    let writeBack = progress.withLock { progress -> Int64? in
      progress.offset = end
      guard end - progress.writeBackFrom >= PoolUpload.writeBackStepBytes else { return nil }
      defer { progress.writeBackFrom = end }
      return progress.writeBackFrom
    }
    if let writeBack {
      // Starts writing back and does not wait for it.
      _ = posix_fadvise(file.descriptor, off_t(writeBack), off_t(end - writeBack), POSIX_FADV_DONTNEED)
      try checkReserve()
    }
  }

  /// Writes runs of blocks that hold data; runs of zeroes stay holes, since the file was made empty.
  private func writeData(_ content: UnsafeRawBufferPointer, at offset: Int64) throws(StorageError) {
    var position = 0
    var dataStart: Int?
    while position < content.count {
      let end = min(position + PoolUpload.blockBytes, content.count)
      if isZero(UnsafeRawBufferPointer(rebasing: content[position..<end])) {
        if let start = dataStart {
          let run = UnsafeRawBufferPointer(rebasing: content[start..<position])
          try file.write(run, at: offset + Int64(start), operation: operation)
          dataStart = nil
        }
      } else if dataStart == nil {
        dataStart = position
      }
      position = end
    }
    if let start = dataStart {
      let run = UnsafeRawBufferPointer(rebasing: content[start...])
      try file.write(run, at: offset + Int64(start), operation: operation)
    }
  }

  private func checkReserve() throws(StorageError) {
    let (total, free) = try pool.space(operation: operation)
    let reserve = pool.reserveBytes(total: total)
    guard free > reserve else {
      throw StorageError(
        .poolFull, operation: operation,
        message: "the pool is full: no more than its reserve of \(reserve) bytes is free; delete volumes or enlarge it")
    }
  }
}

/// Whether all bytes are zero, at the speed of the C library: the first is, and each equals its successor.
private func isZero(_ bytes: UnsafeRawBufferPointer) -> Bool {
  guard let base = bytes.baseAddress, let first = bytes.first else { return true }
  // SAFETY: both ranges of count - 1 bytes lie inside the buffer; memcmp only reads, so they may overlap.
  return first == 0 && memcmp(base, base + 1, bytes.count - 1) == 0
}
