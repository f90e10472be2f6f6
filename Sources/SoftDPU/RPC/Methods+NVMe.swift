import Glibc
import JSON
import JSONRPC
import Logging

extension Methods {
  static let nvme: [String: Method] = [
    "bdev_nvme_attach_controller": { try $0.attachController($1, $2) },
    "bdev_nvme_detach_controller": { try $0.detachController($1, $2) },
    "bdev_nvme_get_controllers": { try $0.getNVMeControllers($1, $2) },
    "bdev_nvme_reset_controller": { try $0.resetController($1, $2) },
    "bdev_nvme_get_path_iostat": { try $0.getPathStatistics($1, $2) },
  ]

  private func attachController(_ request: Request, _ reply: @escaping Reply) throws {
    let parameters = try Parameters(
      request,
      allowed: [
        "name", "trtype", "traddr", "adrfam", "trsvcid", "priority", "subnqn", "hostnqn", "hostaddr", "hostsvcid",
        "multipath", "hdgst", "ddgst", "psk", "num_io_queues", "ctrlr_loss_timeout_sec", "reconnect_delay_sec",
        "fast_io_fail_timeout_sec", "max_bdevs", "prchk_reftag", "prchk_guard", "fabrics_connect_timeout_us",
        "allow_unrecognized_csi", "disable_sq_flow_control", "dhchap_key", "dhchap_ctrlr_key", "multipath_opts",
      ])
    let name = try parameters.string("name")
    let type = try parameters.string("trtype")
    let address = try parameters.string("traddr")
    // What would have an effect in SPDK and has none here is refused, rather than taken for done.
    guard type.uppercased() == "TCP", try parameters.optionalString("psk") == nil,
      try parameters.optionalString("dhchap_key") == nil, try parameters.optionalString("dhchap_ctrlr_key") == nil,
      try !parameters.bool("prchk_reftag"), try !parameters.bool("prchk_guard"),
      let port = UInt16(try parameters.optionalString("trsvcid") ?? "4420"), port > 0, !name.isEmpty,
      let subsystem = try parameters.optionalString("subnqn"), Inventory.isNQN(subsystem)
    else { throw Methods.systemError(EINVAL) }
    let place = NVMfTarget.ListenAddress(address: address, port: port)
    var options = InitiatorController.Options()
    options.hasHeaderDigest = try parameters.bool("hdgst")
    options.hasDataDigest = try parameters.bool("ddgst")
    options.lossTimeout = Int(try parameters.optionalInt("ctrlr_loss_timeout_sec") ?? 0)
    options.reconnectDelay = Int(try parameters.optionalInt("reconnect_delay_sec") ?? 0)
    options.fastFailTimeout = Int(try parameters.optionalInt("fast_io_fail_timeout_sec") ?? 0)
    options.ioQueues = Int(try parameters.optionalUInt32("num_io_queues") ?? 1)
    if let microseconds = try parameters.optionalUInt64("fabrics_connect_timeout_us"), microseconds > 0 {
      options.connectTime = min(microseconds, 86_400_000_000) * 1000
    }
    options.sourceAddress = try parameters.optionalString("hostaddr")
    if let text = try parameters.optionalString("hostsvcid"), !text.isEmpty {
      guard let port = UInt16(text), options.sourceAddress != nil else { throw Methods.systemError(EINVAL) }
      options.sourcePort = port
    }
    try check(options)
    let host = try parameters.optionalString("hostnqn") ?? Methods.ownNQN
    guard Inventory.isNQN(host) else { throw Methods.systemError(EINVAL) }
    let mode = try parameters.optionalString("multipath") ?? "multipath"
    guard ["disable", "failover", "multipath"].contains(mode) else { throw Methods.systemError(EINVAL) }
    options.isFailover = try isFailover(mode, parameters.optionalObject("multipath_opts"))
    if mode == "disable", inventory.nvmeAttachment(name) != nil { throw Methods.systemError(EALREADY) }
    inventory.attach(
      InitiatorController(
        name: name, subsystemNQN: subsystem, hostNQN: host, hostID: Methods.hostID(host), options: options,
        reactor: inventory.idlestReactor, logger: inventory.logger),
      name: name, subsystemNQN: subsystem, at: place, options: options, parameters: request.params ?? [:]
    ) { result in
      switch result {
      case .success(let names): reply(.success(.array(names.map { .string($0) })))
      case .failure(let error): reply(.failure(answer(error, request.method)))
      }
    }
  }

