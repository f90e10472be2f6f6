import BMC
import BareMetal
import DPU
import Foundation
import IaaS
import JSON
import Kubernetes

/// SplitMix64: the same seed gives the same run everywhere.
struct SeededRandom: RandomNumberGenerator {
  private var state: UInt64
  init(seed: UInt64) { state = seed }
  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var value = state
    value = (value ^ (value >> 30)) &* 0xbf58_476d_1ce4_e5b9
    value = (value ^ (value >> 27)) &* 0x94d0_49bb_1331_11eb
    return value ^ (value >> 31)
  }
  mutating func chance(_ percent: Int) -> Bool { Int.random(in: 0..<100, using: &self) < percent }
}

/// The state of the API server at one moment.
struct Snapshot: ClusterSnapshot {
  var machines: [ObjectKey: BareMetalMachine] = [:]
  var hostObjects: [String: BareMetalHost] = [:]
  var claimObjects: [ObjectKey: PersistentVolumeClaim] = [:]
  var attachmentObjects: [String: VolumeAttachment] = [:]
  var secrets: [String: Secret] = [:]
  var migrationObjects: [ObjectKey: BareMetalMachineMigration] = [:]
  /// Handles of PersistentVolumes that are not called like their volume.
  var volumeHandles: [String: String] = [:]

  func machine(uid: String) -> BareMetalMachine? { machines.values.first { $0.metadata.uid == uid } }
  func machines(asking address: String) -> [BareMetalMachine] {
    machines.values.filter { $0.spec.askedAddresses.contains(address) }.sorted { $0.key < $1.key }
  }
  func host(_ name: String) -> BareMetalHost? { hostObjects[name] }
  func allHosts() -> [BareMetalHost] { hostObjects.values.sorted { $0.key < $1.key } }
  func hosts(heldBy uid: String) -> [BareMetalHost] { allHosts().filter { $0.status?.claim?.uid == uid } }
  func claim(_ key: ObjectKey) -> PersistentVolumeClaim? { claimObjects[key] }
  func claims(ofMachine uid: String) -> [PersistentVolumeClaim] {
    claimObjects.values.filter { $0.metadata.labels?[Names.machineUIDLabel] == uid }.sorted { $0.key < $1.key }
  }
  func persistentVolume(_ name: String) -> PersistentVolume? {
    PersistentVolume(
      metadata: ObjectMeta(name: name),
      spec: .init(csi: .init(driver: Names.storageDriver, volumeHandle: volumeHandles[name] ?? name)))
  }
  func attachment(_ name: String) -> VolumeAttachment? { attachmentObjects[name] }
  func attachments(ofMachine uid: String) -> [VolumeAttachment] {
    attachmentObjects.values.filter { $0.machineUID == uid }.sorted { $0.key < $1.key }
  }
  func attachments(onHost host: String) -> [VolumeAttachment] {
    attachmentObjects.values.filter { $0.host == host }.sorted { $0.key < $1.key }
  }
  func attachments(madeFor key: ObjectKey) -> [VolumeAttachment] {
    attachmentObjects.values.filter { $0.machineKey == key }.sorted { $0.key < $1.key }
  }
  func bootData(host: String) -> Secret? { secrets[host] }
  func migrations(of machine: ObjectKey) -> [BareMetalMachineMigration] {
    migrationObjects.values.filter { $0.machineKey == machine }.sorted { $0.key < $1.key }
  }
}

/// A server with its BMC and what its DPU shows it.
struct Server {
  var isOn = false
  /// What the BMC will make of the last command, and when.
  var pending: (isOn: Bool, at: Duration)?
  /// Until then the BMC says off although the server is on.
  var liesUntil: Duration = .zero
  var isUnreachable = false
  /// Neither the server nor its DPU has power.
  var isDead = false
  /// The DPU is starting, and the server waits for it.
  var isBooting = false
  var guestUpAt: Duration?
  var volumes: [String: BlockVolume] = [:]
  var functions: [String: BlockFunction] = [:]
  var interfaces: [PluggedInterface] = []
  /// Functions that the guest was asked to let go of, and when it does.
  var leaving: [String: Duration] = [:]

