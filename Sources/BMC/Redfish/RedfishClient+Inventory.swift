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
      if let path = system.at("Links", "Chassis")?.arrayValue?.first?.link(),
        let chassis = try await self.optional(path, operation: operation)
      {
        if let path = chassis.link("Thermal") { parts.thermal = try await self.optional(path, operation: operation) }
        if let path = chassis.link("Power") { parts.power = try await self.optional(path, operation: operation) }
      }
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
  func optional(_ path: String, operation: String) async throws -> JSONValue? {
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
    package var thermal: JSONValue?
    package var power: JSONValue?

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
    inventory.health = health(system["Status"], rollup: true)
    inventory.firmwareMode = system.at("Boot", "BootSourceOverrideMode")?.stringValue.flatMap {
      ["UEFI", "Legacy"].contains($0) ? $0 : nil
    }
    inventory.thermal = parts.thermal.flatMap(thermal)
    if let power = parts.power { add(power, to: &inventory) }
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

  /// The health words of the specification (DSP0268, `Status`), from best to worst.
  private static let healths = ["OK", "Warning", "Critical"]

  private static func health(_ status: JSONValue?, rollup: Bool = false) -> String? {
    let words = [rollup ? status?["HealthRollup"] : nil, status?["Health"]]
    return words.compactMap { $0?.stringValue }.first { healths.contains($0) }
  }

  private static func worst(_ words: [String?]) -> String? {
    words.compactMap { $0.flatMap { healths.firstIndex(of: $0) } }.max().map { healths[$0] }
  }

  private static func isPresent(_ part: JSONValue) -> Bool { part.at("Status", "State")?.stringValue != "Absent" }

  /// A reading in whole units; what cannot be one is left out.
  private static func whole(_ value: JSONValue?, in range: ClosedRange<Double>) -> Int? {
    value?.doubleValue.flatMap { range.contains($0) ? Int($0.rounded()) : nil }
  }

  private static func thermal(_ document: JSONValue) -> HardwareInventory.Thermal? {
    let sensors = (document["Temperatures"]?.arrayValue ?? []).filter(isPresent)
    let fans = (document["Fans"]?.arrayValue ?? []).filter(isPresent)
    guard !sensors.isEmpty || !fans.isEmpty else { return nil }
    let readings = sensors.compactMap { sensor in
      whole(sensor["ReadingCelsius"], in: -100...500).map { (sensor.text("Name"), $0) }
    }
    let warmest = readings.max { $0.1 < $1.1 }
    return HardwareInventory.Thermal(
      health: worst((sensors + fans).map { health($0["Status"]) }), warmestSensor: warmest?.0,
      warmestCelsius: warmest?.1, fans: document["Fans"] == nil ? nil : fans.count)
  }

  private static func add(_ document: JSONValue, to inventory: inout HardwareInventory) {
    inventory.consumedWatts = whole(
      document["PowerControl"]?.arrayValue?.first?["PowerConsumedWatts"], in: 0...1_000_000)
    inventory.powerSupplies = (document["PowerSupplies"]?.arrayValue ?? []).filter(isPresent).prefix(32).enumerated()
      .map { index, supply in
        HardwareInventory.PowerSupply(
          name: supply.text("Name") ?? supply.text("MemberId") ?? "supply\(index)", health: health(supply["Status"]),
          capacityWatts: whole(supply["PowerCapacityWatts"], in: 0...1_000_000))
      }.sorted { ($0.name, $0.capacityWatts ?? 0) < ($1.name, $1.capacityWatts ?? 0) }
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
