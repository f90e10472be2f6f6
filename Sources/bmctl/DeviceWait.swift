import IaaS
package import JSON
import Kubernetes

/// What is waited for after a disk or an interface was changed. Decided from the machine as it is.
package enum DeviceGoal: Sendable, Hashable {
  case diskAttached(String)
  case diskGone(String)
  /// The limits of the disk in effect, as its status shows them.
  case diskLimited(String, JSONValue?)
  case interfacePlugged(String)
  case interfaceGone(String)

  package enum Outcome: Sendable, Hashable {
    case reached
    case waits(String)
    /// It will not come about while the machine runs; why.
    case never(String)
  }

  package var text: String {
    switch self {
    case .diskAttached(let disk): "disk \(disk) is attached"
    case .diskGone(let disk): "disk \(disk) is unplugged"
    case .diskLimited(let disk, _): "the limits of disk \(disk) are in effect"
    case .interfacePlugged(let name): "interface \(name) is plugged"
    case .interfaceGone(let name): "interface \(name) is unplugged"
    }
  }

  package func outcome(_ machine: JSONValue) -> Outcome {
    let status = machine["status"]
    if let generation = machine["metadata"]?["generation"]?.int64Value,
      status?["observedGeneration"]?.int64Value ?? 0 < generation
    {
      return .waits("waits for bm-controller to see it")
    }
    func condition(_ type: String) -> JSONValue? {
      status?["conditions"]?.arrayValue?.first { $0["type"]?.stringValue == type }
    }
    func message(_ type: String) -> String { condition(type)?["message"]?.stringValue ?? "waits" }
    if let valid = condition(BareMetalMachine.ConditionType.valid), valid["status"]?.stringValue == "False" {
      return .never(valid["message"]?.stringValue ?? "the spec makes no sense")
    }
    guard status?["host"]?.stringValue != nil, status?["phase"]?.stringValue != BareMetalMachine.Phase.stopped.rawValue
    else { return .never("the machine does not run; it counts at its next start") }
    let volumes = status?["volumes"]?.arrayValue ?? []
    func volume(_ disk: String) -> JSONValue? { volumes.first { $0["disk"]?.stringValue == disk } }
    let isUnplugging = condition(BareMetalMachine.ConditionType.unplugged) != nil
    switch self {
    case .diskAttached(let disk):
      if volume(disk)?["attached"]?.boolValue == true { return .reached }
      let isReady = condition(BareMetalMachine.ConditionType.volumesReady)?["status"]?.stringValue == "True"
      return .waits(
        message(isReady ? BareMetalMachine.ConditionType.attached : BareMetalMachine.ConditionType.volumesReady))
    case .diskGone(let disk):
      if condition(BareMetalMachine.ConditionType.attached)?["reason"]?.stringValue == "RestartNeeded" {
        return .never(message(BareMetalMachine.ConditionType.attached))
      }
      guard volume(disk) == nil, !isUnplugging else {
        return .waits(message(BareMetalMachine.ConditionType.unplugged))
      }
      return .reached
    case .diskLimited(let disk, let limits):
      guard let volume = volume(disk), volume["attached"]?.boolValue == true else {
        return .waits("the disk is not attached")
      }
      return volume["limits"] == limits ? .reached : .waits(message(BareMetalMachine.ConditionType.attached))
    case .interfacePlugged(let name):
      let addresses = status?["addresses"]?.arrayValue ?? []
      let isThere = addresses.contains { $0["interface"]?.stringValue == name }
      return isThere ? .reached : .waits("waits for bm-handler to plug it")
    case .interfaceGone(let name):
      let addresses = status?["addresses"]?.arrayValue ?? []
      let isThere = addresses.contains { $0["interface"]?.stringValue == name }
      return isThere || isUnplugging ? .waits(message(BareMetalMachine.ConditionType.unplugged)) : .reached
    }
  }
}

/// Waits for what was changed of one machine, and shows what it waits for.
struct DeviceWait {
  let connection: Connection
  let name: String
  let goal: DeviceGoal

  func run(timeoutSeconds: Int) async throws {
    let start = ContinuousClock.now
    var progress = ProgressLine()
    while true {
      let machine = try await connection.client.get(
        BareMetalMachine.definition, name: name, namespace: connection.namespace
      ).content
      let seconds = DurationText.fixed(start.duration(to: .now).inSeconds, digits: 1) + " s"
      switch goal.outcome(machine) {
      case .reached:
        progress.clear()
        return Output.line("\(name): \(goal.text) after \(seconds)")
      case .never(let reason):
        progress.clear()
        throw CommandError(.conflict, name, TextWidth.printable(reason))
      case .waits(let reason):
        let reason = TextWidth.printable(reason)
        progress.show("[\(TextWidth.padded(seconds, to: 8, right: true))] \(name) \(reason)", key: reason)
        guard start.duration(to: .now) < .seconds(timeoutSeconds) else {
          progress.keep()
          throw CommandError(
            .timedOut, "wait until \(goal.text)", "not after \(timeoutSeconds) s: \(reason)",
            remedy: "See: bmctl describe machine \(name)")
        }
      }
      try await Task.sleep(for: .milliseconds(100))
    }
  }
}
