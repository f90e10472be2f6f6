import Glibc
import JSON
import Kubernetes
import MachineAPI
import TestSupport
import Testing

/// `bmctl port-forward`, with somebody else's programs at its ports.
@Suite(.timeLimit(.minutes(5)), .serialized) struct PortForwardCommandTests {
  private static let script =
    #filePath.split(separator: "/").dropLast().reduce(into: "") { $0 += "/\($1)" } + "/Python/ports.py"

  private func program(_ scenario: String, at port: Int, within limit: Duration = .seconds(120)) async throws
    -> JSONValue
  {
    let text = try await ChildProcess.run("python3", [Self.script, scenario, "\(port)"], within: limit)
    return try JSONValue.parse(String(text.split(separator: "\n").last ?? ""))
  }

  private func forward(_ installation: Installation, _ arguments: [String]) async throws -> ChildProcess {
    let child = try ChildProcess(
      try TestEnvironment.builtProduct("bmctl"),
      [
        "port-forward", Installation.machine, "-n", installation.namespace, "--kubeconfig",
        installation.plane.kubeconfig,
      ] + arguments)
    try await eventually(within: .seconds(20), "it listens: \(child.output)") {
      child.output.split(separator: "\n").contains { $0.hasPrefix("127.0.0.1:") }
    }
    return child
  }

  /// The port here of one of the machine's.
  private func local(_ remote: Int, of child: ChildProcess) throws -> Int {
    let prefix = "127.0.0.1:"
    let line = try #require(
      child.output.split(separator: "\n").first {
        $0.hasPrefix(prefix) && $0.contains("is port \(remote) of \(Installation.machine)")
      })
    return try #require(Int(line.dropFirst(prefix.count).prefix { $0 != " " }))
  }

  @Test func everythingArrivesInManyConnectionsAtOnce() async throws {
    let (installation, guest) = try await Installation.startWithService()
    let closed = try TestEnvironment.freePort()
    let child = try await forward(installation, [":\(guest.port)", ":\(closed)"])
    defer { child.kill() }
    let port = try local(guest.port, of: child)

    let transfer = try await program("transfer", at: port)
    #expect(transfer["same"]?.boolValue == true)
    #expect(transfer["count"]?.intValue == (64 << 20) + 4)
    let crowd = try await program("crowd", at: port)
    #expect(crowd["open"]?.intValue == 50)
    #expect(crowd["same"]?.intValue == 50)
    #expect(guest.broken == 0)

    // A connection that the machine refuses ends alone, and says why.
    #expect(try await program("refused", at: try local(closed, of: child))["end"]?.boolValue == true)
    try await eventually(within: .seconds(20), "the refusal is told") { child.output.contains("refuses connections") }
    // One that its program breaks off is broken off at the machine.
    #expect(try await program("vanish", at: port)["gone"]?.boolValue == true)
    try await eventually(within: .seconds(20), "the machine sees it") { guest.open == 0 && guest.broken == 1 }
    #expect(try await program("transfer", at: port)["same"]?.boolValue == true)

    kill(child.pid, SIGINT)
    #expect(try await child.waitForExit() != .code(0))
    #expect(!child.output.contains("bye"))
  }

  @Test func aBrokenConnectionIsNoEndAndTheNextOnesWork() async throws {
    let (installation, guest) = try await Installation.startWithService()
    let child = try await forward(installation, [":\(guest.port)"])
    defer { child.kill() }
    let port = try local(guest.port, of: child)
    let program = try ChildProcess("python3", [Self.script, "broken", "\(port)"])
    defer { program.kill() }
    try await eventually(within: .seconds(20), "it is open") { program.output.contains("open") }
    await installation.stopServer()
    #expect(try await program.waitForExit(within: .seconds(20)) == .code(0))
    #expect(program.output.contains(#""reset": true"#))
    try await eventually(within: .seconds(20), "bm-api's end is told") { child.output.contains("connect again") }
    installation.startServer()
    try await installation.waitUntilServed()
    try await eventually(within: .seconds(30), every: .milliseconds(500), "the next one works") {
      try await self.program("transfer", at: port)["same"]?.boolValue == true
    }
  }

  @Test func whatCannotBeListenedOnIsRefusedBeforeAnything() async throws {
    let (installation, guest) = try await Installation.startWithService()
    let taken = try await forward(installation, [":\(guest.port)"])
    defer { taken.kill() }
    let port = try local(guest.port, of: taken)
    func refusal(_ arguments: [String]) async throws -> String {
      let child = try ChildProcess(
        try TestEnvironment.builtProduct("bmctl"),
        [
          "port-forward", Installation.machine, "-n", installation.namespace, "--kubeconfig",
          installation.plane.kubeconfig,
        ] + arguments)
      defer { child.kill() }
      #expect(try await child.waitForExit(within: .seconds(20)) != .code(0))
      return child.output
    }
    #expect(try await refusal([":22", "\(port):22"]).contains("or :80 for one that is free"))
    #expect(
      try await refusal([":22", "--address", "192.0.2.1"]).contains("Give --address an address of this computer"))
  }
}
