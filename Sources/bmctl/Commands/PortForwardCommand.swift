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

  @Option(
    help: """
      The addresses of this computer to listen at, with commas between. Whoever reaches them reaches the machine with \
      your rights.
      """)
  var address: String = "localhost"

  func validate() throws {
    guard !ports.isEmpty else { throw ValidationError("Name a port: 8080:80") }
    guard ports.count <= 16 else { throw ValidationError("At most 16 ports at a time.") }
    for port in ports where PortPair(port) == nil {
      throw ValidationError("'\(port)' is no port; LOCAL:REMOTE was expected, each 1 to 65535.")
    }
    guard ListenAddresses(address) != nil else {
      throw ValidationError("'\(address)' is no list of at most 8 IP addresses, such as 127.0.0.1,::1.")
    }
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
      let addresses = ListenAddresses(address)?.addresses ?? []
      let forwarders = try ports.compactMap { PortPair($0) }.flatMap { pair in
        try LocalPort.listen(addresses, pair.local).map { local in
          PortForwarder(client: connection.client, path: path, machine: name, remote: pair.remote, local: local)
        }
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
