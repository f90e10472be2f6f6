import Glibc
import JSON
import JSONRPC
import Logging

extension Methods {
  static let nvmf: [String: Method] = [
    "nvmf_create_transport": { try $0.createTransport($1, $2) },
    "nvmf_get_transports": { try $0.getTransports($1, $2) },
    "nvmf_create_subsystem": { try $0.createSubsystem($1, $2) },
    "nvmf_delete_subsystem": { try $0.deleteSubsystem($1, $2) },
    "nvmf_get_subsystems": { try $0.getSubsystems($1, $2) },
    "nvmf_subsystem_add_ns": { try $0.addNamespace($1, $2) },
    "nvmf_subsystem_remove_ns": { try $0.removeNamespace($1, $2) },
    "nvmf_subsystem_add_listener": { try $0.addListener($1, $2) },
    "nvmf_subsystem_remove_listener": { try $0.removeListener($1, $2) },
    "nvmf_subsystem_add_host": { try $0.addHost($1, $2) },
    "nvmf_subsystem_remove_host": { try $0.removeHost($1, $2) },
    "nvmf_subsystem_allow_any_host": { try $0.allowAnyHost($1, $2) },
    "nvmf_subsystem_get_controllers": { try $0.getControllers($1, $2) },
    "nvmf_subsystem_get_qpairs": { try $0.getQueuePairs($1, $2) },
    "nvmf_subsystem_get_listeners": { try $0.getListeners($1, $2) },
    "nvmf_get_stats": { try $0.getTargetStatistics($1, $2) },
  ]

  private static let invalidParameters = ResponseError.invalidParams("Invalid parameters")

  /// These methods tell a client's mistakes with "invalid parameters", and a failure of their own with "internal error".
  private func nvmfCall(_ request: Request, isInternal: Bool = false, _ body: () throws -> Void) throws {
    do {
      try body()
    } catch let error as SoftDPUError {
      if !isQuiet {
        inventory.logger.warning("a call failed", metadata: ["method": "\(request.method)", "error": "\(error)"])
      }
      // An address that is still taken is told as such: a restart waits for it.
      if error.code == .system(EADDRINUSE) { throw ResponseError.invalidParams(systemText(EADDRINUSE)) }
      throw isInternal ? ResponseError.internalError(error.message) : Methods.invalidParameters
    }
  }

  // MARK: Transport

  private func createTransport(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(
      request,
      allowed: [
        "trtype", "tgt_name", "max_queue_depth", "max_qpairs_per_ctrlr", "max_io_qpairs_per_ctrlr",
        "in_capsule_data_size", "max_io_size", "io_unit_size", "max_aq_depth", "num_shared_buffers", "buf_cache_size",
        "iobuf_small_cache_size", "iobuf_large_cache_size", "dif_insert_or_strip", "c2h_success", "sock_priority",
        "abort_timeout_sec", "zcopy", "acceptor_backlog", "control_msg_num", "ack_timeout", "kas", "min_kato",
        "transport_specific", "no_srq", "no_wr_batching", "disable_mappable_bar0", "disable_adaptive_irq",
        "disable_shadow_doorbells", "disable_command_passthru", "max_srq_depth", "num_cqe", "acceptor_poll_rate",
        "data_wr_pool_size",
      ])
    guard try parameters.string("trtype").uppercased() == "TCP" else {
      throw ResponseError.invalidParams("Transport type '\(try parameters.string("trtype"))' unavailable")
    }
    var transport = NVMfTarget.Transport()
    if let value = try parameters.optionalUInt32("max_queue_depth") { transport.queueDepth = min(128, Int(value)) }
    if let value = try parameters.optionalUInt32("max_io_qpairs_per_ctrlr") {
      transport.maximumQueues = min(127, Int(value))
    }
    if let value = try parameters.optionalUInt32("in_capsule_data_size") { transport.inCapsuleLength = Int(value) }
    if let value = try parameters.optionalUInt32("max_io_size") { transport.maximumTransfer = Int(value) }
    if let value = try parameters.optionalBool("c2h_success") { transport.sendsSuccess = value }
    guard (2...128).contains(transport.queueDepth), (1...127).contains(transport.maximumQueues),
      (4096...65536).contains(transport.inCapsuleLength), transport.inCapsuleLength % 16 == 0,
      (8192...1 << 20).contains(transport.maximumTransfer),
      transport.maximumTransfer & (transport.maximumTransfer - 1) == 0
    else { throw Methods.invalidParameters }
    guard inventory.nvmf.transport == nil else {
      throw ResponseError.internalError("Transport type 'TCP' already exists")
    }
    try inventory.createTransport(transport)
    reply(.success(true))
  }

