import ArgumentParser
import IaaS
import JSON
import Kubernetes

struct DeleteCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "delete", abstract: "Delete machines, with the disks that were made for them.",
    discussion: """
      Disks of claims that the machine only names stay. --force is for a machine whose host is gone for good: the machine
      goes although something of it cannot be given back. What that is stands in an event of the machine and of its host;
      nothing of it becomes free before it is cleaned up, so that no disk is written by two.
      """)

  @OptionGroup var options: PowerOptions

  @Flag(help: "Let the machine go although its host, volumes or network cannot be given back now.")
  var force = false

  func run() async throws {
    try await withConnection(options.connection) { connection in
      try await tryEach(options.names) { name in
        let machine = try await connection.client.get(
          BareMetalMachine.self, name: name, namespace: connection.namespace)
        if force {
          _ = try await connection.client.mergePatch(
            BareMetalMachine.definition, name: name, namespace: connection.namespace,
            patch: ["metadata": ["annotations": .object([Names.forceDeleteAnnotation: "true"])]], fieldManager: "bmctl")
        }
        try await connection.client.delete(
          BareMetalMachine.self, name: name, namespace: connection.namespace, uid: machine.metadata.uid)
        Output.line("\(name) is being deleted\(force ? ", by force" : "")")
        if options.wait {
          try await MachineWait(connection: connection, name: name, goal: .deleted).run(timeoutSeconds: options.timeout)
        }
      }
    }
  }
}
