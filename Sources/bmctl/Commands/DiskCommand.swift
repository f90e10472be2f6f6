import ArgumentParser
import IaaS
import JSON
import Kubernetes

struct DiskCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "disk", abstract: "Disks of machines, also while they run.",
    subcommands: [
      DiskListCommand.self, DiskAddCommand.self, DiskRemoveCommand.self, DiskGrowCommand.self, DiskLimitCommand.self,
    ])
}

/// What the commands that change a machine share.
struct ChangeOptions: ParsableArguments {
  @OptionGroup var connection: ConnectionOptions

  @Flag(help: "Wait until it is done, and show what happens meanwhile.")
  var wait = false

  @Option(help: "With --wait: seconds to wait at most.")
  var timeout: Int = 120

  func validate() throws {
    guard (1...604_800).contains(timeout) else { throw ValidationError("--timeout is 1 to 604800 seconds.") }
  }

  /// Changes a machine, says what was done, and waits where that is wanted.
  func change(
    _ machine: String, done: String, goal: DeviceGoal, _ change: (JSONValue) throws -> JSONValue?
  ) async throws {
    try await withConnection(connection) { connection in
      let isChanged = try await MachineEdit.apply(connection, machine, change)
      Output.line(isChanged ? "\(machine): \(done)" : "\(machine) unchanged")
      if wait {
        try await DeviceWait(connection: connection, name: machine, goal: goal).run(timeoutSeconds: timeout)
      }
    }
  }
}

/// Limits as the command line takes them.
struct LimitOptions: ParsableArguments {
  @Option(help: "Requests a second, a multiple of 1000; 0 for no limit.")
  var iops: Int?

  @Option(help: "Bytes a second in both directions together, for example 100Mi; 0 for no limit.")
  var bandwidth: String?

  @Option(help: "Bytes read a second; 0 for no limit.")
  var readBandwidth: String?

  @Option(help: "Bytes written a second; 0 for no limit.")
  var writeBandwidth: String?

  func validate() throws {
    if let iops, iops < 0 || iops % 1000 != 0 { throw ValidationError("--iops is a multiple of 1000, or 0.") }
    for (name, text) in [
      ("bandwidth", bandwidth), ("read-bandwidth", readBandwidth), ("write-bandwidth", writeBandwidth),
    ] {
      guard let text else { continue }
      guard let bytes = Quantity(text)?.bytes, bytes >= 0, bytes % (1 << 20) == 0 else {
        throw ValidationError("--\(name) is a whole number of mebibytes, for example 100Mi, or 0.")
      }
    }
  }

  /// Those that were given; null for those that are lifted.
  var given: [String: JSONValue] {
    var limits: [String: JSONValue] = [:]
    if let iops { limits["iops"] = iops == 0 ? .null : .integer(Int64(iops)) }
    for (name, text) in [
      ("bandwidth", bandwidth), ("readBandwidth", readBandwidth), ("writeBandwidth", writeBandwidth),
    ] {
      guard let text else { continue }
      limits[name] = Quantity(text)?.bytes == 0 ? .null : .string(text)
    }
    return limits
  }
}