  private func getTransports(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(request, allowed: ["trtype", "tgt_name"])
    if let type = try parameters.optionalString("trtype"), type.uppercased() != "TCP" {
      throw Methods.invalidParameters
    }
    guard let transport = inventory.nvmf.transport else { return reply(.success([])) }
    reply(
      .success([
        [
          "trtype": "TCP", "max_queue_depth": .integer(Int64(transport.queueDepth)),
          "max_io_qpairs_per_ctrlr": .integer(Int64(transport.maximumQueues)),
          "in_capsule_data_size": .integer(Int64(transport.inCapsuleLength)),
          "max_io_size": .integer(Int64(transport.maximumTransfer)),
          "io_unit_size": .integer(Int64(transport.maximumTransfer)), "max_aq_depth": 128, "num_shared_buffers": 0,
          "buf_cache_size": 0, "dif_insert_or_strip": false, "zcopy": false,
          "c2h_success": .bool(transport.sendsSuccess), "sock_priority": 0, "abort_timeout_sec": 1,
        ]
      ]))
  }

  // MARK: Subsystems

  private func createSubsystem(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(
      request,
      allowed: [
        "nqn", "tgt_name", "serial_number", "model_number", "allow_any_host", "ana_reporting", "max_namespaces",
        "min_cntlid", "max_cntlid", "max_discard_size_kib", "max_write_zeroes_size_kib", "passthrough", "dmrsl",
        "wzsl", "enable_nssr",
      ])
    let serial = try parameters.optionalString("serial_number") ?? "00000000000000000000"
    let model = try parameters.optionalString("model_number") ?? "YCloud bdev Controller"
    let most = try parameters.optionalUInt32("max_namespaces") ?? 0
    guard serial.utf8.count <= 20, model.utf8.count <= 40, (serial + model).utf8.allSatisfy({ 0x20...0x7E ~= $0 }),
      most <= 4096, try !parameters.bool("ana_reporting"), try !parameters.bool("passthrough")
    else { throw Methods.invalidParameters }
    let nqn = try parameters.string("nqn")
    guard inventory.nvmf.subsystem(nqn) == nil else {
      throw ResponseError.internalError("Unable to create subsystem \(nqn)")
    }
    let range = try controllerIDs(parameters)
    // SPDK's default.
    let count = most == 0 ? 32 : most
    let isOpen = try parameters.bool("allow_any_host")
    try nvmfCall(request) {
      try inventory.createSubsystem(
        NVMfTarget.Subsystem(
          nqn: nqn, serialNumber: serial, modelNumber: model, maximumNamespaces: count,
          controllerIDs: range, allowsAnyHost: isOpen, table: NamespaceTable(count: Int(count))))
    }
    reply(.success(true))
  }

  /// Which numbers the subsystem's controllers get.
  private func controllerIDs(_ parameters: Parameters) throws -> ClosedRange<UInt16> {
    let all = NVMfControllers.allIDs
    let first = try parameters.optionalUInt16("min_cntlid") ?? all.lowerBound
    let last = try parameters.optionalUInt16("max_cntlid") ?? all.upperBound
    guard all.contains(first), all.contains(last), first <= last else {
      throw ResponseError.invalidParams("Invalid cntlid range [\(first)-\(last)]")
    }
    return first...last
  }

  private func deleteSubsystem(_ request: Request, _ reply: @escaping Reply) throws {
    let nqn = try Parameters(request, allowed: ["nqn", "tgt_name"]).string("nqn")
    inventory.dropUnrestored { $0.parameters["nqn"]?.stringValue == nqn }
    inventory.deleteSubsystem(nqn) { result in
      reply(result.map { JSONValue.bool(true) }.mapError { _ in Methods.invalidParameters })
    }
  }

  private func subsystem(_ request: Request, _ more: Set<String> = []) throws -> NVMfTarget.Subsystem {
    let nqn = try Parameters(request, allowed: more.union(["nqn", "tgt_name"])).string("nqn")
    guard let subsystem = inventory.nvmf.subsystem(nqn) else { throw Methods.invalidParameters }
    return subsystem
  }

  private func getSubsystems(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(request, allowed: ["nqn", "tgt_name"])
    if let nqn = try parameters.optionalString("nqn") {
      guard let subsystem = inventory.nvmf.subsystem(nqn) else { throw Methods.systemError(ENODEV) }
      return reply(.success([Methods.describe(subsystem)]))
    }
    let discovery: JSONValue = [
      "nqn": .string(NVMe.discoveryNQN), "subtype": "Discovery", "listen_addresses": [], "allow_any_host": true,
      "hosts": [],
    ]
    reply(.success(.array([discovery] + inventory.nvmf.subsystems.map(Methods.describe))))
  }

