import ArgumentParser
package import IaaS
package import JSON
import Kubernetes

struct WaitCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "wait", abstract: "Wait until a machine is in a phase; shows what it does meanwhile.",
    discussion: """
        bmctl wait bm-01 --for Running --timeout 300
        bmctl wait bm-01 --for Deleted
      """)

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "The machine.", completion: Completions.machines)
  var name: String

  @Option(
    name: .customLong("for"),
    help: "A phase (Running, Stopped, ...), Ready, or Deleted.",
    completion: .list(WaitGoal.names))
  var goal: String = "Running"

  @Option(help: "Seconds to wait at most.")
  var timeout: Int = 300

  func validate() throws {
    guard WaitGoal(goal) != nil else {
      throw ValidationError("--for is one of \(WaitGoal.names.joined(separator: ", ")).")
    }
    guard (1...604_800).contains(timeout) else { throw ValidationError("--timeout is 1 to 604800 seconds.") }
  }

  func run() async throws {
    guard let goal = WaitGoal(goal) else { throw ValidationError("unknown goal") }
    try await withConnection(connection) { connection in
      let waiting = MachineWait(connection: connection, name: name, goal: goal)
      try await waiting.run(timeoutSeconds: timeout)
    }
  }
}

/// What a machine is waited for.
package enum WaitGoal: Sendable, Hashable {
  case phase(BareMetalMachine.Phase)
  case ready
  case deleted

  package init?(_ text: String) {
    switch text.lowercased() {
    case "deleted": self = .deleted
    case "ready", "condition=ready": self = .ready
    case let folded:
      guard let phase = BareMetalMachine.Phase.allCases.first(where: { $0.rawValue.lowercased() == folded }) else {
        return nil
      }
      self = .phase(phase)
    }
  }

  package static var names: [String] {
    BareMetalMachine.Phase.allCases.map(\.rawValue) + ["Ready", "Deleted"]
  }

  var name: String {
    switch self {
    case .phase(let phase): phase.rawValue
    case .ready: "Ready"
    case .deleted: "Deleted"
    }
  }

  /// Whether the machine is there. A status that was made before the latest change of the spec, or before the latest
  /// request for a restart, says nothing about what was asked for.
  package func isReached(by machine: JSONValue) -> Bool {
    let metadata = machine["metadata"]
    let status = machine["status"]
    if let generation = metadata?["generation"]?.int64Value {
      guard let observed = status?["observedGeneration"]?.int64Value, observed >= generation else { return false }
    }
    if let restart = metadata?["annotations"]?[Names.restartAnnotation]?.stringValue, self != .deleted {
      guard status?["observedRestart"]?.stringValue == restart else { return false }
    }
    switch self {
    case .phase(let phase): return ResourceTable.phase(machine)?.stringValue == phase.rawValue
    case .ready:
      return status?["conditions"]?.arrayValue?.contains {
        $0["type"]?.stringValue == BareMetalMachine.ConditionType.ready && $0["status"]?.stringValue == "True"
      } ?? false
    case .deleted: return false
    }
  }
}

/// Waits for one machine and shows its phase and the seconds.
struct MachineWait {
  let connection: Connection
  let name: String
  let goal: WaitGoal

  func run(timeoutSeconds: Int) async throws {
    let clock = ContinuousClock()
    let start = clock.now
    let deadline = start + .seconds(timeoutSeconds)
    var progress = ProgressLine()
    var last: JSONValue?
    var trouble: KubernetesError?
    var identity: String?
    while true {
      do {
        let machine = try await connection.client.get(
          BareMetalMachine.definition, name: name, namespace: connection.namespace
        ).content
        trouble = nil
        let uid = machine["metadata"]?["uid"]?.stringValue
        if goal == .deleted, let identity, identity != uid {
          progress.clear()
          Output.line("\(name) is deleted (a new machine has its name)")
          return
        }
        identity = uid
        last = machine
        if goal.isReached(by: machine) {
          progress.clear()
          Output.line("\(name) is \(goal.name) after \(Self.seconds(since: start))")
          return
        }
      } catch let error as KubernetesError where error.code == .notFound {
        progress.clear()
        guard goal == .deleted else { throw error }
        Output.line("\(name) is deleted after \(Self.seconds(since: start))")
        return
      } catch let error as KubernetesError where error.isTransient && last != nil {
        // The API server may be restarted meanwhile; what is waited for does not depend on it.
        trouble = error
      }
      let state = Self.state(of: last, trouble: trouble)
      progress.show(
        "[\(TextWidth.padded(Self.seconds(since: start), to: 8, right: true))] \(name) \(state)", key: state)
      guard clock.now < deadline else {
        progress.keep()
        throw CommandError(
          .timedOut, "wait for \(name)", "it is not \(goal.name) after \(timeoutSeconds) s: \(state)",
          remedy: "See: bmctl describe machine \(name); bmctl console \(name)")
      }
      try await Task.sleep(for: .milliseconds(250))
    }
  }

  private static func seconds(since start: ContinuousClock.Instant) -> String {
    DurationText.fixed(start.duration(to: .now).inSeconds, digits: 1) + " s"
  }

  private static func state(of machine: JSONValue?, trouble: KubernetesError?) -> String {
    if let trouble { return "unknown: the API server is away (\(TextWidth.printable(trouble.message)))" }
    guard let machine else { return "unknown" }
    let phase = ResourceTable.phase(machine)?.stringValue ?? "waits for bm-controller to see it"
    let message = machine["status"]?["message"]?.stringValue ?? ""
    return TextWidth.printable(message.isEmpty ? phase : "\(phase): \(message)")
  }
}
