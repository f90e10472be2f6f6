import CLinux
import Glibc
import JSONRPC

/// Where disks are exported: the URIs of NBD's own specification (doc/uri.md), or the path of a unix socket.
package struct NBDAddress: Sendable, Hashable, CustomStringConvertible {
  package enum Place: Sendable, Hashable {
    case unix(path: String)
    case tcp(host: String, port: UInt16)
  }

  package let place: Place
  /// The export's name; nil takes the device's.
  package let export: String?

  /// The port that is registered for NBD.
  static let defaultPort: UInt16 = 10809

  /// `/run/disk.sock`, `nbd+unix:///NAME?socket=/run/disk.sock` or `nbd://HOST:PORT/NAME`. Nil for anything else.
  package init?(_ text: String) {
    if text.hasPrefix("/") {
      guard !text.hasPrefix("/dev/") else { return nil }
      place = .unix(path: text)
      export = nil
      return
    }
    if let rest = text.dropPrefix("nbd+unix:///") {
      let parts = rest.split(separator: "?", maxSplits: 1, omittingEmptySubsequences: false)
      guard parts.count == 2, let path = parts[1].dropPrefix("socket="), path.hasPrefix("/") else { return nil }
      place = .unix(path: String(path))
      export = parts[0].isEmpty ? nil : String(parts[0])
      return
    }
    guard let rest = text.dropPrefix("nbd://") else { return nil }
    let parts = rest.split(separator: "/", maxSplits: 1, omittingEmptySubsequences: false)
    guard let (host, port) = NBDAddress.hostAndPort(String(parts[0])) else { return nil }
    place = .tcp(host: host, port: port)
    export = parts.count == 2 && !parts[1].isEmpty ? String(parts[1]) : nil
  }

  private static func hostAndPort(_ text: String) -> (String, UInt16)? {
    guard let colon = text.lastIndex(of: ":"), !text.hasSuffix("]") else {
      let host = text.filter { $0 != "[" && $0 != "]" }
      return host.isEmpty ? nil : (host, defaultPort)
    }
    let host = text[..<colon].filter { $0 != "[" && $0 != "]" }
    guard !host.isEmpty, let port = UInt16(text[text.index(after: colon)...]) else { return nil }
    return (String(host), port)
  }

  package var description: String {
    switch place {
    case .unix(let path): "nbd+unix:///?socket=\(path)"
    case .tcp(let host, let port): host.contains(":") ? "nbd://[\(host)]:\(port)" : "nbd://\(host):\(port)"
    }
  }

  /// A listening socket there.
  func listen() throws(SoftDPUError) -> CInt {
    let operation = "listen at \(self)"
    switch place {
    case .unix(let path):
      guard path.utf8.count <= 107 else { throw .system(ENAMETOOLONG, operation) }
      do throws(JSONRPCError) {
        return try UnixSocket.listenInPlace(path: path)
      } catch {
        throw SoftDPUError(code: .system(EADDRINUSE), operation: operation, message: error.message)
      }
    case .tcp(let host, let port): return try TCPSocket.listen(host: host, port: port)
    }
  }
}

extension StringProtocol {
  /// What follows the prefix; nil where the text does not begin with it.
  func dropPrefix(_ prefix: String) -> SubSequence? { hasPrefix(prefix) ? dropFirst(prefix.count) : nil }
}

/// TCP sockets as plain descriptors, non-blocking and close-on-exec.
enum TCPSocket {
  /// Listens at an address of this machine: a number, not a name, because names change.
  static func listen(host: String, port: UInt16) throws(SoftDPUError) -> CInt {
    let operation = "listen at \(host) port \(port)"
    let fd = unsafe clinux_tcp_listen(host, port)
    guard fd >= 0 else { throw .system(CInt(-fd), operation) }
    return fd
  }
}
