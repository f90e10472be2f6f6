import Glibc

/// An open descriptor of this process, and what it is.
struct Descriptor: CustomStringConvertible {
  let description: String

  /// All of them.
  static var open: [Descriptor] {
    (0..<4096).filter { fcntl(CInt($0), F_GETFD) >= 0 }.map { Descriptor(CInt($0)) }
  }

  private init(_ fd: CInt) {
    var name = [CChar](repeating: 0, count: 256)
    let count = readlink("/proc/self/fd/\(fd)", &name, name.count)
    let text = String(decoding: name.prefix(max(0, count)).map { UInt8(bitPattern: $0) }, as: UTF8.self)
    description = "\(fd) \(text)\(Descriptor.place(fd))"
  }

  /// Where a socket is bound, or what it is connected to.
  private static func place(_ fd: CInt) -> String {
    func path(_ ask: (UnsafeMutablePointer<sockaddr>, UnsafeMutablePointer<socklen_t>) -> CInt) -> String? {
      var address = sockaddr_un()
      var length = socklen_t(MemoryLayout<sockaddr_un>.size)
      let result = withUnsafeMutablePointer(to: &address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { ask($0, &length) }
      }
      guard result == 0 else { return nil }
      guard address.sun_family == sa_family_t(AF_UNIX) else { return "family \(address.sun_family)" }
      return withUnsafeBytes(of: address.sun_path) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
    }
    guard let own = path({ getsockname(fd, $0, $1) }) else { return "" }
    return " at '\(own)' to '\(path { getpeername(fd, $0, $1) } ?? "nobody")'"
  }
}
