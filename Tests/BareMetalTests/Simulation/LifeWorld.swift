import BareMetal
import IaaS
import JSON
import Kubernetes
import Synchronization

/// A cluster in which machines write to their disks, for snapshots, restores and clones: the API server, what is cached of
/// it, csi-controller, bm-handler with its data plane, and servers. Calls fail before or after they took effect.
final class LifeWorld: LifeCluster {
  struct Disk: Sendable, Hashable {
    /// The number that was written last.
    var number = 0
  }

  struct Objects: Sendable {
    var snapshots: [ObjectKey: BareMetalMachineSnapshot] = [:]
    var restores: [ObjectKey: BareMetalMachineRestore] = [:]
    var clones: [ObjectKey: BareMetalMachineClone] = [:]
    var machines: [ObjectKey: BareMetalMachine] = [:]
    var claims: [ObjectKey: PersistentVolumeClaim] = [:]
    var attachments: [String: VolumeAttachment] = [:]
    var hosts: [String: BareMetalHost] = [:]
    var volumeSnapshots: [ObjectKey: VolumeSnapshot] = [:]
  }

  struct State {
    var random: SeededRandom
    var truth = Objects()
    var cached = Objects()
    var version = 1
    var now: Int64 = 1_800_000_000_000_000
    /// What each volume holds.
    var disks: [String: Disk] = [:]
    /// What each VolumeSnapshot holds, by UID.
    var captured: [String: Disk] = [:]
    /// What the data plane has captured together.
    var groups: [String: [String: Disk]] = [:]
    var volumesMax = 1000
    /// In percent.
    var failures = 0
    var staleness = 0
    var isUnsupported = false
    var violations: [String] = []
    var halfWritten: [ObjectKey: Int] = [:]

    mutating func next() -> String {
      version += 1
      return "\(version)"
    }
  }

  static let namespace = "n"
  let state: Mutex<State>

  init(seed: UInt64) { state = Mutex(State(random: SeededRandom(seed: seed))) }

  static func key(_ name: String) -> ObjectKey { ObjectKey(namespace: namespace, name: name) }

  private func read<Value: Sendable>(_ body: (Objects) -> Value) -> Value {
    state.withLock { state in
      // What a cache has is of any time since the last look.
      if !state.random.chance(state.staleness) { state.cached = state.truth }
      return body(state.cached)
    }
  }

  struct Fault: Error {}

  /// A call that changes something: it may be lost on its way, and so may its answer.
  private func write(_ body: (inout State) throws -> Void) throws {
    try state.withLock { state in
      if state.random.chance(state.failures) { throw Fault() }
      try body(&state)
      if state.random.chance(state.failures) { throw Fault() }
      // What the API server answers is known at once.
      state.cached = state.truth
    }
  }

  private static func failure(_ code: KubernetesError.Code) -> KubernetesError {
    KubernetesError(code: code, operation: "simulated", message: "\(code)")
  }

  // MARK: Reading

  func machineSnapshot(_ key: ObjectKey) -> BareMetalMachineSnapshot? { read { $0.snapshots[key] } }
  func restore(_ key: ObjectKey) -> BareMetalMachineRestore? { read { $0.restores[key] } }
  func restores(in namespace: String) -> [BareMetalMachineRestore] { read { Array($0.restores.values) } }
  func clone(_ key: ObjectKey) -> BareMetalMachineClone? { read { $0.clones[key] } }
  func machine(_ key: ObjectKey) -> BareMetalMachine? { read { $0.machines[key] } }
  func claim(_ key: ObjectKey) -> PersistentVolumeClaim? { read { $0.claims[key] } }
  func persistentVolume(_ name: String) -> PersistentVolume? {
    PersistentVolume(
      metadata: ObjectMeta(name: name), spec: .init(csi: .init(driver: Names.storageDriver, volumeHandle: name)))
  }
  func attachments(ofMachine uid: String) -> [VolumeAttachment] {
    read { $0.attachments.values.filter { $0.machineUID == uid } }
  }
  func host(_ name: String) -> BareMetalHost? { read { $0.hosts[name] } }
  func hasMachineSnapshot(uid: String) -> Bool { read { $0.snapshots.values.contains { $0.metadata.uid == uid } } }
  func isCurrent<T: LifeObject>(_ object: T) async throws -> Bool {
    guard let path = Self.path(T.self) else { return false }
    return state.withLock { state in
      state.truth[keyPath: path][object.key]?.metadata.resourceVersion == object.metadata.resourceVersion
    }
  }
  func currentHost(_ name: String) async throws -> BareMetalHost? { state.withLock { $0.truth.hosts[name] } }
  func currentClaim(_ key: ObjectKey) async throws -> PersistentVolumeClaim? {
    state.withLock { $0.truth.claims[key] }
  }
  func currentMachine(_ key: ObjectKey) async throws -> BareMetalMachine? { state.withLock { $0.truth.machines[key] } }
  func volumeSnapshot(_ key: ObjectKey) async throws -> VolumeSnapshot? {
    state.withLock { $0.truth.volumeSnapshots[key] }
  }

  // MARK: Writing

  private static func path<T: LifeObject>(_ type: T.Type) -> WritableKeyPath<Objects, [ObjectKey: T]>? {
    let all: [AnyKeyPath] = [\Objects.snapshots, \Objects.restores, \Objects.clones]
    return all.lazy.compactMap { $0 as? WritableKeyPath<Objects, [ObjectKey: T]> }.first
  }

