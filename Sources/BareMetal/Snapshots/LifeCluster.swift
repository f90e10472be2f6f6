package import IaaS
package import JSON
package import Kubernetes
package import Logging
import Reconciler
package import Telemetry

/// An object whose status follows a plan.
package protocol LifeObject: KubernetesObject, Hashable {
  associatedtype Status: Codable & Sendable & Hashable
  var status: Status? { get set }
}

extension BareMetalMachineSnapshot: LifeObject {}
extension BareMetalMachineRestore: LifeObject {}
extension BareMetalMachineClone: LifeObject {}

/// What snapshots, restores and clones of machines need of a cluster. The first group reads what is known here, which may
/// be behind; the others ask the API server, and throw `KubernetesError`.
package protocol LifeCluster: Sendable {
  func machineSnapshot(_ key: ObjectKey) -> BareMetalMachineSnapshot?
  func restore(_ key: ObjectKey) -> BareMetalMachineRestore?
  func restores(in namespace: String) -> [BareMetalMachineRestore]
  func clone(_ key: ObjectKey) -> BareMetalMachineClone?
  func machine(_ key: ObjectKey) -> BareMetalMachine?
  func claim(_ key: ObjectKey) -> PersistentVolumeClaim?
  func persistentVolume(_ name: String) -> PersistentVolume?
  func attachments(ofMachine uid: String) -> [VolumeAttachment]
  func host(_ name: String) -> BareMetalHost?
  func hasMachineSnapshot(uid: String) -> Bool

  /// Whether the API server has this very version of the object.
  func isCurrent<T: LifeObject>(_ object: T) async throws -> Bool
  func currentHost(_ name: String) async throws -> BareMetalHost?
  func currentClaim(_ key: ObjectKey) async throws -> PersistentVolumeClaim?
  func currentMachine(_ key: ObjectKey) async throws -> BareMetalMachine?
  func volumeSnapshot(_ key: ObjectKey) async throws -> VolumeSnapshot?

  func addFinalizer<T: LifeObject>(to object: T) async throws
  func removeFinalizer<T: LifeObject>(from object: T) async throws
  /// Patches the status; only of this very version.
  func patchStatus<T: LifeObject>(of object: T, _ patch: JSONValue) async throws
  func ask(host: String, _ request: BareMetalHost.SnapshotRequest) async throws
  func withdraw(host: String, token: String) async throws
  func create(_ snapshot: VolumeSnapshot) async throws
  func deleteVolumeSnapshot(_ key: ObjectKey, uid: String) async throws
  func disownVolumeSnapshot(_ key: ObjectKey, uid: String) async throws
  func create(_ snapshot: BareMetalMachineSnapshot) async throws
  func create(_ claim: PersistentVolumeClaim) async throws
  func deleteClaim(_ key: ObjectKey, uid: String) async throws
  func patch(machine key: ObjectKey, _ patch: JSONValue) async throws
  func create(_ machine: BareMetalMachine) async throws
  func deleteMachine(_ key: ObjectKey, uid: String) async throws
}

/// What is watched beside what bm-controller watches for machines.
package struct LifeCaches: Sendable {
  package let snapshots: ObjectCache<BareMetalMachineSnapshot>
  package let restores: ObjectCache<BareMetalMachineRestore>
  package let clones: ObjectCache<BareMetalMachineClone>

  package init(client: KubernetesClient, logger: Logger, registry: MetricsRegistry?) {
    snapshots = ObjectCache(client: client, logger: logger, registry: registry)
    restores = ObjectCache(client: client, logger: logger, registry: registry)
    clones = ObjectCache(client: client, logger: logger, registry: registry)
  }

  func run() async throws {
    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask { try await snapshots.run() }
      group.addTask { try await restores.run() }
      group.addTask { try await clones.run() }
      try await group.waitForAll()
    }
  }

  func waitUntilSynced() async throws {
    try await snapshots.waitUntilSynced()
    try await restores.waitUntilSynced()
    try await clones.waitUntilSynced()
  }

  func store<T: LifeObject>(_ object: T) {
    switch object {
    case let object as BareMetalMachineSnapshot: snapshots.store(object)
    case let object as BareMetalMachineRestore: restores.store(object)
    case let object as BareMetalMachineClone: clones.store(object)
    default: break
    }
  }
}

