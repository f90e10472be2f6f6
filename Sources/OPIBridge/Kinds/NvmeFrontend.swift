package import GRPCCore
import JSON
package import OPI

extension OPINvmeSubsystem: Resource {
  package static let collection = ResourceCollection("nvmeSubsystems")
  package static let rank = 40

  package mutating func normalize() throws(RPCError) {
    clearStatus()
    guard !spec.nqn.isEmpty else { throw .missing("spec.nqn") }
    try Self.check(nqn: spec.nqn, field: "spec.nqn")
    if !spec.hostnqn.isEmpty { try Self.check(nqn: spec.hostnqn, field: "spec.hostnqn") }
    try Self.check(text: spec.serialNumber, field: "spec.serial_number", longest: 20)
    try Self.check(text: spec.modelNumber, field: "spec.model_number", longest: 40)
    guard (0...65536).contains(spec.maxNamespaces) else {
      throw .invalid("spec.max_namespaces", "\(spec.maxNamespaces)", "is not between 0 and 65536")
    }
    guard spec.psk.isEmpty else {
      throw .unsupported("spec.psk", "the target offers no TLS for NVMe/TCP; leave it out")
    }
  }

  package mutating func takeMutableFields(from old: OPINvmeSubsystem) { spec.hostnqn = old.spec.hostnqn }

  /// NVM Express base specification, section 4.5 (NVMe qualified names): at most 223 bytes.
  static func check(nqn: String, field: String) throws(RPCError) {
    guard nqn.hasPrefix("nqn."), (12...223).contains(nqn.utf8.count),
      nqn.utf8.allSatisfy({ 0x21...0x7E ~= $0 })
    else {
      throw .invalid(field, nqn, "is no NVMe qualified name, such as nqn.2024-01.org.example:name")
    }
  }

  private static func check(text: String, field: String, longest: Int) throws(RPCError) {
    guard text.utf8.count <= longest, text.utf8.allSatisfy({ 0x20...0x7E ~= $0 }) else {
      throw .invalid(field, text, "is longer than \(longest) bytes, or not printable ASCII")
    }
  }

  package func read(_ scope: Scope) async throws -> OPINvmeSubsystem? {
    guard let present = try await scope.view.subsystem(nqn: spec.nqn) else { return nil }
    var shown = self
    shown.spec.serialNumber = present["serial_number"]?.stringValue ?? spec.serialNumber
    shown.spec.modelNumber = present["model_number"]?.stringValue ?? spec.modelNumber
    shown.spec.maxNamespaces = present["max_namespaces"]?.int64Value ?? spec.maxNamespaces
    shown.status.firmwareRevision = try await scope.view.version()
    return shown
  }

  package func make(_ scope: Scope, secret: [UInt8]) async throws {
    for record in scope.records.values where record.name != name {
      if let other = record.message as? OPINvmeSubsystem, other.spec.nqn == spec.nqn {
        throw RPCError.exists(name, "as \(other.name): both have the NQN \(spec.nqn)")
      }
    }
    guard let present = try await scope.view.subsystem(nqn: spec.nqn) else {
      var parameters: JSONValue = ["nqn": .string(spec.nqn), "allow_any_host": .bool(spec.hostnqn.isEmpty)]
      if !spec.serialNumber.isEmpty { parameters["serial_number"] = .string(spec.serialNumber) }
      if !spec.modelNumber.isEmpty { parameters["model_number"] = .string(spec.modelNumber) }
      if spec.maxNamespaces > 0 { parameters["max_namespaces"] = .integer(spec.maxNamespaces) }
      try await scope.call("nvmf_create_subsystem", parameters, for: "create the subsystem \(spec.nqn)")
      if !spec.hostnqn.isEmpty { try await setHost(spec.hostnqn, isAllowed: true, scope) }
      return
    }
    guard spec.serialNumber.isEmpty || present["serial_number"]?.stringValue == spec.serialNumber,
      spec.modelNumber.isEmpty || present["model_number"]?.stringValue == spec.modelNumber
    else {
      throw RPCError.exists(name, "at the target, with another serial or model number; delete that subsystem")
    }
    try await makeHosts(present, scope)
  }

