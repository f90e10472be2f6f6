import CLinux
import Dispatch
import Glibc

/// A port of this computer that is listened on.
struct LocalPort: Sendable {
  let descriptor: CInt
  let port: Int
  let description: String

  /// Listens at all of them, on the same port; where that is any free one, the first address chooses.
  /// - Throws: `CommandError` where the port is taken or an address is not this computer's.
  static func listen(_ addresses: [ListenAddresses.Address], _ port: Int) throws -> [LocalPort] {
    var found: [LocalPort] = []
    for address in addresses {
      do {
        found.append(try listen(address.text, found.first?.port ?? port))
      } catch {
        guard address.isOptional else { throw error }
      }
    }
    return found
  }

  /// - Parameter address: an IPv4 or IPv6 address of this computer.
  /// - Throws: `CommandError` where the port is taken or the address is not this computer's.
  static func listen(_ address: String, _ port: Int) throws -> LocalPort {
    let shown = address.contains(":") ? "[\(address)]" : address
    func failure(_ reason: CInt) -> CommandError {
      let remedy =
        switch reason {
        case EADDRNOTAVAIL: "Give --address an address of this computer."
        case EACCES, EPERM: "Only root may listen on ports below 1024: take another one, as in 8080:80."
        default: "Take another port, as in 8081:80, or :80 for one that is free."
        }
      return CommandError(
        .failure, "listen on \(shown):\(port)", String(cString: strerror(reason)), remedy: remedy)
    }
    var four = sockaddr_in()
    var six = sockaddr_in6()
    let isFour = inet_pton(AF_INET, address, &four.sin_addr) == 1
    guard isFour || inet_pton(AF_INET6, address, &six.sin6_addr) == 1 else {
      throw CommandError(.usage, "listen", "'\(TextWidth.printable(address))' is no address")
    }
    let kind = CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue)
    let descriptor = socket(isFour ? AF_INET : AF_INET6, kind, 0)
    guard descriptor >= 0 else { throw failure(errno) }
    var yes: CInt = 1
    setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &yes, socklen_t(MemoryLayout<CInt>.size))
    let status: CInt
    if isFour {
      four.sin_family = sa_family_t(AF_INET)
      four.sin_port = in_port_t(port).bigEndian
      status = bind(descriptor, &four)
    } else {
      // The same port of IPv4 is another one's.
      setsockopt(descriptor, Int32(IPPROTO_IPV6), IPV6_V6ONLY, &yes, socklen_t(MemoryLayout<CInt>.size))
      six.sin6_family = sa_family_t(AF_INET6)
      six.sin6_port = in_port_t(port).bigEndian
      status = bind(descriptor, &six)
    }
    guard status == 0, Glibc.listen(descriptor, 64) == 0 else {
      let reason = errno
      close(descriptor)
      throw failure(reason)
    }
    var bound = sockaddr_in6()
    var length = socklen_t(MemoryLayout<sockaddr_in6>.size)
    withUnsafeMutablePointer(to: &bound) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { _ = getsockname(descriptor, $0, &length) }
    }
    // Both families have the port at the same place.
    let taken = Int(in_port_t(bigEndian: bound.sin6_port))
    return LocalPort(descriptor: descriptor, port: taken, description: "\(shown):\(taken)")
  }

  private static func bind<Name>(_ descriptor: CInt, _ name: inout Name) -> CInt {
    withUnsafePointer(to: &name) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        Glibc.bind(descriptor, $0, socklen_t(MemoryLayout<Name>.size))
      }
    }
  }

  /// Connections as they come, until cancelled; those beyond what is waited for are closed.
  func withConnections(_ body: (AsyncStream<CInt>) async -> Void) async {
    let (stream, continuation) = AsyncStream.makeStream(of: CInt.self, bufferingPolicy: .bufferingOldest(64))
    let descriptor = descriptor
    DispatchQueue(label: "accept \(description)").async {
      while true {
        let connection = accept(descriptor, nil, nil)
        if connection < 0 {
          // Too many files, or a client that left again: the next one may fare better.
          guard errno == EINTR || errno == ECONNABORTED || errno == EMFILE || errno == ENFILE else { break }
          if errno == EMFILE || errno == ENFILE { usleep(100_000) }
          continue
        }
        _ = fcntl(connection, F_SETFD, FD_CLOEXEC)
        guard case .enqueued = continuation.yield(connection) else {
          close(connection)
          continue
        }
      }
      continuation.finish()
      close(descriptor)
    }
    await withTaskCancellationHandler {
      await body(stream)
    } onCancel: {
      // Wakes the thread that accepts.
      shutdown(descriptor, CInt(SHUT_RDWR))
    }
  }
}
