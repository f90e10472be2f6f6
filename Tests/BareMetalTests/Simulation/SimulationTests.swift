import BareMetal
import DPU
import Foundation
import IaaS
import Kubernetes
import Synchronization
import Testing

/// Machines, hosts, controllers and handlers in one seeded world with crashes, lost answers, old caches and lying BMCs.
///
/// A seed is a whole history; its number says the scenario as well. A failure names it, and the command that repeats it.
/// `YCLOUD_SIMULATION_RUNS` sets how many seeds are tried, `YCLOUD_SIMULATION_FIRST` the first one, and
/// `YCLOUD_SIMULATION_WORKERS` how many are run at the same time. `YCLOUD_SIMULATION_TRACE=1` prints what happened before
/// the first violation.
@Suite("Simulation of the life of machines")
final class SimulationTests: Sendable {
  enum Scenario: String, CaseIterable {
    /// One controller that dies and starts anew; nobody forces anything.
    case oneController
    /// Two controllers that both believe to lead.
    case twoControllers
    /// Finalizers and hosts are removed by force.
    case force
    /// Machines move between hosts, hosts are drained and die, and operators say so.
    case migrations
    /// The same with two controllers.
    case migrationsTwoControllers

    init(seed: UInt64) { self = Self.allCases[Int(seed % UInt64(Self.allCases.count))] }
  }

  @Test("No run breaks an invariant, and every run ends as it should")
  func invariants() async throws {
    let environment = ProcessInfo.processInfo.environment
    func number(_ name: String) -> UInt64? { environment["YCLOUD_SIMULATION_\(name)"].flatMap { UInt64($0) } }
    if let seed = number("SEED") { return try await run(seed) }
    let runs = number("RUNS") ?? 10_000
    let first = number("FIRST") ?? 1
    let workers = Int(clamping: number("WORKERS") ?? UInt64(ProcessInfo.processInfo.activeProcessorCount))
    let start = ContinuousClock.now
    // Each worker takes every so-manieth seed; the first failure ends all.
    try await withThrowingTaskGroup(of: Void.self) { group in
      for worker in 0..<max(1, workers) {
        group.addTask {
          for seed in stride(from: first + UInt64(worker), to: first + runs, by: max(1, workers)) {
            try await self.run(seed)
          }
        }
      }
      try await group.waitForAll()
    }
    let seconds = start.duration(to: .now) / .seconds(1)
    let shared = sharedRuns.withLock { $0 }
    #expect(runs < 100 || shared > runs / 100, "in \(shared) of \(runs) runs only a volume was on two servers")
    print("a volume on two servers in \(shared) runs")
    print("\(runs) seeds from \(first) in \(Int(seconds)) s, \(Int(Double(runs) / max(seconds, 0.001))) a second")
  }

  /// In how many runs a volume was on two servers, as is right for those that several may have.
  private let sharedRuns = Mutex(0)

  /// Seeds that break an invariant and are not understood yet. A seed that no longer does fails the test.
  private static let knownSeeds: Set<UInt64> = []

  private func run(_ seed: UInt64) async throws {
    let scenario = Scenario(seed: seed)
    let simulation = Simulation(scenario: scenario, seed: seed)
    await simulation.run(steps: 220)
    await simulation.settle()
    let problems = simulation.problems() + simulation.migrationProblems()
    if simulation.world.hadSharedVolume { sharedRuns.withLock { $0 += 1 } }
    if !problems.isEmpty { for line in simulation.world.history.suffix(150) { print(line) } }
    let message =
      "seed \(seed), \(scenario.rawValue): \(problems.prefix(5).joined(separator: "; ")). Again: "
      + "YCLOUD_SIMULATION_SEED=\(seed) YCLOUD_SIMULATION_TRACE=1 swift test -c release --skip-build --filter "
      + "SimulationTests/invariants"
    guard !Self.knownSeeds.contains(seed) else {
      withKnownIssue("an open fault of the planner or of the simulated world: \(message)") {
        #expect(problems.isEmpty)
      }
      return
    }
    try #require(problems.isEmpty, "\(message)")
  }
}

