import BMC
import BareMetal
import DPU
import IaaS
import JSON
import Kubernetes
import Logging

/// One bm-controller with its own, possibly old, picture of the cluster and its own memory of power.
final class SimulatedController {
  let world: World
  var cache = Snapshot()
  var trackers: [String: PowerTracker] = [:]
  private var pace = StatusPace()
  /// Whether it may die in the middle of a plan.
  var crashPercent = 0
  private var quiet: Logger

  init(world: World) {
    self.world = world
    quiet = Logger(label: "simulation", factory: { _ in SwiftLogNoOpLogHandler() })
  }

  /// Watches deliver each kind at its own pace.
  func sync(all: Bool) {
    guard !world.isAPIServerAway else { return }
    let fresh = world.state
    if all || world.random.chance(70) { cache.machines = fresh.machines }
    if all || world.random.chance(70) { cache.hostObjects = fresh.hostObjects }
    if all || world.random.chance(70) { cache.claimObjects = fresh.claimObjects }
    if all || world.random.chance(70) { cache.attachmentObjects = fresh.attachmentObjects }
    if all || world.random.chance(70) { cache.secrets = fresh.secrets }
    guard world.hasMigrations else { return }
    if all || world.random.chance(70) { cache.migrationObjects = fresh.migrationObjects }
  }

  func power(_ host: String) -> PowerView {
    guard let tracker = trackers[host] else { return PowerView() }
    if world.servers[host]?.isDead == true {
      return PowerView(wantsOn: tracker.wish == .on, problem: "the BMC does not answer")
    }
    guard tracker.age(at: world.time) != nil else { return PowerView(wantsOn: tracker.wish == .on) }
    return PowerView(
      power: BareMetalHost.Power(tracker.power),
      confirmedOff: tracker.isConfirmedOff(at: world.time, freshness: .seconds(60)),
      fencedOff: tracker.isFencedOff(at: world.time, freshness: .seconds(60)), wantsOn: tracker.wish == .on)
  }

  private func executor(_ box: WishBox) -> StepExecutor {
    StepExecutor(cluster: world, logger: quiet, setPower: { host, wish in box.wishes.append((host, wish)) })
  }

  private func take(_ box: WishBox) {
    for (host, wish) in box.wishes { _ = trackers[host, default: PowerTracker()].want(wish) }
  }

  func reconcile(_ key: ObjectKey) async {
    await collect(key, uid: cache.machines[key]?.metadata.uid)
    guard var machine = cache.machines[key] else { return }
    guard let uid = machine.metadata.uid else { return }
    func view() -> MachineView {
      MachineView(
        of: pace.completed(machine), in: cache, power: { self.power($0) }, userData: .text("#cloud-config\n"),
        shutdownGrace: .seconds(2), now: world.now)
    }
    var plan = plan(view())
    do {
      if plan.steps == [.addFinalizer] {
        machine = try await world.addFinalizer(to: machine)
        plan = BareMetal.plan(view())
      }
      if plan.steps == [.removeFinalizer] { return try await world.removeFinalizer(from: machine) }
    } catch { return }
    let box = WishBox()
    let executor = executor(box)
    for step in plan.steps.shuffled(using: &world.random) {
      if crashPercent > 0, world.random.chance(crashPercent) { return }
      world.trace("controller, \(key): \(step.summary)")
      try? await executor.execute(step, key: key, uid: uid)
      world.check()
    }
    take(box)
    guard
      pace.consider(key, uid: uid, old: machine.status, new: plan.status, at: world.time) == .write,
      let old = try? MergePatch.json(machine.status),
      let new = try? MergePatch.json(plan.status),
      let patch = MergePatch.difference(from: old, to: new)
    else { return }
    do { try await world.patchStatus(of: machine, patch) } catch { pace.notWritten(key) }
  }

  private func collect(_ key: ObjectKey, uid: String?) async {
    let attachments = cache.attachments(madeFor: key)
    guard let steps = try? await leftBehind(by: key, uid: uid, attachments: attachments, cluster: world) else { return }
    for step in steps {
      world.trace("controller, left by \(key): \(step.summary)")
      try? await executor(WishBox()).execute(step, key: key, uid: "")
      world.check()
    }
  }

