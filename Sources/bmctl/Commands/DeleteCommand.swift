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

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "The machines.", completion: Completions.machines)
  var names: [String]

  @Flag(help: "Let the machine go although its host, volumes or network cannot be given back now.")
  var force = false

  @Flag(help: "Wait until it is gone.")
  var wait = false

  @Option(help: "With --wait: seconds to wait at most for each.")
  var timeout: Int = 300

  func validate() throws {
    guard !names.isEmpty else { throw ValidationError("Name a machine.") }
    guard (1...604_800).contains(timeout) else { throw ValidationError("--timeout is 1 to 604800 seconds.") }
  }

  func run() async throws {
    try await withConnection(connection) { connection in
      for name in names {
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
        if wait {
          try await MachineWait(connection: connection, name: name, goal: .deleted).run(timeoutSeconds: timeout)
        }
      }
    }
  }
}