  private func makeHosts(_ present: JSONValue, _ scope: Scope) async throws {
    let hosts = (present["hosts"]?.arrayValue ?? []).compactMap { $0["nqn"]?.stringValue }
    // First who may, then who may not: nobody who stays is shut out for a moment.
    if !spec.hostnqn.isEmpty, !hosts.contains(spec.hostnqn) {
      try await setHost(spec.hostnqn, isAllowed: true, scope)
    }
    if present["allow_any_host"]?.boolValue != spec.hostnqn.isEmpty {
      try await scope.call(
        "nvmf_subsystem_allow_any_host",
        // Releases before 25.09 call it "disable", later ones "allow_any_host".
        ["nqn": .string(spec.nqn), "disable": .bool(!spec.hostnqn.isEmpty)], for: "set who may connect to \(spec.nqn)",
        orWith: ["nqn": .string(spec.nqn), "allow_any_host": .bool(spec.hostnqn.isEmpty)])
    }
    for host in hosts where host != spec.hostnqn { try await setHost(host, isAllowed: false, scope) }
  }

  private func setHost(_ host: String, isAllowed: Bool, _ scope: Scope) async throws {
    try await scope.call(
      isAllowed ? "nvmf_subsystem_add_host" : "nvmf_subsystem_remove_host",
      ["nqn": .string(spec.nqn), "host": .string(host)],
      for: "\(isAllowed ? "admit" : "shut out") the host \(host)")
  }

  package func remove(_ scope: Scope) async throws {
    guard try await scope.view.subsystem(nqn: spec.nqn) != nil else { return }
    try await scope.call(
      "nvmf_delete_subsystem", ["nqn": .string(spec.nqn)], for: "delete the subsystem \(spec.nqn)")
  }

  package func statistics(_ scope: Scope) async throws -> OPIVolumeStats {
    guard let present = try await scope.view.subsystem(nqn: spec.nqn) else { throw RPCError.notFound(name) }
    let bdevs = (present["namespaces"]?.arrayValue ?? []).compactMap { $0["bdev_name"]?.stringValue }
    return try await scope.statistics(bdevs: bdevs)
  }
}

/// A part of a subsystem, whose parent's record says which one.
protocol SubsystemPart: Resource {}

extension SubsystemPart {
  func nqn(_ scope: Scope) throws -> String {
    let parent = ResourceName.parent(of: name)
    guard let subsystem = scope.records[parent]?.message as? OPINvmeSubsystem else { throw RPCError.notFound(parent) }
    return subsystem.spec.nqn
  }

  func subsystem(_ scope: Scope) async throws -> JSONValue? {
    try await scope.view.subsystem(nqn: nqn(scope))
  }
}

extension OPINvmeController: Resource, SubsystemPart {
  package static let collection = ResourceCollection("nvmeControllers", under: "nvmeSubsystems")
  package static let rank = 50

  package mutating func normalize() throws(RPCError) {
    clearStatus()
    switch spec.trtype {
    case .tcp: break
    case .unspecified: throw .missing("spec.trtype")
    case .pcie:
      throw .unsupported("spec.trtype", "the target has no NVMe functions on the PCIe bus; use TCP, or virtioBlks")
    default: throw .unsupported("spec.trtype", "the target listens on TCP only")
    }
    guard case .fabricsID(var endpoint)? = spec.endpoint else { throw .missing("spec.fabrics_id") }
    guard !endpoint.traddr.isEmpty else { throw .missing("spec.fabrics_id.traddr") }
    try endpoint.adrfam.check(endpoint.traddr, field: "spec.fabrics_id")
    if endpoint.trsvcid.isEmpty { endpoint.trsvcid = "4420" }
    guard let port = UInt16(endpoint.trsvcid), port > 0 else {
      throw .invalid("spec.fabrics_id.trsvcid", endpoint.trsvcid, "is no port")
    }
    endpoint.adrfam = endpoint.traddr.contains(":") ? .ipv6 : .ipv4
    spec.fabricsID = endpoint
    try spec.minLimit.checkAbsent("spec.min_limit")
    guard !spec.hasMaxLimit || spec.maxLimit.isNone else {
      throw .unsupported("spec.max_limit", "limits belong to volumes here; use qosVolumes")
    }
    spec.clearMinLimit()
    spec.clearMaxLimit()
  }

