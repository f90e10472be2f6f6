import ArgumentParser
import IaaS
import JSON
import Kubernetes

/// Does something with each of the names. One that fails does not keep the others from being tried: the errors are told,
/// and the last one is thrown.
func tryEach(_ names: [String], _ body: (String) async throws -> Void) async throws {
  var failures: [CommandError] = []
  for name in names {
    do {
      try await body(name)
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

/// What the commands share that switch or delete machines.
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

  /// Asks bm-api, or where the cluster has none, patches the machines itself: either way the change is the same. One that
  /// fails does not keep the others from being tried.
  func perform(
    _ verb: String, done: String, goal: WaitGoal, patch: @Sendable (BareMetalMachine) throws -> JSONValue?
  ) async throws {
    try await withConnection(connection) { connection in
      let subresources = MachineSubresources(connection: connection)
      let isServed = try await subresources.isServed()
      try await tryEach(names) { name in
        let words =
          try await isServed ? subresources.put(verb, name) : Self.patch(name, connection, done: done, patch)
        Output.line(TextWidth.printable(words))
        if wait {
          try await MachineWait(connection: connection, name: name, goal: goal).run(timeoutSeconds: timeout)
        }
      }
    }
  }

  private static func patch(
    _ name: String, _ connection: Connection, done: String, _ patch: (BareMetalMachine) throws -> JSONValue?
  ) async throws -> String {
    let machine = try await connection.client.get(BareMetalMachine.self, name: name, namespace: connection.namespace)
    guard !machine.metadata.isBeingDeleted else {
      throw CommandError(.conflict, name, "the machine is being deleted")
    }
    guard let patch = try patch(machine) else { return "\(name) unchanged" }
    _ = try await connection.client.mergePatch(
      BareMetalMachine.definition, name: name, namespace: connection.namespace, patch: patch, fieldManager: "bmctl")
    return "\(name) \(done)"
  }

  /// A restart in one of its manners.
  func restart(_ manner: RestartRequest.Manner, done: String) async throws {
    // With the fraction of a second, so that two requests in one second are two values.
    let request = RestartRequest(manner, token: MicroTimestamp.now().description)
    try await perform(manner.rawValue, done: done, goal: .phase(.running)) { machine in
      guard machine.spec.running else {
        throw CommandError(
          .conflict, machine.metadata.name ?? "", "the machine is stopped (spec.running is false)",
          remedy: "Start it: bmctl start \(machine.metadata.name ?? "")")
      }
      return ["metadata": ["annotations": .object([Names.restartAnnotation: .string(request.description)])]]
    }
  }
}

struct StartCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "start", abstract: "Start machines (spec.running: true).")

  @OptionGroup var options: PowerOptions

  func run() async throws {
    try await options.perform("start", done: "starts", goal: .phase(.running)) { machine in
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
    try await options.perform("stop", done: "stops", goal: .phase(.stopped)) { machine in
      machine.spec.running ? ["spec": ["running": false]] : nil
    }
  }
}

struct RestartCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "restart", abstract: "Restart machines.",
    discussion: """
      The guest is asked to shut down, and has the time for it that bm-controller was started with. Sets the annotation \
      \(Names.restartAnnotation); bm-controller acts once on every new value.
      """)

  @OptionGroup var options: PowerOptions

  func run() async throws { try await options.restart(.restart, done: "restarts") }
}

struct ResetCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "reset", abstract: "Cut machines' power and start them again.",
    discussion: "The guest is not asked: what it has not written to its disks is lost.")

  @OptionGroup var options: PowerOptions

  func run() async throws { try await options.restart(.reset, done: "is reset") }
}

struct SoftRebootCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "softreboot", abstract: "Restart machines as soon as their guests have shut down.",
    discussion: "As restart, but the guest has ten minutes to shut down before its power is cut.")

  @OptionGroup var options: PowerOptions

  func run() async throws {
    try await options.restart(.softreboot, done: "restarts as soon as its guest has shut down")
  }
}
