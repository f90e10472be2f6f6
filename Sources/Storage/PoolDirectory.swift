import Glibc
import SystemPackage

/// A folder of the pool, held open.
///
/// All work goes through the descriptor: when the pool's file system is unmounted or another one is mounted over it,
/// operations do not silently end up in a different folder of the same name.
final class PoolDirectory: Sendable {
  /// What is known of a file without opening it.
  struct FileStatus: Sendable {
    let isRegular: Bool
    let sizeBytes: Int64
    let allocatedBytes: Int64
    /// When the content was last written, in nanoseconds since 1970.
    let modificationTime: Int64
  }

  let path: String
  let descriptor: Int32

  /// Opens a folder by its path; one that is missing is an error.
  init(path: String, operation: String) throws(StorageError) {
    let descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard descriptor >= 0 else { throw .system(operation, "open folder '\(path)'", errno) }
    self.path = path
    self.descriptor = descriptor
  }

  /// Opens a folder inside another one, made where it is missing.
  init(_ name: String, in parent: PoolDirectory, operation: String) throws(StorageError) {
    let path = "\(parent.path)/\(name)"
    if mkdirat(parent.descriptor, name, 0o700) != 0, errno != EEXIST {
      throw .system(operation, "make folder '\(path)'", errno)
    }
    let descriptor = openat(parent.descriptor, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW)
    guard descriptor >= 0 else { throw .system(operation, "open folder '\(path)'", errno) }
    self.path = path
    self.descriptor = descriptor
  }

  /// Opens a folder inside another one; nil where there is none of that name.
  init?(existing name: String, in parent: PoolDirectory, operation: String) throws(StorageError) {
    let path = "\(parent.path)/\(name)"
    let descriptor = openat(parent.descriptor, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW)
    guard descriptor >= 0 else {
      if errno == ENOENT { return nil }
      throw .system(operation, "open folder '\(path)'", errno)
    }
    self.path = path
    self.descriptor = descriptor
  }

  deinit { close(descriptor) }

  /// Opens a regular file; nil where there is none of that name.
  func openFile(_ name: String, flags: Int32, operation: String) throws(StorageError) -> OpenFile? {
    let file = openat(descriptor, name, flags | O_CLOEXEC | O_NOFOLLOW, 0o600)
    if file < 0, errno == ENOENT, flags & O_CREAT == 0 { return nil }
    guard file >= 0 else { throw .system(operation, "open '\(path)/\(name)'", errno) }
    return OpenFile(descriptor: file, path: "\(path)/\(name)")
  }

  /// Makes a file that must not exist yet, having removed one that an earlier process left behind.
  func makeFile(_ name: String, operation: String) throws(StorageError) -> OpenFile {
    try remove(name, operation: operation)
    guard let file = try openFile(name, flags: O_RDWR | O_CREAT | O_EXCL, operation: operation) else {
      throw .system(operation, "make '\(path)/\(name)'", ENOENT)
    }
    return file
  }

  func status(_ name: String, operation: String) throws(StorageError) -> FileStatus? {
    let status: Stat
    do throws(Errno) {
      status = try Stat(name, relativeTo: FileDescriptor(rawValue: descriptor), flags: .symlinkNoFollow)
    } catch {
      if error == .noSuchFileOrDirectory { return nil }
      throw .system(operation, "look at '\(path)/\(name)'", error.rawValue)
    }
    return FileStatus(
      isRegular: status.type == .regular, sizeBytes: status.size, allocatedBytes: status.sizeAllocated,
      modificationTime: PoolDirectory.nanoseconds(status.st_mtim))
  }

  /// The members of `timespec` belong to whichever C module was seen first, so they are read by their place.
  private static func nanoseconds(_ time: timespec) -> Int64 {
    // SAFETY: timespec is two 64-bit numbers, seconds and nanoseconds, on every 64-bit Linux.
    withUnsafeBytes(of: time) { bytes in
      bytes.loadUnaligned(as: Int64.self) &* 1_000_000_000
        &+ bytes.loadUnaligned(fromByteOffset: 8, as: Int64.self)
    }
  }

  /// Removes a file; one that is not there is no error.
  func remove(_ name: String, operation: String) throws(StorageError) {
    guard unlinkat(descriptor, name, 0) == 0 || errno == ENOENT else {
      throw .system(operation, "remove '\(path)/\(name)'", errno)
    }
  }

  /// Renames a file into another folder, replacing one of that name. False where the file is not there.
  func move(
    _ name: String, to target: PoolDirectory, as newName: String, operation: String
  ) throws(StorageError) -> Bool {
    guard renameat(descriptor, name, target.descriptor, newName) == 0 else {
      if errno == ENOENT { return false }
      throw .system(operation, "rename '\(path)/\(name)' to '\(target.path)/\(newName)'", errno)
    }
    return true
  }

  /// Gives a file a second name in another folder; a file that has that name already is an error.
  func link(_ name: String, to target: PoolDirectory, as newName: String, operation: String) throws(StorageError) {
    guard linkat(descriptor, name, target.descriptor, newName, 0) == 0 else {
      throw .system(operation, "link '\(path)/\(name)' to '\(target.path)/\(newName)'", errno)
    }
  }