  func reconcileHost(_ name: String) async {
    guard let host = cache.hostObjects[name] else { return }
    var view = HostView(host: host, now: world.now)
    view.power = power(name)
    view.bmcAnswered = trackers[name]?.age(at: world.time) != nil
    view.attachments = cache.attachments(onHost: name)
    view.bootData = cache.bootData(host: name)
    if world.hasMigrations { view.handlerAlive = world.servers[name]?.isDead != true }
    if let claim = host.status?.claim { view.claimantExists = world.state.machine(uid: claim.uid) != nil }
    for attachment in view.attachments where world.state.machine(uid: attachment.machineUID ?? "") == nil {
      view.orphans.insert(attachment.metadata.uid ?? "")
    }
    let plan = BareMetal.plan(view)
    do {
      if plan.addFinalizer { try await world.addFinalizer(to: host) }
      if plan.removeFinalizer { return try await world.removeFinalizer(from: host) }
    } catch { return }
    let box = WishBox()
    let executor = executor(box)
    for step in plan.steps {
      world.trace("controller, host \(name): \(step.summary)")
      try? await executor.execute(step, key: host.key, uid: host.status?.claim?.uid ?? "")
      world.check()
    }
    take(box)
    guard plan.status != host.status, var old = try? MergePatch.json(host.status),
      var new = try? MergePatch.json(plan.status)
    else { return }
    for member in ["dpu", "claim"] {
      old[member] = nil
      new[member] = nil
    }
    guard let patch = MergePatch.difference(from: old, to: new) else { return }
    try? await world.patchStatus(of: host, patch, locked: true)
  }

  func tickPower(_ host: String) {
    guard var server = world.servers[host], cache.hostObjects[host] != nil, !server.isUnreachable, !server.isDead
    else { return }
    server.advance(to: world.time)
    let isLying = server.isOn && world.time < server.liesUntil
    let reading: PowerState = server.isOn && !isLying ? .on : .off
    var tracker = trackers[host] ?? PowerTracker()
    if case .command(let action, _) = tracker.observe(reading, at: world.time) {
      world.trace("power of \(host): commands \(action)")
      // A command can be refused, and an answer can be lost although the command was carried out.
      let fate = world.faultPercent > 0 ? Int.random(in: 0..<100, using: &world.random) : 100
      if fate < world.faultPercent {
        world.trace("power of \(host): the command failed")
        tracker.failed(action, at: world.time, isTransient: true)
        trackers[host] = tracker
        world.servers[host] = server
        return
      }
      // The BMC takes a while, and some say off long before it is true.
      let delay = Duration.milliseconds(Int.random(in: 0...4000, using: &world.random))
      switch action {
      case .on:
        server.pending = (true, world.time + delay)
        server.liesUntil = .zero
      case .gracefulShutdown where world.random.chance(50): break
      default:
        server.pending = (false, world.time + delay)
        if server.isOn, world.random.chance(50) { server.liesUntil = world.time + .seconds(5) }
      }
      if fate < 2 * world.faultPercent {
        world.trace("power of \(host): the answer was lost")
        tracker.failed(action, at: world.time, isTransient: true)
      } else {
        tracker.accepted()
      }
    }
    world.trace("power of \(host): reads \(reading), is \(server.isOn ? "on" : "off"), wanted \(tracker.wish)")
    trackers[host] = tracker
    world.servers[host] = server
  }
}

final class WishBox: @unchecked Sendable {
  var wishes: [(String, PowerWish)] = []
}

/// bm-handler of one host, over the simulated DPU; what it decides is the real plan.
final class SimulatedHandler {
  let world: World
  let name: String
  var cache = Snapshot()
  /// False where removing a disk from a running server is no fault: its host object was torn away.
  var mayYank = false

  init(world: World, name: String) {
    self.world = world
    self.name = name
  }

  private func view() -> HandlerView {
    var view = HandlerView(host: cache.hostObjects[name], volumesDirectory: "/pool")
    view.seedDirectory = "/seed"
    view.attachments = cache.attachments(onHost: name)
    view.bootData = cache.secrets[name].flatMap { try? BootData($0) }
    if let data = HandlerPlan.effectiveBootData(view.bootData, host: view.host) {
      view.seedFile = "/seed/\(data.machineUID)"
    }
    readBack(&view)
    return view
  }

  private func readBack(_ view: inout HandlerView) {
    let server = world.servers[name] ?? Server()
    view.volumes = server.volumes.values.sorted { $0.name < $1.name }
    view.functions = server.functions.values.sorted { $0.name < $1.name }
    view.interfaces = server.interfaces
  }