final class Simulation {
  let scenario: SimulationTests.Scenario
  let world: World
  var controllers: [SimulatedController]
  let handlers: [SimulatedHandler]
  var hostNames: [String] { world.hasMigrations ? ["h1", "h2", "h3", "h4", "h5"] : ["h1", "h2", "h3"] }
  private var quietViolations: [String] = []

  init(scenario: SimulationTests.Scenario, seed: UInt64) {
    self.scenario = scenario
    let world = World(seed: seed)
    self.world = world
    world.hasMigrations = scenario == .migrations || scenario == .migrationsTwoControllers
    let isDouble = scenario == .twoControllers || scenario == .migrationsTwoControllers
    controllers = (0..<(isDouble ? 2 : 1)).map { _ in SimulatedController(world: world) }
    handlers = (world.hasMigrations ? 1...5 : 1...3).map { SimulatedHandler(world: world, name: "h\($0)") }
    for name in hostNames {
      world.servers[name] = Server()
      addHost(name)
    }
    for handler in handlers { handler.mayYank = isDouble || scenario == .force }
    world.isLenient = isDouble || scenario == .force
    var shared = PersistentVolumeClaim(
      metadata: ObjectMeta(name: "shared", namespace: "t", uid: "uid-shared", resourceVersion: "0"),
      spec: .init(volumeName: "pvc-shared"), status: .init(phase: "Bound"))
    shared.spec?.volumeMode = "Block"
    world.state.claimObjects[shared.key] = shared
    for claim in SharedDisks.claims { world.state.claimObjects[claim.key] = claim }
  }

  private func addHost(_ name: String) {
    world.version += 1
    let metadata = ObjectMeta(name: name, uid: world.newUID(), resourceVersion: "\(world.version)")
    world.state.hostObjects[name] = BareMetalHost(
      metadata: metadata,
      spec: .init(
        bmc: .init(address: "redfish://b", credentialsSecretRef: .init(name: "s")), dpu: .init(node: "dpu-\(name)")))
  }

  func pick<T>(_ list: [T]) -> T? { list.randomElement(using: &world.random) }

  /// Also of machines that are no more: something of theirs may be left.
  let machineKeys = ["m1", "m2", "m3", "m4"].map { ObjectKey(namespace: "t", name: $0) }

  func run(steps: Int) async {
    world.faultPercent = 8
    for _ in 0..<steps {
      if world.hasMigrations, world.random.chance(22) {
        await move()
        world.check()
        continue
      }
      switch Int.random(in: 0..<100, using: &world.random) {
      case 0..<28: await reconcileSomeMachine()
      case 28..<42: if let host = pick(hostNames) { pick(controllers)?.tickPower(host) }
      case 42..<57: await pick(handlers)?.reconcile(fresh: false, crashPercent: 5)
      case 57..<65:
        if let controller = pick(controllers), let host = pick(hostNames) {
          controller.sync(all: false)
          await controller.reconcileHost(host)
        }
      case 65..<73: volumes()
      case 73..<85: world.time += .milliseconds(Int.random(in: 100...4000, using: &world.random))
      case 85..<88:
        world.trace("a controller dies")
        // A controller dies: what it remembered is gone.
        let index = Int.random(in: 0..<controllers.count, using: &world.random)
        controllers[index] = SimulatedController(world: world)
      case 88..<90: if let host = pick(hostNames) { world.servers[host]?.isUnreachable.toggle() }
      case 90..<92: misfortune()
      default: user()
      }
      world.check()
    }
  }

  private func reconcileSomeMachine() async {
    guard let controller = pick(controllers), let key = pick(machineKeys) else { return }
    if world.random.chance(80) { controller.sync(all: false) }
    controller.crashPercent = 5
    await controller.reconcile(key)
  }

