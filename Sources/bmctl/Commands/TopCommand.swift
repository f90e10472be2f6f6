import ArgumentParser
import Glibc
import IaaS
import JSON
import Kubernetes

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// `bmctl top`: the fleet at a glance.
struct TopCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "top", abstract: "Show the fleet at a glance, again and again.",
    discussion: """
      Hosts and machines by phase, power, how long starts take, machines that are in a phase for longer than they \
      should be, and recent warnings. On a terminal it goes on until it is interrupted; into a pipe it writes once.

      Machines of all namespaces are shown where that is allowed, and else those of one.
      """)

  @OptionGroup var connection: ConnectionOptions

  @Option(help: "Seconds between two looks, 0.5 to 3600.") var interval = 2.0
  @Option(help: "How many times to show; without it for ever on a terminal, once into a pipe.") var count: Int?

  func validate() throws {
    guard (0.5...3600).contains(interval) else {
      throw ValidationError("--interval: 0.5 to 3600 seconds, not \(interval)")
    }
    if let count, count < 1 { throw ValidationError("--count: 1 or more, not \(count)") }
  }

  func run() async throws {
    let isTerminal = isatty(1) == 1
    let server = try connection.configuration().server
    let times = count ?? (isTerminal ? .max : 1)
    try await withConnection(connection) { connection in
      var shown = 0
      while shown < times {
        if shown > 0 { try await Task.sleep(for: .seconds(interval)) }
        let summary = try await look(connection)
        show(summary, server: server, isTerminal: isTerminal, isFirst: shown == 0)
        shown += 1
      }
    }
  }

  private func look(_ connection: Connection) async throws -> FleetSummary {
    let client = connection.client
    let asked = self.connection.namespace
    async let hosts = allowed { try await client.listAll(BareMetalHost.definition).items.map(\.content) }
    async let everywhere =
      asked == nil
      ? allowed { try await client.listAll(BareMetalMachine.definition).items.map(\.content) } : nil
    async let warnings = allowed {
      try await client.listAll(Event.definition, namespace: asked, fieldSelector: "type=Warning").items.map(\.content)
    }
    let machines: [JSONValue]
    if let all = try await everywhere {
      machines = all
    } else {
      machines = try await client.listAll(BareMetalMachine.definition, namespace: connection.namespace).items.map(
        \.content)
    }
    return FleetSummary(
      hosts: try await hosts, machines: machines, events: try await warnings ?? [], now: Date().timeIntervalSince1970)
  }

  /// Nil where the API server refuses.
  private func allowed<T: Sendable>(_ body: @Sendable () async throws -> T) async throws -> T? {
    do {
      return try await body()
    } catch let error as KubernetesError where error.code == .forbidden {
      return nil
    }
  }

  private func show(_ summary: FleetSummary, server: String, isTerminal: Bool, isFirst: Bool) {
    let picture = FleetPicture(
      style: .standardOutput(), width: isTerminal ? Output.columns() : 120, rows: isTerminal ? Output.rows() - 1 : 60)
    let lines = picture.lines(summary, title: "\(server)   \(Timestamp.now())")
    if isTerminal {
      // Home, each line to its end, nothing below.
      Output.write(
        (isFirst ? "\u{1B}[2J" : "") + "\u{1B}[H" + lines.map { $0 + "\u{1B}[K\r\n" }.joined() + "\u{1B}[J", to: 1)
    } else {
      if !isFirst { Output.line("") }
      for line in lines { Output.line(line) }
    }
  }
}
