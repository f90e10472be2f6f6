package import GRPCCore
import JSON
package import OPI

/// A record only: SPDK knows a controller by its paths.
extension OPINvmeRemoteController: Resource {
  package static let collection = ResourceCollection("nvmeRemoteControllers")
  package static let rank = 0

  package mutating func normalize() throws(RPCError) {
    switch multipath {
    case .disable, .failover, .multipath: break
    default: throw .missing("multipath")
    }
    guard (0...64).contains(ioQueuesCount) else {
      throw .invalid("io_queues_count", "\(ioQueuesCount)", "is not between 0 and 64")
    }
    guard (0...1024).contains(queueSize) else {
      throw .invalid("queue_size", "\(queueSize)", "is not between 0 and 1024")
    }
    guard tcp.psk.isEmpty else {
      throw .unsupported("tcp.psk", "the target offers no TLS for NVMe/TCP; leave it out")
    }
  }

  package func read(_ scope: Scope) async throws -> OPINvmeRemoteController? { self }
  package func make(_ scope: Scope, secret: [UInt8]) async throws {}
  package func remove(_ scope: Scope) async throws {}

  /// The block devices that the target has of this controller.
  func bdevs(_ scope: Scope) async throws -> [Bdev] {
    let id = ResourceName.id(of: name)
    return try await scope.view.bdevs().filter { bdev in
      guard bdev.specifics("nvme") != nil, bdev.name.hasPrefix("\(id)n") else { return false }
      let number = bdev.name.dropFirst(id.count + 1)
      return !number.isEmpty && number.allSatisfy(\.isNumber)
    }
  }

  package func statistics(_ scope: Scope) async throws -> OPIVolumeStats {
    try await scope.statistics(bdevs: bdevs(scope).map(\.name))
  }
}

extension OPINvmePath: Resource {
  package static let collection = ResourceCollection("nvmePaths", under: "nvmeRemoteControllers")
  package static let rank = 1

  package mutating func normalize() throws(RPCError) {
    guard !traddr.isEmpty else { throw .missing("traddr") }
    switch trtype {
    case .tcp: break
    case .pcie:
      guard !hasFabrics else { throw .invalid("fabrics", "", "does not go with PCIe") }
      return
    case .unspecified: throw .missing("trtype")
    default: throw .unsupported("trtype", "the target connects over TCP and PCIe")
    }
    guard hasFabrics else { throw .missing("fabrics") }
    try fabrics.adrfam.check(traddr, field: "fabrics")
    guard (1...65535).contains(fabrics.trsvcid) else {
      throw .invalid("fabrics.trsvcid", "\(fabrics.trsvcid)", "is no port")
    }
    guard !fabrics.subnqn.isEmpty else { throw .missing("fabrics.subnqn") }
    try OPINvmeSubsystem.check(nqn: fabrics.subnqn, field: "fabrics.subnqn")
    if !fabrics.hostnqn.isEmpty { try OPINvmeSubsystem.check(nqn: fabrics.hostnqn, field: "fabrics.hostnqn") }
    guard (0...65535).contains(fabrics.sourceTrsvcid) else {
      throw .invalid("fabrics.source_trsvcid", "\(fabrics.sourceTrsvcid)", "is no port")
    }
    fabrics.adrfam = traddr.contains(":") ? .ipv6 : .ipv4
  }

  private func controller(_ scope: Scope) throws -> OPINvmeRemoteController {
    let parent = ResourceName.parent(of: name)
    guard let controller = scope.records[parent]?.message as? OPINvmeRemoteController else {
      throw RPCError.notFound(parent)
    }
    return controller
  }

  private var controllerID: String { ResourceName.id(of: ResourceName.parent(of: name)) }

  /// The path as the target shows it; nil where it is not attached.
  private func attached(_ scope: Scope) async throws -> JSONValue? {
    for controller in try await scope.view.remoteControllers() where controller["name"]?.stringValue == controllerID {
      let path = (controller["ctrlrs"]?.arrayValue ?? []).first { $0["trid"].map { leads(to: $0) } ?? false }
      if let path { return path }
    }
    return nil
  }

