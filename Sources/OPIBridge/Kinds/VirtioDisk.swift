import SwiftProtobuf
import JSON
import DPU
package import GRPCCore
package import OPI

extension OPIVirtioBlk: Resource {
  package static let collection = ResourceCollection("virtioBlks")
  package static let rank = 80
  package var references: [String] { [volumeNameRef] }

  package mutating func normalize() throws(RPCError) {
    guard !volumeNameRef.isEmpty else { throw .missing("volume_name_ref") }
    guard hasPcieID else { throw .missing("pcie_id") }
    for (field, value) in [
      ("port_id", pcieID.portID.value), ("physical_function", pcieID.physicalFunction.value),
      ("virtual_function", pcieID.virtualFunction.value),
    ] where value < 0 {
      throw .invalid("pcie_id.\(field)", "\(value)", "is negative")
    }
    guard (0...1024).contains(maxIoQps) else {
      throw .invalid("max_io_qps", "\(maxIoQps)", "is not between 0 and 1024")
    }
    try minLimit.checkAbsent("min_limit")
    clearMinLimit()
    if hasMaxLimit, maxLimit.isNone { clearMaxLimit() }
    _ = try maxLimit.parameters("max_limit")
  }

  package mutating func takeMutableFields(from old: OPIVirtioBlk) {
    if old.hasMaxLimit { maxLimit = old.maxLimit } else { clearMaxLimit() }
  }

  private var id: String { ResourceName.id(of: name) }

  package func read(_ scope: Scope) async throws -> OPIVirtioBlk? {
    guard
      let function = try await scope.view.functions().first(where: {
        $0["ctrlr"]?.stringValue == id && $0["backend_specific"]?["block"] != nil
      })
    else { return nil }
    var shown = self
    // The client's name for the volume stays as long as it is that volume. One that was pulled away leaves nothing.
    let actual = function["backend_specific"]?["block"]?["bdev"]?.stringValue ?? ""
    let isMeant = try await scope.view.bdev(scope.bdevName(volumeNameRef))?.isCalled(actual) ?? false
    if !isMeant { shown.volumeNameRef = actual }
    return shown
  }

  package func make(_ scope: Scope, secret: [UInt8]) async throws {
    let bdev = try await scope.bdev(volumeNameRef)
    for record in scope.records.values where record.name != name && record.phase == .present {
      guard let other = record.message as? OPIVirtioBlk else { continue }
      if other.pcieID == pcieID {
        throw RPCError.exists(name, "as \(other.name), at the same place on the bus")
      }
      // Two disks of one server on one volume would be two caches on one disk.
      if bdev.canWrite, bdev.isCalled(try scope.bdevName(other.volumeNameRef)) {
        throw RPCError.precondition(name, "\(other.name) shows \(volumeNameRef) already, and it is writable")
      }
    }
    do {
      // What cannot be written is shown so: a server that learns it from errors has lost data by then.
      try await scope.target.functions.plug(function: id, volume: bdev.name, readOnly: !bdev.canWrite)
    } catch let error as DPUError {
      let error = TargetError(error)
      if error.isOpen { await scope.view.noteChange() }
      throw error
    }
    await scope.view.noteChange()
    if hasMaxLimit {
      try await maxLimit.assign(to: scope.bdev(volumeNameRef), scope, field: "max_limit")
    } else if wasLimited(scope) {
      try await OPIQosLimit().assign(to: scope.bdev(volumeNameRef), scope, field: "max_limit")
    }
  }

  /// Whether an earlier form of this disk set limits that this one does not have.
  private func wasLimited(_ scope: Scope) -> Bool {
    (scope.records[name]?.message as? OPIVirtioBlk)?.hasMaxLimit ?? false
  }

  package func remove(_ scope: Scope) async throws {
    do {
      try await scope.target.functions.unplug(function: id, force: CallWords.isForced)
    } catch let error as DPUError {
      // A server that has not let go yet may do so at any time: the disk is on its way out, and nothing brings it back.
      throw TargetError(error, goesOn: error.code == .busy)
    }
    await scope.view.noteChange()
    if hasMaxLimit, let bdev = try await scope.view.bdev(scope.bdevName(volumeNameRef)) {
      try await OPIQosLimit().assign(to: bdev, scope, field: "max_limit")
    }
  }

  package func statistics(_ scope: Scope) async throws -> OPIVolumeStats {
    guard let shown = try await read(scope) else { throw RPCError.notFound(name) }
    return try await scope.statistics(bdevs: [scope.bdevName(shown.volumeNameRef)])
  }

  package static func strangers(_ scope: Scope) async throws -> [OPIVirtioBlk] {
    try await scope.view.functions().compactMap { function in
      guard let id = function["ctrlr"]?.stringValue, ResourceName.isID(id),
        let block = function["backend_specific"]?["block"]
      else { return nil }
      return OPIVirtioBlk.with {
        $0.name = "\(collection.segment)/\(id)"
        $0.volumeNameRef = block["bdev"]?.stringValue ?? ""
      }
    }
  }
}

extension Scope {
  /// Who has a block device in use at the target, in words; nil for nobody.
  func user(of bdevName: String) async throws -> String? {
    guard let bdev = try await view.bdev(bdevName) else { return nil }
    for subsystem in try await view.subsystems() {
      for namespace in subsystem["namespaces"]?.arrayValue ?? [] {
        if let shown = namespace["bdev_name"]?.stringValue, bdev.isCalled(shown) {
          return "a namespace of the subsystem \(subsystem["nqn"]?.stringValue ?? "")"
        }
      }
    }
    for function in try await view.functions() {
      if let shown = function["backend_specific"]?["block"]?["bdev"]?.stringValue, bdev.isCalled(shown) {
        return "the function \(function["ctrlr"]?.stringValue ?? "")"
      }
    }
    return nil
  }
}
