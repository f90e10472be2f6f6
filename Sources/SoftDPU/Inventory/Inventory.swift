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
  /// nil where nothing is kept over a restart.
  let store: ConfigurationStore?
  let keyFile: String?
  private let state = Mutex(State())
  /// Nothing is written down while what was written down is made again.
  private let isRestoring = Mutex(false)
  private let slow = Mutex<UInt64>(0)

  /// How long a delete waits for the front end to let go.
  static let releaseTime = DispatchTimeInterval.seconds(5)
  /// How long a delete that is repeated waits: it asks how things are.
  static let repeatedReleaseTime = DispatchTimeInterval.milliseconds(500)

  init(
    vhostDirectory: String, reactors: [Reactor], stateDirectory: String?, limits: ConnectionLimits, logger: Logger
  ) {
    self.vhostDirectory = vhostDirectory
    self.reactors = reactors
    store = stateDirectory.map { ConfigurationStore(directory: $0) }
    self.limits = limits
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
      if let creation = device.creation { try record(.add(creation)) }
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
      var changes: [SavedConfiguration.Change] = []
      if !device.limits.isUnlimited { changes.append(.remove(key: limitCall(device).key)) }
      if let creation = device.creation { changes.append(.remove(key: creation.key)) }
      try record(changes)
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

  // MARK: Slow requests

  /// From how many microseconds on a request is slow; 0 is off.
  var slowThreshold: UInt64 { slow.withLock { $0 } }

  /// False where that is more than a day.
  func setSlowThreshold(microseconds: UInt64) -> Bool {
    guard microseconds <= 86_400_000_000 else { return false }
    slow.withLock { $0 = microseconds }
    for reactor in reactors {
      reactor.post {
        unsafe reactor.core.pointee.slow.threshold = microseconds == 0 ? .max : microseconds * 1000
      }
    }
    return true
  }

  // MARK: Configuration

  /// The calls that bring back a subsystem; nil where there is none of that name.
  func configuration(of subsystem: String) -> [ConfigurationCall]? {
    switch subsystem {
    case "bdev":
      let remote = nvmeAttachments.flatMap(\.calls)
      return remote
        + devices.flatMap { device in
          [device.creation, device.limits.isUnlimited ? nil : limitCall(device)].compactMap(\.self)
        }
    case "vhost_blk": return controllers.map(\.creation)
    case "nbd": return nbdDisks.map(\.creation)
    case "nvmf": return nvmfConfiguration
    case "accel": return []
    default: return nil
    }
  }

  private func limitCall(_ device: BlockDevice) -> ConfigurationCall {
    var parameters = device.limits.json
    parameters["name"] = .string(device.name)
    return ConfigurationCall(method: "bdev_set_qos_limit", parameters: parameters)
  }

  /// Keeps a call written down that failed at the start, so that the next start tries it again.
  func keep(unrestored call: ConfigurationCall) { state.withLock { $0.unrestored.append(call) } }

  /// What could not be brought back until now, in the order in which it was made.
  var unrestored: [ConfigurationCall] { state.withLock { $0.unrestored } }

  private let closed = Mutex(false)
  /// The process ends.
  var isClosed: Bool { closed.withLock { $0 } }

  /// Forgets a device that could not be brought back, with its limits: of the kind that one of these calls makes.
  func dropUnrestored(device name: String, madeBy methods: String...) {
    let keys = (methods + ["bdev_set_qos_limit"]).map { ConfigurationCall.key($0, name) }
    // Limits stay where another kind of device has the name.
    dropUnrestored { [self] call in
      keys.contains(call.key) && (call.method != "bdev_set_qos_limit" || device(name) == nil)
    }
  }

  /// Forgets what a call that undoes another has undone.
  func dropUnrestored(key: String) { dropUnrestored { $0.key == key } }

  func dropUnrestored(_ isGone: (ConfigurationCall) -> Bool) {
    let dropped = state.withLock { state -> Set<String> in
      let keys = Set(state.unrestored.filter(isGone).map(\.key))
      state.unrestored.removeAll(where: isGone)
      return keys
    }
    do throws(SoftDPUError) {
      try record(dropped.sorted().map { .remove(key: $0) })
    } catch {
      logger.error("the configuration could not be written down", metadata: ["error": "\(error)"])
    }
  }

  /// Writes changes down, which have been made already, where there is a place for it. `whenDurable` tells when they are
  /// on disk.
  func record(_ changes: [SavedConfiguration.Change]) throws(SoftDPUError) {
    guard let store, !changes.isEmpty, !isRestoring.withLock({ $0 }) else { return }
    // What could not be brought back and has been made since: removing that later removes it for good.
    let keys = Set(changes.map(\.key))
    state.withLock { $0.unrestored.removeAll { keys.contains($0.key) } }
    try store.append(changes) { everything.file }
  }

  func record(_ change: SavedConfiguration.Change) throws(SoftDPUError) { try record([change]) }

  /// Writes down another limit of a device.
  func recordLimits(_ device: BlockDevice) throws(SoftDPUError) {
    let call = limitCall(device)
    try record(device.limits.isUnlimited ? .remove(key: call.key) : .update(call))
  }

  /// Writes down that a device is made by another call than before: with another size, for example.
  func recordCreation(_ device: BlockDevice) throws(SoftDPUError) {
    if let creation = device.creation { try record(.update(creation)) }
  }

  /// Calls `body` when all that was written down until now is on disk, or with the reason why it is not.
  func whenDurable(_ body: @escaping @Sendable (SoftDPUError?) -> Void) {
    guard let store else { return body(nil) }
    store.whenDurable(body)
  }

  /// What is there, and what could not be brought back.
  private var everything: SavedConfiguration {
    let present = SavedConfiguration.subsystems.flatMap { configuration(of: $0.name) ?? [] }
    // What is just being tried again is among both.
    let keys = Set(present.map(\.key))
    return SavedConfiguration(present + unrestored.filter { !keys.contains($0.key) })
  }

  /// The calls that were written down last, in their order.
  func savedCalls() throws(SoftDPUError) -> [ConfigurationCall] {
    guard let store else { return [] }
    let loaded = try store.load()
    if loaded.tornBytes > 0 {
      logger.warning(
        "the last change of the configuration was cut short before its call was answered, and is left out",
        metadata: ["bytes": "\(loaded.tornBytes)"])
    }
    if let error = loaded.failure {
      logger.error("the configuration could not be written anew", metadata: ["error": "\(error)"])
    }
    return loaded.configuration.calls
  }

  /// Runs `body` without writing down what it changes.
  func withoutSaving(_ body: () -> Void) {
    isRestoring.withLock { $0 = true }
    body()
    isRestoring.withLock { $0 = false }
  }

  /// Puts the whole configuration into one file, at the end of the process.
  func closeStore() {
    do throws(SoftDPUError) {
      try store?.close { everything.file }
    } catch {
      logger.error("the configuration could not be put into one file", metadata: ["error": "\(error)"])
    }
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
    closed.withLock { $0 = true }
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
