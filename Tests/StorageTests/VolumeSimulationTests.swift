import Logging
import Storage
import Synchronization
import Telemetry
import TestSupport
import Testing

/// Thousands of seeded lives of a small cloud, in which the controller dies at any call.
@Suite struct VolumeSimulationTests {
  @Test(arguments: 0..<8) func endsRightWhateverHappens(block: UInt64) async throws {
    for seed in (block * 150)..<(block * 150 + 150) {
      var life = Life(seed: seed)
      try await life.run()
    }
  }
}

private struct Life {
  let seed: UInt64
  let cloud: SimulatedCloud
  var controller: VolumeReconciler<SimulatedCloud, SimulatedCloud>
  var collector: OrphanCollector<SimulatedCloud, SimulatedCloud>
  var snapshots: SnapshotReconciler
  var contents: ContentReconciler
  var now = ContinuousClock.now

  init(seed: UInt64) {
    self.seed = seed
    cloud = SimulatedCloud(seed: seed)
    controller = Life.makeController(cloud)
    collector = Life.makeCollector(cloud)
    snapshots = SnapshotReconciler(cluster: cloud, logger: Life.quiet())
    contents = Life.makeContents(cloud)
  }

  private static func makeContents(_ cloud: SimulatedCloud) -> ContentReconciler {
    ContentReconciler(
      backend: cloud, cluster: cloud, metrics: StorageMetrics(registry: MetricsRegistry()), logger: quiet())
  }

  private static func quiet() -> Logger { Logger(label: "simulation") { _ in SwiftLogNoOpLogHandler() } }

  private static func makeController(_ cloud: SimulatedCloud) -> VolumeReconciler<SimulatedCloud, SimulatedCloud> {
    VolumeReconciler(
      backend: cloud, cluster: cloud, metrics: StorageMetrics(registry: MetricsRegistry()), logger: quiet())
  }

  private static func makeCollector(_ cloud: SimulatedCloud) -> OrphanCollector<SimulatedCloud, SimulatedCloud> {
    OrphanCollector(backend: cloud, cluster: cloud, grace: .seconds(3600), logger: quiet())
  }

  mutating func run() async throws {
    cloud.world.withLock { $0.failurePercent = 5 }
    for _ in 0..<120 { await act() }
    try await settle()
    check()
  }

  private mutating func act() async {
    let claims = cloud.world.withLock { $0.truth.claims.values.sorted { $0.uid < $1.uid } }
    let volumes = cloud.world.withLock { $0.truth.volumes.values.sorted { $0.name < $1.name } }
    let snapshotKeys = cloud.world.withLock { $0.truth.snapshots.keys.sorted { $0.name < $1.name } }
    switch cloud.random(30) {
    case 0...3:
      let source = claims.isEmpty || cloud.random(2) == 0 ? nil : claims[cloud.random(claims.count)].key
      cloud.createClaim(
        className: cloud.random(4) == 0 ? "retain" : "delete", sizeBytes: Int64(cloud.random(300)) * mebibyte + 1,
        cloneOf: source)
    case 4:
      if !claims.isEmpty {
        let claim = claims[cloud.random(claims.count)]
        let isAttached = cloud.world.withLock { world in
          claim.volumeName.map { world.truth.attached.contains($0) } ?? false
        }
        if !isAttached { cloud.deleteClaim(claim.uid) }
      }
    case 5:
      // A claim is deleted by force while its volume is attached.
      if !claims.isEmpty, cloud.random(3) == 0 { cloud.deleteClaim(claims[cloud.random(claims.count)].uid) }
    case 6:
      if !volumes.isEmpty, cloud.random(3) == 0 { cloud.deleteVolume(volumes[cloud.random(volumes.count)].name) }
    case 7:
      let bound = volumes.filter { $0.phase == "Bound" && !$0.isBeingDeleted }
      if !bound.isEmpty { cloud.attach(bound[0].name) }
    case 8:
      if let name = cloud.world.withLock({ $0.truth.attached.min() }) { cloud.detach(name) }
    case 9...10:
      cloud.bind()
    case 11...13:
      notice()
    case 14:
      cloud.world.withLock { $0.callsToLive = Int($0.random.next() % 6) }
    case 15:
      now += .seconds(1800)
      _ = try? await collector.sweep(now: now)
    case 16...17:
      if !claims.isEmpty {
        cloud.createSnapshot(
          of: claims[cloud.random(claims.count)].key, className: [nil, "delete", "retain", "absent"][cloud.random(4)])
      }
    case 18:
      if !snapshotKeys.isEmpty {
        cloud.createClaim(
          className: "delete", sizeBytes: Int64(cloud.random(400)) * mebibyte + 1,
          from: snapshotKeys[cloud.random(snapshotKeys.count)])
      }
    case 19:
      if !snapshotKeys.isEmpty { cloud.deleteSnapshot(snapshotKeys[cloud.random(snapshotKeys.count)]) }
    case 20:
      if !claims.isEmpty {
        cloud.raiseRequest(claims[cloud.random(claims.count)].uid, by: Int64(cloud.random(100)) * mebibyte)
      }
    case 21:
      cloud.handle()
      cloud.write()
    case 22...24:
      try? await workOnSnapshots(all: false)
    default:
      let handles = known()
      if !handles.isEmpty { _ = try? await controller.reconcile(handles[cloud.random(handles.count)]) }
    }
    restartIfDead()
    expectNoViolation()
  }

  private mutating func restartIfDead() {
    guard cloud.world.withLock({ $0.isDead }) else { return }
    cloud.world.withLock { world in
      world.isDead = false
      world.callsToLive = nil
      // A new process lists everything; it never learns of what was deleted meanwhile.
      world.cache = world.truth
    }
    controller = Life.makeController(cloud)
    collector = Life.makeCollector(cloud)
    contents = Life.makeContents(cloud)
  }

