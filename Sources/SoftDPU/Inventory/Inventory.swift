import Dispatch
import Glibc
import JSON
import JSONRPC
import Logging
import Synchronization

/// What the data plane has: block devices, stores, and the ways out that show them. The RPC server's queue changes it,
/// one request at a time.
final class Inventory: Sendable {
  struct State {
    /// By name.
    var devices: [String: BlockDevice] = [:]
    /// Names by UUID and by alias.
    var otherNames: [String: String] = [:]
    /// The order in which devices were made: what a device rests on comes before it.
    var order: [String] = []
    /// By UUID.
    var stores: [String: LvolStore] = [:]
    var controllers: [String: VhostController] = [:]
    var keys: [String: CryptoKey] = [:]
    /// Remote subsystems by name.
    var nvme: [String: NVMeAttachment] = [:]
    /// By address.
    var nbdDisks: [String: NBDDisk] = [:]
    /// Written down by the last process, and not brought back: a disk that is not there yet, for example.
    var unrestored: [ConfigurationCall] = []
  }

  let vhostDirectory: String
  let reactors: [Reactor]
  let limits: ConnectionLimits
  let logger: Logger
  let notifications = Notifications()
  let nvmf: NVMfTarget
  private let stateFile: String?
  let keyFile: String?
  private let state = Mutex(State())
  /// One save at a time, so that an older state never replaces a newer one.
  private let saving = Mutex(SaveState())

  private struct SaveState {
    var isSuspended = false
  }

  /// How long a delete waits for the front end to let go.
  static let releaseTime = DispatchTimeInterval.seconds(5)

  init(
    vhostDirectory: String, reactors: [Reactor], stateDirectory: String?, limits: ConnectionLimits, logger: Logger
  ) {
    self.vhostDirectory = vhostDirectory
    self.reactors = reactors
    self.limits = limits
    stateFile = stateDirectory.map { "\($0)/softdpu.json" }
    keyFile = stateDirectory.map { "\($0)/keys.json" }
    self.logger = logger
    nvmf = NVMfTarget(reactor: reactors[0], limits: limits, logger: logger)
  }

  // MARK: Reading

  /// In the order in which they were made.
  var devices: [BlockDevice] { state.withLock { state in state.order.compactMap { state.devices[$0] } } }

  /// By name, UUID or alias.
  func device(_ name: String) -> BlockDevice? {
    state.withLock { state in state.devices[name] ?? state.otherNames[name].flatMap { state.devices[$0] } }
  }

  /// ENODEV where there is none.
  func requireDevice(_ name: String, _ operation: String) throws(SoftDPUError) -> BlockDevice {
    guard let device = device(name) else { throw .system(ENODEV, "\(operation) \(name)") }
    return device
  }

  var stores: [LvolStore] { state.withLock { $0.stores.values.sorted { $0.manifest.name < $1.manifest.name } } }

  var controllers: [VhostController] { state.withLock { $0.controllers.values.sorted { $0.name < $1.name } } }

  func controller(_ name: String) -> VhostController? { state.withLock { $0.controllers[name] } }

  // MARK: Changing

  func change<Value>(_ body: (inout sending State) -> sending Value) -> sending Value { state.withLock(body) }

  /// The reactor with the fewest devices.
  var idlestReactor: Reactor {
    var load = [Int](repeating: 0, count: reactors.count)
    for device in devices { load[device.reactor.number] += 1 }
    return reactors[load.indices.min { load[$0] < load[$1] } ?? 0]
  }

  /// EEXIST where a name, an alias or the UUID is taken.
  func checkFree(_ names: [String], _ operation: String) throws(SoftDPUError) {
    for name in names where device(name) != nil { throw .system(EEXIST, operation) }
  }

  /// Enters a device, and writes the configuration down; nothing is changed where that fails.
  func add(_ device: BlockDevice) throws(SoftDPUError) {
    let name = device.name
    try checkFree([name, device.uuid] + device.aliases, "create bdev \(name)")
    state.withLock { state in
      state.devices[name] = device
      state.order.append(name)
      for other in device.aliases + [device.uuid] where other != name { state.otherNames[other] = name }
    }
    do throws(SoftDPUError) {
      if device.creation != nil { try save() }
    } catch {
      forget(device)
      throw error
    }
    notifications.add("bdev_register", name)
    logger.info(
      "bdev created", metadata: ["bdev": "\(name)", "product": "\(device.productName)", "bytes": "\(device.size)"])
  }

