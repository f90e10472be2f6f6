import DPU
package import IaaS
import Kubernetes

/// Something in a machine's spec that cannot work.
package struct SpecProblem: Sendable, Hashable {
  /// One word for programs.
  package var reason: String
  /// The field, its value and the remedy.
  package var message: String

  package init(_ reason: String, _ message: String) {
    self.reason = reason
    self.message = message
  }
}

/// What a schema cannot say about a machine's spec, checked without looking at anything else.
package func specProblems(_ machine: BareMetalMachine) -> [SpecProblem] {
  let spec = machine.spec
  var problems: [SpecProblem] = []
  if let name = spec.hostName, spec.hostSelector != nil {
    problems.append(
      SpecProblem(
        "HostAmbiguous", "spec.hostName is '\(name)' and spec.hostSelector is set as well; remove one of them"))
  }
  problems += diskProblems(spec.disks)
  problems += interfaceProblems(spec.interfaces)
  if let cloudInit = spec.cloudInit {
    if cloudInit.userData != nil, let reference = cloudInit.userDataSecretRef {
      problems.append(
        SpecProblem(
          "UserDataAmbiguous",
          "spec.cloudInit.userData and spec.cloudInit.userDataSecretRef ('\(reference.name)') are both set; "
            + "remove one of them"))
    }
    if let userData = cloudInit.userData, let problem = CloudInit.problem(userData: userData) {
      problems.append(SpecProblem("InvalidCloudInit", "spec.cloudInit.userData cannot be used: \(problem)"))
    }
    if let networkData = cloudInit.networkData, let problem = CloudInit.problem(networkData: networkData) {
      problems.append(SpecProblem("InvalidCloudInit", "spec.cloudInit.networkData cannot be used: \(problem)"))
    }
  }
  return problems
}

private func diskProblems(_ disks: [BareMetalMachine.Disk]) -> [SpecProblem] {
  var problems: [SpecProblem] = []
  if disks.isEmpty {
    problems.append(SpecProblem("NoDisk", "spec.disks is empty; a machine needs a disk to boot from"))
  }
  var names: Set<String> = []
  var orders: [Int: String] = [:]
  var claims: [String: String] = [:]
  for (index, disk) in disks.enumerated() {
    let field = "spec.disks[\(index)]"
    if !names.insert(disk.name).inserted {
      problems.append(SpecProblem("DuplicateDisk", "\(field).name '\(disk.name)' is used twice; rename one disk"))
    }
    if let order = disk.bootOrder {
      if let other = orders[order] {
        problems.append(
          SpecProblem(
            "DuplicateBootOrder",
            "\(field).bootOrder \(order) of disk '\(disk.name)' is that of disk '\(other)' as well; change one"))
      }
      orders[order] = disk.name
    }
    if let limits = disk.limits { problems += VolumeLimits.problems(limits, field: "\(field).limits") }
    switch (disk.existingClaim, disk.template) {
    case (nil, nil):
      problems.append(
        SpecProblem(
          "DiskWithoutVolume",
          "\(field) ('\(disk.name)') has neither existingClaim nor template; give it one of them"))
    case (.some, .some):
      problems.append(
        SpecProblem(
          "DiskAmbiguous", "\(field) ('\(disk.name)') has both existingClaim and template; remove one of them"))
    case (.some(let existing), nil):
      if let other = claims[existing.claimName] {
        problems.append(
          SpecProblem(
            "DuplicateClaim",
            "\(field).existingClaim.claimName '\(existing.claimName)' is that of disk '\(other)' as well"))
      }
      claims[existing.claimName] = disk.name
    case (nil, .some(let template)):
      if let source = template.source, (source.persistentVolumeClaim == nil) == (source.volumeSnapshot == nil) {
        problems.append(
          SpecProblem(
            "SourceAmbiguous",
            "\(field).template.source ('\(disk.name)') takes either persistentVolumeClaim or volumeSnapshot; give it one "
              + "of them"))
      }
      guard let size = Quantity(template.size), size.bytes > 0 else {
        problems.append(
          SpecProblem(
            "InvalidSize",
            "\(field).template.size '\(template.size)' of disk '\(disk.name)' is not a size; write it like 20Gi"))
        continue
      }
    }
  }
  return problems
}

private func interfaceProblems(_ interfaces: [BareMetalMachine.Interface]) -> [SpecProblem] {
  var problems: [SpecProblem] = []
  var names: Set<String> = []
  var macs: [String: String] = [:]
  var addresses: [String: String] = [:]
  for (index, interface) in interfaces.enumerated() {
    let field = "spec.interfaces[\(index)]"
    if !names.insert(interface.name).inserted {
      problems.append(
        SpecProblem("DuplicateInterface", "\(field).name '\(interface.name)' is used twice; rename one interface"))
    }
    if let mac = interface.macAddress?.lowercased() {
      if let other = macs[mac] {
        problems.append(
          SpecProblem("DuplicateMAC", "\(field).macAddress '\(mac)' is that of interface '\(other)' as well"))
      }
      macs[mac] = interface.name
    }
    if let address = interface.address {
      if let other = addresses[address] {
        problems.append(
          SpecProblem("DuplicateAddress", "\(field).address '\(address)' is that of interface '\(other)' as well"))
      }
      addresses[address] = interface.name
    }
  }
  return problems
}

/// The disks' places on the bus: those asked for, and the free ones in the order of the list for the rest.
package func bootOrders(_ disks: [BareMetalMachine.Disk]) -> [String: Int] {
  var orders: [String: Int] = [:]
  var taken: Set<Int> = []
  for disk in disks {
    if let order = disk.bootOrder {
      orders[disk.name] = order
      taken.insert(order)
    }
  }
  // Behind the highest that was asked for, so that a disk without an order never comes before one that has it.
  var next = (taken.max() ?? 0) + 1
  for disk in disks where orders[disk.name] == nil {
    if next > 98 { next = (1...98).first { !taken.contains($0) } ?? 98 }
    orders[disk.name] = next
    taken.insert(next)
    next += 1
  }
  return orders
}