  /// One of the keys, or all of them and one that is not there.
  private func workOnSnapshots(all: Bool) async throws {
    let (keys, names) = cloud.world.withLock { world in
      (world.cache.snapshots.keys.sorted { $0.name < $1.name }, world.cache.contents.keys.sorted())
    }
    let index = all ? 0 : cloud.random(keys.count + names.count + 1)
    for (position, key) in (keys + [SnapshotKey(namespace: "-", name: "-")]).enumerated()
    where all || position == index {
      do { try await snapshots.reconcile(key) } catch let error as StorageError where error.code == .busy {
        // It waits for its content.
      }
    }
    for (position, name) in names.enumerated() where all || position + keys.count + 1 == index {
      _ = try await contents.reconcile(name)
    }
  }

  private func notice() {
    for claim in cloud.synchronize() {
      if let handle = try? VolumeHandle(claimUID: claim.uid) { controller.claimDeleted(handle, claim.key) }
    }
  }

  private func known() -> [VolumeHandle] {
    cloud.world.withLock { world in
      let names = world.cache.claims.keys.map { "pvc-\($0)" } + world.cache.volumes.values.map(\.handle)
      return Set(names + world.files.keys.map(\.name)).sorted().compactMap { try? VolumeHandle($0) }
    }
  }

  /// Nothing disturbs any more: whatever is left to do gets done.
  private mutating func settle() async throws {
    cloud.world.withLock { world in
      world.failurePercent = 0
      world.callsToLive = nil
      world.truth.attached = []
      world.truth.attachments = [:]
    }
    restartIfDead()
    for _ in 0..<8 {
      cloud.bind()
      notice()
      for handle in known() { _ = try await controller.reconcile(handle) }
      notice()
      try await workOnSnapshots(all: true)
      now += .seconds(3601)
      _ = try await collector.sweep(now: now)
    }
    let writes = cloud.world.withLock { $0.writes }
    notice()
    for handle in known() { _ = try await controller.reconcile(handle) }
    try await workOnSnapshots(all: true)
    #expect(cloud.world.withLock { $0.writes } == writes, "seed \(seed): writes although nothing changed")
  }

  private func expectNoViolation() {
    #expect(cloud.world.withLock { $0.violations } == [], "seed \(seed)")
  }

  private func check() {
    expectNoViolation()
    let world = cloud.world.withLock { $0 }
    for claim in world.truth.claims.values {
      let name = "pvc-\(claim.uid)"
      guard let volume = world.truth.volumes[name] else {
        #expect(
          claim.provisioningMessage != nil || claim.volumeName != nil, "seed \(seed): \(claim.key) waits in silence")
        continue
      }
      #expect(
        claim.volumeName == volume.name && volume.claimUID == claim.uid, "seed \(seed): \(claim.key) is not bound")
      #expect(claim.provisioningMessage == nil, "seed \(seed): \(claim.key) has an old message")
      let expected = claim.requestBytes.flatMap(roundedVolumeSize)
      let size = world.files[handle(name)]?.sizeBytes
      let isRefused = claim.growth[.controllerResizeError] != nil
      #expect(isRefused || size == expected, "seed \(seed): \(claim.key) has a wrong size")
      #expect(
        volume.capacityBytes == size && claim.capacityBytes == size, "seed \(seed): \(claim.key) says a wrong size")
      #expect(isRefused || claim.growth.isEmpty, "seed \(seed): \(claim.key) is left \(claim.growth)")
    }
    checkSnapshots(world)
    let served = Set(world.truth.volumes.values.map(\.handle))
    #expect(Set(world.files.keys.map(\.name)) == served, "seed \(seed): files and PersistentVolumes differ")
    for volume in world.truth.volumes.values {
      #expect(
        volume.reclaimPolicy == "Retain" || volume.phase == "Bound",
        "seed \(seed): \(volume.name) is left \(volume.phase)")
    }
    #expect(
      world.retained.keys.allSatisfy { !served.contains($0.name) }, "seed \(seed): a retained volume is still served")
  }

  private func checkSnapshots(_ world: SimulatedCloud.World) {
    let files = Set(world.snapshotFiles.keys.map(\.name))
    let handles = Set(world.truth.contents.values.compactMap { $0.isTaken ? $0.status.handle : nil })
    #expect(
      files == handles.union(world.keptSnapshots.map(\.name)), "seed \(seed): contents and snapshots in the pool differ"
    )
    for snapshot in world.truth.snapshots.values {
      let content = snapshot.status.contentName.flatMap { world.truth.contents[$0] }
      #expect(
        snapshot.status.isReady == true && content?.isTaken == true || snapshot.status.error != nil,
        "seed \(seed): \(snapshot.key) waits in silence: \(snapshot)")
      #expect(!snapshot.isBeingDeleted, "seed \(seed): \(snapshot.key) is left deleted")
    }
    for content in world.truth.contents.values where !content.isBeingDeleted && content.deletionPolicy == "Delete" {
      #expect(
        content.snapshotKey.flatMap { world.truth.snapshots[$0] }?.uid == content.snapshotUID,
        "seed \(seed): \(content.name) has lost its VolumeSnapshot")
    }
    for claim in world.truth.claims.values where claim.finalizers.contains(SnapshotNames.claimFinalizer) {
      let isTaking = world.truth.contents.values.contains {
        $0.snapshotKey?.namespace == claim.key.namespace && !$0.isTaken && $0.volumeHandle == claim.volumeName
      }
      #expect(isTaking, "seed \(seed): \(claim.key) is kept for nothing")
    }
  }
}