/// The API server itself.
package struct KubernetesLifeCluster: LifeCluster {
  let client: KubernetesClient
  let caches: ControllerCaches
  let life: LifeCaches

  package func machineSnapshot(_ key: ObjectKey) -> BareMetalMachineSnapshot? { life.snapshots.get(key) }
  package func restore(_ key: ObjectKey) -> BareMetalMachineRestore? { life.restores.get(key) }
  package func restores(in namespace: String) -> [BareMetalMachineRestore] {
    life.restores.all().filter { $0.key.namespace == namespace }
  }
  package func clone(_ key: ObjectKey) -> BareMetalMachineClone? { life.clones.get(key) }
  package func machine(_ key: ObjectKey) -> BareMetalMachine? { caches.machines.get(key) }
  package func claim(_ key: ObjectKey) -> PersistentVolumeClaim? { caches.claims.get(key) }
  package func persistentVolume(_ name: String) -> PersistentVolume? { caches.persistentVolumes.get(name: name) }
  package func attachments(ofMachine uid: String) -> [VolumeAttachment] {
    caches.attachments.byIndex(ControllerCaches.Index.machineUID, uid)
  }
  package func host(_ name: String) -> BareMetalHost? { caches.hosts.get(name: name) }
  package func hasMachineSnapshot(uid: String) -> Bool { life.snapshots.all().contains { $0.metadata.uid == uid } }

  package func isCurrent<T: LifeObject>(_ object: T) async throws -> Bool {
    let present = try await orNil {
      try await client.get(T.self, name: object.key.name, namespace: object.key.namespace)
    }
    return present?.metadata.uid == object.metadata.uid
      && present?.metadata.resourceVersion == object.metadata.resourceVersion
  }

  package func currentHost(_ name: String) async throws -> BareMetalHost? {
    try await orNil { try await client.get(BareMetalHost.self, name: name) }
  }

  package func currentClaim(_ key: ObjectKey) async throws -> PersistentVolumeClaim? {
    try await orNil { try await client.get(PersistentVolumeClaim.self, name: key.name, namespace: key.namespace) }
  }

  package func currentMachine(_ key: ObjectKey) async throws -> BareMetalMachine? {
    try await orNil { try await client.get(BareMetalMachine.self, name: key.name, namespace: key.namespace) }
  }

  package func volumeSnapshot(_ key: ObjectKey) async throws -> VolumeSnapshot? {
    try await orNil { try await client.get(VolumeSnapshot.self, name: key.name, namespace: key.namespace) }
  }

  private func orNil<Value>(_ body: () async throws -> Value) async throws -> Value? {
    do {
      return try await body()
    } catch let error as KubernetesError where error.code == .notFound {
      return nil
    }
  }

  package func addFinalizer<T: LifeObject>(to object: T) async throws {
    life.store(try await client.addFinalizer(Names.lifeFinalizer, to: object))
  }

  package func removeFinalizer<T: LifeObject>(from object: T) async throws {
    _ = try await client.removeFinalizer(Names.lifeFinalizer, from: object)
  }

  package func patchStatus<T: LifeObject>(of object: T, _ patch: JSONValue) async throws {
    var body: JSONValue = ["status": patch]
    if let version = object.metadata.resourceVersion { body["metadata"] = ["resourceVersion": .string(version)] }
    life.store(
      try await client.mergePatch(
        T.self, name: object.key.name, namespace: object.key.namespace, patch: body, subresource: "status",
        fieldManager: ControllerNames.fieldManager))
  }

  package func ask(host: String, _ request: BareMetalHost.SnapshotRequest) async throws {
    let present = try await client.get(BareMetalHost.self, name: host)
    // The machine that holds the host is the one that is captured, and one snapshot comes after the other.
    guard present.status?.claim?.uid == request.machineUID, present.status?.snapshot == nil else { return }
    try await patch(host: present, ["snapshot": try MergePatch.json(request)])
  }

  package func withdraw(host: String, token: String) async throws {
    guard let present = try await orNil({ try await client.get(BareMetalHost.self, name: host) }),
      present.status?.snapshot?.token == token
    else { return }
    try await patch(host: present, ["snapshot": .null])
  }

  private func patch(host: BareMetalHost, _ status: JSONValue) async throws {
    var body: JSONValue = ["status": status]
    if let version = host.metadata.resourceVersion { body["metadata"] = ["resourceVersion": .string(version)] }
    caches.hosts.store(
      try await client.mergePatch(
        BareMetalHost.self, name: host.key.name, patch: body, subresource: "status",
        fieldManager: ControllerNames.fieldManager))
  }

  package func create(_ snapshot: VolumeSnapshot) async throws { _ = try await client.create(snapshot) }

  package func deleteVolumeSnapshot(_ key: ObjectKey, uid: String) async throws {
    try await client.delete(VolumeSnapshot.self, name: key.name, namespace: key.namespace, uid: uid)
  }

  package func disownVolumeSnapshot(_ key: ObjectKey, uid: String) async throws {
    let patch: JSONValue = ["metadata": ["uid": .string(uid), "ownerReferences": .null]]
    _ = try await client.mergePatch(VolumeSnapshot.self, name: key.name, namespace: key.namespace, patch: patch)
  }

  package func create(_ snapshot: BareMetalMachineSnapshot) async throws {
    life.snapshots.store(try await client.create(snapshot))
  }

  package func create(_ claim: PersistentVolumeClaim) async throws {
    caches.claims.store(try await client.create(claim))
  }

  package func deleteClaim(_ key: ObjectKey, uid: String) async throws {
    try await client.delete(PersistentVolumeClaim.self, name: key.name, namespace: key.namespace, uid: uid)
  }

  package func patch(machine key: ObjectKey, _ patch: JSONValue) async throws {
    caches.machines.store(
      try await client.mergePatch(
        BareMetalMachine.self, name: key.name, namespace: key.namespace, patch: patch,
        fieldManager: ControllerNames.fieldManager))
  }

  package func create(_ machine: BareMetalMachine) async throws {
    caches.machines.store(try await client.create(machine))
  }

  package func deleteMachine(_ key: ObjectKey, uid: String) async throws {
    try await client.delete(BareMetalMachine.self, name: key.name, namespace: key.namespace, uid: uid)
  }
}
