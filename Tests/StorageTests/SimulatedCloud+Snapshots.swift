import Storage
import Synchronization
import TestSupport

// MARK: the pool

extension SimulatedCloud {
  func grow(_ handle: VolumeHandle, toBytes sizeBytes: Int64) async throws(StorageError) -> Volume {
    try poolCall { world in
      guard let file = world.files[handle] else {
        throw StorageError(.notFound, operation: "grow", message: "no volume")
      }
      if file.sizeBytes < sizeBytes {
        guard world.files.values.reduce(sizeBytes - file.sizeBytes, { $0 + $1.sizeBytes }) <= world.capacityBytes else {
          throw StorageError(.poolFull, operation: "grow", message: "the pool is full")
        }
        world.files[handle]?.sizeBytes = sizeBytes
        world.writes += 1
      }
      return Volume(handle: handle, sizeBytes: max(file.sizeBytes, sizeBytes), allocatedBytes: 0)
    }
  }

  func takeSnapshot(
    of source: VolumeHandle, as handle: SnapshotHandle
  ) async throws(StorageError) -> Snapshot {
    try poolCall { world in
      if world.snapshotFiles[handle] == nil {
        guard let file = world.files[source] else {
          throw StorageError(.notFound, operation: "snapshot", message: "no source")
        }
        world.snapshotFiles[handle] = file
        world.writes += 1
      }
      return Snapshot(
        handle: handle, sizeBytes: world.snapshotFiles[handle]?.sizeBytes ?? 0, creationTime: 1_000_000_000)
    }
  }

  func adoptSnapshot(
    of source: VolumeHandle, from group: SnapshotHandle, as handle: SnapshotHandle
  ) async throws(StorageError) -> Snapshot {
    try await takeSnapshot(of: source, as: handle)
  }

  func snapshot(_ handle: SnapshotHandle) async throws(StorageError) -> Snapshot? {
    try poolCall { world in
      world.snapshotFiles[handle].map { Snapshot(handle: handle, sizeBytes: $0.sizeBytes, creationTime: 1_000_000_000) }
    }
  }

  func deleteSnapshot(_ handle: SnapshotHandle) async throws(StorageError) {
    try poolCall { world in
      for content in world.truth.contents.values where content.handle == handle.name {
        if !content.isBeingDeleted { world.violations.append("\(handle) deleted while \(content.name) stands") }
        if content.deletionPolicy == "Retain" { world.violations.append("\(handle) deleted, kept by policy") }
      }
      if world.snapshotFiles.removeValue(forKey: handle) != nil { world.writes += 1 }
    }
  }

  func clone(
    snapshot source: SnapshotHandle, to handle: VolumeHandle, sizeBytes: Int64
  ) async throws(StorageError) -> Volume {
    try poolCall { world in
      guard let origin = world.snapshotFiles[source] else {
        throw StorageError(.notFound, operation: "clone", message: "no snapshot")
      }
      guard origin.sizeBytes <= sizeBytes else {
        throw StorageError(.invalidSize, operation: "clone", message: "too small")
      }
      return try self.make(handle, File(sizeBytes: sizeBytes, content: origin.content), &world)
    }
  }
}

// MARK: growth

extension SimulatedCloud {
  func attached(persistentVolume name: String) -> [AttachmentView] {
    world.withLock { $0.cache.attachments[name].map { [$0] } ?? [] }
  }

  func currentAttached(persistentVolume name: String) async throws -> [AttachmentView] {
    try call { $0.truth.attachments[name].map { [$0] } ?? [] }
  }

  func raiseCapacity(of volume: PersistentVolumeView, toBytes bytes: Int64) async throws {
    try call { world in
      guard let present = world.truth.volumes[volume.name], present.uid == volume.uid else { return }
      if let file = world.files.first(where: { $0.key.name == present.handle })?.value, file.sizeBytes < bytes {
        world.violations.append("\(volume.name) promises more than there is")
      }
      world.truth.volumes[volume.name]?.capacityBytes = bytes
      world.writes += 1
    }
  }

  func askForRescan(_ attachment: AttachmentView, bytes: Int64) async throws {
    try call { world in
      for name in world.truth.attachments.keys where world.truth.attachments[name]?.name == attachment.name {
        world.truth.attachments[name]?.wantedBytes = bytes
        world.writes += 1
      }
    }
  }

  func setGrowth(
    _ claim: ClaimView, _ conditions: [GrowthCondition: String], capacityBytes: Int64?
  ) async throws {
    try call { world in
      guard let present = world.truth.claims[claim.uid] else { return }
      world.truth.claims[claim.uid]?.growth = conditions
      world.writes += 1
      guard let capacityBytes else { return }
      world.truth.claims[claim.uid]?.capacityBytes = capacityBytes
      if let name = present.volumeName, let attachment = world.truth.attachments[name],
        attachment.shownBytes ?? 0 < capacityBytes
      {
        world.violations.append("\(claim.key) was told of room that its server does not see")
      }
    }
  }
}

