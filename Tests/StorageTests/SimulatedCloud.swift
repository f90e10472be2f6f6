import Storage
import Synchronization
import TestSupport

/// A cluster and a pool in memory, seeded: caches lag, calls fail, and the controller's process dies at any call.
final class SimulatedCloud: VolumeCluster, VolumeBackend {
  struct Crashed: Error {}

  struct Objects {
    var claims: [String: ClaimView] = [:]
    var volumes: [String: PersistentVolumeView] = [:]
    /// Names of PersistentVolumes that are attached.
    var attached: Set<String> = []
    /// What servers see of the attached, and what they were asked to see.
    var attachments: [String: AttachmentView] = [:]
    var snapshots: [SnapshotKey: SnapshotView] = [:]
    var contents: [String: ContentView] = [:]
  }

  struct File: Hashable {
    var sizeBytes: Int64
    var content: String
  }

  struct World {
    var random: SeededGenerator
    var truth = Objects()
    var cache = Objects()
    var classes: [String: ClassView] = [:]
    var files: [VolumeHandle: File] = [:]
    var retained: [VolumeHandle: File] = [:]
    var snapshotFiles: [SnapshotHandle: File] = [:]
    /// Snapshots that a policy left in the pool.
    var keptSnapshots: Set<SnapshotHandle> = []
    var capacityBytes: Int64 = 1000 * mebibyte
    /// Calls until the process dies; nil: it lives.
    var callsToLive: Int?
    var isDead = false
    /// Out of 100 calls, so many fail.
    var failurePercent = 0
    var nextUID = 1
    var violations: [String] = []
    var writes = 0
  }

  let world: Mutex<World>

  init(seed: UInt64) {
    world = Mutex(World(random: SeededGenerator(seed: seed)))
    world.withLock { world in
      for policy in ["Delete", "Retain"] {
        let name = policy.lowercased()
        world.classes[name] = ClassView(name: name, provisioner: StorageNames.driver, reclaimPolicy: policy)
      }
    }
  }

  func random(_ bound: Int) -> Int { world.withLock { Int($0.random.next() % UInt64(bound)) } }

  /// One call of the process to the outside: it may die before or after the effect, or the call may fail.
  func call<Value>(_ effect: (inout World) throws -> Value) throws -> Value {
    try world.withLock { world in
      try SimulatedCloud.tick(&world)
      if Int(world.random.next() % 100) < world.failurePercent {
        throw StorageError(.io, operation: "simulated", message: "the call failed")
      }
      let value = try effect(&world)
      try SimulatedCloud.tick(&world)
      return value
    }
  }

  private static func tick(_ world: inout World) throws {
    if world.isDead { throw Crashed() }
    guard let left = world.callsToLive else { return }
    world.callsToLive = left - 1
    if left <= 0 {
      world.isDead = true
      throw Crashed()
    }
  }

  /// The same for calls that can only throw storage errors.
  func poolCall<Value>(_ effect: (inout World) throws -> Value) throws(StorageError) -> Value {
    do { return try call(effect) } catch let error as StorageError { throw error } catch {
      throw StorageError(.io, operation: "simulated", message: "the process died")
    }
  }
}

// MARK: the pool

extension SimulatedCloud {
  func create(_ handle: VolumeHandle, sizeBytes: Int64) async throws(StorageError) -> Volume {
    try poolCall { world in
      try self.make(handle, File(sizeBytes: sizeBytes, content: "empty"), &world)
    }
  }

  func clone(_ source: VolumeHandle, to handle: VolumeHandle, sizeBytes: Int64) async throws(StorageError) -> Volume {
    try poolCall { world in
      guard let origin = world.files[source] else {
        throw StorageError(.notFound, operation: "clone", message: "no source")
      }
      guard origin.sizeBytes <= sizeBytes else {
        throw StorageError(.invalidSize, operation: "clone", message: "too small")
      }
      return try self.make(handle, File(sizeBytes: sizeBytes, content: origin.content), &world)
    }
  }

  func make(_ handle: VolumeHandle, _ file: File, _ world: inout World) throws -> Volume {
    if world.files[handle] == nil {
      guard world.files.values.reduce(file.sizeBytes, { $0 + $1.sizeBytes }) <= world.capacityBytes else {
        throw StorageError(.poolFull, operation: "create", message: "the pool is full")
      }
      world.files[handle] = file
      world.writes += 1
    }
    return Volume(handle: handle, sizeBytes: world.files[handle]?.sizeBytes ?? 0, allocatedBytes: 0)
  }