  /// Takes a device out, and writes the configuration down. EBUSY where somebody uses it.
  func remove(_ device: BlockDevice) throws(SoftDPUError) {
    let name = device.name
    if let user = device.users.first {
      throw SoftDPUError(
        code: .system(EBUSY), operation: "delete bdev \(name)", message: "\(user.description) uses it")
    }
    let position = state.withLock { $0.order.firstIndex(of: name) }
    forget(device)
    do throws(SoftDPUError) {
      if device.creation != nil { try save() }
    } catch {
      state.withLock { state in
        state.devices[name] = device
        state.order.insert(name, at: min(position ?? state.order.count, state.order.count))
        for other in device.aliases + [device.uuid] where other != name { state.otherNames[other] = name }
      }
      throw error
    }
    (device as? LayerDevice)?.release()
    notifications.add("bdev_unregister", name)
    logger.info("bdev deleted", metadata: ["bdev": "\(name)"])
  }

  private func forget(_ device: BlockDevice) {
    let name = device.name
    state.withLock { state in
      state.devices[name] = nil
      state.order.removeAll { $0 == name }
      for other in device.aliases + [device.uuid] where state.otherNames[other] == name {
        state.otherNames[other] = nil
      }
    }
  }

  /// Gives a device other aliases.
  func rename(_ device: BlockDevice, aliases: [String]) {
    let name = device.name
    state.withLock { state in
      for other in device.aliases where state.otherNames[other] == name { state.otherNames[other] = nil }
      device.rename(name, aliases: aliases)
      for other in aliases { state.otherNames[other] = name }
    }
  }

  // MARK: Configuration

  /// The subsystems in the order in which they are brought back, with what each depends on.
  static let subsystems: [(name: String, dependsOn: [String])] = [
    ("accel", []), ("bdev", ["accel"]), ("vhost_blk", ["bdev"]), ("nvmf", ["bdev"]), ("nbd", ["bdev"]),
  ]

  /// The calls that bring back a subsystem; nil where there is none of that name.
  func configuration(of subsystem: String) -> [ConfigurationCall]? {
    switch subsystem {
    case "bdev":
      let remote = nvmeAttachments.flatMap(\.calls)
      return remote
        + devices.flatMap { device in
          let limits = device.limits
          let limiting = limits.isUnlimited ? nil : limitCall(device.name, limits)
          return [device.creation, limiting].compactMap { $0 }
        }
    case "vhost_blk":
      return controllers.map { controller in
        ConfigurationCall(
          method: "vhost_create_blk_controller",
          parameters: [
            "ctrlr": .string(controller.name), "dev_name": .string(controller.device.name),
            "readonly": .bool(controller.isReadOnly),
          ])
      }
    case "nbd": return nbdDisks.map(\.creation)
    case "nvmf": return nvmfConfiguration
    case "accel": return []
    default: return nil
    }
  }

  private func limitCall(_ name: String, _ limits: RateLimits) -> ConfigurationCall {
    var parameters = limits.json
    parameters["name"] = .string(name)
    return ConfigurationCall(method: "bdev_set_qos_limit", parameters: parameters)
  }

  /// Keeps a call written down that failed at the start, so that the next start tries it again.
  func keep(unrestored call: ConfigurationCall) { state.withLock { $0.unrestored.append(call) } }

  /// Forgets what could not be brought back under this name.
  func dropUnrestored(_ name: String) {
    drop { $0.subject == name || $0.parameters["nqn"]?.stringValue == name }
  }

  /// Forgets what a call that undoes another has undone.
  func dropUnrestored(key: String) { drop { $0.key == key } }

  private func drop(_ isGone: (ConfigurationCall) -> Bool) {
    let hasChanged = state.withLock { state -> Bool in
      let count = state.unrestored.count
      state.unrestored.removeAll(where: isGone)
      return state.unrestored.count != count
    }
    guard hasChanged else { return }
    do throws(SoftDPUError) {
      try save()
    } catch {
      logger.error("the configuration could not be written down", metadata: ["error": "\(error)"])
    }
  }

