import IaaS
package import JSON
import Kubernetes

/// Changes of the lists in a machine's spec: from what is there to what shall be there. They work on JSON, so that a
/// field that is newer than this program is not lost.
package enum MachineEdit {
  /// A list of the spec that is edited.
  package enum List: String, Sendable, Hashable {
    case disks
    case interfaces

    var noun: String { self == .disks ? "disk" : "interface" }

    /// What the API server takes where the list is left out.
    var byDefault: [JSONValue] { self == .disks ? [] : [["name": "eth0"]] }
  }

  package static func entries(_ list: List, of machine: JSONValue) -> [JSONValue] {
    machine["spec"]?[list.rawValue]?.arrayValue ?? list.byDefault
  }

  package static func entry(_ list: List, _ name: String, of machine: JSONValue) -> JSONValue? {
    entries(list, of: machine).first { $0["name"]?.stringValue == name }
  }

  /// The list with one more. One of the same name is an error, unless it is the same.
  package static func adding(_ entry: JSONValue, to list: List, of machine: JSONValue) throws -> [JSONValue]? {
    let name = entry["name"]?.stringValue ?? ""
    let entries = entries(list, of: machine)
    guard let present = entries.first(where: { $0["name"]?.stringValue == name }) else { return entries + [entry] }
    // The API server fills in what was left out.
    let isSame = entry.objectValue?.allSatisfy { present[$0.key] == $0.value } ?? false
    guard isSame else {
      throw CommandError(
        .conflict, machineName(machine), "it has \(article(list)) '\(name)' already, with other fields",
        remedy: "Choose another name, or remove that one first: bmctl \(command(list)) remove \(machineName(machine)) "
          + name)
    }
    return nil
  }

  /// The list without one; nil where it is not in it.
  package static func removing(_ name: String, from list: List, of machine: JSONValue) -> [JSONValue]? {
    let entries = entries(list, of: machine)
    let rest = entries.filter { $0["name"]?.stringValue != name }
    return rest.count == entries.count ? nil : rest
  }

  /// The list with the limits of a disk changed: those given are set, null ones lifted, the others stay.
  package static func limiting(
    _ disk: String, _ limits: [String: JSONValue], of machine: JSONValue
  ) throws -> [JSONValue]? {
    let entries = entries(.disks, of: machine)
    guard let index = entries.firstIndex(where: { $0["name"]?.stringValue == disk }) else {
      throw missing(.disks, disk, of: machine)
    }
    var members = entries[index]["limits"]?.objectValue ?? [:]
    // JSONValue has a nil of its own, null, which a conditional expression would take.
    for (name, value) in limits {
      if value == .null { members.removeValue(forKey: name) } else { members[name] = value }
    }
    var changed = entries
    var entry = entries[index].objectValue ?? [:]
    entry.removeValue(forKey: "limits")
    if !members.isEmpty { entry["limits"] = .object(members) }
    changed[index] = .object(entry)
    return changed == entries ? nil : changed
  }

  /// Metadata by which a removed disk is, or is not, cut off from the guest; nil where that is so already.
  package static func forcing(_ disk: String, _ isForced: Bool, of machine: JSONValue) -> JSONValue? {
    let before = machine["metadata"]?["annotations"]?[Names.forceUnplugAnnotation]?.stringValue ?? ""
    let names = before.split(separator: ",").map { String($0.filter { $0 != " " }) }
    guard names.contains(disk) != isForced else { return nil }
    let after = isForced ? names + [disk] : names.filter { $0 != disk }
    let value: JSONValue = after.isEmpty ? .null : .string(after.joined(separator: ","))
    return ["annotations": .object([Names.forceUnplugAnnotation: value])]
  }

  package static func missing(_ list: List, _ name: String, of machine: JSONValue) -> CommandError {
    let names = entries(list, of: machine).compactMap { $0["name"]?.stringValue }.joined(separator: ", ")
    return CommandError(
      .notFound, machineName(machine), "it has no \(list.noun) '\(name)'",
      remedy: names.isEmpty ? "It has none at all." : "It has: \(names)")
  }

  static func machineName(_ machine: JSONValue) -> String { machine["metadata"]?["name"]?.stringValue ?? "machine" }

  private static func article(_ list: List) -> String { list == .disks ? "a disk" : "an interface" }

  private static func command(_ list: List) -> String { list == .disks ? "disk" : "nic" }

  /// Reads the machine, changes it, and writes it if nobody was faster; else again.
  /// - Parameter change: The patch, or nil where nothing is to be done.
  /// - Returns: Whether something was changed.
  static func apply(
    _ connection: Connection, _ name: String, _ change: (JSONValue) throws -> JSONValue?
  ) async throws -> Bool {
    for attempt in 1...5 {
      let machine = try await connection.client.get(
        BareMetalMachine.definition, name: name, namespace: connection.namespace
      ).content
      guard machine["metadata"]?["deletionTimestamp"] == nil else {
        throw CommandError(.conflict, name, "the machine is being deleted")
      }
      guard var patch = try change(machine) else { return false }
      var metadata = patch["metadata"] ?? [:]
      metadata["resourceVersion"] = machine["metadata"]?["resourceVersion"]
      patch["metadata"] = metadata
      do {
        _ = try await connection.client.mergePatch(
          BareMetalMachine.definition, name: name, namespace: connection.namespace, patch: patch,
          fieldManager: "bmctl")
        return true
      } catch let error as KubernetesError where error.code == .conflict && attempt < 5 {
        continue
      }
    }
    throw CommandError(.conflict, name, "it changes too often; try again")
  }
}