  private var address: JSONValue {
    [
      "trtype": "TCP", "adrfam": spec.fabricsID.adrfam == .ipv6 ? "IPv6" : "IPv4",
      "traddr": .string(spec.fabricsID.traddr), "trsvcid": .string(spec.fabricsID.trsvcid),
    ]
  }

  private func isListening(_ subsystem: JSONValue) -> Bool {
    (subsystem["listen_addresses"]?.arrayValue ?? []).contains {
      $0["traddr"]?.stringValue == spec.fabricsID.traddr && $0["trsvcid"]?.stringValue == spec.fabricsID.trsvcid
    }
  }

  package func isThere(_ scope: Scope) async throws -> Bool {
    try await subsystem(scope).map(isListening) ?? false
  }

  package func read(_ scope: Scope) async throws -> OPINvmeController? {
    guard let subsystem = try await subsystem(scope) else { return nil }
    var shown = self
    shown.status.active = isListening(subsystem)
    return shown
  }

  package func make(_ scope: Scope, secret: [UInt8]) async throws {
    let nqn = try nqn(scope)
    for record in scope.records.values where record.name != name {
      guard let other = record.message as? OPINvmeController,
        ResourceName.parent(of: other.name) == ResourceName.parent(of: name)
      else { continue }
      guard other.spec.fabricsID != spec.fabricsID else {
        throw RPCError.exists(name, "as \(other.name), at the same address")
      }
    }
    guard try await !isThere(scope) else { return }
    let transports = try await scope.target.call("nvmf_get_transports", for: "list the transports").arrayValue ?? []
    if !transports.contains(where: { $0["trtype"]?.stringValue?.uppercased() == "TCP" }) {
      do {
        try await scope.call("nvmf_create_transport", ["trtype": "TCP"], for: "create the TCP transport")
      } catch let error as TargetError where error.serverCode == -32603 {
        // Another was faster.
      }
    }
    try await scope.call(
      "nvmf_subsystem_add_listener", ["nqn": .string(nqn), "listen_address": address],
      for: "listen at \(spec.fabricsID.traddr) port \(spec.fabricsID.trsvcid)")
  }

  package func remove(_ scope: Scope) async throws {
    guard try await isThere(scope) else { return }
    try await scope.call(
      "nvmf_subsystem_remove_listener", ["nqn": .string(try nqn(scope)), "listen_address": address],
      for: "stop to listen at \(spec.fabricsID.traddr) port \(spec.fabricsID.trsvcid)")
  }

  /// The target counts by volume. What went through one of several controllers is not known.
  package func statistics(_ scope: Scope) async throws -> OPIVolumeStats {
    guard let subsystem = try await subsystem(scope), let parent = scope.records[ResourceName.parent(of: name)] else {
      throw RPCError.notFound(name)
    }
    guard subsystem["listen_addresses"]?.arrayValue?.count == 1 else {
      throw RPCError.unsupported(name, "the subsystem has several controllers, and the target does not count by them")
    }
    return try await parent.message.statistics(scope)
  }
}

extension OPINvmeAddressFamily {
  /// Checks an address against its family.
  func check(_ address: String, field: String) throws(RPCError) {
    let isIPv6 = address.contains(":")
    switch self {
    case .unspecified: break
    case .ipv4 where !isIPv6: break
    case .ipv6 where isIPv6: break
    case .ipv4, .ipv6: throw .invalid("\(field).traddr", address, "is not of the family \(field).adrfam")
    default: throw .unsupported("\(field).adrfam", "TCP goes over IPv4 and IPv6")
    }
  }
}

extension OPINvmeNamespace: Resource, SubsystemPart {
  package static let collection = ResourceCollection("nvmeNamespaces", under: "nvmeSubsystems")
  package static let rank = 70
  package var references: [String] { [spec.volumeNameRef] }

  package mutating func normalize() throws(RPCError) {
    clearStatus()
    guard !spec.volumeNameRef.isEmpty else { throw .missing("spec.volume_name_ref") }
    guard spec.hostNsid >= 0 else { throw .invalid("spec.host_nsid", "\(spec.hostNsid)", "is negative") }
    spec.uuid = try BlockVolumes.canonical(uuid: spec.uuid, field: "spec.uuid")
    if !spec.nguid.isEmpty {
      let digits = spec.nguid.filter { $0 != "-" }
      guard digits.utf8.count == 32, digits.allSatisfy(\.isHexDigit) else {
        throw .invalid("spec.nguid", spec.nguid, "is not 32 hexadecimal digits")
      }
      spec.nguid = digits.uppercased()
    }
  }