// MARK: the cluster's objects of snapshots

extension SimulatedCloud: SnapshotCluster {
  func snapshot(_ key: SnapshotKey) -> SnapshotView? { world.withLock { $0.cache.snapshots[key] } }
  func snapshotContent(_ name: String) -> ContentView? { world.withLock { $0.cache.contents[name] } }
  func snapshotContents(handle: String) -> [ContentView] {
    world.withLock { $0.cache.contents.values.filter { $0.handle == handle } }
  }
  func snapshotContents(for key: SnapshotKey) -> [ContentView] {
    world.withLock { $0.cache.contents.values.filter { $0.snapshotKey == key && $0.snapshotUID != nil } }
  }
  func snapshotClasses() -> [SnapshotClassView] {
    [
      SnapshotClassView(name: "delete", driver: StorageNames.driver, deletionPolicy: "Delete", isDefault: true),
      SnapshotClassView(name: "retain", driver: StorageNames.driver, deletionPolicy: "Retain"),
    ]
  }
  func snapshots(ofClaim key: ClaimKey) -> [SnapshotView] {
    world.withLock { $0.cache.snapshots.values.filter { $0.claimKey == key } }
  }
  func claims(from key: SnapshotKey) -> [ClaimView] {
    world.withLock { $0.cache.claims.values.filter { $0.snapshotKey == key && $0.volumeName == nil } }
  }
  func protectedClaims() -> [ClaimView] {
    world.withLock { $0.cache.claims.values.filter { $0.finalizers.contains(SnapshotNames.claimFinalizer) } }
  }

  func volume(of claim: ClaimView) async throws -> (volume: PersistentVolumeView?, driver: String?) {
    try call { world in
      guard let volume = claim.volumeName.flatMap({ world.truth.volumes[$0] }), volume.claimUID == claim.uid else {
        return (nil, nil)
      }
      return (volume, StorageNames.driver)
    }
  }
  func currentSnapshot(_ key: SnapshotKey) async throws -> SnapshotView? { try call { $0.truth.snapshots[key] } }
  func currentSnapshotContent(_ name: String) async throws -> ContentView? { try call { $0.truth.contents[name] } }
  func currentSnapshotContents() async throws -> [ContentView] { try call { Array($0.truth.contents.values) } }

  func setClass(of snapshot: SnapshotView, _ name: String) async throws {
    try change(snapshot) { $0.className = name }
  }

  func setFinalizers(of snapshot: SnapshotView, present: Bool) async throws {
    if present, try await currentSnapshot(snapshot.key)?.uid != snapshot.uid {
      throw StorageError(.busy, operation: "simulated", message: "the VolumeSnapshot is gone")
    }
    try change(snapshot) {
      $0.finalizers = present ? [SnapshotNames.sourceFinalizer, SnapshotNames.boundFinalizer] : []
    }
  }

  func setProtection(of claim: ClaimView, present: Bool) async throws {
    try call { world in
      guard let current = world.truth.claims[claim.uid] else { return }
      if present, current.isBeingDeleted {
        throw StorageError(.io, operation: "simulated", message: "the claim is being deleted")
      }
      world.truth.claims[claim.uid]?.finalizers = present ? [SnapshotNames.claimFinalizer] : []
      if !present, current.isBeingDeleted { world.truth.claims[claim.uid] = nil }
      world.writes += 1
    }
  }

  func create(_ draft: ContentDraft) async throws {
    try call { world in
      guard world.truth.contents[draft.name] == nil else { return }
      var content = ContentView(
        name: draft.name, uid: "content-uid-\(world.nextUID)", driver: StorageNames.driver,
        deletionPolicy: draft.deletionPolicy)
      content.volumeHandle = draft.volumeHandle
      content.className = draft.className
      content.snapshotKey = draft.snapshot
      content.snapshotUID = draft.snapshotUID
      world.nextUID += 1
      world.truth.contents[draft.name] = content
      world.writes += 1
    }
  }

