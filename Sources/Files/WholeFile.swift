package import Glibc

/// Small files that are read and written as a whole: whoever reads one, and whoever comes after a crash at any moment,
/// finds the old content or the new.
///
/// SAFETY, for every `unsafe` here: each buffer goes with its own length, each path lives for the length of the call.
package enum WholeFile {
  // MARK: Reading

  /// The content; nil where there is no file of that name. EFBIG where it is longer than `limit` bytes.
  package static func read(_ path: String, limit: Int) throws(FileError) -> [UInt8]? {
    let operation = "read \(path)"
    let descriptor = unsafe open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else {
      if errno == ENOENT { return nil }
      throw FileError(errno, operation)
    }
    defer { close(descriptor) }
    var content: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 16 << 10)
    while true {
      let count = unsafe Glibc.read(descriptor, &chunk, chunk.count)
      if count < 0, errno == EINTR { continue }
      guard count >= 0 else { throw FileError(errno, operation) }
      if count == 0 { return content }
      content.append(contentsOf: chunk[..<count])
      guard content.count <= limit else { throw FileError(EFBIG, operation) }
    }
  }

  // MARK: Writing

  /// Replaces the content at once: it is written to a file beside this one, which then takes its name. What fails leaves
  /// the old content, but for a folder that cannot be written to disk: then the new one is there, and may be lost with
  /// the power.
  ///
  /// - Parameters:
  ///   - mode: who may read it, less the process's mask.
  ///   - isDurable: on disk when this returns, content and name; what is worth nothing after a reboot need not wait.
  ///   - temporary: the file beside; `path` with `.new` where it is nil. One that a crash left there is removed.
  ///   - onNew: called when the new content is what readers find: an error after that leaves it there.
  package static func replace(
    _ path: String, with bytes: [UInt8], mode: mode_t = 0o600, isDurable: Bool = true, temporary: String? = nil,
    onNew: () -> Void = {}
  ) throws(FileError) {
    let temporary = temporary ?? "\(path).new"
    // Made anew: one that is there could be a link, or be open to more readers.
    guard unsafe unlink(temporary) == 0 || errno == ENOENT else { throw FileError(errno, "remove \(temporary)") }
    let descriptor = unsafe open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode)
    guard descriptor >= 0 else { throw FileError(errno, "write \(temporary)") }
    var failure = writeAll(bytes, to: descriptor)
    if failure == 0, isDurable, fsync(descriptor) != 0 { failure = errno }
    close(descriptor)
    if failure == 0, unsafe rename(temporary, path) != 0 { failure = errno }
    guard failure == 0 else {
      unsafe unlink(temporary)
      throw FileError(failure, "write \(path)")
    }
    onNew()
    if isDurable { try syncDirectory(directory(of: path)) }
  }

  /// Writes all of `bytes` where the descriptor stands; 0, or the error number.
  package static func writeAll(_ bytes: [UInt8], to descriptor: CInt) -> CInt {
    var done = 0
    while done < bytes.count {
      let count = unsafe bytes[done...].withUnsafeBytes { unsafe write(descriptor, $0.baseAddress, $0.count) }
      if count > 0 {
        done += count
      } else if count == 0 || errno != EINTR {
        return count == 0 ? EIO : errno
      }
    }
    return 0
  }

  /// Has the names in a folder on disk.
  package static func syncDirectory(_ path: String) throws(FileError) {
    let descriptor = unsafe open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard descriptor >= 0 else { throw FileError(errno, "open \(path)") }
    defer { close(descriptor) }
    guard fsync(descriptor) == 0 else { throw FileError(errno, "write \(path)") }
  }

  private static func directory(of path: String) -> String {
    guard let slash = path.lastIndex(of: "/") else { return "." }
    return slash == path.startIndex ? "/" : String(path[..<slash])
  }
}
