import ArgumentParser
import IaaS
import JSON
import Kubernetes

struct SnapshotCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "snapshot", abstract: "Snapshots of machines: all disks at one moment, and the spec.",
    subcommands: [SnapshotCreateCommand.self, SnapshotListCommand.self, SnapshotDeleteCommand.self])
}

struct SnapshotCreateCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "create", abstract: "Take a snapshot of a machine, which may run.")

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "The machine.", completion: Completions.machines)
  var machine: String

  @Option(help: "The snapshot's name; the machine's with the time where not given.")
  var name: String?

  @Flag(help: "Each disk at a moment of its own, where the data plane cannot capture them together.")
  var perDisk = false

  @Flag(help: "Keep the VolumeSnapshots when the snapshot is deleted.")
  var retain = false

  @OptionGroup var waiting: LifeWaitOptions

  func run() async throws {
    try await withConnection(connection) { connection in
      // Names what it is about where there is no such machine.
      _ = try await connection.client.get(BareMetalMachine.self, name: machine, namespace: connection.namespace)
      let name = name ?? "\(machine.prefix(43))-\(Timestamp.now().secondsSince1970)"
      _ = try await connection.client.create(
        BareMetalMachineSnapshot(
          metadata: ObjectMeta(name: name, namespace: connection.namespace),
          spec: .init(
            machineName: machine, consistency: perDisk ? .perDisk : .group,
            deletionPolicy: retain ? .retain : .delete)))
      let status = try await waiting.wait(
        BareMetalMachineSnapshot.definition, name, connection, success: "Ready", remedy: "bmctl snapshot list")
      let pause = status?["pauseMicroseconds"]?.int64Value.map { ", writes waited \(milliseconds($0))" } ?? ""
      Output.line("\(name) \(status?["consistency"]?.stringValue.map { "ready (\($0)\(pause))" } ?? "created")")
    }
  }

  private func milliseconds(_ microseconds: Int64) -> String {
    DurationText.fixed(Double(microseconds) / 1000, digits: 1) + " ms"
  }
}

struct SnapshotListCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(commandName: "list", abstract: "List the snapshots of machines.")

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "Only of this machine.", completion: Completions.machines)
  var machine: String?

  func run() async throws {
    try await withConnection(connection) { connection in
      let all = try await connection.client.listAll(BareMetalMachineSnapshot.self, namespace: connection.namespace)
      let now = Double(MicroTimestamp.now().microseconds) / 1_000_000
      let rows = all.items.filter { machine == nil || $0.spec.machineName == machine }.map { snapshot -> [String] in
        let status = snapshot.status
        let age = snapshot.metadata.creationTimestamp.map { now - Double($0.secondsSince1970) }
        return [
          snapshot.key.name, snapshot.spec.machineName, status?.phase?.rawValue ?? "-",
          status?.consistency?.rawValue ?? "-", "\(status?.disks?.count ?? 0)",
          status?.pauseMicroseconds.map { DurationText.fixed(Double($0) / 1000, digits: 1) + "ms" } ?? "-",
          age.map { DurationText.age(seconds: $0) } ?? "-", status?.message ?? "",
        ]
      }
      let table = Table(
        [
          .init("NAME"), .init("MACHINE"), .init("PHASE"), .init("CONSISTENCY"), .init("DISKS", right: true),
          .init("PAUSE", right: true), .init("AGE", right: true), .init("MESSAGE"),
        ], rows: rows)
      for line in table.lines() { Output.line(line) }
    }
  }
}

struct SnapshotDeleteCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "delete", abstract: "Delete snapshots of machines, with their VolumeSnapshots.")

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "The snapshots.")
  var names: [String]

  func run() async throws {
    try await withConnection(connection) { connection in
      for name in names {
        try await connection.client.delete(
          BareMetalMachineSnapshot.self, name: name, namespace: connection.namespace)
        Output.line("\(name) deleted")
      }
    }
  }
}

