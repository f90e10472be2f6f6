import Files
import Glibc

/// The few file operations that a cloud directory needs, with errors that name the file.
enum Files {
  /// The text of a file, or nil when it does not exist.
  static func read(_ path: String, bytesMax: Int = 16 << 20) throws -> String? {
    do throws(FileError) {
      return try WholeFile.read(path, limit: bytesMax).map { String(decoding: $0, as: UTF8.self) }
    } catch {
      // A process that has just ended.
      guard error.number != ESRCH else { return nil }
      let reason = error.number == EFBIG ? "the file is larger than \(bytesMax) bytes" : error.reason
      throw LocalCloudError(.fileSystem, operation: error.operation, reason)
    }
  }

  /// Replaces a file at once: readers see the old or the new content, and a crash leaves one of them.
  /// - Parameter isDurable: also after a power failure; what is worth nothing after a reboot need not wait for the disk.
  static func write(_ path: String, _ text: String, mode: mode_t = 0o644, isDurable: Bool = true) throws {
    do throws(FileError) {
      try WholeFile.replace(path, with: Array(text.utf8), mode: mode, isDurable: isDurable)
    } catch {
      throw LocalCloudError(.fileSystem, operation: error.operation, error.reason)
    }
  }

  /// Creates a directory and the ones above it.
  static func makeDirectory(_ path: String, mode: mode_t = 0o755) throws {
    if mkdir(path, mode) == 0 { return }
    switch errno {
    case EEXIST:
      guard isDirectory(path) else {
        throw LocalCloudError(.fileSystem, operation: "create \(path)", "something that is no directory has the name")
      }
    case ENOENT:
      guard let slash = path.lastIndex(of: "/"), slash > path.startIndex else { throw failure("create \(path)") }
      try makeDirectory(String(path[..<slash]))
      guard mkdir(path, mode) == 0 || errno == EEXIST else { throw failure("create \(path)") }
    default:
      throw failure("create \(path)")
    }
  }

  static func isDirectory(_ path: String) -> Bool {
    var status = stat()
    return stat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR
  }

  static func exists(_ path: String) -> Bool {
    var status = stat()
    return lstat(path, &status) == 0
  }

  static func size(_ path: String) -> Int64? {
    var status = stat()
    return stat(path, &status) == 0 ? Int64(status.st_size) : nil
  }

  /// The names in a directory in order; none when it does not exist.
  static func names(in path: String) -> [String] {
    guard let directory = opendir(path) else { return [] }
    defer { closedir(directory) }
    var names: [String] = []
    while let entry = readdir(directory) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) {
        $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      if name != "." && name != ".." { names.append(name) }
    }
    return names.sorted()
  }

  static func remove(_ path: String) throws {
    guard unlink(path) == 0 || errno == ENOENT else { throw failure("remove \(path)") }
  }

  /// Removes a tree without following links and without entering another file system.
  static func removeTree(_ path: String) throws {
    var status = stat()
    guard lstat(path, &status) == 0 else { return }
    try removeTree(path, device: status.st_dev)
  }

  private static func removeTree(_ path: String, device: dev_t) throws {
    var status = stat()
    guard lstat(path, &status) == 0 else { return }
    guard status.st_mode & S_IFMT == S_IFDIR else { return try remove(path) }
    guard status.st_dev == device else {
      throw LocalCloudError(
        .fileSystem, operation: "remove \(path)", "another file system is mounted there; unmount it first")
    }
    for name in names(in: path) { try removeTree("\(path)/\(name)", device: device) }
    guard rmdir(path) == 0 || errno == ENOENT else { throw failure("remove \(path)") }
  }

  static func failure(_ operation: String) -> LocalCloudError {
    LocalCloudError(.fileSystem, operation: operation, String(cString: strerror(errno)))
  }
}