  /// Whether the target's identifier of a path is this one's.
  private func leads(to identifier: JSONValue) -> Bool {
    identifier["traddr"]?.stringValue == traddr
      && (trtype == .pcie || identifier["trsvcid"]?.stringValue == "\(fabrics.trsvcid)")
  }

  /// What attaching and detaching name a path by.
  private func identifier(_ scope: Scope) throws -> [String: JSONValue] {
    var parameters: [String: JSONValue] = [
      "name": .string(ResourceName.id(of: ResourceName.parent(of: name))), "traddr": .string(traddr),
      "trtype": trtype == .tcp ? "TCP" : "PCIe",
    ]
    guard trtype == .tcp else { return parameters }
    parameters["adrfam"] = fabrics.adrfam == .ipv6 ? "IPv6" : "IPv4"
    parameters["trsvcid"] = .string("\(fabrics.trsvcid)")
    parameters["subnqn"] = .string(fabrics.subnqn)
    if !fabrics.hostnqn.isEmpty { parameters["hostnqn"] = .string(fabrics.hostnqn) }
    if !fabrics.sourceTraddr.isEmpty { parameters["hostaddr"] = .string(fabrics.sourceTraddr) }
    if fabrics.sourceTrsvcid != 0 { parameters["hostsvcid"] = .string("\(fabrics.sourceTrsvcid)") }
    return parameters
  }

  package func read(_ scope: Scope) async throws -> OPINvmePath? { try await attached(scope) == nil ? nil : self }

  package func make(_ scope: Scope, secret: [UInt8]) async throws {
    let controller = try controller(scope)
    for record in scope.records.values where record.name != name && record.phase == .present {
      guard let other = record.message as? OPINvmePath,
        ResourceName.parent(of: other.name) == ResourceName.parent(of: name)
      else { continue }
      if controller.multipath == .disable {
        throw RPCError.precondition(name, "\(controller.name) has the path \(other.name), and multipath is disabled")
      }
      if other.traddr == traddr, other.fabrics.trsvcid == fabrics.trsvcid {
        throw RPCError.exists(name, "as \(other.name), to the same address")
      }
      if trtype == .tcp, other.fabrics.subnqn != fabrics.subnqn {
        throw RPCError.invalid("fabrics.subnqn", fabrics.subnqn, "is not the one of \(other.name)")
      }
    }
    let present = try await attached(scope)
    // One that the target gave up is as good as none.
    guard present.map({ $0["state"]?.stringValue == "failed" }) ?? true else { return }
    var parameters = try identifier(scope)
    if trtype == .tcp {
      switch controller.multipath {
      case .failover: parameters["multipath"] = "failover"
      case .multipath: parameters["multipath"] = "multipath"
      default: parameters["multipath"] = "disable"
      }
      if controller.tcp.hdgst { parameters["hdgst"] = true }
      if controller.tcp.ddgst { parameters["ddgst"] = true }
      if controller.ioQueuesCount > 0 { parameters["num_io_queues"] = .integer(controller.ioQueuesCount) }
    }
    let plain = parameters
    if trtype == .tcp { parameters.merge(Self.patience) { _, new in new } }
    do {
      try await scope.call(
        "bdev_nvme_attach_controller", .object(parameters), for: "connect \(name) to \(traddr)", orWith: .object(plain))
    } catch let error as TargetError where present != nil && [-114, -17].contains(error.serverCode) {
      // Where a path that was given up cannot be attached again, the controller's reset connects it.
      try await scope.call(
        "bdev_nvme_reset_controller", ["name": .string(controllerID)], for: "connect \(name) to \(traddr) again")
    }
  }

  /// OPI has no times for a path that was lost, and without them SPDK gives it up at once and for good. A guest's
  /// requests wait half a minute for it to come back; SPDK has these parameters since 22.01.
  private static let patience: [String: JSONValue] = [
    "ctrlr_loss_timeout_sec": -1, "reconnect_delay_sec": 2, "fast_io_fail_timeout_sec": 30,
  ]

