import SystemPackage

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// Small files, read and written whole.
enum TextFile {
  /// Reads at most `limit` bytes; a longer file is an error.
  static func read(_ path: String, limit: Int) throws -> String {
    String(decoding: try readBytes(path, limit: limit), as: UTF8.self)
  }

  static func readBytes(_ path: String, limit: Int) throws -> [UInt8] {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw failure("read \(path)", errno) }
    defer { close(descriptor) }
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 1 << 16)
    while true {
      let count = chunk.withUnsafeMutableBytes { Glibc.read(descriptor, $0.baseAddress, $0.count) }
      if count < 0 {
        if errno == EINTR { continue }
        throw failure("read \(path)", errno)
      }
      if count == 0 { return bytes }
      bytes.append(contentsOf: chunk[..<count])
      guard bytes.count <= limit else {
        throw SoftHostError(.file, operation: "read \(path)", message: "it is longer than \(limit) bytes")
      }
    }
  }

  /// Reads at most `limit` bytes; nil where there is no such file, or where it went with its process while it was read.
  /// A file that only cannot be read now, for lack of descriptors or memory, is an error.
  static func readBytesIfPresent(_ path: String, limit: Int) throws -> [UInt8]? {
    do {
      return try readBytes(path, limit: limit)
    } catch let error as SoftHostError
      where error.systemError == .noSuchFileOrDirectory || error.systemError == .noSuchProcess
    {
      return nil
    }
  }

  /// Replaces a file as one step that a crash or a power cut cannot tear apart.
  static func replace(_ path: String, with bytes: [UInt8], mode: mode_t = 0o600) throws {
    let temporary = path + ".new"
    let descriptor = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode)
    guard descriptor >= 0 else { throw failure("write \(temporary)", errno) }
    var offset = 0
    var error: CInt = 0
    while offset < bytes.count, error == 0 {
      let count = bytes[offset...].withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
      if count > 0 { offset += count } else if errno != EINTR { error = errno }
    }
    if error == 0, fsync(descriptor) != 0 { error = errno }
    close(descriptor)
    if error == 0, rename(temporary, path) != 0 { error = errno }
    guard error == 0 else {
      unlink(temporary)
      throw failure("write \(path)", error)
    }
  }

  static func failure(_ operation: String, _ error: CInt) -> SoftHostError {
    SoftHostError(
      .file, operation: operation, message: String(cString: strerror(error)), cause: Errno(rawValue: error))
  }
}
