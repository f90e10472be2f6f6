package import BMC

/// Asks the operating systems of servers to shut down, all at the same time, and waits for them.
///
/// Nothing that fails here keeps anything from being stopped: a server that is still on after it loses its power.
package struct ServerShutdown: Sendable {
  package typealias Server = (name: String, bmc: any BMC)

  /// How long the operating systems get.
  let limit: Duration
  let readEvery: Duration
  let report: @Sendable (String) -> Void

  package init(
    limit: Duration, readEvery: Duration = .milliseconds(200), report: @escaping @Sendable (String) -> Void
  ) {
    self.limit = limit
    self.readEvery = readEvery
    self.report = report
  }

  package func run(_ servers: [Server]) async {
    await withTaskGroup(of: Void.self) { group in
      for server in servers { group.addTask { await shutDown(server) } }
    }
  }

  private func shutDown(_ server: Server) async {
    let start = ContinuousClock.now
    let outcome = await withTaskGroup(of: String?.self) { group in
      group.addTask {
        do {
          guard try await server.bmc.power() == .on else { return "" }
          report("server \(server.name) is asked to shut down")
          try await server.bmc.setPower(.gracefulShutdown)
          while try await server.bmc.power() != .off { try await Task.sleep(for: readEvery) }
          return "server \(server.name) has shut down after \(Self.seconds(.now - start)) s"
        } catch is CancellationError {
          return nil
        } catch {
          return "server \(server.name) could not be asked: \(error)"
        }
      }
      group.addTask {
        try? await Task.sleep(for: limit)
        return "server \(server.name) did not shut down within \(Self.seconds(limit)) s; its power is cut"
      }
      defer { group.cancelAll() }
      return await group.next() ?? nil
    }
    if let outcome, !outcome.isEmpty { report(outcome) }
  }

  /// With one decimal.
  private static func seconds(_ duration: Duration) -> String {
    let tenths = duration.components.seconds * 10 + duration.components.attoseconds / 100_000_000_000_000_000
    return "\(tenths / 10).\(tenths % 10)"
  }
}