  /// Whether one path at a time is used: by the mode, or by the policy that is given beside it.
  ///
  /// Paths that are used together take turns with each request. Other selectors are not offered.
  private func isFailover(_ mode: String, _ more: JSONValue?) throws -> Bool {
    guard let more else { return mode == "failover" }
    let parameters = try Parameters(
      Request(id: nil, method: "", params: more), allowed: ["policy", "selector", "min_io"])
    let selector = try parameters.optionalString("selector") ?? "round_robin"
    let requests = try parameters.optionalUInt32("min_io") ?? 1
    let policy = try parameters.optionalString("policy") ?? (mode == "failover" ? "active_passive" : "active_active")
    guard ["active_passive", "active_active"].contains(policy), selector == "round_robin", requests == 1,
      mode != "failover" || policy == "active_passive"
    else { throw Methods.systemError(EINVAL) }
    return policy == "active_passive"
  }

  /// SPDK's rules of how the three times fit together.
  private func check(_ options: InitiatorController.Options) throws {
    let (loss, delay, fast) = (options.lossTimeout, options.reconnectDelay, options.fastFailTimeout)
    guard loss >= -1, delay >= 0, fast >= 0, (1...64).contains(options.ioQueues),
      loss == 0 ? delay == 0 && fast == 0 : delay > 0, loss <= 0 || delay <= loss,
      fast == 0 || fast >= delay && (loss < 0 || fast <= loss)
    else { throw Methods.systemError(EINVAL) }
  }

  /// What this process calls itself where no name is given.
  private static let ownNQN = "nqn.2014-08.org.nvmexpress:uuid:\(UniqueID.random())"

  /// The host's identifier: that of its name where it has one, else made from the name, so that the two belong together.
  private static func hostID(_ nqn: String) -> [UInt8] {
    if let last = nqn.split(separator: ":").last, let bytes = UniqueID.bytes(String(last)) { return bytes }
    return UniqueID.fingerprint(nqn)
  }

  private func detachController(_ request: Request, _ reply: @escaping Reply) throws {
    let parameters = try Parameters(
      request,
      allowed: ["name", "trtype", "traddr", "adrfam", "trsvcid", "subnqn", "hostnqn", "hostaddr", "hostsvcid"])
    let name = try parameters.string("name")
    var place: NVMfTarget.ListenAddress?
    if let address = try parameters.optionalString("traddr") {
      guard let port = UInt16(try parameters.optionalString("trsvcid") ?? "4420") else {
        throw Methods.systemError(EINVAL)
      }
      place = NVMfTarget.ListenAddress(address: address, port: port)
    }
    inventory.dropUnrestored { call in
      call.method == "bdev_nvme_attach_controller" && call.subject == name
        && (place.map { call.key == ConfigurationCall.key(path: "\($0.address) \($0.port)", of: name) } ?? true)
    }
    inventory.detach(name, at: place) { result in
      reply(result.map { JSONValue.bool(true) }.mapError { answer($0, request.method) })
    }
  }

  private func resetController(_ request: Request, _ reply: @escaping Reply) throws {
    let parameters = try Parameters(request, allowed: ["name", "cntlid"])
    let name = try parameters.string("name")
    let id = try parameters.optionalUInt32("cntlid") ?? 0
    guard id <= UInt16.max else { throw Parameters.Failure() }
    guard let attachment = inventory.nvmeAttachment(name) else { throw Methods.systemError(ENODEV) }
    attachment.controller.reset(controllerID: id == 0 ? nil : UInt16(id)) { result in
      reply(result.map { JSONValue.bool(true) }.mapError { answer($0, request.method) })
    }
  }

  private func getPathStatistics(_ request: Request, _ reply: Reply) throws {
    let name = try Parameters(request, allowed: ["name"]).string("name")
    guard let device = try inventory.requireDevice(name, "read path statistics of") as? NVMeDevice else {
      throw Methods.systemError(EINVAL)
    }
    let controller = device.controller
    reply(
      .success([
        "name": .string(device.name),
        "stats": .array(
          controller.statistics(of: device.tally).map { path in
            ["trid": controller.identifier(path.place), "stat": Methods.describe(path.counters)]
          }),
      ]))
  }

  private func getNVMeControllers(_ request: Request, _ reply: Reply) throws {
    let name = try Parameters(request, allowed: ["name"]).optionalString("name")
    var attachments = inventory.nvmeAttachments
    if let name {
      guard let attachment = inventory.nvmeAttachment(name) else { throw Methods.systemError(ENODEV) }
      attachments = [attachment]
    }
    reply(
      .success(
        .array(
          attachments.map { attachment in
            let controller = attachment.controller
            return [
              "name": .string(controller.name),
              "ctrlrs": .array(
                controller.reports.map { report in
                  [
                    "state": .string(report.state), "trid": controller.identifier(report.place),
                    "cntlid": .integer(Int64(report.controllerID)),
                    "host": ["nqn": .string(controller.hostNQN), "addr": .string(report.source), "svcid": ""],
                  ]
                }),
            ]
          })))
  }
}
