import Files

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// Small files, written so that a reader sees the old or the new content and nothing between.
enum Files {
  static func write(_ content: some Collection<UInt8>, to path: String, mode: mode_t = 0o644) throws(BareMetalError) {
    let slash = path.lastIndex(of: "/") ?? path.startIndex
    // Hidden from those who list the folder.
    let temporary = "\(path[..<slash])/.\(path[path.index(after: slash)...]).new"
    do throws(FileError) {
      // What the handler writes it writes again after a reboot.
      try WholeFile.replace(path, with: Array(content), mode: mode, isDurable: false, temporary: temporary)
    } catch {
      throw BareMetalError(.system, operation: error.operation, message: error.reason)
    }
  }

  /// The content, or nil where there is no such file or it is larger than the limit.
  static func read(_ path: String, limit: Int = 1 << 20) -> [UInt8]? {
    (try? WholeFile.read(path, limit: limit)) ?? nil
  }

  static func remove(_ path: String) throws(BareMetalError) {
    guard unlink(path) == 0 || errno == ENOENT else { throw failure("remove \(path)") }
  }

  /// What changes when a file is written.
  struct Stamp: Equatable {
    var modified: Int64
    var size: Int64
  }

  static func stamp(_ path: String) -> Stamp? {
    var info = Glibc.stat()
    guard lstat(path, &info) == 0 else { return nil }
    return Stamp(
      modified: Int64(info.st_mtim.tv_sec) &* 1_000_000_000 &+ Int64(info.st_mtim.tv_nsec), size: Int64(info.st_size))
  }

  static func exists(_ path: String) -> Bool { access(path, F_OK) == 0 }

  static func makeDirectory(_ path: String, mode: mode_t = 0o755) throws(BareMetalError) {
    guard mkdir(path, mode) == 0 || errno == EEXIST else { throw failure("make the directory \(path)") }
  }

  /// The names in a directory; empty where it does not exist.
  static func list(_ path: String) -> [String] {
    guard let directory = opendir(path) else { return [] }
    defer { closedir(directory) }
    var names: [String] = []
    while let entry = readdir(directory) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
        pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      if name != ".", name != ".." { names.append(name) }
    }
    return names.sorted()
  }

  private static func failure(_ operation: String) -> BareMetalError {
    BareMetalError(.system, operation: operation, message: String(cString: strerror(errno)))
  }
}