  func delete(_ handle: VolumeHandle) async throws(StorageError) {
    try poolCall { world in
      for volume in world.truth.volumes.values where volume.handle == handle.name {
        if world.truth.attached.contains(volume.name) { world.violations.append("\(handle) deleted while attached") }
        if !volume.mayLoseVolume { world.violations.append("\(handle) deleted while \(volume.phase), kept by policy") }
      }
      if world.files.removeValue(forKey: handle) != nil { world.writes += 1 }
    }
  }

  func retain(_ handle: VolumeHandle) async throws(StorageError) {
    try poolCall { world in
      if let file = world.files.removeValue(forKey: handle) {
        world.retained[handle] = file
        world.writes += 1
      }
    }
  }

  func restore(_ handle: VolumeHandle) async throws(StorageError) -> Bool {
    try poolCall { world in
      guard world.files[handle] == nil, let file = world.retained.removeValue(forKey: handle) else { return false }
      world.files[handle] = file
      world.writes += 1
      return true
    }
  }

  func volume(_ handle: VolumeHandle) async throws(StorageError) -> Volume? {
    try poolCall { world in
      world.files[handle].map { Volume(handle: handle, sizeBytes: $0.sizeBytes, allocatedBytes: 0) }
    }
  }

  func volumes() async throws(StorageError) -> [Volume] {
    try poolCall { world in
      world.files.map { Volume(handle: $0, sizeBytes: $1.sizeBytes, allocatedBytes: 0) }.sorted {
        $0.handle < $1.handle
      }
    }
  }

  func capacity() async throws(StorageError) -> PoolCapacity {
    PoolCapacity(totalBytes: 0, freeBytes: 0, provisionedBytes: 0, provisionableBytes: 0)
  }

  func beginUpload(_ handle: VolumeHandle) async throws(StorageError) -> any VolumeUpload {
    throw StorageError(.io, operation: "upload", message: "not simulated")
  }

  func isUploading(_ handle: VolumeHandle) async -> Bool { false }
}

// MARK: the cluster as the controller sees it

extension SimulatedCloud {
  func claim(uid: String) -> ClaimView? { world.withLock { $0.cache.claims[uid] } }
  func claim(_ key: ClaimKey) -> ClaimView? { world.withLock { $0.cache.claims.values.first { $0.key == key } } }
  func storageClass(_ name: String) -> ClassView? { world.withLock { $0.classes[name] } }
  func persistentVolumes(handle: String) -> [PersistentVolumeView] {
    world.withLock { $0.cache.volumes.values.filter { $0.handle == handle } }
  }
  func persistentVolume(boundTo claimUID: String, named name: String) -> PersistentVolumeView? {
    world.withLock { world in world.cache.volumes[name].flatMap { $0.claimUID == claimUID ? $0 : nil } }
  }
  func attachments(persistentVolumes: [String]) -> [String] {
    world.withLock { world in persistentVolumes.filter { world.cache.attached.contains($0) } }
  }

  // Uploads are not simulated.
  func uploadHold(_ handle: VolumeHandle) -> UploadHold? { nil }
  func isCurrent(_ hold: UploadHold) async throws -> Bool { false }
  func hold(_ handle: VolumeHandle, persistentVolume: String, for claim: ClaimKey) async throws -> UploadHold? { nil }
  func release(_ hold: UploadHold) async throws {}

  func currentIdentity() async throws -> String { "simulated" }
  func currentClaim(_ key: ClaimKey) async throws -> ClaimView? {
    try call { $0.truth.claims.values.first { $0.key == key } }
  }
  func currentClaimUIDs() async throws -> Set<String> { try call { Set($0.truth.claims.keys) } }
  func currentPersistentVolume(_ name: String) async throws -> PersistentVolumeView? {
    try call { $0.truth.volumes[name] }
  }
  func currentPersistentVolumes() async throws -> [PersistentVolumeView] { try call { Array($0.truth.volumes.values) } }
  func currentAttachments(persistentVolumes: [String]) async throws -> [String] {
    try call { world in persistentVolumes.filter { world.truth.attached.contains($0) } }
  }

