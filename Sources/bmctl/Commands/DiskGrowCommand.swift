import ArgumentParser
import IaaS
package import JSON
import Kubernetes

struct DiskGrowCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "grow", abstract: "Make a disk larger; a running guest sees it at once.",
    discussion: """
      Asks for more in the disk's claim. Its storage class must allow that (allowVolumeExpansion); disks do not shrink.
      Partitions and file systems in the guest are the guest's to grow.

        bmctl disk grow bm-01 data 20Gi --wait
      """)

  @OptionGroup var options: ChangeOptions

  @Argument(help: "The machine.", completion: Completions.machines)
  var machine: String

  @Argument(help: "The disk's name.")
  var disk: String

  @Argument(help: "The new size, for example 20Gi.")
  var size: String

  func validate() throws {
    guard (Quantity(size)?.bytes ?? 0) > 0 else { throw ValidationError("'\(size)' is no size; write it like 20Gi.") }
  }

  func run() async throws {
    try await withConnection(options.connection) { connection in
      let object = try await connection.client.get(
        BareMetalMachine.definition, name: machine, namespace: connection.namespace
      ).content
      guard let entry = MachineEdit.entry(.disks, disk, of: object) else {
        throw MachineEdit.missing(.disks, disk, of: object)
      }
      let claim = entry["existingClaim"]?["claimName"]?.stringValue ?? Names.claim(machine: machine, disk: disk)
      let present = try await connection.client.get(
        PersistentVolumeClaim.self, name: claim, namespace: connection.namespace)
      guard let wanted = Quantity(size) else { throw ValidationError("no size") }
      let asked = present.spec?.resources?.requests?["storage"]
      if let asked, asked == wanted {
        Output.line("\(machine) unchanged")
      } else {
        if let asked, wanted < asked {
          throw CommandError(
            .conflict, machine, "disk \(disk) (claim \(claim)) has \(asked), and disks do not shrink",
            remedy: "Ask for more than \(asked).")
        }
        _ = try await connection.client.mergePatch(
          PersistentVolumeClaim.definition, name: claim, namespace: connection.namespace,
          patch: ["spec": ["resources": ["requests": ["storage": .string(size)]]]], fieldManager: "bmctl")
        Output.line("\(machine): disk \(disk) (claim \(claim)) grows to \(size)")
      }
      if options.wait { try await waitForGrowth(connection, claim, wanted) }
    }
  }

  /// The claim's capacity is raised when the server sees it.
  private func waitForGrowth(_ connection: Connection, _ claim: String, _ wanted: Quantity) async throws {
    let start = ContinuousClock.now
    var progress = ProgressLine()
    while true {
      let present = try await connection.client.get(
        PersistentVolumeClaim.self, name: claim, namespace: connection.namespace)
      let seconds = DurationText.fixed(start.duration(to: .now).inSeconds, digits: 1) + " s"
      if let capacity = present.status?.capacity?["storage"], !(capacity < wanted) {
        progress.clear()
        return Output.line("\(machine): disk \(disk) has \(capacity) after \(seconds)")
      }
      let reason = TextWidth.printable(
        present.status?.conditions?.first.map { $0.message ?? $0.type } ?? "waits for csi-controller to grow the volume"
      )
      progress.show("[\(TextWidth.padded(seconds, to: 8, right: true))] \(claim) \(reason)", key: reason)
      guard start.duration(to: .now) < .seconds(options.timeout) else {
        progress.keep()
        throw CommandError(
          .timedOut, "wait for \(claim) to grow", "not after \(options.timeout) s: \(reason)",
          remedy: "See: kubectl -n \(connection.namespace) describe pvc \(claim)")
      }
      try await Task.sleep(for: .milliseconds(100))
    }
  }
}

struct DiskListCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "List the disks of a machine, as they are.",
    discussion: "DEVICE is the path that udev gives the disk in a Linux guest.")

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "The machine.", completion: Completions.machines)
  var machine: String

  func run() async throws {
    try await withConnection(connection) { connection in
      let object = try await connection.client.get(
        BareMetalMachine.definition, name: machine, namespace: connection.namespace
      ).content
      for line in DiskText.table(object).lines() { Output.line(line) }
    }
  }
}

/// A machine's disks in words.
package enum DiskText {
  package static func table(_ machine: JSONValue) -> Table {
    let volumes = machine["status"]?["volumes"]?.arrayValue ?? []
    return Table(
      [
        .init("DISK"), .init("CLAIM"), .init("SIZE", right: true), .init("ATTACHED"), .init("DEVICE"), .init("LIMITS"),
      ],
      rows: MachineEdit.entries(.disks, of: machine).map { disk in
        let name = ResourceTable.text(disk["name"])
        let seen = volumes.first { $0["disk"]?.stringValue == name }
        let isReadOnly = disk["readOnly"]?.boolValue == true
        let isAttached = seen?["attached"]?.boolValue == true
        return [
          name, ResourceTable.text(seen?["claim"] ?? disk["existingClaim"]?["claimName"]),
          ResourceTable.text(seen?["capacity"] ?? disk["template"]?["size"]),
          isAttached ? (isReadOnly ? "read-only" : "yes") : "no", ResourceTable.text(seen?["device"]),
          limits(seen?["limits"]),
        ]
      })
  }

  private static func limits(_ limits: JSONValue?) -> String {
    let parts = ["iops", "bandwidth", "readBandwidth", "writeBandwidth"].compactMap { name in
      limits?[name].map { "\(name) \(ResourceTable.text($0))" }
    }
    return parts.isEmpty ? "-" : parts.joined(separator: ", ")
  }

  /// Limits of a spec in the form in which a status shows them.
  package static func normalized(_ limits: JSONValue?) -> JSONValue? {
    var members = limits?.objectValue ?? [:]
    for (name, value) in members {
      guard let text = value.stringValue, let bytes = Quantity(text)?.bytes else { continue }
      members[name] = .string("\(bytes >> 20)Mi")
    }
    return members.isEmpty ? nil : .object(members)
  }
}