  private static func describe(_ subsystem: NVMfTarget.Subsystem) -> JSONValue {
    [
      "nqn": .string(subsystem.nqn), "subtype": "NVMe",
      "listen_addresses": .array(subsystem.listeners.map(\.json)),
      "allow_any_host": .bool(subsystem.allowsAnyHost),
      "hosts": .array(subsystem.hosts.map { ["nqn": .string($0)] }),
      "serial_number": .string(subsystem.serialNumber), "model_number": .string(subsystem.modelNumber),
      "max_namespaces": .integer(Int64(subsystem.maximumNamespaces)),
      "min_cntlid": .integer(Int64(subsystem.controllerIDs.lowerBound)),
      "max_cntlid": .integer(Int64(subsystem.controllerIDs.upperBound)),
      "namespaces": .array(
        subsystem.namespaces.values.sorted { $0.id < $1.id }.map { namespace in
          var value: JSONValue = [
            "nsid": .integer(Int64(namespace.id)), "bdev_name": .string(namespace.device.name),
            "name": .string(namespace.device.name), "nguid": .string(UniqueID.text(namespace.nguid)),
            "uuid": .string(namespace.uuid),
          ]
          if namespace.given.eui64 != nil { value["eui64"] = .string(UniqueID.text(namespace.eui64)) }
          return value
        }),
    ]
  }

  // MARK: Namespaces

  private func addNamespace(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(request, allowed: ["nqn", "namespace", "tgt_name"])
    let nqn = try parameters.string("nqn")
    guard let object = try parameters.optionalObject("namespace") else { throw Parameters.Failure() }
    let namespace = try Parameters(
      Request(id: nil, method: request.method, params: object),
      allowed: ["nsid", "bdev_name", "nguid", "eui64", "uuid", "anagrpid", "ptpl_file", "no_auto_visible"])
    let device = try namespace.string("bdev_name")
    let id = try namespace.optionalUInt32("nsid")
    let identity = NVMfTarget.NamespaceIdentity(
      nguid: try namespace.optionalString("nguid"), eui64: try namespace.optionalString("eui64"),
      uuid: try namespace.optionalString("uuid"))
    var added: UInt32 = 0
    try nvmfCall(request) {
      added = try inventory.addNamespace(nqn, device: device, id: id == 0 ? nil : id, identity: identity)
    }
    reply(.success(.integer(Int64(added))))
  }

  private func removeNamespace(_ request: Request, _ reply: @escaping Reply) throws {
    let parameters = try Parameters(request, allowed: ["nqn", "nsid", "tgt_name"])
    let nqn = try parameters.string("nqn")
    let id = try parameters.uint32("nsid")
    inventory.dropUnrestored(key: ConfigurationCall.key(namespace: Int(id), of: nqn))
    inventory.removeNamespace(nqn, id) { result in
      reply(result.map { JSONValue.bool(true) }.mapError { _ in Methods.invalidParameters })
    }
  }

  // MARK: Listeners

  private func address(_ parameters: Parameters) throws -> NVMfTarget.ListenAddress {
    guard let object = try parameters.optionalObject("listen_address") else { throw Parameters.Failure() }
    let address = try Parameters(
      Request(id: nil, method: "", params: object), allowed: ["trtype", "adrfam", "traddr", "trsvcid"])
    let type = try address.optionalString("trtype") ?? "TCP"
    let family = try address.optionalString("adrfam")?.lowercased()
    let text = try address.string("traddr")
    guard type.uppercased() == "TCP", let port = UInt16(try address.string("trsvcid")), port > 0,
      family.map({ ($0 == "ipv6") == text.contains(":") && ["ipv4", "ipv6"].contains($0) }) ?? true
    else { throw Methods.invalidParameters }
    return NVMfTarget.ListenAddress(address: text, port: port)
  }

  private func addListener(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(
      request,
      allowed: ["nqn", "listen_address", "tgt_name", "secure_channel", "ana_state", "sock_impl", "numa_id"])
    let nqn = try parameters.string("nqn")
    guard try !parameters.bool("secure_channel") else { throw Methods.invalidParameters }
    let place = try address(parameters)
    try nvmfCall(request) { try inventory.addListener(nqn, place) }
    reply(.success(true))
  }

  private func removeListener(_ request: Request, _ reply: @escaping Reply) throws {
    let parameters = try Parameters(request, allowed: ["nqn", "listen_address", "tgt_name"])
    let nqn = try parameters.string("nqn")
    let place = try address(parameters)
    inventory.dropUnrestored(key: ConfigurationCall.key(listener: "\(place.address):\(place.port)", of: nqn))
    try nvmfCall(request) { try inventory.removeListener(nqn, place) { reply(.success(true)) } }
  }