  /// Makes the names in this folder durable.
  func sync(operation: String) throws(StorageError) {
    guard fsync(descriptor) == 0 else { throw .system(operation, "sync folder '\(path)'", errno) }
  }

  /// The names in this folder, without `.` and `..`, in order.
  func names(operation: String) throws(StorageError) -> [String] {
    let duplicate = openat(descriptor, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard duplicate >= 0 else { throw .system(operation, "open folder '\(path)'", errno) }
    guard let stream = fdopendir(duplicate) else {
      let cause = errno
      close(duplicate)
      throw .system(operation, "list folder '\(path)'", cause)
    }
    defer { closedir(stream) }
    var names: [String] = []
    while true {
      errno = 0
      guard let entry = readdir(stream) else { break }
      let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
        // SAFETY: the kernel ends d_name with a zero byte within the record.
        String(cString: UnsafeRawPointer(pointer).assumingMemoryBound(to: CChar.self))
      }
      if name != ".", name != ".." { names.append(name) }
    }
    guard errno == 0 else { throw .system(operation, "list folder '\(path)'", errno) }
    return names.sorted()
  }
}

/// An open file, closed when it goes.
struct OpenFile: ~Copyable, Sendable {
  let descriptor: Int32
  let path: String

  init(descriptor: Int32, path: String) {
    self.descriptor = descriptor
    self.path = path
  }

  deinit { close(descriptor) }

  func sizeBytes(operation: String) throws(StorageError) -> Int64 {
    do throws(Errno) {
      return try Stat(FileDescriptor(rawValue: descriptor)).size
    } catch {
      throw .system(operation, "look at '\(path)'", error.rawValue)
    }
  }

  func truncate(to sizeBytes: Int64, operation: String) throws(StorageError) {
    guard ftruncate(descriptor, off_t(sizeBytes)) == 0 else {
      throw .system(operation, "set the size of '\(path)' to \(sizeBytes) bytes", errno)
    }
  }

  func sync(operation: String) throws(StorageError) {
    guard fsync(descriptor) == 0 else { throw .system(operation, "sync '\(path)'", errno) }
  }

  /// Takes the right to write away, from the owner too.
  func makeReadOnly(operation: String) throws(StorageError) {
    guard fchmod(descriptor, 0o400) == 0 else { throw .system(operation, "make '\(path)' read-only", errno) }
  }

  /// Shares all extents of `source` (`FICLONE`, ioctl_ficlone(2)): independent of the size, and no data is copied.
  func shareContent(of source: borrowing OpenFile, operation: String) throws(StorageError) {
    // _IOW(0x94, 9, int): the same on x86-64 and arm64.
    let ficlone: UInt = 0x4004_9409
    guard ioctl(descriptor, ficlone, source.descriptor) == 0 else {
      throw .system(operation, "clone '\(source.path)' to '\(path)'", errno)
    }
  }

  /// The beginning of the file as text.
  func readText(limit: Int, operation: String) throws(StorageError) -> String {
    var bytes = [UInt8](repeating: 0, count: limit)
    let count = pread(descriptor, &bytes, limit, 0)
    guard count >= 0 else { throw .system(operation, "read '\(path)'", errno) }
    return String(decoding: bytes[..<count], as: UTF8.self)
  }

  /// Replaces the content of a file that is small enough to be written in one go, and makes it durable.
  func replaceText(_ text: String, operation: String) throws(StorageError) {
    let bytes = Array(text.utf8)
    try truncate(to: 0, operation: operation)
    guard pwrite(descriptor, bytes, bytes.count, 0) == bytes.count else {
      throw .system(operation, "write '\(path)'", errno)
    }
    try sync(operation: operation)
  }

  func write(_ bytes: UnsafeRawBufferPointer, at offset: Int64, operation: String) throws(StorageError) {
    var written = 0
    while written < bytes.count {
      let rest = UnsafeRawBufferPointer(rebasing: bytes[written...])
      let count = pwrite(descriptor, rest.baseAddress, rest.count, off_t(offset) + off_t(written))
      if count < 0 {
        if errno == EINTR { continue }
        throw .system(operation, "write \(rest.count) bytes at \(offset) to '\(path)'", errno)
      }
      written += count
    }
  }
}

extension StorageError {
  /// The failure of a system call, told apart where callers care.
  static func system(_ operation: String, _ action: String, _ errorNumber: Int32) -> StorageError {
    let reason = String(cString: strerror(errorNumber))
    switch errorNumber {
    case ENOSPC, EDQUOT:
      return StorageError(
        .poolFull, operation: operation,
        message: "could not \(action): the pool's file system is full; delete volumes or enlarge it",
        errorNumber: errorNumber)
    case EFBIG:
      return StorageError(
        .exceedsPool, operation: operation,
        message: "could not \(action): larger than a file of this file system can be", errorNumber: errorNumber)
    default:
      return StorageError(
        .io, operation: operation, message: "could not \(action): \(reason) (errno \(errorNumber))",
        errorNumber: errorNumber)
    }
  }
}
