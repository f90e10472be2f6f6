import Glibc
import JSON

/// Small JSON files that are whole after a crash at any moment: either the old content or the new.
///
/// SAFETY, for every `unsafe` here: each buffer goes with its own length, each path lives for the length of the call.
enum DurableFile {
  /// The longest file that is read, in bytes.
  static let maximumLength = 64 << 20

  /// The content; nil where there is no file.
  static func read(_ path: String) throws(SoftDPUError) -> JSONValue? {
    guard let content = try bytes(path) else { return nil }
    return try parse(content, path)
  }

  /// What `bytes` gave, as JSON.
  static func parse(_ content: [UInt8], _ path: String) throws(SoftDPUError) -> JSONValue {
    do throws(JSONError) {
      return try JSONValue.parse(content)
    } catch {
      throw SoftDPUError(
        code: .state, operation: "read \(path)", message: "\(error); restore it, or move it away")
    }
  }

  /// The bytes of a file; nil where there is none.
  static func bytes(_ path: String) throws(SoftDPUError) -> [UInt8]? {
    let operation = "read \(path)"
    let fd = unsafe open(path, O_RDONLY | O_CLOEXEC)
    guard fd >= 0 else {
      if errno == ENOENT { return nil }
      throw .system(errno, operation)
    }
    defer { close(fd) }
    var content: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 1 << 16)
    while content.count <= maximumLength {
      let count = unsafe Glibc.read(fd, &chunk, chunk.count)
      guard count >= 0 else { throw .system(errno, operation) }
      if count == 0 { break }
      content += chunk[..<count]
    }
    guard content.count <= maximumLength else {
      throw SoftDPUError(code: .state, operation: operation, message: "longer than \(maximumLength) bytes")
    }
    return content
  }

  /// Replaces the content; readable by the owner only.
  static func write(_ value: JSONValue, to path: String) throws(SoftDPUError) {
    try write(value.serialize() + [0x0A], to: path)
  }

  /// The same with bytes. `onNew` is called when the new content is what readers find, though a crash may undo it: an
  /// error after that leaves it there.
  static func write(_ bytes: [UInt8], to path: String, onNew: () -> Void = {}) throws(SoftDPUError) {
    let operation = "write \(path)"
    let temporary = "\(path).new"
    let fd = unsafe open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
    guard fd >= 0 else { throw .system(errno, operation) }
    do throws(SoftDPUError) {
      defer { close(fd) }
      try write(bytes, fd, operation)
      guard fsync(fd) == 0 else { throw .system(errno, operation) }
    } catch {
      unsafe unlink(temporary)
      throw error
    }
    guard unsafe rename(temporary, path) == 0 else { throw .system(errno, operation) }
    onNew()
    try syncDirectory(String(path[..<(path.lastIndex(of: "/") ?? path.startIndex)]))
  }

  /// Writes all of `bytes`.
  static func write(_ bytes: [UInt8], _ fd: CInt, _ operation: String) throws(SoftDPUError) {
    var done = 0
    while done < bytes.count {
      let count = unsafe bytes[done...].withUnsafeBytes { unsafe Glibc.write(fd, $0.baseAddress, $0.count) }
      if count < 0, errno == EINTR { continue }
      guard count > 0 else { throw .system(errno, operation) }
      done += count
    }
  }

  /// Has the names in a directory on disk.
  static func syncDirectory(_ path: String) throws(SoftDPUError) {
    let directory = unsafe open(path.isEmpty ? "/" : path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard directory >= 0 else { throw .system(errno, "open \(path)") }
    defer { close(directory) }
    guard fsync(directory) == 0 else { throw .system(errno, "write \(path)") }
  }
}