  private func getListeners(_ request: Request, _ reply: Reply) throws {
    reply(
      .success(
        .array(try subsystem(request).listeners.map { ["address": $0.json, "ana_states": []] })))
  }

  // MARK: Hosts

  private func addHost(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(
      request, allowed: ["nqn", "host", "tgt_name", "psk", "dhchap_key", "dhchap_ctrlr_key"])
    let nqn = try parameters.string("nqn")
    let host = try parameters.string("host")
    guard inventory.nvmf.subsystem(nqn) != nil, Inventory.isNQN(host), try parameters.optionalString("psk") == nil,
      try parameters.optionalString("dhchap_key") == nil
    else { throw Methods.invalidParameters }
    try nvmfCall(request, isInternal: true) {
      try inventory.changeHosts(nqn) { subsystem throws(SoftDPUError) in
        guard !subsystem.hosts.contains(host) else { throw .system(EEXIST, "add host \(host)") }
        subsystem.hosts.append(host)
      }
    }
    reply(.success(true))
  }

  private func removeHost(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(request, allowed: ["nqn", "host", "tgt_name", "timeout_ms"])
    let nqn = try parameters.string("nqn")
    let host = try parameters.string("host")
    guard inventory.nvmf.subsystem(nqn) != nil else { throw Methods.invalidParameters }
    inventory.dropUnrestored(key: ConfigurationCall.key(host: host, of: nqn))
    try nvmfCall(request, isInternal: true) {
      try inventory.changeHosts(nqn) { subsystem throws(SoftDPUError) in
        guard subsystem.hosts.contains(host) else { throw .system(ENOENT, "remove host \(host)") }
        subsystem.hosts.removeAll { $0 == host }
      }
    }
    reply(.success(true))
  }

  private func allowAnyHost(_ request: Request, _ reply: Reply) throws {
    // "disable" is what releases before 25.09 knew.
    let parameters = try Parameters(request, allowed: ["nqn", "allow_any_host", "disable", "tgt_name"])
    let nqn = try parameters.string("nqn")
    let isOpen = try parameters.optionalBool("allow_any_host") ?? !parameters.bool("disable")
    try nvmfCall(request) { try inventory.changeHosts(nqn) { $0.allowsAnyHost = isOpen } }
    reply(.success(true))
  }

  // MARK: What is connected

  private func getControllers(_ request: Request, _ reply: Reply) throws {
    let nqn = try subsystem(request).nqn
    let nvmf = inventory.nvmf
    let entries = nvmf.reactor.sync {
      nvmf.controllers.filter { $0.subsystemNQN == nqn }.sorted { $0.id < $1.id }.map { controller -> JSONValue in
        [
          "cntlid": .integer(Int64(controller.id)), "hostnqn": .string(controller.hostNQN),
          "hostid": .string(UniqueID.text(controller.hostID)),
          "num_io_qpairs": .integer(Int64(controller.queues.count)),
        ]
      }
    }
    reply(.success(.array(entries)))
  }

  private func getQueuePairs(_ request: Request, _ reply: Reply) throws {
    let nqn = try subsystem(request).nqn
    let nvmf = inventory.nvmf
    let entries = nvmf.reactor.sync {
      nvmf.controllers.filter { $0.subsystemNQN == nqn }.sorted { $0.id < $1.id }.flatMap { controller in
        ([controller.admin] + controller.queues.sorted { $0.key < $1.key }.map(\.value)).map { queue -> JSONValue in
          [
            "cntlid": .integer(Int64(controller.id)), "qid": .integer(Int64(queue.queueID ?? 0)), "state": "enabled",
            "hostnqn": .string(controller.hostNQN), "listen_address": queue.place.json,
          ]
        }
      }
    }
    reply(.success(.array(entries)))
  }

  private func getTargetStatistics(_ request: Request, _ reply: Reply) throws {
    _ = try Parameters(request, allowed: ["tgt_name"])
    let nvmf = inventory.nvmf
    let hasTransport = nvmf.transport != nil
    let group = nvmf.reactor.sync { () -> JSONValue in
      let statistics = nvmf.statistics
      return [
        "name": "nvmf_tgt_poll_group_000", "admin_qpairs": .integer(Int64(clamping: statistics.adminQueues)),
        "io_qpairs": .integer(Int64(clamping: statistics.ioQueues)),
        "current_admin_qpairs": .integer(Int64(nvmf.controllers.count)),
        "current_io_qpairs": .integer(Int64(nvmf.controllers.reduce(0) { $0 + $1.queues.count })),
        "pending_bdev_io": 0, "completed_nvme_io": .integer(Int64(clamping: statistics.commands)),
        "transports": hasTransport ? [["trtype": "TCP"]] : [],
      ]
    }
    reply(.success(["tick_rate": 1_000_000_000, "poll_groups": [group]]))
  }
}
