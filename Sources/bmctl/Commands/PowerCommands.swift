import ArgumentParser
import IaaS
import JSON
import Kubernetes

/// What start, stop and restart share.
struct PowerOptions: ParsableArguments {
  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "The machines.", completion: Completions.machines)
  var names: [String]

  @Flag(help: "Wait until it is done, and show what happens meanwhile.")
  var wait = false

  @Option(help: "With --wait: seconds to wait at most for each.")
  var timeout: Int = 300

  func validate() throws {
    guard !names.isEmpty else { throw ValidationError("Name a machine.") }
    guard (1...604_800).contains(timeout) else { throw ValidationError("--timeout is 1 to 604800 seconds.") }
  }

  /// Patches every machine; one that fails does not keep the others from being tried.
  func patch(done: String, goal: WaitGoal, _ patch: @Sendable (BareMetalMachine) throws -> JSONValue?) async throws {
    try await withConnection(connection) { connection in
      var failures: [CommandError] = []
      for name in names {
        do {
          let machine = try await connection.client.get(
            BareMetalMachine.self, name: name, namespace: connection.namespace)
          guard !machine.metadata.isBeingDeleted else {
            throw CommandError(.conflict, name, "the machine is being deleted")
          }
          if let patch = try patch(machine) {
            _ = try await connection.client.mergePatch(
              BareMetalMachine.definition, name: name, namespace: connection.namespace, patch: patch,
              fieldManager: "bmctl")
            Output.line("\(name) \(done)")
          } else {
            Output.line("\(name) unchanged")
          }
          if wait {
            try await MachineWait(connection: connection, name: name, goal: goal).run(timeoutSeconds: timeout)
          }
        } catch let error as KubernetesError {
          failures.append(CommandError(error))
        } catch let error as CommandError {
          failures.append(error)
        }
      }
      guard let last = failures.popLast() else { return }
      for failure in failures { Output.error("error: \(failure)") }
      throw last
    }
  }
}

struct StartCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "start", abstract: "Start machines (spec.running: true).")

  @OptionGroup var options: PowerOptions

  func run() async throws {
    try await options.patch(done: "starts", goal: .phase(.running)) { machine in
      machine.spec.running ? nil : ["spec": ["running": true]]
    }
  }
}

struct StopCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "stop", abstract: "Stop machines (spec.running: false).",
    discussion: "The guest is asked to shut down; its disks and its address stay the machine's.")

  @OptionGroup var options: PowerOptions

  func run() async throws {
    try await options.patch(done: "stops", goal: .phase(.stopped)) { machine in
      machine.spec.running ? ["spec": ["running": false]] : nil
    }
  }
}

struct RestartCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "restart", abstract: "Restart machines.",
    discussion: "Sets the annotation \(Names.restartAnnotation); bm-controller acts once on every new value.")

  @OptionGroup var options: PowerOptions

  func run() async throws {
    // With the fraction of a second, so that two requests in one second are two values.
    let moment = MicroTimestamp.now().description
    try await options.patch(done: "restarts", goal: .phase(.running)) { machine in
      guard machine.spec.running else {
        throw CommandError(
          .conflict, machine.metadata.name ?? "", "the machine is stopped (spec.running is false)",
          remedy: "Start it: bmctl start \(machine.metadata.name ?? "")")
      }
      return ["metadata": ["annotations": .object([Names.restartAnnotation: .string(moment)])]]
    }
  }
}