struct RestoreCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "restore", abstract: "Roll a machine's disks back to a snapshot.",
    discussion: """
      What the machine has before is captured first, in a snapshot whose name ends in -before.

        bmctl restore bm-01 --from before-upgrade --stop
      """)

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "The machine.", completion: Completions.machines)
  var machine: String

  @Option(help: "The snapshot.")
  var from: String

  @Flag(help: "Stop a machine that runs, and start it again. Otherwise a machine that runs is refused.")
  var stop = false

  @OptionGroup var waiting: LifeWaitOptions

  func run() async throws {
    try await withConnection(connection) { connection in
      let present = try await connection.client.get(
        BareMetalMachine.self, name: machine, namespace: connection.namespace)
      guard stop || !present.spec.running else {
        throw CommandError(
          .conflict, machine, "the machine is to run",
          remedy: "Stop it first (bmctl stop \(machine)), or give --stop, which starts it again afterwards.")
      }
      let name = "\(machine.prefix(41))-\(Timestamp.now().secondsSince1970)"
      _ = try await connection.client.create(
        BareMetalMachineRestore(
          metadata: ObjectMeta(name: name, namespace: connection.namespace),
          spec: .init(snapshotName: from, machineName: machine, stopMachine: stop)))
      let status = try await waiting.wait(
        BareMetalMachineRestore.definition, name, connection, success: "Succeeded",
        remedy: "kubectl describe bmmr \(name)")
      guard let status else { return Output.line("\(machine) restores (\(name))") }
      Output.line("\(machine) restored; what was there before is in \(status["previousSnapshot"]?.stringValue ?? "-")")
    }
  }
}

struct CloneCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "clone", abstract: "Make machines from a machine or from a snapshot of one.",
    discussion: """
      Each has a name, MAC addresses, addresses and a cloud-init instance of its own.

        bmctl clone bm-01 --replicas 3 --pattern web-{index}
        bmctl clone --from before-upgrade --name trial
      """)

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "The machine; captured first, while it runs.", completion: Completions.machines)
  var machine: String?

  @Option(help: "The snapshot to make them from, instead of a machine.")
  var from: String?

  @Option(help: "The clone's name; the source's with the time where not given.")
  var name: String?

  @Option(help: "How many machines.")
  var replicas: Int = 1

  @Option(help: "The machines' names, where {index} stands for a number.")
  var pattern: String?

  @Option(help: "The number of the first machine.")
  var firstIndex: Int = 1

  @Option(help: "IPv4 addresses of the first interfaces, separated by commas.")
  var addresses: String?

  @Flag(help: "Leave the new machines off.")
  var stopped = false

  @OptionGroup var waiting: LifeWaitOptions

  func validate() throws {
    guard (machine == nil) != (from == nil) else {
      throw ValidationError("Name a machine, or a snapshot with --from.")
    }
    guard (1...100).contains(replicas) else { throw ValidationError("--replicas is 1 to 100.") }
    guard firstIndex >= 0 else { throw ValidationError("--first-index is not negative.") }
  }

  func run() async throws {
    try await withConnection(connection) { connection in
      let name = name ?? "\((machine ?? from ?? "").prefix(41))-\(Timestamp.now().secondsSince1970)"
      _ = try await connection.client.create(
        BareMetalMachineClone(
          metadata: ObjectMeta(name: name, namespace: connection.namespace),
          spec: .init(
            source: .init(machineName: machine, snapshotName: from), replicas: replicas, namePattern: pattern,
            firstIndex: firstIndex, running: !stopped,
            addresses: addresses?.split(separator: ",").map(String.init) ?? [])))
      let status = try await waiting.wait(
        BareMetalMachineClone.definition, name, connection, success: "Succeeded",
        remedy: "kubectl describe bmmc \(name)")
      guard let status else { return Output.line("\(name) created") }
      for machine in status["machines"]?.arrayValue ?? [] { Output.line(machine["name"]?.stringValue ?? "-") }
    }
  }
}

/// Waits for an object that bm-controller works on.
struct LifeWaitOptions: ParsableArguments {
  @Flag(inversion: .prefixedNo, help: "Wait until it is done, and show what happens meanwhile.")
  var wait = true

  @Option(help: "With --wait: seconds to wait at most.")
  var timeout: Int = 300

  /// The status once the phase is `success`; nil where nobody waits for it.
  func wait(
    _ definition: ResourceDefinition, _ name: String, _ connection: Connection, success: String, remedy: String
  ) async throws -> JSONValue? {
    guard wait else { return nil }
    let deadline = ContinuousClock.now + .seconds(timeout)
    var progress = ProgressLine()
    defer { progress.clear() }
    while true {
      let status = try await connection.client.get(definition, name: name, namespace: connection.namespace)
        .content["status"]
      let phase = status?["phase"]?.stringValue ?? "New"
      let message = status?["message"]?.stringValue ?? ""
      if phase == success { return status }
      guard phase != "Failed" else { throw CommandError(.conflict, name, message, remedy: "See: \(remedy)") }
      progress.show("\(name): \(phase) \(message)", key: "\(phase) \(message)")
      guard ContinuousClock.now < deadline else {
        throw CommandError(.timedOut, name, "is \(phase) after \(timeout) s: \(message)", remedy: "See: \(remedy)")
      }
      try await Task.sleep(for: .milliseconds(100))
    }
  }
}
