import BareMetal
import IaaS
import Kubernetes
import Logging
import Synchronization
import Testing

/// Snapshots, restores and clones of machines that write to their disks, with calls that fail, answers that are lost and
/// caches that are behind. A seed is one history; `seed` in the message of a failure names it.
@Suite("Snapshots, restores and clones of machines, simulated")
struct LifeSimulationTests {
  let namespace = LifeWorld.namespace

  /// A world with one machine of two disks, which runs.
  func world(_ seed: UInt64, failures: Int = 15, staleness: Int = 40) -> LifeWorld {
    let world = LifeWorld(seed: seed)
    var metadata = ObjectMeta(name: "m", namespace: namespace)
    metadata.uid = "machine"
    metadata.resourceVersion = "1"
    metadata.generation = 1
    let machine = BareMetalMachine(
      metadata: metadata,
      spec: .init(
        disks: [
          .init(name: "root", bootOrder: 1, template: .init(size: "1Gi")),
          .init(name: "data", template: .init(size: "1Gi")),
        ], interfaces: [.init(name: "eth0", macAddress: "02:00:00:00:00:01", address: "192.0.2.1")]))
    var host = BareMetalHost(
      metadata: ObjectMeta(name: "h"),
      spec: .init(bmc: .init(address: "ipmi://b", credentialsSecretRef: .init(name: "s")), dpu: .init(node: "h")))
    var status = BareMetalHost.Status()
    status.claim = .init(namespace: namespace, name: "m", uid: "machine")
    status.dpu = .init()
    host.status = status
    world.state.withLock { state in
      state.truth.machines[machine.key] = machine
      state.truth.hosts["h"] = host
    }
    for _ in 0..<200 { world.act() }
    world.state.withLock {
      $0.failures = failures
      $0.staleness = staleness
    }
    return world
  }