  /// The DPU starts anew: what it showed is gone, whatever the server does.
  mutating func rebootDPU() {
    volumes = [:]
    functions = [:]
    interfaces = []
  }

  mutating func advance(to time: Duration) {
    for (function, moment) in leaving where moment <= time { letGo(function) }
    guard let change = pending, change.at <= time else { return }
    pending = nil
    if isOn != change.isOn { guestUpAt = change.isOn ? time + .seconds(5) : nil }
    isOn = change.isOn
    // Without power nobody holds on to anything.
    if !isOn { for function in leaving.keys { letGo(function) } }
  }

  private mutating func letGo(_ function: String) {
    functions[function] = nil
    leaving[function] = nil
  }
}

/// The API server and the hardware, single-threaded: everything happens in the order of the calls.
final class World: Cluster, HandlerCluster, @unchecked Sendable {
  var random: SeededRandom
  var state = Snapshot()
  var servers: [String: Server] = [:]
  var time: Duration = .zero
  var version = 0
  var writes = 0
  /// Percentage of calls that fail before or after they took effect.
  var faultPercent = 0
  /// Whether machines move and hosts die: only then are random numbers drawn for it.
  var hasMigrations = false
  var violations: [String] = []
  /// Volumes of disks, and names of interfaces, that a user has removed from a spec at some time.
  var removed: Set<String> = []
  /// Volumes that machines have named at some time, of those that several may have; see `wish`.
  var named: Set<String> = []
  /// Whether one volume was on two servers at some time.
  var hadSharedVolume = false
  /// Whether two controllers or somebody's force may take a disk away that its machine still names.
  var isLenient = false
  private var uids = 0

  /// What happened, where somebody wants to read it.
  private(set) var history: [String] = []
  private let isTraced = ProcessInfo.processInfo.environment["YCLOUD_SIMULATION_TRACE"] != nil

  func trace(_ text: @autoclosure () -> String) {
    if isTraced, violations.isEmpty { history.append("\(time): \(text())") }
  }

  init(seed: UInt64) { random = SeededRandom(seed: seed) }

  var now: MicroTimestamp {
    let shown = time + clockStep
    return MicroTimestamp(
      microseconds: 1_800_000_000_000_000 + shown.components.seconds * 1_000_000 + shown.components.attoseconds
        / 1_000_000_000_000)
  }

  func newUID() -> String {
    uids += 1
    return "uid-\(uids)"
  }

  private func stamp(_ metadata: inout ObjectMeta) {
    version += 1
    metadata.resourceVersion = "\(version)"
  }

  /// Until then the API server is away: nothing can be read or written, and no watch delivers.
  var apiServerAwayUntil: Duration = .zero
  var isAPIServerAway: Bool { time < apiServerAwayUntil }
  /// How far the clocks on the walls are from where they were.
  var clockStep: Duration = .zero

  private func call<R>(_ operation: String, _ body: () throws -> R) throws -> R {
    if isAPIServerAway { throw KubernetesError(code: .unavailable, operation: operation, message: "it is away") }
    if faultPercent > 0, random.chance(faultPercent) {
      throw KubernetesError(code: .unavailable, operation: operation, message: "injected")
    }
    let result = try body()
    if faultPercent > 0, random.chance(faultPercent) {
      throw KubernetesError(code: .timeout, operation: operation, message: "injected, after it took effect")
    }
    return result
  }

  private func error(_ code: KubernetesError.Code, _ operation: String) -> KubernetesError {
    KubernetesError(code: code, operation: operation, message: "simulated")
  }