  func adopt(_ content: ContentView, for snapshot: SnapshotView) async throws {
    try change(content) { $0.snapshotUID = snapshot.uid }
  }
  func mark(_ content: ContentView) async throws { try change(content) { $0.isMarked = true } }
  func delete(_ content: ContentView) async throws { try change(content) { $0.isBeingDeleted = true } }
  func setFinalizer(of content: ContentView, present: Bool) async throws {
    try change(content) { $0.hasFinalizer = present }
  }
  func setStatus(of snapshot: SnapshotView, _ status: SnapshotView.Status) async throws {
    try change(snapshot) { $0.status = status }
  }
  func setStatus(of content: ContentView, _ status: ContentView.Status) async throws {
    try change(content) { $0.status = status }
  }
  func fail(_ snapshot: SnapshotView, message: String) async throws {
    try change(snapshot) {
      $0.status.error = message
      $0.status.isReady = false
    }
  }
  func fail(_ content: ContentView, message: String) async throws {
    try change(content) {
      $0.status.error = message
      $0.status.isReady = false
    }
  }
  func record(_ snapshot: SnapshotView, isWarning: Bool, reason: String, message: String) {}
  func record(_ content: ContentView, isWarning: Bool, reason: String, message: String) {}

  private func change(_ snapshot: SnapshotView, _ body: (inout SnapshotView) -> Void) throws {
    try call { world in
      guard var current = world.truth.snapshots[snapshot.key], current.uid == snapshot.uid else { return }
      body(&current)
      let isGone = current.isBeingDeleted && current.finalizers.isEmpty
      if isGone,
        world.truth.contents.values.contains(where: { $0.isBound(to: current) && $0.deletionPolicy == "Delete" })
      {
        world.violations.append("\(snapshot.key) is gone before its content")
      }
      world.truth.snapshots[snapshot.key] = isGone ? nil : current
      world.writes += 1
    }
  }

  private func change(_ content: ContentView, _ body: (inout ContentView) -> Void) throws {
    try call { world in
      guard var current = world.truth.contents[content.name], current.uid == content.uid else { return }
      body(&current)
      let isGone = current.isBeingDeleted && !current.hasFinalizer
      if isGone, let handle = current.handle.flatMap({ try? SnapshotHandle($0) }), world.snapshotFiles[handle] != nil {
        if current.deletionPolicy == "Delete" { world.violations.append("\(handle) is left behind") }
        world.keptSnapshots.insert(handle)
      }
      if current.isTaken, let handle = current.handle.flatMap({ try? SnapshotHandle($0) }), !current.isBeingDeleted,
        world.snapshotFiles[handle] == nil
      {
        world.violations.append("\(current.name) is ready without a snapshot")
      }
      world.truth.contents[content.name] = isGone ? nil : current
      world.writes += 1
    }
  }
}

// MARK: what users, servers and handlers do

extension SimulatedCloud {
  func createSnapshot(of claim: ClaimKey, className: String?) {
    world.withLock { world in
      let key = SnapshotKey(namespace: "team", name: "snapshot-\(Int(world.random.next() % 4))")
      guard world.truth.snapshots[key] == nil else { return }
      var snapshot = SnapshotView(key: key, uid: "\(world.nextUID)")
      world.nextUID += 1
      snapshot.claimName = claim.name
      snapshot.className = className
      world.truth.snapshots[key] = snapshot
    }
  }

  func deleteSnapshot(_ key: SnapshotKey) {
    world.withLock { world in
      guard let snapshot = world.truth.snapshots[key] else { return }
      world.truth.snapshots[key] = nil
      guard !snapshot.finalizers.isEmpty else { return }
      world.truth.snapshots[key] = snapshot
      world.truth.snapshots[key]?.isBeingDeleted = true
    }
  }

  /// Asks for more room; the API server takes nothing less.
  func raiseRequest(_ uid: String, by bytes: Int64) {
    world.withLock { world in
      guard let claim = world.truth.claims[uid], claim.isBound, let request = claim.requestBytes else { return }
      world.truth.claims[uid]?.requestBytes = request + bytes
    }
  }

  func attach(_ name: String) {
    world.withLock { world in
      guard world.truth.volumes[name] != nil, world.truth.attached.insert(name).inserted else { return }
      world.truth.attachments[name] = AttachmentView(name: "ycloud-\(name)", node: "dpu-01")
    }
  }

  func detach(_ name: String) {
    world.withLock { world in
      world.truth.attached.remove(name)
      world.truth.attachments[name] = nil
    }
  }

  /// Handlers open what is attached, and look again where they are asked to.
  func handle() {
    world.withLock { world in
      for (name, attachment) in world.truth.attachments {
        guard let volume = world.truth.volumes[name],
          let file = world.files.first(where: { $0.key.name == volume.handle })?.value
        else { continue }
        if attachment.shownBytes == nil || attachment.shownBytes ?? 0 < attachment.wantedBytes ?? 0 {
          world.truth.attachments[name]?.shownBytes = file.sizeBytes
        }
      }
    }
  }

  /// Servers write.
  func write() {
    world.withLock { world in
      for handle in world.files.keys.sorted() where world.random.next() % 3 == 0 {
        world.files[handle]?.content = "\(world.random.next())"
      }
    }
  }
}