  func reconcile(fresh: Bool, crashPercent: Int) async {
    guard world.servers[name]?.isDead != true else { return }
    if fresh || (!world.isAPIServerAway && world.random.chance(70)) { cache = world.state }
    var view = view()
    for step in HandlerPlan.steps(view) {
      if crashPercent > 0, world.random.chance(crashPercent) { return }
      apply(step)
      world.check()
    }
    readBack(&view)
    for attachment in view.attachments { try? await report(attachment, view) }
    guard view.host != nil, var server = world.servers[name] else { return }
    server.advance(to: world.time)
    world.servers[name] = server
    var status = BareMetalHost.DPUStatus()
    status.ready = true
    status.boot = HandlerPlan.bootInEffect(view)
    var slots = view.functions.map {
      BareMetalHost.Slot(name: $0.name, kind: $0.name == Names.seedFunction ? .seed : .disk, volume: $0.volume)
    }
    slots += view.interfaces.map {
      BareMetalHost.Slot(name: Names.networkFunction(index: $0.index, interface: $0.name), kind: .nic)
    }
    status.slots = slots.isEmpty ? nil : slots
    if status.boot != nil {
      let isUp = server.isOn && (server.guestUpAt.map { $0 <= world.time } ?? false)
      status.interfaces = followed(view).map { interface in
        BareMetalHost.Interface(
          name: interface.name, mac: interface.mac, address: isUp ? "192.0.2.1" : nil, reachable: isUp ? true : nil)
      }
    }
    if status != cache.hostObjects[name]?.status?.dpu { try? await world.report(status, host: name) }
  }

  /// The interfaces that are looked for in the guest: without boot data those of before.
  private func followed(_ view: HandlerView) -> [GuestInterface] {
    switch HandlerPlan.bootWish(view.bootData, host: view.host) {
    case .show(let data): data.interfaces
    case .keep: (view.host?.status?.dpu?.interfaces ?? []).map { GuestInterface(name: $0.name, mac: $0.mac) }
    case .remove: []
    }
  }

  private func report(_ attachment: VolumeAttachment, _ view: HandlerView) async throws {
    if attachment.metadata.isBeingDeleted {
      if HandlerPlan.isGone(volume: attachment.volume, volumes: view.volumes, functions: view.functions) {
        try await world.removeFinalizer(from: attachment)
      }
    } else if HandlerPlan.isShown(attachment, functions: view.functions),
      HandlerPlan.objection(to: attachment, host: view.host) == nil, !attachment.isAttached
    {
      try await world.patchStatus(of: attachment, ["attached": true])
    }
  }

  private func apply(_ step: HandlerStep) {
    world.trace("handler of \(name): \(step)")
    guard var server = world.servers[name] else { return }
    server.advance(to: world.time)
    switch step {
    case .unplug(let function, _):
      guard server.isOn, let shown = server.functions[function] else {
        server.functions[function] = nil
        break
      }
      if !mayYank, !world.isRemoved(shown.volume, from: name) {
        world.violations.append("\(name): \(function) was taken from a running server")
      }
      // A guest lets go at once, after a while, or never.
      let pause = [Duration.zero, .seconds(8), .seconds(1_000_000)].randomElement(using: &world.random) ?? .zero
      server.leaving[function] = server.leaving[function] ?? world.time + pause
      server.advance(to: world.time)
    case .deleteVolume(let volume):
      guard !server.functions.values.contains(where: { $0.volume == volume }) else { return }
      server.volumes[volume] = nil
    case .createVolume(let volume, let file, let readOnly, _):
      server.volumes[volume] = BlockVolume(name: volume, file: file, blockSize: 512, blockCount: 1, readOnly: readOnly)
    case .limitVolume(let volume, let limits): server.volumes[volume]?.limits = limits
    case .growVolume(let volume, let bytes): server.volumes[volume]?.blockCount = bytes / 512
    case .plug(let function, let volume, let readOnly):
      // What is on its way out is no place for something new.
      guard server.volumes[volume] != nil, server.leaving[function] == nil else { return }
      server.functions[function] = BlockFunction(name: function, volume: volume, readOnly: readOnly)
    case .unplugInterface(let interface):
      if server.isOn, !mayYank, !world.removed.contains(interface.name) {
        world.violations.append("\(name): interface \(interface.name) was taken from a running server")
      }
      server.interfaces.removeAll { $0.index == interface.index }
    case .plugInterface(let index, let interface):
      server.interfaces.removeAll { $0.index == index }
      server.interfaces.append(
        PluggedInterface(index: index, name: interface.name, mac: interface.mac, tap: "t\(index)"))
    }
    world.servers[name] = server
  }
}