  static func merge(_ target: JSONValue?, _ patch: JSONValue) -> JSONValue {
    guard case .object(let members) = patch else { return patch }
    var result: [String: JSONValue] = target?.objectValue ?? [:]
    for (name, value) in members {
      if value.isNull { result[name] = nil } else { result[name] = merge(result[name], value) }
    }
    return .object(result)
  }

  static func merged<T: Codable>(_ value: T?, _ patch: JSONValue) throws -> T {
    let json = merge(try MergePatch.json(value), patch)
    return try JSONDecoder().decode(T.self, from: Data(json.serialize()))
  }

  // MARK: Cluster

  func addFinalizer(to machine: BareMetalMachine) async throws -> BareMetalMachine {
    try call("add finalizer") {
      guard var current = state.machines[machine.key], current.metadata.uid == machine.metadata.uid else {
        throw error(.notFound, "add finalizer")
      }
      guard current.metadata.resourceVersion == machine.metadata.resourceVersion else {
        throw error(.conflict, "add finalizer")
      }
      guard !current.metadata.isBeingDeleted else { return current }
      current.metadata.finalizers = [Names.machineFinalizer]
      stamp(&current.metadata)
      writes += 1
      state.machines[machine.key] = current
      return current
    }
  }

  func removeFinalizer(from machine: BareMetalMachine) async throws {
    try call("remove finalizer") {
      guard let current = state.machines[machine.key], current.metadata.uid == machine.metadata.uid else { return }
      guard current.metadata.resourceVersion == machine.metadata.resourceVersion else {
        throw error(.conflict, "remove finalizer")
      }
      writes += 1
      state.machines[machine.key] = nil
    }
  }

  func patchStatus(of machine: BareMetalMachine, _ patch: JSONValue) async throws {
    try call("patch machine") {
      guard var current = state.machines[machine.key] else { throw error(.notFound, "patch machine") }
      guard current.metadata.resourceVersion == machine.metadata.resourceVersion else {
        throw error(.conflict, "patch machine")
      }
      current.status = try Self.merged(current.status, patch)
      stamp(&current.metadata)
      writes += 1
      state.machines[machine.key] = current
    }
  }

  func host(_ name: String) async throws -> BareMetalHost {
    try call("get host") {
      guard let host = state.hostObjects[name] else { throw error(.notFound, "get host") }
      return host
    }
  }

  func addFinalizer(to host: BareMetalHost) async throws {
    try changeHost(host, locked: true) { $0.metadata.finalizers = [Names.claimFinalizer] }
  }

  func removeFinalizer(from host: BareMetalHost) async throws {
    try changeHost(host, locked: true) { $0.metadata.finalizers = nil }
    if let current = state.hostObjects[host.key.name], current.metadata.isBeingDeleted,
      current.metadata.finalizers == nil
    {
      state.hostObjects[host.key.name] = nil
    }
  }

  func patchStatus(of host: BareMetalHost, _ patch: JSONValue, locked: Bool) async throws {
    try changeHost(host, locked: locked) { $0.status = try Self.merged($0.status, patch) }
  }

  private func changeHost(_ host: BareMetalHost, locked: Bool, _ body: (inout BareMetalHost) throws -> Void) throws {
    try call("patch host") {
      guard var current = state.hostObjects[host.key.name] else { throw error(.notFound, "patch host") }
      if locked, current.metadata.resourceVersion != host.metadata.resourceVersion {
        throw error(.conflict, "patch host")
      }
      let before = current.status?.claim
      try body(&current)
      stamp(&current.metadata)
      writes += 1
      state.hostObjects[host.key.name] = current
      if let before, current.status?.claim != before { noteRelease(host.key.name, before) }
    }
  }

  func machine(_ key: ObjectKey) async throws -> BareMetalMachine {
    try call("get machine") {
      guard let machine = state.machines[key] else { throw error(.notFound, "get machine") }
      return machine
    }
  }

