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
  var now = ContinuousClock.now

  init(seed: UInt64) {
    self.seed = seed
    cloud = SimulatedCloud(seed: seed)
    controller = Life.makeController(cloud)
    collector = Life.makeCollector(cloud)
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
    for _ in 0..<80 { await act() }
    try await settle()
    check()
  }

  private mutating func act() async {
    let claims = cloud.world.withLock { $0.truth.claims.values.sorted { $0.uid < $1.uid } }
    let volumes = cloud.world.withLock { $0.truth.volumes.values.sorted { $0.name < $1.name } }
    switch cloud.random(20) {
    case 0...3:
      let source = claims.isEmpty || cloud.random(2) == 0 ? nil : claims[cloud.random(claims.count)].key
      cloud.createClaim(
        className: cloud.random(4) == 0 ? "retain" : "delete", sizeBytes: Int64(cloud.random(300)) * mebibyte + 1,
        cloneOf: source)
    case 4:
      if !claims.isEmpty {
        let claim = claims[cloud.random(claims.count)]
        cloud.world.withLock { world in
          if let name = claim.volumeName, world.truth.attached.contains(name) { return }
          world.truth.claims[claim.uid] = nil
        }
      }
    case 5:
      // A claim is deleted by force while its volume is attached.
      if !claims.isEmpty, cloud.random(3) == 0 { cloud.deleteClaim(claims[cloud.random(claims.count)].uid) }
    case 6:
      if !volumes.isEmpty, cloud.random(3) == 0 { cloud.deleteVolume(volumes[cloud.random(volumes.count)].name) }
    case 7:
      let bound = volumes.filter { $0.phase == "Bound" && !$0.isBeingDeleted }
      if !bound.isEmpty { cloud.world.withLock { _ = $0.truth.attached.insert(bound[0].name) } }
    case 8:
      cloud.world.withLock { world in
        if let name = world.truth.attached.min() { world.truth.attached.remove(name) }
      }
    case 9...10:
      cloud.bind()
    case 11...13:
      notice()
    case 14:
      cloud.world.withLock { $0.callsToLive = Int($0.random.next() % 6) }
    case 15:
      now += .seconds(1800)
      _ = try? await collector.sweep(now: now)
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
    }
    restartIfDead()
    for _ in 0..<6 {
      cloud.bind()
      notice()
      for handle in known() { _ = try await controller.reconcile(handle) }
      now += .seconds(3601)
      _ = try await collector.sweep(now: now)
    }
    let writes = cloud.world.withLock { $0.writes }
    notice()
    for handle in known() { _ = try await controller.reconcile(handle) }
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
      #expect(world.files[handle(name)]?.sizeBytes == expected, "seed \(seed): \(claim.key) has a wrong size")
    }
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
}
