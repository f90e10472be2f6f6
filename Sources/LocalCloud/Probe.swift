import Glibc

/// Looks whether something answers on this machine, without help from libraries: one connection, one question.
enum Probe {
  private static let streamSocket = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)

  /// Whether `GET path` on 127.0.0.1 is answered with status 200 within a second.
  static func http(port: Int, path: String) async -> Bool {
    let descriptor = socket(AF_INET, streamSocket | Int32(SOCK_NONBLOCK.rawValue), 0)
    guard descriptor >= 0 else { return false }
    defer { close(descriptor) }
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = in_port_t(UInt16(truncatingIfNeeded: port).bigEndian)
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    let connected = withUnsafePointer(to: &address) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0 || errno == EINPROGRESS
      }
    }
    guard connected, await wait(descriptor, Int16(POLLOUT)) else { return false }
    let request = Array("GET \(path) HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".utf8)
    guard send(descriptor, request, request.count, Int32(MSG_NOSIGNAL)) == request.count,
      await wait(descriptor, Int16(POLLIN))
    else { return false }
    var answer = [UInt8](repeating: 0, count: 64)
    let count = recv(descriptor, &answer, answer.count, 0)
    guard count > 0 else { return false }
    let words = String(decoding: answer[..<count], as: UTF8.self).split(separator: " ", maxSplits: 2)
    return words.count > 1 && words[0].hasPrefix("HTTP/1.") && words[1] == "200"
  }

  /// Whether a Unix socket accepts connections.
  static func unixSocket(_ path: String) -> Bool {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let bytes = Array(path.utf8)
    guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else { return false }
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
    let descriptor = socket(AF_UNIX, streamSocket | Int32(SOCK_NONBLOCK.rawValue), 0)
    guard descriptor >= 0 else { return false }
    defer { close(descriptor) }
    return withUnsafePointer(to: &address) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size)) == 0
      }
    }
  }

  /// Whether nobody listens on a port of 127.0.0.1, or of all addresses.
  static func isFree(port: Int) -> Bool {
    let descriptor = socket(AF_INET, streamSocket, 0)
    guard descriptor >= 0 else { return false }
    defer { close(descriptor) }
    // As the servers do: connections of an earlier run that wait for their end do not matter.
    var one: Int32 = 1
    setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &one, socklen_t(MemoryLayout<Int32>.size))
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = in_port_t(UInt16(truncatingIfNeeded: port).bigEndian)
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    return withUnsafePointer(to: &address) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0 && listen(descriptor, 1) == 0
      }
    }
  }

  private static func wait(_ descriptor: Int32, _ events: Int16) async -> Bool {
    for _ in 0..<100 {
      var entry = pollfd(fd: descriptor, events: events, revents: 0)
      if poll(&entry, 1, 0) > 0 { return entry.revents & events != 0 }
      guard (try? await Task.sleep(for: .milliseconds(10))) != nil else { return false }
    }
    return false
  }
}