  func create(_ claim: PersistentVolumeClaim) async throws {
    try call("create claim") {
      guard state.claimObjects[claim.key] == nil else { throw error(.alreadyExists, "create claim") }
      var claim = claim
      claim.metadata.uid = newUID()
      stamp(&claim.metadata)
      writes += 1
      state.claimObjects[claim.key] = claim
    }
  }

  func deleteClaim(_ key: ObjectKey, uid: String) async throws {
    try call("delete claim") {
      guard var claim = state.claimObjects[key] else { throw error(.notFound, "delete claim") }
      guard claim.metadata.uid == uid else { throw error(.conflict, "delete claim") }
      guard claim.metadata.deletionTimestamp == nil else { return }
      claim.metadata.deletionTimestamp = Timestamp(now.date)
      stamp(&claim.metadata)
      writes += 1
      state.claimObjects[key] = claim
    }
  }

  func attachments(onHost host: String) async throws -> [VolumeAttachment] {
    try call("list attachments") { state.attachments(onHost: host) }
  }

  func create(_ attachment: VolumeAttachment) async throws {
    try call("create attachment") {
      let name = attachment.key.name
      guard state.attachmentObjects[name] == nil else { throw error(.alreadyExists, "create attachment") }
      var attachment = attachment
      attachment.metadata.uid = newUID()
      stamp(&attachment.metadata)
      writes += 1
      state.attachmentObjects[name] = attachment
    }
  }

  func deleteAttachment(_ name: String, uid: String) async throws {
    try call("delete attachment") {
      guard var attachment = state.attachmentObjects[name] else { throw error(.notFound, "delete attachment") }
      guard attachment.metadata.uid == uid else { throw error(.conflict, "delete attachment") }
      guard attachment.metadata.deletionTimestamp == nil else { return }
      noteDetach(attachment)
      attachment.metadata.deletionTimestamp = Timestamp(now.date)
      stamp(&attachment.metadata)
      writes += 1
      state.attachmentObjects[name] = attachment
    }
  }

  func annotateAttachment(_ name: String, uid: String, _ changes: [String: String?]) async throws {
    try call("annotate attachment") {
      guard var attachment = state.attachmentObjects[name] else { throw error(.notFound, "annotate attachment") }
      guard attachment.metadata.uid == uid else { throw error(.conflict, "annotate attachment") }
      for (key, value) in changes { attachment.metadata.annotations?[key] = value }
      stamp(&attachment.metadata)
      writes += 1
      state.attachmentObjects[name] = attachment
    }
  }

  func bootData(host: String) async throws -> Secret? { try call("get secret") { state.secrets[host] } }

  func create(bootData: Secret) async throws {
    try call("create secret") {
      let host = bootData.metadata.labels?[Names.hostLabel] ?? ""
      guard state.secrets[host] == nil else { throw error(.alreadyExists, "create secret") }
      var secret = bootData
      secret.metadata.uid = newUID()
      stamp(&secret.metadata)
      writes += 1
      state.secrets[host] = secret
    }
  }

  func replace(bootData: Secret, present: Secret) async throws {
    try call("replace secret") {
      let host = bootData.metadata.labels?[Names.hostLabel] ?? ""
      guard let current = state.secrets[host] else { throw error(.notFound, "replace secret") }
      guard current.metadata.resourceVersion == present.metadata.resourceVersion else {
        throw error(.conflict, "replace secret")
      }
      var secret = bootData
      secret.metadata.uid = current.metadata.uid
      stamp(&secret.metadata)
      writes += 1
      state.secrets[host] = secret
    }
  }

  func deleteBootData(host: String, uid: String) async throws {
    try call("delete secret") {
      guard let current = state.secrets[host] else { throw error(.notFound, "delete secret") }
      guard current.metadata.uid == uid else { throw error(.conflict, "delete secret") }
      writes += 1
      state.secrets[host] = nil
    }
  }