  private func change<T: LifeObject>(_ object: T, _ body: (inout T) throws -> Void) throws {
    guard let path = Self.path(T.self) else { return }
    try write { state in
      guard var present = state.truth[keyPath: path][object.key] else { throw Self.failure(.notFound) }
      guard present.metadata.resourceVersion == object.metadata.resourceVersion else { throw Self.failure(.conflict) }
      try body(&present)
      present.metadata.resourceVersion = state.next()
      let isGone = present.metadata.isBeingDeleted && present.metadata.finalizers?.isEmpty != false
      state.truth[keyPath: path][object.key] = isGone ? nil : present
    }
  }

  func addFinalizer<T: LifeObject>(to object: T) async throws {
    try change(object) { $0.metadata.finalizers = [Names.lifeFinalizer] }
  }
  func removeFinalizer<T: LifeObject>(from object: T) async throws {
    try change(object) { $0.metadata.finalizers = nil }
  }
  func patchStatus<T: LifeObject>(of object: T, _ patch: JSONValue) async throws {
    try change(object) { present in
      let merged = Self.merge(try MergePatch.json(present.status), patch)
      present.status = try MergePatch.value(T.Status.self, from: merged)
    }
  }

  private static func merge(_ value: JSONValue, _ patch: JSONValue) -> JSONValue {
    guard case .object(let changes) = patch else { return patch }
    var members = value.objectValue ?? [:]
    for (name, change) in changes { members[name] = change == .null ? nil : merge(members[name] ?? [:], change) }
    return .object(members)
  }

  func ask(host: String, _ request: BareMetalHost.SnapshotRequest) async throws {
    try write { state in
      guard state.truth.hosts[host]?.status?.snapshot == nil else { return }
      state.truth.hosts[host]?.status?.snapshot = request
    }
  }
  func withdraw(host: String, token: String) async throws {
    try write { state in
      guard state.truth.hosts[host]?.status?.snapshot?.token == token else { return }
      state.truth.hosts[host]?.status?.snapshot = nil
    }
  }

  private func create<T: KubernetesObject>(
    _ object: T, _ path: any WritableKeyPath<Objects, [ObjectKey: T]> & Sendable
  ) throws {
    try write { state in
      guard state.truth[keyPath: path][object.key] == nil else { throw Self.failure(.alreadyExists) }
      var object = object
      object.metadata.uid = "uid-\(state.next())"
      object.metadata.resourceVersion = state.next()
      object.metadata.generation = 1
      object.metadata.creationTimestamp = Timestamp(secondsSince1970: state.now / 1_000_000)
      state.truth[keyPath: path][object.key] = object
    }
  }
  private func delete<T: KubernetesObject>(
    _ key: ObjectKey, _ uid: String, _ path: any WritableKeyPath<Objects, [ObjectKey: T]> & Sendable
  ) throws {
    try write { state in
      guard var object = state.truth[keyPath: path][key] else { throw Self.failure(.notFound) }
      guard object.metadata.uid == uid else { throw Self.failure(.conflict) }
      if object.metadata.finalizers?.isEmpty == false {
        object.metadata.deletionTimestamp = .now()
        object.metadata.resourceVersion = state.next()
        state.truth[keyPath: path][key] = object
      } else {
        state.truth[keyPath: path][key] = nil
      }
    }
  }

  func create(_ snapshot: VolumeSnapshot) async throws { try create(snapshot, \.volumeSnapshots) }
  func create(_ snapshot: BareMetalMachineSnapshot) async throws { try create(snapshot, \.snapshots) }
  func create(_ claim: PersistentVolumeClaim) async throws { try create(claim, \.claims) }
  func create(_ machine: BareMetalMachine) async throws { try create(machine, \.machines) }
  func deleteVolumeSnapshot(_ key: ObjectKey, uid: String) async throws { try delete(key, uid, \.volumeSnapshots) }
  func disownVolumeSnapshot(_ key: ObjectKey, uid: String) async throws {
    try write { $0.truth.volumeSnapshots[key]?.metadata.ownerReferences = nil }
  }
  func deleteClaim(_ key: ObjectKey, uid: String) async throws {
    try write { state in
      let isUsed = state.truth.machines.values.contains { machine in
        machine.spec.disks.contains {
          ($0.existingClaim?.claimName ?? Names.claim(machine: machine.key.name, disk: $0.name)) == key.name
        }
      }
      if isUsed { state.violations.append("claim \(key) deleted while a machine names it") }
      guard state.truth.claims[key]?.metadata.uid == uid else { throw Self.failure(.conflict) }
      state.truth.claims[key] = nil
    }
  }
  func deleteMachine(_ key: ObjectKey, uid: String) async throws {
    try delete(key, uid, \.machines)
  }

  func patch(machine key: ObjectKey, _ patch: JSONValue) async throws {
    try write { state in
      guard var machine = state.truth.machines[key] else { throw Self.failure(.notFound) }
      if let version = patch["metadata"]?["resourceVersion"]?.stringValue {
        guard version == machine.metadata.resourceVersion else { throw Self.failure(.conflict) }
      }
      if patch["spec"]?["disks"] != nil {
        let isOff = !machine.spec.running && machine.status?.phase == .stopped
        if !isOff { state.violations.append("disks of \(key) switched while it was on") }
      }
      let merged = Self.merge(try MergePatch.json(machine.spec), patch["spec"] ?? [:])
      machine.spec = try MergePatch.value(BareMetalMachine.Spec.self, from: merged)
      machine.metadata.generation = (machine.metadata.generation ?? 1) + 1
      machine.metadata.resourceVersion = state.next()
      state.truth.machines[key] = machine
    }
  }
}
