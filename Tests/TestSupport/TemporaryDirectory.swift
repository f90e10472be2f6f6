import Glibc

/// A directory of its own for one test, removed when the value goes away.
///
/// Its path is short (`/tmp/yc-XXXXXX`) so that Unix sockets below it stay within the 107 bytes the kernel allows.
public final class TemporaryDirectory: Sendable {
  /// The absolute path, without a trailing slash.
  public let path: String

  public init() throws {
    var template = Array("/tmp/yc-XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else {
      throw TestEnvironmentError("cannot create a directory in /tmp: \(String(cString: strerror(errno)))")
    }
    path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  deinit { discard() }

  /// Removes the directory now; for those who live until the end of the process.
  func discard() {
    var status = stat()
    if lstat(path, &status) == 0 { Self.removeTree(path, device: status.st_dev) }
  }

  /// Removes a tree without following links and without entering a file system that the test left mounted.
  private static func removeTree(_ path: String, device: dev_t) {
    var status = stat()
    guard lstat(path, &status) == 0, status.st_dev == device else { return }
    if status.st_mode & S_IFMT == S_IFDIR, let directory = opendir(path) {
      var names: [String] = []
      while let entry = readdir(directory) {
        names.append(
          withUnsafePointer(to: &entry.pointee.d_name) {
            String(cString: UnsafeRawPointer($0).assumingMemoryBound(to: CChar.self))
          })
      }
      closedir(directory)
      for name in names where name != "." && name != ".." { removeTree("\(path)/\(name)", device: device) }
    }
    remove(path)
  }

  /// The path of `name` inside the directory.
  public func file(_ name: String) -> String {
    "\(path)/\(name)"
  }

  /// Writes a text file and returns its path.
  @discardableResult
  public func write(_ name: String, _ text: String, mode: UInt32 = 0o644) throws -> String {
    let target = file(name)
    let descriptor = open(target, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode)
    guard descriptor >= 0 else {
      throw TestEnvironmentError("cannot create \(target): \(String(cString: strerror(errno)))")
    }
    defer { close(descriptor) }
    var bytes = Array(text.utf8)[...]
    while !bytes.isEmpty {
      let written = bytes.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
      guard written > 0 else {
        throw TestEnvironmentError("cannot write \(target): \(String(cString: strerror(errno)))")
      }
      bytes = bytes.dropFirst(written)
    }
    return target
  }
}

/// Runs `body` with a temporary directory that is removed afterwards, also when `body` throws.
public func withTemporaryDirectory<Result>(
  isolation: isolated (any Actor)? = #isolation, _ body: (TemporaryDirectory) async throws -> Result
) async throws -> Result {
  let directory = try TemporaryDirectory()
  defer { withExtendedLifetime(directory) {} }
  return try await body(directory)
}

/// Reads a whole file as text, or nil when it cannot be read.
public func contentsOfFile(_ path: String) -> String? {
  guard let file = fopen(path, "re") else { return nil }
  defer { fclose(file) }
  var bytes: [UInt8] = []
  var chunk = [UInt8](repeating: 0, count: 16_384)
  while true {
    let count = fread(&chunk, 1, chunk.count, file)
    guard count > 0 else { break }
    bytes.append(contentsOf: chunk[..<count])
  }
  return String(decoding: bytes, as: UTF8.self)
}
