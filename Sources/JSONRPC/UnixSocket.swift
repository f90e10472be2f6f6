import Glibc

/// Unix stream sockets, as plain descriptors. All of them are non-blocking and close-on-exec.
package enum UnixSocket {
  /// Connects to the socket at `path`. A unix socket's connect does not wait for the peer's accept.
  package static func connect(path: String) throws(JSONRPCError) -> CInt {
    let fd = try make(operation: "connect \(path)")
    let result = try withAddress(path, operation: "connect \(path)") { Glibc.connect(fd, $0, $1) }
    guard result == 0 else {
      let error = errno
      close(fd)
      throw JSONRPCError(
        code: .unreachable, operation: "connect \(path)", message: "no server answers there: \(text(error))")
    }
    return fd
  }

  /// Listens at `path` with the given permission bits, replacing a socket that nobody listens at any more.
  ///
  /// A socket that has a listener, or a file of another kind, is left alone and reported.
  package static func listen(path: String, mode: UInt32 = 0o600, backlog: CInt = 64) throws(JSONRPCError) -> CInt {
    let operation = "listen \(path)"
    try removeStale(path: path, operation: operation)
    let fd = try make(operation: operation)
    // The descriptor's mode is what bind gives the file, so that it is never wider than asked, not even for a moment.
    fchmod(fd, mode)
    guard try withAddress(path, operation: operation, { bind(fd, $0, $1) }) == 0 else {
      let error = errno
      close(fd)
      throw JSONRPCError(code: .unreachable, operation: operation, message: text(error))
    }
    guard chmod(path, mode) == 0, Glibc.listen(fd, backlog) == 0 else {
      let error = errno
      close(fd)
      unlink(path)
      throw JSONRPCError(code: .unreachable, operation: operation, message: text(error))
    }
    return fd
  }

  /// Listens at `path` so that the socket appears there at once, ready, and in one step takes the place of a socket
  /// that an earlier process left behind: whoever watches the directory sees neither a gap nor a socket that refuses.
  package static func listenInPlace(path: String) throws(JSONRPCError) -> CInt {
    let operation = "listen \(path)"
    var status = stat()
    if lstat(path, &status) == 0 {
      guard status.st_mode & S_IFMT == S_IFSOCK else {
        throw JSONRPCError(code: .unreachable, operation: operation, message: "a file that is no socket is in the way")
      }
      guard !hasListener(path: path) else {
        throw JSONRPCError(code: .unreachable, operation: operation, message: "another process listens there")
      }
    }
    let directory = path.lastIndex(of: "/").map { String(path[...$0]) } ?? ""
    let temporary = "\(directory).\(getpid())"
    unlink(temporary)
    let fd = try listen(path: temporary)
    guard rename(temporary, path) == 0 else {
      let error = errno
      close(fd)
      unlink(temporary)
      throw JSONRPCError(code: .unreachable, operation: operation, message: text(error))
    }
    return fd
  }

  /// Whether a process listens at the socket.
  package static func hasListener(path: String) -> Bool {
    guard let probe = try? make(operation: "probe") else { return false }
    defer { close(probe) }
    guard let result = try? withAddress(path, operation: "probe", { Glibc.connect(probe, $0, $1) }) else {
      return false
    }
    return result == 0 || errno == EAGAIN
  }

  /// Removes the socket file that an earlier process left behind.
  private static func removeStale(path: String, operation: String) throws(JSONRPCError) {
    var status = stat()
    guard lstat(path, &status) == 0 else { return }
    guard status.st_mode & S_IFMT == S_IFSOCK else {
      throw JSONRPCError(code: .unreachable, operation: operation, message: "a file that is no socket is in the way")
    }
    guard !hasListener(path: path) else {
      throw JSONRPCError(code: .unreachable, operation: operation, message: "another process listens there")
    }
    unlink(path)
  }

  private static func make(operation: String) throws(JSONRPCError) -> CInt {
    let type = CInt(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
    let fd = socket(AF_UNIX, type, 0)
    guard fd >= 0 else { throw JSONRPCError(code: .unreachable, operation: operation, message: text(errno)) }
    return fd
  }

  private static func withAddress(
    _ path: String, operation: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> CInt
  ) throws(JSONRPCError) -> CInt {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let bytes = Array(path.utf8)
    let room = MemoryLayout.size(ofValue: address.sun_path) - 1
    guard bytes.count <= room, !bytes.isEmpty, !bytes.contains(0) else {
      throw JSONRPCError(
        code: .unreachable, operation: operation, message: "a socket's path has 1 to \(room) bytes, not \(bytes.count)")
    }
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
    let length = socklen_t(MemoryLayout<sockaddr_un>.size)
    return withUnsafePointer(to: &address) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { body($0, length) }
    }
  }

  /// The system's text for an error number.
  package static func text(_ error: CInt) -> String {
    var buffer = [CChar](repeating: 0, count: 128)
    guard strerror_r(error, &buffer, buffer.count) == 0 else { return "error \(error)" }
    return String(decoding: buffer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }
}