  /// The calls that were not brought back and that nothing has made since.
  private func unrestored(of subsystem: String) -> [ConfigurationCall] {
    state.withLock { $0.unrestored }.filter { Inventory.subsystem(of: $0.method) == subsystem }
  }

  /// Forgets calls whose result somebody has made since: removing that later removes it for good.
  private func dropUnrestored(live calls: [ConfigurationCall]) {
    let keys = Set(calls.map(\.key))
    state.withLock { $0.unrestored.removeAll { keys.contains($0.key) } }
  }

  private static func subsystem(of method: String) -> String {
    let known = [("bdev_", "bdev"), ("vhost_", "vhost_blk"), ("nvmf_", "nvmf"), ("nbd_", "nbd")]
    return known.first { method.hasPrefix($0.0) }?.1 ?? "accel"
  }

  /// Writes down what is there, where there is a place for it.
  func save() throws(SoftDPUError) {
    guard let stateFile else { return }
    let result = saving.withLock { saving -> Result<Void, SoftDPUError> in
      guard !saving.isSuspended else { return .success(()) }
      dropUnrestored(live: Inventory.subsystems.flatMap { configuration(of: $0.name) ?? [] })
      let subsystems = Inventory.subsystems.map { subsystem -> JSONValue in
        [
          "subsystem": .string(subsystem.name),
          "config": .array(
            ((configuration(of: subsystem.name) ?? []) + unrestored(of: subsystem.name)).map(\.json)),
        ]
      }
      do throws(SoftDPUError) {
        return .success(try DurableFile.write(["subsystems": .array(subsystems)], to: stateFile))
      } catch {
        return .failure(error)
      }
    }
    try result.get()
  }

  /// The calls that were written down last, in their order.
  func savedCalls() throws(SoftDPUError) -> [ConfigurationCall] {
    guard let stateFile, let saved = try DurableFile.read(stateFile) else { return [] }
    guard let subsystems = saved["subsystems"]?.arrayValue else {
      throw SoftDPUError(
        code: .state, operation: "read \(stateFile)",
        message: "not a configuration as SPDK's save_config writes it; move the file away to start empty")
    }
    return subsystems.flatMap { $0["config"]?.arrayValue ?? [] }.compactMap(ConfigurationCall.init)
  }

  /// Runs `body` without writing down what it changes.
  func withoutSaving(_ body: () -> Void) {
    saving.withLock { $0.isSuspended = true }
    body()
    saving.withLock { $0.isSuspended = false }
  }

  // MARK: The end

  /// Lets go of all devices, and so of their files' locks. After `close` and the end of the reactors.
  func forgetAll() {
    nvmf.change { $0 = NVMfTarget.State() }
    _ = state.withLock { state -> State in
      defer { state = State() }
      return state
    }
  }

  /// Ends all connections after their requests; sockets stay, so that front ends find the next process there.
  func close() {
    let group = DispatchGroup()
    for controller in controllers {
      group.enter()
      controller.close { group.leave() }
    }
    for server in Dictionary(grouping: nbdDisks, by: { ObjectIdentifier($0.server) }).values.compactMap(\.first) {
      group.enter()
      server.server.close { group.leave() }
    }
    group.enter()
    nvmf.close { group.leave() }
    for attachment in nvmeAttachments {
      group.enter()
      attachment.controller.end { group.leave() }
    }
    if group.wait(timeout: .now() + Inventory.releaseTime) == .timedOut {
      logger.warning("requests are still in flight; stopping without them")
    }
  }
}

extension ConfigurationCall {
  var json: JSONValue { ["method": .string(method), "params": parameters] }

  init?(_ value: JSONValue) {
    guard let method = value["method"]?.stringValue else { return nil }
    self.init(method: method, parameters: value["params"] ?? [:])
  }
}

extension RateLimits {
  /// As SPDK has them: bytes in MiB.
  var json: JSONValue {
    [
      "rw_ios_per_sec": .integer(Int64(clamping: operations)),
      "rw_mbytes_per_sec": .integer(Int64(clamping: bytes >> 20)),
      "r_mbytes_per_sec": .integer(Int64(clamping: readBytes >> 20)),
      "w_mbytes_per_sec": .integer(Int64(clamping: writeBytes >> 20)),
    ]
  }
}