  /// What happens to hardware, clocks and the API server by themselves.
  private func misfortune() {
    switch Int.random(in: 0..<4, using: &world.random) {
    case 0:
      guard let host = pick(hostNames) else { return }
      world.trace("the DPU of \(host) starts anew")
      world.servers[host]?.rebootDPU()
    case 1:
      guard let host = pick(hostNames), var server = world.servers[host] else { return }
      server.isDead.toggle()
      world.trace("\(host) \(server.isDead ? "dies" : "lives again")")
      if server.isDead {
        server.isOn = false
        server.pending = nil
        server.guestUpAt = nil
        server.rebootDPU()
      }
      world.servers[host] = server
    case 2:
      world.clockStep = .seconds(Int.random(in: -3600...3600, using: &world.random))
      world.trace("the clocks step to \(world.clockStep)")
    default:
      world.apiServerAwayUntil = world.time + .seconds(Int.random(in: 1...60, using: &world.random))
      world.trace("the API server is away until \(world.apiServerAwayUntil)")
    }
  }

  // MARK: Others in the world

  /// The storage controller, the volume binder and the garbage collector.
  private func volumes() {
    for (key, claim) in world.state.claimObjects.sorted(by: { $0.key < $1.key }) {
      var claim = claim
      let owner = claim.metadata.labels?[Names.machineUIDLabel]
      if let owner, world.state.machine(uid: owner) == nil, claim.metadata.deletionTimestamp == nil {
        claim.metadata.deletionTimestamp = Timestamp(world.now.date)
        world.state.claimObjects[key] = claim
      }
      if claim.metadata.isBeingDeleted {
        let isAttached = claim.spec?.volumeName.map {
          world.state.attachmentObjects[Names.attachment(volume: $0)] != nil
        }
        if isAttached != true { world.state.claimObjects[key] = nil }
      } else if claim.status?.phase != "Bound" {
        claim.spec?.volumeName = "pvc-\(claim.metadata.uid ?? "")"
        claim.status = .init(phase: "Bound")
        world.version += 1
        claim.metadata.resourceVersion = "\(world.version)"
        world.state.claimObjects[key] = claim
      }
    }
  }

  private func user() {
    let name = pick(["m1", "m2", "m3", "m4"]) ?? "m1"
    let key = ObjectKey(namespace: "t", name: name)
    guard var machine = world.state.machines[key] else {
      var disks: [BareMetalMachine.Disk] = [.init(name: "root", bootOrder: 1, template: .init(size: "1Gi"))]
      if name == "m1" || name == "m2" {
        disks.append(.init(name: "data", existingClaim: .init(claimName: "shared")))
      }
      world.version += 1
      var metadata = ObjectMeta(
        name: name, namespace: "t", uid: world.newUID(), resourceVersion: "\(world.version)")
      metadata.generation = 1
      metadata.creationTimestamp = Timestamp(world.now.date)
      var machine = BareMetalMachine(
        metadata: metadata, spec: .init(hostName: world.random.chance(20) ? "h1" : nil, disks: disks))
      while world.random.chance(60) { toggleSharedDisk(of: &machine) }
      world.state.machines[key] = machine
      return
    }
    world.version += 1
    machine.metadata.resourceVersion = "\(world.version)"
    let before = machine.spec
    switch Int.random(in: 0..<16, using: &world.random) {
    case 0..<3:
      if machine.metadata.finalizers == nil {
        world.state.machines[key] = nil
        return
      }
      machine.metadata.deletionTimestamp = machine.metadata.deletionTimestamp ?? Timestamp(world.now.date)
    case 3..<5: machine.spec.running.toggle()
    case 5:
      let manner: RestartRequest.Manner = world.version.isMultiple(of: 2) ? .reset : .restart
      machine.metadata.annotations = [
        Names.restartAnnotation: RestartRequest(manner, token: "\(world.version)").description
      ]
    case 6: machine.spec.disks[0].bootOrder = machine.spec.disks[0].bootOrder == 1 ? 2 : 1
    case 7:
      // Somebody removes a secret that looks as if nobody needed it.
      if let host = pick(hostNames) { world.state.secrets[host] = nil }
    case 10: toggleDisk(of: &machine)
    case 11: toggleInterface(of: &machine)
    case 13...: toggleSharedDisk(of: &machine)
    case 12: machine.spec.disks[0].limits = world.random.chance(50) ? nil : .init(iops: 5000, bandwidth: "8Mi")
    default: if scenario == .force, world.random.chance(25) { return useForce(key) }
    }
    if machine.spec != before { machine.metadata.generation = (machine.metadata.generation ?? 1) + 1 }
    world.state.machines[key] = machine
    world.trace("user, \(key): running \(machine.spec.running), deleted \(machine.metadata.isBeingDeleted)")
  }