  /// Lets everybody work, in any order, until `isDone`; false where that takes too long.
  func run(_ world: LifeWorld, steps: Int = 6000, until isDone: (LifeWorld.Objects) -> Bool) async -> Bool {
    let logger = Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })
    let now: @Sendable () -> MicroTimestamp = { MicroTimestamp(microseconds: world.state.withLock { $0.now }) }
    let snapshots = MachineSnapshotReconciler(cluster: world, events: nil, logger: logger, now: now)
    let restores = MachineRestoreReconciler(cluster: world, events: nil, logger: logger, now: now)
    let clones = MachineCloneReconciler(cluster: world, events: nil, logger: logger, now: now)
    for _ in 0..<steps {
      if isDone(world.state.withLock { $0.truth }) { return true }
      let (work, choice) = world.state.withLock { state in
        (
          state.truth.snapshots.keys.sorted().map { (0, $0) } + state.truth.restores.keys.sorted().map { (1, $0) }
            + state.truth.clones.keys.sorted().map { (2, $0) },
          Int.random(in: 0..<1000, using: &state.random)
        )
      }
      guard choice % 2 == 0, !work.isEmpty else {
        world.act()
        continue
      }
      let (kind, key) = work[choice / 2 % work.count]
      // A reconciliation that fails has done some of its steps: that is a crash.
      switch kind {
      case 0: _ = try? await snapshots.reconcile(key)
      case 1: _ = try? await restores.reconcile(key)
      default: _ = try? await clones.reconcile(key)
      }
    }
    return false
  }

  /// The numbers that a snapshot holds, first disk and last.
  func numbers(_ world: LifeWorld, _ name: String) -> [Int] {
    world.state.withLock { state in
      (state.truth.snapshots[LifeWorld.key(name)]?.status?.disks ?? []).map { disk in
        let uid = state.truth.volumeSnapshots[LifeWorld.key(disk.volumeSnapshot)]?.metadata.uid ?? ""
        return state.captured[uid]?.number ?? -1
      }
    }
  }

  func live(_ world: LifeWorld) -> [Int] {
    world.state.withLock { state in
      (state.truth.machines[LifeWorld.key("m")]?.spec.disks ?? []).map { disk in
        let claim = state.truth.claims[LifeWorld.key(disk.existingClaim?.claimName ?? "m-\(disk.name)")]
        return state.disks[claim?.spec?.volumeName ?? ""]?.number ?? -1
      }
    }
  }

  func isOneMoment(_ numbers: [Int]) -> Bool {
    guard numbers.count == 2 else { return false }
    return (numbers[1]...numbers[1] + 1).contains(numbers[0])
  }

  func setRunning(_ world: LifeWorld, _ running: Bool) {
    world.state.withLock { state in
      state.truth.machines[LifeWorld.key("m")]?.spec.running = running
      state.truth.machines[LifeWorld.key("m")]?.metadata.generation? += 1
      let version = state.next()
      state.truth.machines[LifeWorld.key("m")]?.metadata.resourceVersion = version
    }
  }

  func snapshot(_ name: String, _ wish: BareMetalMachineSnapshot.Wish = .group) -> BareMetalMachineSnapshot {
    BareMetalMachineSnapshot(
      metadata: ObjectMeta(name: name, namespace: namespace), spec: .init(machineName: "m", consistency: wish))
  }

  func create(_ world: LifeWorld, _ body: (LifeWorld) async throws -> Void) async throws {
    let (failures, staleness) = world.state.withLock { state in
      defer { state.failures = 0 }
      return (state.failures, state.staleness)
    }
    try await body(world)
    world.state.withLock {
      $0.failures = failures
      $0.staleness = staleness
    }
  }

  @Test("A snapshot of a machine that writes is of one moment, also while it is stopped and started")
  func captured() async throws {
    for seed in UInt64(0)..<300 {
      let world = world(seed)
      try await create(world) { try await $0.create(snapshot("s")) }
      var flips = 3
      let isReady = await run(world) { objects in
        let status = objects.snapshots[LifeWorld.key("s")]?.status
        if flips > 0, status?.phase == .capturing, seed % 3 == 0, world.state.withLock({ $0.random.chance(5) }) {
          flips -= 1
          setRunning(world, flips % 2 == 1)
        }
        return status?.readyToUse == true
      }
      let status = world.state.withLock { $0.truth.snapshots[LifeWorld.key("s")]?.status }
      #expect(isReady, "seed \(seed): \(status?.message ?? "")")
      let numbers = numbers(world, "s")
      #expect(isOneMoment(numbers), "seed \(seed): \(numbers)")
      let spec = try MergePatch.value(BareMetalMachine.Spec.self, from: try #require(status?.machineSpec))
      #expect(spec.disks.count == 2 && spec.interfaces.first?.address == "192.0.2.1")
      #expect(world.state.withLock { $0.violations } == [], "seed \(seed)")

      // Its end leaves nothing.
      world.state.withLock { state in
        state.truth.snapshots[LifeWorld.key("s")]?.metadata.deletionTimestamp = .now()
        let version = state.next()
        state.truth.snapshots[LifeWorld.key("s")]?.metadata.resourceVersion = version
      }
      let isGone = await run(world) { $0.snapshots.isEmpty }
      #expect(isGone && world.state.withLock { $0.truth.volumeSnapshots.isEmpty }, "seed \(seed)")
      #expect(world.state.withLock { $0.truth.hosts["h"]?.status?.snapshot } == nil, "seed \(seed)")
    }
  }

  @Test("Disks captured by themselves are seen to be of different moments: the check above can fail")
  func perDisk() async throws {
    var different = 0
    for seed in UInt64(0)..<60 {
      let world = world(seed)
      try await create(world) { try await $0.create(snapshot("s", .perDisk)) }
      #expect(await run(world) { $0.snapshots[LifeWorld.key("s")]?.status?.readyToUse == true }, "seed \(seed)")
      if !isOneMoment(numbers(world, "s")) { different += 1 }
    }
    #expect(different > 0)
  }

  @Test("A data plane that cannot is told of, and each disk by itself is taken only where that is asked for")
  func unsupported() async throws {
    let world = world(1, failures: 0, staleness: 0)
    world.state.withLock { $0.isUnsupported = true }
    try await create(world) { try await $0.create(snapshot("s")) }
    #expect(await run(world) { $0.snapshots[LifeWorld.key("s")]?.status?.phase == .failed })
    let status = world.state.withLock { $0.truth.snapshots[LifeWorld.key("s")]?.status }
    #expect(status?.message?.contains("PerDisk") == true)
    #expect(world.state.withLock { $0.truth.volumeSnapshots.isEmpty })
    world.state.withLock { $0.truth.snapshots[LifeWorld.key("s")]?.spec.consistency = .perDisk }
    #expect(await run(world) { $0.snapshots[LifeWorld.key("s")]?.status?.readyToUse == true })
    #expect(world.state.withLock { $0.truth.snapshots[LifeWorld.key("s")]?.status?.consistency } == .perDisk)
  }

  @Test("A restore gives a machine all the disks of the snapshot or none, and keeps what was there")
  func restored() async throws {
    for seed in UInt64(0)..<300 {
      let world = world(seed)
      try await create(world) { try await $0.create(snapshot("s")) }
      #expect(await run(world) { $0.snapshots[LifeWorld.key("s")]?.status?.readyToUse == true }, "seed \(seed)")
      let wanted = numbers(world, "s")
      for _ in 0..<40 { world.act() }
      let restore = BareMetalMachineRestore(
        metadata: ObjectMeta(name: "r", namespace: namespace),
        spec: .init(snapshotName: "s", machineName: "m", stopMachine: true))
      world.state.withLock { state in
        var restore = restore
        restore.metadata.uid = "restore-uid"
        restore.metadata.resourceVersion = state.next()
        state.truth.restores[restore.key] = restore
      }
      var before: [Int]?
      let isDone = await run(world) { objects in
        let restore = objects.restores[LifeWorld.key("r")]
        // What the machine has when it is off and its disks are about to be replaced.
        if restore?.status?.phase == .switching, objects.machines[LifeWorld.key("m")]?.isParked == true {
          before = live(world)
        }
        return restore?.status?.phase == .succeeded
      }
      let status = world.state.withLock { $0.truth.restores[LifeWorld.key("r")]?.status }
      #expect(isDone, "seed \(seed): \(status?.phase?.rawValue ?? "") \(status?.message ?? "")")
      let kept = numbers(world, status?.previousSnapshot ?? "")
      #expect(before == nil || kept == before, "seed \(seed): \(kept) \(before ?? [])")
      #expect(isOneMoment(kept) && kept[0] >= wanted[0], "seed \(seed): \(kept)")
      // It runs again, with the disks of the snapshot, and those of before are removed.
      let runs = await run(world) { objects in
        let machine = objects.machines[LifeWorld.key("m")]
        return machine?.status?.bootedAt != nil && machine?.spec.running == true
          && objects.claims[LifeWorld.key("m-root")] == nil && objects.claims[LifeWorld.key("m-data")] == nil
      }
      #expect(runs, "seed \(seed)")
      #expect(isOneMoment(live(world)), "seed \(seed)")
      #expect(world.state.withLock { $0.violations } == [], "seed \(seed)")
      #expect(world.state.withLock { $0.truth.claims.count } == 2, "seed \(seed)")
    }
  }

  @Test("A restore that is deleted before its end leaves the machine as it was, running")
  func withdrawnRestore() async throws {
    for seed in UInt64(0)..<200 {
      let world = world(seed)
      try await create(world) { try await $0.create(snapshot("s")) }
      #expect(await run(world) { $0.snapshots[LifeWorld.key("s")]?.status?.readyToUse == true }, "seed \(seed)")
      world.state.withLock { state in
        var restore = BareMetalMachineRestore(
          metadata: ObjectMeta(name: "r", namespace: namespace),
          spec: .init(snapshotName: "s", machineName: "m", stopMachine: true))
        restore.metadata.uid = "restore-uid"
        restore.metadata.resourceVersion = state.next()
        state.truth.restores[restore.key] = restore
      }
      let length = world.state.withLock { Int.random(in: 1...120, using: &$0.random) }
      _ = await run(world, steps: length) { _ in false }
      world.state.withLock { state in
        state.truth.restores[LifeWorld.key("r")]?.metadata.deletionTimestamp = .now()
        let version = state.next()
        state.truth.restores[LifeWorld.key("r")]?.metadata.resourceVersion = version
        if state.truth.restores[LifeWorld.key("r")]?.metadata.finalizers == nil {
          state.truth.restores[LifeWorld.key("r")] = nil
        }
      }
      #expect(await run(world) { $0.restores.isEmpty }, "seed \(seed)")
      let runs = await run(world) { $0.machines[LifeWorld.key("m")]?.status?.bootedAt != nil }
      #expect(runs && isOneMoment(live(world)), "seed \(seed)")
      #expect(world.state.withLock { $0.violations } == [], "seed \(seed)")
    }
  }

  @Test("Ten machines are cloned; a pool that is full in the middle leaves a few unfinished, which go or are finished")
  func cloned() async throws {
    for seed in UInt64(0)..<60 {
      let world = world(seed)
      let isFull = seed % 2 == 0
      if isFull { world.state.withLock { $0.volumesMax = 2 + 2 * 4 + 1 } }
      let clone = BareMetalMachineClone(
        metadata: ObjectMeta(name: "c", namespace: namespace),
        spec: .init(source: .init(machineName: "m"), replicas: 10, namePattern: "web-{index}", firstIndex: 0))
      world.state.withLock { state in
        var clone = clone
        clone.metadata.uid = "clone-uid"
        clone.metadata.resourceVersion = state.next()
        state.truth.clones[clone.key] = clone
      }
      if isFull {
        let isTold = await run(world) { objects in
          let status = objects.clones[LifeWorld.key("c")]?.status
          // With one claim each, three machines may have what the fourth would need.
          return status?.ready ?? 0 >= 3 && status?.message?.contains("PoolFull") == true
            && objects.claims.values.count { $0.status?.phase == "Bound" } == 11
        }
        let ready = world.state.withLock { $0.truth.clones[LifeWorld.key("c")]?.status?.ready ?? 0 }
        #expect(
          isTold, "seed \(seed): \(world.state.withLock { $0.truth.clones[LifeWorld.key("c")]?.status?.message ?? "" })"
        )
        #expect(world.state.withLock { $0.truth.machines.count } <= 1 + ready + 4, "seed \(seed)")
        if seed % 4 == 0 {
          world.state.withLock { state in
            state.truth.clones[LifeWorld.key("c")]?.metadata.deletionTimestamp = .now()
            let version = state.next()
            state.truth.clones[LifeWorld.key("c")]?.metadata.resourceVersion = version
          }
          #expect(await run(world) { $0.clones.isEmpty }, "seed \(seed)")
          for _ in 0..<100 { world.act() }
          let (machines, open) = world.state.withLock { state in
            (state.truth.machines.count, state.truth.claims.values.count { $0.status?.phase != "Bound" })
          }
          #expect(machines == 1 + ready && open == 0, "seed \(seed): \(machines) machines, \(open) open claims")
          continue
        }
        world.state.withLock { $0.volumesMax = 1000 }
      }
      let isDone = await run(world, steps: 20000) { $0.clones[LifeWorld.key("c")]?.status?.phase == .succeeded }
      let status = world.state.withLock { $0.truth.clones[LifeWorld.key("c")]?.status }
      #expect(isDone, "seed \(seed): \(status?.message ?? "")")
      let clones = world.state.withLock { state in
        (0..<10).compactMap { state.truth.machines[LifeWorld.key("web-\($0)")] }
      }
      #expect(clones.count == 10, "seed \(seed)")
      for machine in clones {
        #expect(machine.spec.interfaces.allSatisfy { $0.macAddress == nil && $0.address == nil })
        #expect(machine.spec.disks.map(\.name) == ["root", "data"] && machine.spec.running)
        #expect(machine.metadata.uid != "machine")
        let numbers = world.state.withLock { state in
          machine.spec.disks.map { disk in
            let claim = state.truth.claims[LifeWorld.key("\(machine.key.name)-\(disk.name)")]
            return state.disks[claim?.spec?.volumeName ?? ""]?.number ?? -1
          }
        }
        #expect(isOneMoment(numbers), "seed \(seed): \(numbers)")
      }
    }
  }

  @Test("Names and addresses of clones are checked before anything is made")
  func names() {
    func clone(_ spec: BareMetalMachineClone.Spec) -> BareMetalMachineClone {
      BareMetalMachineClone(metadata: ObjectMeta(name: "c", namespace: "n"), spec: spec)
    }
    func reason(_ spec: BareMetalMachineClone.Spec) -> String? {
      if case .failure(let problem) = cloneNames(clone(spec)) { problem.reason } else { nil }
    }
    let source = BareMetalMachineClone.Source(machineName: "m")
    #expect(try! cloneNames(clone(.init(source: source, replicas: 2))).get() == ["c-1", "c-2"])
    #expect(try! cloneNames(clone(.init(source: source, namePattern: "one"))).get() == ["one"])
    #expect(
      try! cloneNames(clone(.init(source: source, replicas: 2, namePattern: "a-{index}-b", firstIndex: 9))).get()
        == ["a-9-b", "a-10-b"])
    #expect(reason(.init(source: .init())) == "SourceAmbiguous")
    #expect(reason(.init(source: .init(machineName: "m", snapshotName: "s"))) == "SourceAmbiguous")
    #expect(reason(.init(source: source, replicas: 0)) == "InvalidReplicas")
    #expect(reason(.init(source: source, replicas: 101)) == "InvalidReplicas")
    #expect(reason(.init(source: source, replicas: 2, namePattern: "web")) == "InvalidPattern")
    #expect(reason(.init(source: source, namePattern: "../x")) == "InvalidPattern")
    #expect(reason(.init(source: source, namePattern: "Web")) == "InvalidPattern")
    #expect(reason(.init(source: source, namePattern: String(repeating: "a", count: 64))) == "InvalidPattern")
    #expect(reason(.init(source: source, replicas: 2, addresses: ["192.0.2.1"])) == "TooFewAddresses")
  }
}