  private func entry(_ subsystem: JSONValue, _ scope: Scope) throws -> JSONValue? {
    let bdev = try scope.bdevName(spec.volumeNameRef)
    return (subsystem["namespaces"]?.arrayValue ?? []).first { entry in
      // Without a number of its own, a namespace is known by its volume.
      spec.hostNsid > 0
        ? entry["nsid"]?.int64Value == Int64(spec.hostNsid)
        : entry["bdev_name"]?.stringValue == bdev || entry["name"]?.stringValue == bdev
    }
  }

  package func read(_ scope: Scope) async throws -> OPINvmeNamespace? {
    guard let subsystem = try await subsystem(scope), let entry = try entry(subsystem, scope) else { return nil }
    var shown = self
    shown.spec.hostNsid = Int32(clamping: entry["nsid"]?.int64Value ?? Int64(spec.hostNsid))
    shown.spec.nguid = entry["nguid"]?.stringValue ?? spec.nguid
    shown.spec.uuid = entry["uuid"]?.stringValue ?? spec.uuid
    shown.status.state = scope.records[name]?.phase == .deleting ? .deleting : .enabled
    shown.status.operState =
      (subsystem["listen_addresses"]?.arrayValue ?? []).isEmpty ? .offline : .online
    return shown
  }

  package func make(_ scope: Scope, secret: [UInt8]) async throws {
    let bdev = try await scope.bdev(spec.volumeNameRef)
    guard let subsystem = try await subsystem(scope) else {
      throw RPCError.notFound(ResourceName.parent(of: name))
    }
    for record in scope.records.values where record.name != name && record.phase == .present {
      guard let other = record.message as? OPINvmeNamespace,
        ResourceName.parent(of: other.name) == ResourceName.parent(of: name)
      else { continue }
      if spec.hostNsid > 0, other.spec.hostNsid == spec.hostNsid {
        throw RPCError.exists(name, "as \(other.name), with the same host_nsid")
      }
      if try scope.bdevName(other.spec.volumeNameRef) == (try scope.bdevName(spec.volumeNameRef)) {
        throw RPCError.exists(name, "as \(other.name), with the same volume")
      }
    }
    if let entry = try entry(subsystem, scope) {
      let shown = entry["bdev_name"]?.stringValue ?? ""
      guard bdev.isCalled(shown) else {
        throw RPCError.exists(name, "at the target, with the volume \(shown); use another host_nsid")
      }
      return
    }
    var namespace: JSONValue = ["bdev_name": .string(bdev.name)]
    if spec.hostNsid > 0 { namespace["nsid"] = .integer(Int64(spec.hostNsid)) }
    if !spec.nguid.isEmpty { namespace["nguid"] = .string(spec.nguid) }
    if !spec.uuid.isEmpty { namespace["uuid"] = .string(spec.uuid) }
    if spec.eui64 != 0 {
      let digits = String(UInt64(bitPattern: spec.eui64), radix: 16, uppercase: true)
      namespace["eui64"] = .string(String(repeating: "0", count: 16 - digits.count) + digits)
    }
    try await scope.call(
      "nvmf_subsystem_add_ns", ["nqn": .string(try nqn(scope)), "namespace": namespace],
      for: "show \(spec.volumeNameRef) in \(ResourceName.parent(of: name))")
  }

  package func remove(_ scope: Scope) async throws {
    guard let subsystem = try await subsystem(scope), let entry = try entry(subsystem, scope),
      let id = entry["nsid"]?.int64Value
    else { return }
    try await scope.call(
      "nvmf_subsystem_remove_ns", ["nqn": .string(try nqn(scope)), "nsid": .integer(id)],
      for: "take \(spec.volumeNameRef) out of \(ResourceName.parent(of: name))")
  }

  package func statistics(_ scope: Scope) async throws -> OPIVolumeStats {
    try await scope.statistics(bdevs: [scope.bdevName(spec.volumeNameRef)])
  }
}
