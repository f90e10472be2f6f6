import BareMetal
import IaaS
import Kubernetes

/// Migrations, drains and dying hosts in the simulated world.
extension SimulatedController {
  func reconcileMigration(_ key: ObjectKey) async {
    guard let migration = cache.migrationObjects[key], migration.isOpen else { return }
    let machine = cache.machines[migration.machineKey] ?? world.state.machines[migration.machineKey]
    let view = MigrationView(of: migration, machine: machine, in: cache, power: { self.power($0) }, now: world.now)
    let status = plan(view)
    guard let old = try? MergePatch.json(migration.status), let new = try? MergePatch.json(status),
      let patch = MergePatch.difference(from: old, to: new)
    else { return }
    world.trace("controller, \(key): \(status.phase?.rawValue ?? "none") \(status.targetHost ?? "")")
    try? await world.patchStatus(of: migration, patch)
  }

  func drain(_ name: String) async {
    guard let host = cache.hostObjects[name] else { return }
    let open = cache.migrationObjects.values.filter { !$0.isFinished }
    var limits = DrainLimits()
    limits.parallelMax = 2
    limits.troublePercentMax = 60
    switch plan(DrainView(of: host, in: cache, open: open, limits: limits)).step {
    case .create(let migration): try? await world.create(migration)
    case .delete(let key, let uid): try? await world.deleteMigration(key, uid: uid)
    case nil: break
    }
  }
}

extension Simulation {
  /// One thing that happens only in the scenarios with migrations.
  func move() async {
    switch Int.random(in: 0..<100, using: &world.random) {
    case 0..<52:
      guard let controller = pick(controllers) else { return }
      if world.random.chance(80) { controller.sync(all: false) }
      if let key = pick(controller.cache.migrationObjects.keys.sorted()) { await controller.reconcileMigration(key) }
    case 52..<62:
      if let controller = pick(controllers), let host = pick(hostNames) { await controller.drain(host) }
    case 62..<77: await ask()
    case 77..<83:
      // Somebody gives a migration up, at any time.
      guard let key = pick(world.state.migrationObjects.keys.sorted()) else { return }
      world.trace("user deletes migration \(key)")
      world.state.migrationObjects[key] = nil
    case 83..<90:
      guard let host = pick(hostNames) else { return }
      change(host) { $0.spec.drain.toggle() }
    case 90..<93: if let host = pick(hostNames) { die(host) }
    case 93..<97:
      // The word is given only where it is true.
      guard let host = pick(hostNames.filter({ world.servers[$0]?.isDead == true })) else { return }
      change(host) { $0.spec.powerCut = true }
    default: if let host = pick(hostNames) { await revive(host) }
    }
  }

  private func ask() async {
    guard let machine = pick(machineKeys) else { return }
    world.version += 1
    var metadata = ObjectMeta(name: "g\(world.version)", namespace: "t")
    metadata.generation = 1
    let target = world.random.chance(50) ? pick(hostNames) : nil
    world.trace("user asks for a move of \(machine) to \(target ?? "any")")
    try? await world.create(
      BareMetalMachineMigration(
        metadata: metadata,
        spec: .init(
          machineName: machine.name, targetHost: target, graceSeconds: world.random.chance(30) ? 0 : nil)))
  }

  private func change(_ host: String, _ body: (inout BareMetalHost) -> Void) {
    guard var object = world.state.hostObjects[host] else { return }
    body(&object)
    world.version += 1
    object.metadata.generation = (object.metadata.generation ?? 0) + 1
    object.metadata.resourceVersion = "\(world.version)"
    world.state.hostObjects[host] = object
    world.trace("operator, \(host): drain \(object.spec.drain), power cut \(object.spec.powerCut)")
  }

  /// The plug is pulled; what the DPU shows is what it shows again when it is put back.
  private func die(_ host: String) {
    guard var server = world.servers[host], !server.isDead else { return }
    world.trace("\(host) dies")
    server.isDead = true
    server.isOn = false
    server.pending = nil
    server.guestUpAt = nil
    world.servers[host] = server
  }

  /// The DPU is started before the server: its handler looks at what there is first.
  private func revive(_ host: String) async {
    guard world.servers[host]?.isDead == true else { return }
    world.trace("\(host) is back")
    change(host) { $0.spec.powerCut = false }
    world.servers[host]?.isDead = false
    world.servers[host]?.isBooting = true
    await handlers.first { $0.name == host }?.reconcile(fresh: true, crashPercent: 0)
    world.servers[host]?.isBooting = false
  }

  /// With the faults at an end, but the dead hosts still dead: operators say so, and their machines leave. Then they come
  /// back.
  func leaveDeadHosts(_ leader: SimulatedController) async {
    let held = hostNames.filter { world.state.hostObjects[$0]?.status?.claim != nil }
    if world.random.chance(60), let host = pick(held) { die(host) }
    for host in hostNames where world.servers[host]?.isDead == true { change(host) { $0.spec.powerCut = true } }
    await ask()
    for _ in 0..<80 {
      world.time += .milliseconds(500)
      await round(leader)
    }
    await healHosts()
  }

  func healHosts() async {
    for host in hostNames {
      await revive(host)
      change(host) {
        $0.spec.powerCut = false
        $0.spec.drain = false
      }
    }
  }

  func roundOfMigrations(_ leader: SimulatedController) async {
    for host in hostNames { await leader.drain(host) }
    leader.sync(all: true)
    for key in leader.cache.migrationObjects.keys.sorted() {
      leader.sync(all: true)
      await leader.reconcileMigration(key)
    }
  }

  /// What must not be when everything has come to rest.
  func migrationProblems() -> [String] {
    var problems: [String] = []
    for (key, migration) in world.state.migrationObjects.sorted(by: { $0.key < $1.key }) {
      let phase = migration.status?.phase
      let reason = migration.status?.reason ?? "none"
      let waits = phase == .pending && (reason == "NoHostFree" || reason == "AnotherFirst")
      // A machine that waits for its volume is not booted, and its migration not done.
      let machine = world.state.machines[migration.machineKey]
      let isStarting = phase == .starting && machine?.status?.bootedAt == nil
      if !migration.isFinished, !waits, !isStarting {
        problems.append("\(key) is \(phase?.rawValue ?? "none") (\(reason)): \(migration.status?.message ?? "")")
      }
    }
    for host in world.state.hostObjects.values.sorted(by: { $0.key < $1.key }) {
      if let left = host.status?.leftovers { problems.append("\(host.key.name) has leftovers: \(left.map(\.volume))") }
      let claims = world.state.hostObjects.values.filter { $0.status?.claim?.uid == host.status?.claim?.uid }
      if host.status?.claim != nil, claims.count > 1, !world.state.migrationObjects.values.contains(where: \.isUnderWay)
      {
        problems.append("\(host.key.name) and another host are held by one machine")
      }
    }
    return problems
  }
}
