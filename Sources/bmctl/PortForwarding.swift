import Kubernetes
import Synchronization

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

/// Where to listen: addresses of this computer, with commas between. Pure.
package struct ListenAddresses: Sendable, Hashable {
  package struct Address: Sendable, Hashable {
    package var text: String
    /// It is left out where this computer does not have it.
    package var isOptional = false
  }

  package var addresses: [Address] = []

  /// Parses IPv4 and IPv6 addresses and `localhost`, which is 127.0.0.1, and ::1 where there is one.
  package init?(_ text: String) {
    for part in text.split(separator: ",", omittingEmptySubsequences: false) {
      var found = [Address(text: String(part))]
      if part == "localhost" { found = [Address(text: "127.0.0.1"), Address(text: "::1", isOptional: true)] }
      for address in found where !addresses.contains(where: { $0.text == address.text }) {
        guard SSHArguments.isAddress(address.text) else { return nil }
        addresses.append(address)
      }
    }
    guard addresses.count <= 8 else { return nil }
  }
}

/// Carries what comes to a local port to a port of a machine, each connection by a WebSocket of its own.
struct PortForwarder: Sendable {
  /// Connections of one local port at the same time, as many as bm-api lets a user have; further ones wait.
  static let connectionsMax = 64
  /// What bm-api speaks, and its word for the end of a direction.
  static let subprotocol = "portforward.iaas.yusur.io"
  static let ending = Array(#"{"type":"end"}"#.utf8)

  let client: KubernetesClient
  let path: String
  let machine: String
  let remote: Int
  let local: LocalPort

  private final class OpenCount: Sendable {
    let value = Atomic(0)
  }

  /// Serves until cancelled. A connection that fails is told about, and ends alone.
  func run() async {
    let open = OpenCount()
    await local.withConnections { connections in
      await withTaskGroup(of: Void.self) { group in
        var added = 0
        for await connection in connections {
          if added >= Self.connectionsMax {
            if open.value.load(ordering: .relaxed) >= Self.connectionsMax {
              Output.error("\(local.description): \(Self.connectionsMax) connections are open; the next one waits.")
            }
            await group.next()
            added -= 1
          }
          added += 1
          open.value.wrappingAdd(1, ordering: .relaxed)
          group.addTask {
            await carry(connection)
            open.value.wrappingSubtract(1, ordering: .relaxed)
          }
        }
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
