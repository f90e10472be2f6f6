import IaaS
import JSON
package import Kubernetes

/// start, stop, restart, reset, softreboot: what each changes at a machine. Pure.
package enum PowerVerbs {
  package static func decide(
    _ verb: MachineVerb, _ machine: DynamicObject, _ options: VerbOptions, now: MicroTimestamp
  ) throws(APIFailure) -> MachineStore.Decision {
    let name = machine.name ?? ""
    let isRunning = machine["spec"]?["running"]?.boolValue ?? true
    switch verb {
    case .start:
      return isRunning
        ? .unchanged("\(name) is wanted to run already") : .patch(["spec": ["running": true]], "\(name) starts")
    case .stop:
      return isRunning
        ? .patch(["spec": ["running": false]], "\(name) stops") : .unchanged("\(name) is wanted to be off already")
    default:
      break
    }
    guard isRunning else {
      throw .conflict(name, "machine \(machine.key) is stopped (spec.running is false); start it instead")
    }
    let manner = RestartRequest.Manner(rawValue: verb.rawValue) ?? .restart
    let present = machine["metadata"]?["annotations"]?[Names.restartAnnotation]?.stringValue
    // With the fraction of a second, so that two requests in one second are two values.
    let request = RestartRequest(manner, token: options.requestID ?? now.description)
    if options.requestID != nil, present == request.description {
      return .unchanged("\(name) was asked this already")
    }
    let words =
      switch manner {
      case .restart: "\(name) restarts"
      case .reset: "\(name) is reset"
      case .softreboot: "\(name) restarts as soon as its guest has shut down"
      }
    return .patch(
      ["metadata": ["annotations": .object([Names.restartAnnotation: .string(request.description)])]], words)
  }
}

/// adddisk and removedisk. Pure.
package enum DiskVerbs {
  package static func decide(
    _ verb: MachineVerb, _ machine: DynamicObject, _ options: VerbOptions
  ) throws(APIFailure) -> MachineStore.Decision {
    let name = machine.name ?? ""
    var disks = machine["spec"]?["disks"]?.arrayValue ?? []
    if verb == .removedisk {
      let wanted = options.name ?? ""
      guard disks.contains(where: { $0["name"]?.stringValue == wanted }) else {
        return .unchanged("\(name) has no disk '\(wanted)'")
      }
      disks.removeAll { $0["name"]?.stringValue == wanted }
      return .patch(["spec": ["disks": .array(disks)]], "disk '\(wanted)' is removed from the spec of \(name)")
    }
    guard let disk = options.disk, let wanted = disk["name"]?.stringValue else {
      throw .badRequest("disk is missing: give the element of spec.disks that is to be added", field: "disk")
    }
    if let present = disks.first(where: { $0["name"]?.stringValue == wanted }) {
      // What the schema fills in is not in what was asked for.
      let isSame = (disk.objectValue ?? [:]).allSatisfy { present[$0.key] == $0.value }
      guard isSame else {
        throw .conflict(
          name, "machine \(machine.key) has another disk '\(wanted)'; choose another name, or change that one")
      }
      return .unchanged("\(name) has the disk '\(wanted)' already")
    }
    disks.append(disk)
    return .patch(["spec": ["disks": .array(disks)]], "disk '\(wanted)' is added to the spec of \(name)")
  }
}
