import ArgumentParser
import IaaS
import Kubernetes

struct PortForwardCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "port-forward", abstract: "Reach ports of a machine at ports of this computer.",
    discussion: """
      Goes through the API server and bm-api, so this computer needs no way into the network of the machines. Any number
      of connections may be open at a time. Ctrl-C ends it, and the connections with it.

        bmctl port-forward bm-01 8080:80 2222:22
        bmctl port-forward bm-01 :5432            # a port that is free here
      """)

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "The machine.", completion: Completions.machines)
  var name: String

  @Argument(help: "LOCAL:REMOTE, PORT for the same at both ends, or :REMOTE for any free port here.")
  var ports: [String]

  @Option(help: "The address of this computer to listen at. Whoever reaches it reaches the machine with your rights.")
  var address: String = "127.0.0.1"

  func validate() throws {
    guard !ports.isEmpty else { throw ValidationError("Name a port: 8080:80") }
    guard ports.count <= 16 else { throw ValidationError("At most 16 ports at a time.") }
    for port in ports where PortPair(port) == nil {
      throw ValidationError("'\(port)' is no port; LOCAL:REMOTE was expected, each 1 to 65535.")
    }
    guard SSHArguments.isAddress(address) else { throw ValidationError("'\(address)' is no IP address.") }
  }

  func run() async throws {
    try await withConnection(connection) { connection in
      let machine = try await connection.client.get(
        BareMetalMachine.self, name: name, namespace: connection.namespace)
      let subresources = MachineSubresources(connection: connection)
      guard try await subresources.isServed() else { throw MachineSubresources.missing("port-forward") }
      guard let path = MachineSubresources.path("portforward", name: name, namespace: connection.namespace) else {
        throw CommandError(.usage, "port-forward", "'\(TextWidth.printable(name))' is no name of a machine")
      }
      if machine.status?.bootedAt == nil {
        Output.error("\(name) is not on yet; connections fail until it is.")
      }
      // All of them, or none.
      let forwarders = try ports.compactMap { PortPair($0) }.map { pair in
        PortForwarder(
          client: connection.client, path: path, machine: name, remote: pair.remote,
          local: try LocalPort.listen(address, pair.local))
      }
      for forwarder in forwarders {
        Output.line("\(forwarder.local.description) is port \(forwarder.remote) of \(name)")
      }
      await withTaskGroup(of: Void.self) { group in
        for forwarder in forwarders { group.addTask { await forwarder.run() } }
      }
    }
  }
}