struct DiskAddCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "add", abstract: "Add a disk to a machine.",
    discussion: """
        bmctl disk add bm-01 data --size 10Gi --wait
        bmctl disk add bm-01 archive --claim archive-2025 --read-only
      """)

  @OptionGroup var options: ChangeOptions

  @Argument(help: "The machine.", completion: Completions.machines)
  var machine: String

  @Argument(help: "The disk's name.")
  var disk: String

  @Option(help: "A claim of the machine's namespace that is there already.")
  var claim: String?

  @Option(help: "The size of a new volume, for example 10Gi. It is deleted with the machine.")
  var size: String?

  @Option(help: "With --size: the storage class; the cluster's default where not given.")
  var storageClass: String?

  @Flag(help: "The server may only read it.")
  var readOnly = false

  @OptionGroup(title: "Limits") var limits: LimitOptions

  func validate() throws {
    guard (claim == nil) != (size == nil) else { throw ValidationError("Give either --claim or --size.") }
    if let size, (Quantity(size)?.bytes ?? 0) <= 0 { throw ValidationError("--size is a size like 10Gi.") }
    guard storageClass == nil || size != nil else { throw ValidationError("--storage-class goes with --size.") }
  }

  func run() async throws {
    var entry: JSONValue = ["name": .string(disk)]
    if let claim { entry["existingClaim"] = ["claimName": .string(claim)] }
    if let size {
      var template: JSONValue = ["size": .string(size)]
      if let storageClass { template["storageClassName"] = .string(storageClass) }
      entry["template"] = template
    }
    if readOnly { entry["readOnly"] = true }
    let limits = limits.given.filter { $0.value != .null }
    if !limits.isEmpty { entry["limits"] = .object(limits) }
    let wanted = entry
    try await options.change(machine, done: "disk \(disk) is added", goal: .diskAttached(disk)) { machine in
      guard let disks = try MachineEdit.adding(wanted, to: .disks, of: machine) else { return nil }
      var patch: JSONValue = ["spec": ["disks": .array(disks)]]
      // A removal by force that was asked for once is not for this disk.
      patch["metadata"] = MachineEdit.forcing(disk, false, of: machine)
      return patch
    }
  }
}

struct DiskRemoveCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "remove", abstract: "Remove a disk from a machine; its volume stays.",
    discussion: """
      The guest of a running machine is asked to let go of the disk; unmount it there first. A claim that was made from
      a template stays until the machine is deleted, or until you delete it.

      --force cuts the guest off from a disk that it does not let go of: what it has not written yet is lost, and its
      requests never end. The guest is best restarted afterwards.
      """)

  @OptionGroup var options: ChangeOptions

  @Argument(help: "The machine.", completion: Completions.machines)
  var machine: String

  @Argument(help: "The disk's name.")
  var disk: String

  @Flag(help: "Do not wait for the guest to let go.")
  var force = false

  func run() async throws {
    try await options.change(machine, done: "disk \(disk) is removed", goal: .diskGone(disk)) { machine in
      var patch: JSONValue = [:]
      if let disks = MachineEdit.removing(disk, from: .disks, of: machine) {
        guard !disks.isEmpty else {
          throw CommandError(
            .conflict, MachineEdit.machineName(machine), "'\(disk)' is its only disk; a machine needs one")
        }
        patch["spec"] = ["disks": .array(disks)]
      } else if !force {
        // With force the disk may have been removed before.
        throw MachineEdit.missing(.disks, disk, of: machine)
      }
      if let metadata = MachineEdit.forcing(disk, force, of: machine) { patch["metadata"] = metadata }
      return patch
    }
  }
}

struct DiskLimitCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "limit", abstract: "Change what a disk may do at most; at once, while it is used.",
    discussion: """
      What is not given stays as it is; 0 lifts a limit.

        bmctl disk limit bm-01 data --iops 5000 --write-bandwidth 50Mi
      """)

  @OptionGroup var options: ChangeOptions

  @Argument(help: "The machine.", completion: Completions.machines)
  var machine: String

  @Argument(help: "The disk's name.")
  var disk: String

  @OptionGroup(title: "Limits") var limits: LimitOptions

  func validate() throws {
    guard !limits.given.isEmpty else { throw ValidationError("Give at least one limit.") }
  }

  func run() async throws {
    let given = limits.given
    try await withConnection(options.connection) { connection in
      let isChanged = try await MachineEdit.apply(connection, machine) { machine in
        try MachineEdit.limiting(disk, given, of: machine).map { ["spec": ["disks": .array($0)]] }
      }
      Output.line(isChanged ? "\(machine): the limits of disk \(disk) are changed" : "\(machine) unchanged")
      guard options.wait else { return }
      let object = try await connection.client.get(
        BareMetalMachine.definition, name: machine, namespace: connection.namespace
      ).content
      let limits = MachineEdit.entry(.disks, disk, of: object)?["limits"]
      let goal = DeviceGoal.diskLimited(disk, DiskText.normalized(limits))
      try await DeviceWait(connection: connection, name: machine, goal: goal).run(timeoutSeconds: options.timeout)
    }
  }
}
