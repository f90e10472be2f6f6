import CLinux
import Dispatch
import Glibc
import Kubernetes

/// `8080:80`: a port here and one of the machine. Pure.
package struct PortPair: Sendable, Hashable {
  /// 0 takes a free one.
  package var local: Int
  package var remote: Int

  /// Parses `LOCAL:REMOTE`, `PORT` for the same at both ends, and `:REMOTE` for any free port here.
  package init?(_ text: String) {
    let parts = text.split(separator: ":", omittingEmptySubsequences: false)
    guard (1...2).contains(parts.count), let last = parts.last, let remote = Self.port(last) else { return nil }
    self.remote = remote
    if parts.count == 1 {
      local = remote
    } else if parts[0].isEmpty {
      local = 0
    } else if let port = Self.port(parts[0]) {
      local = port
    } else {
      return nil
    }
  }

  private static func port(_ text: Substring) -> Int? {
    guard (1...5).contains(text.utf8.count),
      text.utf8.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }), let port = Int(text),
      (1...65535).contains(port)
    else { return nil }
    return port
  }
}

/// A port of this computer that is listened on.
struct LocalPort: Sendable {
  let descriptor: CInt
  let port: Int
  let description: String

  /// - Parameter address: an IPv4 or IPv6 address of this computer.
  /// - Throws: `CommandError` where the port is taken or the address is not this computer's.
  static func listen(_ address: String, _ port: Int) throws -> LocalPort {
    let shown = address.contains(":") ? "[\(address)]" : address
    func failure(_ reason: CInt) -> CommandError {
      CommandError(
        .failure, "listen on \(shown):\(port)", String(cString: strerror(reason)),
        remedy: "Take another port, as in 8081:80, or :80 for one that is free.")
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

  /// Connections as they come; those beyond what is waited for are closed.
  func connections() -> AsyncStream<CInt> {
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
    }
    return stream
  }
}

/// Carries what comes to a local port to a port of a machine, each connection by a WebSocket of its own.
struct PortForwarder: Sendable {
  /// Connections of one local port at the same time; further ones wait.
  static let connectionsMax = 32
  /// What bm-api speaks, and its word for the end of a direction.
  static let subprotocol = "portforward.iaas.yusur.io"
  static let ending = Array(#"{"type":"end"}"#.utf8)

  let client: KubernetesClient
  let path: String
  let machine: String
  let remote: Int
  let local: LocalPort

  /// Serves until cancelled. A connection that fails is told about, and ends alone.
  func run() async {
    await withTaskGroup(of: Void.self) { group in
      var open = 0
      for await connection in local.connections() {
        if open >= Self.connectionsMax {
          await group.next()
          open -= 1
        }
        open += 1
        group.addTask { await carry(connection) }
      }
    }
  }

  private func carry(_ connection: CInt) async {
    do {
      try await client.carry(
        path: path, query: [("port", "\(remote)")], subprotocol: Self.subprotocol, ending: Self.ending,
        over: connection
      ) { event in
        if case .closed(let code, let reason) = event, code != 1000 {
          Output.error(
            "error: \(machine):\(remote): \(TextWidth.printable(reason.isEmpty ? "closed (\(code))" : reason))")
        }
      }
    } catch is CancellationError {
      return
    } catch {
      let words = (error as? KubernetesError)?.message ?? "\(error)"
      Output.error("error: \(machine):\(remote): \(TextWidth.printable(words))")
    }
  }
}