  func publish(_ draft: PersistentVolumeDraft) async throws {
    try call { world in
      if let present = world.truth.volumes[draft.name] {
        if present.claimUID != draft.claimUID { world.violations.append("two claims for \(draft.name)") }
        return
      }
      var volume = PersistentVolumeView(
        name: draft.name, uid: "pv-uid-\(world.nextUID)", handle: draft.handle.name, phase: "Pending",
        reclaimPolicy: draft.reclaimPolicy)
      volume.claimUID = draft.claimUID
      volume.claimKey = draft.claim
      volume.capacityBytes = draft.sizeBytes
      world.nextUID += 1
      world.truth.volumes[draft.name] = volume
      world.writes += 1
    }
  }

  func addFinalizer(_ volume: PersistentVolumeView) async throws {
    try call { world in
      world.truth.volumes[volume.name]?.hasFinalizer = true
      world.writes += 1
    }
  }

  func withdraw(_ volume: PersistentVolumeView) async throws {
    try call { world in
      guard let present = world.truth.volumes[volume.name], present.uid == volume.uid else { return }
      world.truth.volumes[volume.name]?.isBeingDeleted = true
      world.writes += 1
    }
    try call { world in
      guard let present = world.truth.volumes[volume.name], present.uid == volume.uid else { return }
      world.truth.volumes[volume.name] = nil
      world.writes += 1
    }
  }

  func annotate(_ claim: ClaimView, _ annotations: [String: String?], unchanged: Bool) async throws {
    try call { world in
      guard world.truth.claims[claim.uid] != nil else { return }
      for (name, value) in annotations { world.truth.claims[claim.uid]?.annotations[name] = value }
      world.writes += 1
    }
  }

  func record(_ claim: ClaimView, isWarning: Bool, reason: String, message: String) {}
  func record(_ volume: PersistentVolumeView, isWarning: Bool, reason: String, message: String) {}
}

// MARK: what users and the cluster's own controllers do

extension SimulatedCloud {
  /// The caches catch up.
  ///
  /// - Returns: the claims whose deletion is noticed by it.
  func synchronize() -> [ClaimView] {
    world.withLock { world in
      let gone = world.cache.claims.values.filter { world.truth.claims[$0.uid] == nil }
      world.cache = world.truth
      return gone.sorted { $0.uid < $1.uid }
    }
  }

  func createClaim(
    className: String, sizeBytes: Int64, cloneOf source: ClaimKey? = nil, from snapshot: SnapshotKey? = nil
  ) {
    world.withLock { world in
      let uid = "\(world.nextUID)"
      world.nextUID += 1
      // Names are used again, as people do.
      let name = "claim-\(Int(world.random.next() % 6))"
      let key = ClaimKey(namespace: "team", name: name)
      guard !world.truth.claims.values.contains(where: { $0.key == key }), source != key else { return }
      var claim = ClaimView(key: key, uid: uid)
      claim.className = className
      claim.volumeMode = "Block"
      claim.accessModes = ["ReadWriteOnce"]
      claim.requestBytes = sizeBytes
      claim.annotations["volume.beta.kubernetes.io/storage-provisioner"] = StorageNames.driver
      if let source { claim.dataSource = .init(apiGroup: nil, kind: "PersistentVolumeClaim", name: source.name) }
      if let snapshot {
        claim.dataSource = .init(apiGroup: SnapshotNames.group, kind: "VolumeSnapshot", name: snapshot.name)
      }
      world.truth.claims[uid] = claim
    }
  }

  /// As the API server does: what has a finalizer stays until that is removed.
  func deleteClaim(_ uid: String) {
    world.withLock { world in
      guard let claim = world.truth.claims[uid] else { return }
      world.truth.claims[uid] = nil
      guard !claim.finalizers.isEmpty else { return }
      world.truth.claims[uid] = claim
      world.truth.claims[uid]?.isBeingDeleted = true
    }
  }

  func deleteVolume(_ name: String) {
    world.withLock { $0.truth.volumes[name]?.isBeingDeleted = true }
  }

  /// Binds, releases and removes, as the cluster's volume controller does.
  func bind() {
    world.withLock { world in
      for (name, volume) in world.truth.volumes {
        guard let uid = volume.claimUID else { continue }
        if world.truth.claims[uid] == nil {
          world.truth.volumes[name]?.phase = "Released"
        } else if volume.phase == "Pending", !volume.isBeingDeleted {
          world.truth.volumes[name]?.phase = "Bound"
          world.truth.claims[uid]?.volumeName = name
          world.truth.claims[uid]?.isBound = true
          world.truth.claims[uid]?.capacityBytes = volume.capacityBytes
        }
      }
    }
  }
}