  /// The second disk goes or comes, whether the machine runs or not.
  private func toggleDisk(of machine: inout BareMetalMachine) {
    let isSharer = ["m1", "m2"].contains(machine.key.name)
    guard let index = machine.spec.disks.firstIndex(where: { $0.name == "data" }) else {
      machine.spec.disks.append(
        isSharer
          ? .init(name: "data", existingClaim: .init(claimName: "shared"))
          : .init(name: "data", template: .init(size: "1Gi")))
      return
    }
    machine.spec.disks.remove(at: index)
    let name = isSharer ? "shared" : Names.claim(machine: machine.key.name, disk: "data")
    let claim = world.state.claimObjects[ObjectKey(namespace: "t", name: name)]
    // A claim that is not bound yet will have this volume.
    if let claim { world.removed.insert(claim.spec?.volumeName ?? "pvc-\(claim.metadata.uid ?? "")") }
  }

  private func toggleInterface(of machine: inout BareMetalMachine) {
    if let index = machine.spec.interfaces.firstIndex(where: { $0.name == "eth1" }) {
      machine.spec.interfaces.remove(at: index)
      world.removed.insert("eth1")
    } else {
      machine.spec.interfaces.insert(.init(name: "eth1"), at: Int.random(in: 0...1, using: &world.random))
    }
  }

  private func useForce(_ key: ObjectKey) {
    switch Int.random(in: 0..<3, using: &world.random) {
    case 0: world.state.machines[key] = nil
    case 1: if let host = pick(hostNames) { world.state.hostObjects[host] = nil }
    default:
      if let host = pick(hostNames) {
        if world.state.hostObjects[host] == nil {
          addHost(host)
        } else {
          world.state.hostObjects[host]?.metadata.deletionTimestamp = Timestamp(world.now.date)
          world.version += 1
          world.state.hostObjects[host]?.metadata.resourceVersion = "\(world.version)"
        }
      }
    }
  }

  // MARK: The end

  /// Faults stop, one controller leads, and everything is given its time.
  func settle() async {
    world.faultPercent = 0
    world.apiServerAwayUntil = .zero
    for name in hostNames {
      world.servers[name]?.isUnreachable = false
      if !world.hasMigrations { world.servers[name]?.isDead = false }
    }
    let leader = SimulatedController(world: world)
    controllers = [leader]
    if world.hasMigrations { await leaveDeadHosts(leader) }
    var quietRounds = 0
    for _ in 0..<600 where quietRounds < 14 {
      let before = world.writes
      // Longer than all that somebody may wait for, but not in small steps where nothing happens.
      world.time += quietRounds < 6 ? .milliseconds(500) : .seconds(2)
      await round(leader)
      quietRounds = world.writes == before ? quietRounds + 1 : 0
    }
    if quietRounds < 14 { quietViolations.append("it never came to rest") }
  }

  /// One look of everybody at everything.
  func round(_ leader: SimulatedController) async {
    for host in hostNames { leader.tickPower(host) }
    for handler in handlers { await handler.reconcile(fresh: true, crashPercent: 0) }
    volumes()
    for host in hostNames {
      leader.sync(all: true)
      await leader.reconcileHost(host)
    }
    for key in machineKeys {
      leader.sync(all: true)
      await leader.reconcile(key)
    }
    if world.hasMigrations { await roundOfMigrations(leader) }
    world.check()
  }

