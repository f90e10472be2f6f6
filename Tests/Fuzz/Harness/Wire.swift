import CLinux
import Glibc

/// One end of a connection to what is tested: sends and receives at the same time, and never waits for ever.
final class Wire {
  private(set) var fd: CInt
  /// What has come and was not taken.
  private(set) var received: [UInt8] = []
  private(set) var isEnded = false
  /// How much of what comes is kept.
  private static let maximumKept = 2 << 20
  /// How long anything may take, in milliseconds, until it counts as a hang.
  static let patience: CInt = 15_000

  init(adopting fd: CInt) {
    self.fd = fd
    _ = fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK)
  }

  deinit { close() }

  func close() {
    if fd >= 0 { _ = Glibc.close(fd) }
    fd = -1
  }

  /// Closes with a reset, which leaves no port behind.
  func reset() {
    var option = linger(l_onoff: 1, l_linger: 0)
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &option, socklen_t(MemoryLayout<linger>.size))
    close()
  }

  static func unix(_ path: String) throws -> Wire {
    let fd = socket(AF_UNIX, CInt(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8.prefix(107)) }
    let result = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        Glibc.connect(fd, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    let error = errno
    let wire = Wire(adopting: fd)
    guard result == 0 else { throw FuzzFailure("nobody listens at \(path): \(String(cString: strerror(error)))") }
    return wire
  }

  static func tcp(_ port: UInt16) throws -> Wire {
    let fd = socket(AF_INET, CInt(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = port.bigEndian
    address.sin_addr.s_addr = inet_addr("127.0.0.1")
    let result = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        Glibc.connect(fd, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
      }
    }
    let error = errno
    let wire = Wire(adopting: fd)
    guard result == 0 else { throw FuzzFailure("nobody listens at \(port): \(String(cString: strerror(error)))") }
    return wire
  }

  /// Sends everything, as far as the peer takes it, and takes what comes meanwhile.
  func send(_ bytes: [UInt8]) throws {
    var done = 0
    while done < bytes.count, !isEnded {
      let count = bytes[done...].withUnsafeBytes {
        Glibc.send(fd, $0.baseAddress, $0.count, CInt(MSG_NOSIGNAL | MSG_DONTWAIT))
      }
      if count > 0 {
        done += count
        continue
      }
      guard errno == EAGAIN else {
        isEnded = true
        return
      }
      try step(wantsToSend: true, milliseconds: Wire.patience)
    }
  }

  /// Waits until so many bytes have come, or the peer has ended the connection, or the time is over.
  @discardableResult
  func wait(for count: Int, milliseconds: CInt) -> Bool {
    let deadline = clinux_monotonic_nanoseconds() + UInt64(milliseconds) * 1_000_000
    while received.count < count, !isEnded {
      let now = clinux_monotonic_nanoseconds()
      guard now < deadline else { return false }
      do { try step(wantsToSend: false, milliseconds: CInt((deadline - now) / 1_000_000 + 1)) } catch { return false }
    }
    return received.count >= count
  }

  /// Takes bytes that were received.
  func take(_ count: Int) -> [UInt8] {
    defer { received.removeFirst(min(count, received.count)) }
    return Array(received.prefix(count))
  }

  /// Says that nothing more comes.
  func endSending() { shutdown(fd, CInt(SHUT_WR)) }

  /// Says that nothing more comes, and waits until the peer has closed the connection.
  func end() throws {
    endSending()
    while !isEnded {
      received = []
      try step(wantsToSend: false, milliseconds: Wire.patience)
    }
  }

  private func step(wantsToSend: Bool, milliseconds: CInt) throws {
    var entry = pollfd(fd: fd, events: Int16(POLLIN | (wantsToSend ? POLLOUT : 0)), revents: 0)
    var count = poll(&entry, 1, milliseconds)
    while count < 0, errno == EINTR { count = poll(&entry, 1, milliseconds) }
    guard count > 0 else {
      throw FuzzFailure("the peer neither answers nor closes within \(milliseconds) ms")
    }
    receive()
  }

  /// Takes what is there.
  func receive() {
    var chunk = [UInt8](repeating: 0, count: 65536)
    while !isEnded {
      let count = recv(fd, &chunk, chunk.count, CInt(MSG_DONTWAIT))
      if count > 0 {
        if received.count < Wire.maximumKept { received += chunk[..<count] }
        continue
      }
      if count == 0 || errno != EAGAIN { isEnded = true }
      return
    }
  }
}
