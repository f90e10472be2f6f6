package import JSON
import NIOHTTP1

extension RedfishClient {
  func inventory() async throws -> HardwareInventory {
    // Many requests: a BMC that takes 10 s for each is slow, not broken.
    try await call("read the inventory", limit: limits.inventory) { operation in
      let (_, system, _) = try await self.system(operation: operation)
      var parts = RedfishInventory.Parts(system: system)
      if let managers = system.at("Links", "ManagedBy")?.arrayValue, let path = managers.first?.link() {
        parts.manager = try await self.optional(path, operation: operation)
      }
      parts.nics = try await self.members(system.link("EthernetInterfaces"), operation: operation)
      if RedfishInventory.needsProcessors(system) {
        parts.processors = try await self.members(system.link("Processors"), operation: operation)
      }
      parts.drives = try await self.drives(system, operation: operation)
      return RedfishInventory.inventory(parts)
    }
  }

  private func drives(_ system: JSONValue, operation: String) async throws -> [JSONValue] {
    var drives: [JSONValue] = []
    for storage in try await members(system.link("Storage"), operation: operation) {
      for drive in storage["Drives"]?.arrayValue ?? [] {
        guard drives.count < limits.inventoryMembers, let path = drive.link() else { break }
        if let document = try await optional(path, operation: operation) { drives.append(document) }
      }
    }
    return drives
  }

  /// A part that a BMC may lack or fail on without making the rest worthless.
  private func optional(_ path: String, operation: String) async throws -> JSONValue? {
    do {
      return try await get(path, operation: operation).document
    } catch let error as BMCError where [.rejected, .failed, .forbidden, .protocolError].contains(error.code) {
      return nil
    }
  }

  private func members(_ path: String?, operation: String) async throws -> [JSONValue] {
    guard let path, let collection = try await optional(path, operation: operation) else { return [] }
    var members: [JSONValue] = []
    for member in (collection["Members"]?.arrayValue ?? []).prefix(limits.inventoryMembers) {
      // Some services give the members whole.
      if let object = member.objectValue, object.count > 1 {
        members.append(member)
      } else if let link = member.link(), let document = try await optional(link, operation: operation) {
        members.append(document)
      }
    }
    return members
  }
}

/// Makes an inventory of Redfish documents, apart from any I/O.
package enum RedfishInventory {
  package struct Parts {
    package var system: JSONValue
    package var manager: JSONValue?
    package var nics: [JSONValue] = []
    package var processors: [JSONValue] = []
    package var drives: [JSONValue] = []

    package init(system: JSONValue) {
      self.system = system
    }
  }

  /// Whether the system's own summary leaves out what the processors would tell.
  package static func needsProcessors(_ system: JSONValue) -> Bool {
    let summary = system["ProcessorSummary"]
    return summary?["CoreCount"]?.intValue == nil || summary?["LogicalProcessorCount"]?.intValue == nil
      || summary?.text("Model") == nil
  }

  package static func inventory(_ parts: Parts) -> HardwareInventory {
    let system = parts.system
    var inventory = HardwareInventory()
    inventory.manufacturer = system.text("Manufacturer")
    inventory.model = system.text("Model")
    inventory.serialNumber = system.text("SerialNumber")
    inventory.biosVersion = system.text("BiosVersion")
    inventory.bmcFirmwareVersion = parts.manager?.text("FirmwareVersion")
    inventory.cpu = cpu(system, processors: parts.processors)
    inventory.memoryMiB = memory(system)
    inventory.nics = parts.nics.enumerated().map { index, nic in
      HardwareInventory.NIC(
        name: nic.text("Id") ?? nic.text("Name") ?? "nic\(index)",
        mac: (nic.text("MACAddress") ?? nic.text("PermanentMACAddress"))?.lowercased(),
        speedMbps: nic["SpeedMbps"]?.intValue.flatMap { $0 > 0 ? $0 : nil })
    }.sorted { ($0.name, $0.mac ?? "") < ($1.name, $1.mac ?? "") }
    inventory.drives = parts.drives.enumerated().map { index, drive in
      HardwareInventory.Drive(
        name: drive.text("Id") ?? drive.text("Name") ?? "drive\(index)", model: drive.text("Model"),
        serialNumber: drive.text("SerialNumber"), capacityBytes: drive["CapacityBytes"]?.int64Value)
    }.sorted { ($0.name, $0.serialNumber ?? "") < ($1.name, $1.serialNumber ?? "") }
    return inventory
  }

  private static func memory(_ system: JSONValue) -> Int? {
    guard let gib = system.at("MemorySummary", "TotalSystemMemoryGiB")?.doubleValue, gib > 0, gib < 1e6 else {
      return nil
    }
    return Int((gib * 1024).rounded())
  }

  private static func cpu(_ system: JSONValue, processors: [JSONValue]) -> HardwareInventory.CPU {
    let summary = system["ProcessorSummary"]
    let sockets = processors.filter { processor in
      let kind = processor["ProcessorType"]?.stringValue
      return (kind == nil || kind == "CPU") && processor.at("Status", "State")?.stringValue != "Absent"
    }
    /// The sum where every socket tells, so that half a sum is never shown as the whole.
    func total(_ name: String) -> Int? {
      let values = sockets.compactMap { $0[name]?.intValue }.filter { (0...65536).contains($0) }
      return values.isEmpty || values.count < sockets.count ? nil : values.reduce(0, +)
    }
    func positive(_ name: String) -> Int? { summary?[name]?.intValue.flatMap { $0 > 0 ? $0 : nil } }
    return HardwareInventory.CPU(
      count: positive("Count") ?? (sockets.isEmpty ? nil : sockets.count),
      cores: positive("CoreCount") ?? total("TotalCores"),
      threads: positive("LogicalProcessorCount") ?? total("TotalThreads"),
      model: summary?.text("Model") ?? sockets.compactMap { $0.text("Model") }.first,
      architecture: architecture(sockets))
  }

  private static func architecture(_ sockets: [JSONValue]) -> String? {
    for socket in sockets {
      switch (socket.text("InstructionSet"), socket.text("ProcessorArchitecture")) {
      case ("x86-64"?, _): return "x86_64"
      case ("ARM-A64"?, _): return "aarch64"
      case (nil, "x86"?): return "x86_64"
      case (nil, "ARM"?): return "aarch64"
      default: continue
      }
    }
    return nil
  }
}