  /// What a machine that runs lacks of its spec, or has beyond it, without telling why.
  private func unfinished(_ machine: BareMetalMachine, on host: String) -> [String] {
    var problems: [String] = []
    let conditions = machine.status?.conditions ?? []
    let isTold =
      conditions.contains { ["VolumeInUse", "ClaimReadOnly", "Attaching", "RestartNeeded"].contains($0.reason) }
      || conditions.condition("Unplugged") != nil || conditions.isTrue("RestartNeeded")
    guard let server = world.servers[host], !isTold else { return [] }
    let attached = Set(machine.status?.volumes?.filter { $0.attached == true }.map(\.disk) ?? [])
    if attached != Set(machine.spec.disks.map(\.name)) { problems.append("\(machine.key) runs with \(attached)") }
    let shown = server.functions.values.filter { $0.name != Names.seedFunction }.count
    if shown != attached.count { problems.append("\(machine.key): \(host) shows \(shown) disks") }
    problems += unshared(machine, on: server)
    let cards = Set(server.interfaces.map(\.name))
    if cards != Set(machine.spec.interfaces.map(\.name)) { problems.append("\(machine.key) runs with \(cards)") }
    for disk in machine.spec.disks {
      let name = disk.existingClaim?.claimName ?? Names.claim(machine: machine.key.name, disk: disk.name)
      let claim = world.state.claimObjects[ObjectKey(namespace: machine.key.namespace, name: name)]
      let limits = claim?.spec?.volumeName.flatMap { server.volumes[$0]?.limits.shown }
      if limits != disk.limits { problems.append("\(machine.key): disk \(disk.name) has other limits") }
    }
    return problems
  }

  /// Whether a guest holds on to a disk of the machine, on a server that was torn away with its host object: nobody can
  /// turn that off, and nothing is taken by force.
  private func isHeldByGuest(_ machine: BareMetalMachine) -> Bool {
    guard let uid = machine.metadata.uid else { return false }
    return world.state.attachmentObjects.values.contains { attachment in
      guard attachment.machineUID == uid, let host = attachment.host, world.state.hostObjects[host] == nil,
        let server = world.servers[host], server.isOn
      else { return false }
      return server.functions.values.contains {
        server.leaving[$0.name] != nil && $0.volume == attachment.volume
      }
    }
  }

  func problems() -> [String] {
    var problems = world.violations + quietViolations
    let state = world.state
    for (key, machine) in state.machines.sorted(by: { $0.key < $1.key }) {
      let phase = machine.status?.phase?.rawValue ?? "none"
      if machine.metadata.isBeingDeleted {
        if !isHeldByGuest(machine) { problems.append("\(key) is not gone: \(machine.status?.message ?? phase)") }
        continue
      }
      if !machine.spec.running {
        // A server that was torn away with its host may be on, and nobody can say more than that.
        let hostIsLost = machine.status?.conditions?.contains { ["HostGone", "HostLost"].contains($0.reason) } ?? false
        if phase != "Stopped", !hostIsLost {
          problems.append("\(key) is \(phase), not Stopped: \(machine.status?.message ?? "")")
        }
        continue
      }
      let hasFreeHost = state.hostObjects.values.contains {
        $0.status?.claim == nil && !$0.metadata.isBeingDeleted
          && (machine.spec.hostName == nil || machine.spec.hostName == $0.metadata.name)
      }
      let reasons = Set(machine.status?.conditions?.map(\.reason) ?? [])
      let mayWait =
        !reasons.isDisjoint(with: ["VolumeInUse", "ClaimReadOnly", "HostGone", "HostLost"])
        || (!hasFreeHost && machine.status?.host == nil)
      if phase != "Running", !mayWait {
        problems.append("\(key) is \(phase), not Running: \(machine.status?.message ?? "")")
      }
      if phase != "Running", machine.status?.message == nil { problems.append("\(key) waits in silence") }
      if phase == "Running", let host = machine.status?.host { problems += unfinished(machine, on: host) }
    }
    for attachment in state.attachmentObjects.values where state.machine(uid: attachment.machineUID ?? "") == nil {
      problems.append("attachment \(attachment.key.name) is left over")
    }
    for claim in state.claimObjects.values {
      guard let owner = claim.metadata.labels?[Names.machineUIDLabel] else { continue }
      if state.machine(uid: owner) == nil { problems.append("claim \(claim.key) is left over") }
    }
    for (host, secret) in state.secrets where state.hostObjects[host] != nil {
      if state.machine(uid: secret.metadata.annotations?[Names.machineUIDAnnotation] ?? "") == nil {
        problems.append("boot data of \(host) is left over")
      }
    }
    for host in state.hostObjects.values {
      if let claim = host.status?.claim, state.machine(uid: claim.uid) == nil {
        problems.append("the claim of \(host.key.name) is left over")
      }
    }
    return problems
  }
}