  func patchStatus(of migration: BareMetalMachineMigration, _ patch: JSONValue) async throws {
    try call("patch migration") {
      guard var current = state.migrationObjects[migration.key] else { throw error(.notFound, "patch migration") }
      guard current.metadata.resourceVersion == migration.metadata.resourceVersion else {
        throw error(.conflict, "patch migration")
      }
      current.status = try Self.merged(current.status, patch)
      stamp(&current.metadata)
      writes += 1
      state.migrationObjects[migration.key] = current
    }
  }

  func create(_ migration: BareMetalMachineMigration) async throws {
    try call("create migration") {
      guard state.migrationObjects[migration.key] == nil else { throw error(.alreadyExists, "create migration") }
      var migration = migration
      migration.metadata.uid = newUID()
      migration.metadata.creationTimestamp = Timestamp(now.date)
      stamp(&migration.metadata)
      writes += 1
      state.migrationObjects[migration.key] = migration
    }
  }

  func deleteMigration(_ key: ObjectKey, uid: String) async throws {
    try call("delete migration") {
      guard state.migrationObjects[key]?.metadata.uid == uid else { throw error(.notFound, "delete migration") }
      writes += 1
      state.migrationObjects[key] = nil
    }
  }

  // MARK: HandlerCluster

  func patchStatus(of attachment: VolumeAttachment, _ patch: JSONValue) async throws {
    try call("patch attachment") {
      guard var current = state.attachmentObjects[attachment.key.name],
        current.metadata.uid == attachment.metadata.uid
      else { throw error(.notFound, "patch attachment") }
      current.status = try Self.merged(current.status, patch)
      stamp(&current.metadata)
      writes += 1
      state.attachmentObjects[attachment.key.name] = current
    }
  }

  func removeFinalizer(from attachment: VolumeAttachment) async throws {
    try call("release attachment") {
      guard let current = state.attachmentObjects[attachment.key.name],
        current.metadata.uid == attachment.metadata.uid
      else { return }
      writes += 1
      if current.metadata.isBeingDeleted { state.attachmentObjects[attachment.key.name] = nil }
    }
  }

  func report(_ status: BareMetalHost.DPUStatus, host: String) async throws {
    try call("report") {
      guard var current = state.hostObjects[host] else { throw error(.notFound, "report") }
      var hostStatus = current.status ?? BareMetalHost.Status()
      hostStatus.dpu = status
      current.status = hostStatus
      stamp(&current.metadata)
      writes += 1
      state.hostObjects[host] = current
    }
  }

  // MARK: What must never happen

  /// A disk that is taken from a server that is on must not be one that its machine's spec names at this moment.
  private func noteDetach(_ attachment: VolumeAttachment) {
    guard !isLenient, let host = attachment.host, servers[host]?.isOn == true,
      let claim = state.hostObjects[host]?.status?.claim, claim.uid == attachment.machineUID,
      let machine = state.machine(uid: claim.uid), !machine.metadata.isBeingDeleted
    else { return }
    let named = machine.spec.disks.compactMap { disk in
      let name = disk.existingClaim?.claimName ?? Names.claim(machine: machine.key.name, disk: disk.name)
      return state.claimObjects[ObjectKey(namespace: machine.key.namespace, name: name)]?.spec?.volumeName
    }
    if named.contains(attachment.volume) {
      violations.append("\(host): \(attachment.volume) was taken from \(claim.name), which names it and is on")
    }
  }

  /// A host that is given back: its server is off and shows nothing of the machine.
  private func noteRelease(_ host: String, _ claim: BareMetalHost.Claim) {
    guard let server = servers[host] else { return }
    if server.isOn { violations.append("\(host) was released by \(claim.name) while its server is on") }
    let left = server.functions.values.filter { $0.name != Names.seedFunction }
    if !left.isEmpty, !server.isDead { violations.append("\(host) was released with \(left.map(\.name))") }
    if state.attachments(onHost: host).contains(where: { $0.machineUID == claim.uid }) {
      violations.append("\(host) was released by \(claim.name) with an attachment")
    }
  }
}