  package func remove(_ scope: Scope) async throws {
    guard try await attached(scope) != nil else { return }
    do {
      try await scope.call("bdev_nvme_detach_controller", .object(identifier(scope)), for: "disconnect \(name)")
    } catch let error as TargetError where error.isAbsent {}
  }

  /// SPDK counts by block device, and by path only where it was told to. With one path both are the same.
  package func statistics(_ scope: Scope) async throws -> OPIVolumeStats {
    let controller = try controller(scope)
    let paths = scope.records.values.count {
      OPINvmePath.collection.contains($0.name) && ResourceName.parent(of: $0.name) == controller.name
    }
    if paths == 1 { return try await controller.statistics(scope) }
    do {
      return try await scope.statistics(bdevs: controller.bdevs(scope).map(\.name)) { leads(to: $0) }
    } catch let error as TargetError {
      // -1 (EPERM): it was not told to. -32601: a release that cannot.
      guard error.serverCode == -1 || error.serverCode == -32601 else { throw error }
      throw RPCError.unsupported(
        name,
        "the controller has \(paths) paths, and the target does not count by them; ask the controller, or have SPDK "
          + "started with io_path_stat of bdev_nvme_set_options")
    }
  }
}

/// What was found behind the paths: read only, nothing is recorded.
extension OPINvmeRemoteNamespace {
  package static let collection = ResourceCollection("nvmeRemoteNamespaces", under: "nvmeRemoteControllers")

  init(_ bdev: Bdev, of controller: String) {
    self.init()
    name = "\(controller)/\(Self.collection.segment)/\(bdev.name)"
    nsid = Int32(clamping: bdev.specifics("nvme")?.arrayValue?.first?["ns_data"]?["id"]?.int64Value ?? 0)
    uuid = bdev.uuid
    nguid = bdev.json["nguid"]?.stringValue ?? ""
  }
}

extension Bridge {
  package func remoteNamespaces(
    _ parent: String, size: Int32, token: String
  ) async throws -> (namespaces: [OPINvmeRemoteNamespace], next: String) {
    guard !parent.isEmpty else { throw RPCError.missing("parent") }
    try OPINvmeRemoteController.collection.check(parent, field: "parent")
    let key = "\(parent)/\(OPINvmeRemoteNamespace.collection.segment)"
    let page = try Page(size: size, token: token, scope: key)
    let scope = scope()
    return try await translated {
      let found = try await Self.remoteNamespaces(of: parent, scope)
      let (names, next) = page.cut(found.map(\.name), scope: key)
      return (names.compactMap { name in found.first { $0.name == name } }, next)
    }
  }

  package func remoteNamespace(_ name: String) async throws -> OPINvmeRemoteNamespace {
    try OPINvmeRemoteNamespace.collection.check(name)
    let scope = scope()
    return try await translated {
      let all = try await Self.remoteNamespaces(of: ResourceName.parent(of: name), scope)
      guard let found = all.first(where: { $0.name == name }) else { throw RPCError.notFound(name) }
      return found
    }
  }

  private static func remoteNamespaces(of parent: String, _ scope: Scope) async throws -> [OPINvmeRemoteNamespace] {
    guard let controller = scope.records[parent]?.message as? OPINvmeRemoteController else {
      throw RPCError.notFound(parent)
    }
    return try await controller.bdevs(scope).map { OPINvmeRemoteNamespace($0, of: parent) }
  }

  package func resetRemoteController(_ name: String) async throws {
    try OPINvmeRemoteController.collection.check(name)
    guard scope().records[name] != nil else { throw RPCError.notFound(name) }
    let answer = try await changing {
      try await self.target.call(
        "bdev_nvme_reset_controller", ["name": .string(ResourceName.id(of: name))], for: "reset \(name)")
    }
    // Releases before 23.05 answer false where others have an error.
    guard answer.boolValue != false else {
      throw RPCError(code: .unavailable, message: "\(name) was reset and did not connect again; see the target's log")
    }
  }

  package func targetVersion() async throws -> String {
    let target = target
    return try await translated { try await target.version() }
  }
}
