import BareMetal
import IaaS
import Kubernetes
import Testing

/// What is decided for a migration, and for the machine that moves.
@Suite("Migration plans")
struct MigrationPlanTests {
  typealias Migration = BareMetalMachineMigration

  let base = PlannerTests()
  var now: MicroTimestamp { base.now }

  func machine(on host: String? = "h", booted: Bool = true) -> BareMetalMachine {
    base.machine {
      var status = BareMetalMachine.Status()
      status.host = host
      status.boot = 1
      status.bootedAt = booted ? now : nil
      $0.status = status
    }
  }

  func migration(
    to target: String? = nil, phase: Migration.Phase? = nil, chosen: String? = nil, name: String = "go"
  ) -> Migration {
    var migration = Migration(
      metadata: ObjectMeta(name: name, namespace: "n"), spec: .init(machineName: "m", targetHost: target))
    guard let phase else { return migration }
    var status = Migration.Status()
    status.phase = phase
    status.machineUID = "u"
    status.sourceHost = "h"
    status.targetHost = chosen
    migration.status = status
    return migration
  }

  func status(
    _ migration: Migration, machine: BareMetalMachine?, hosts: [BareMetalHost],
    _ change: (inout MigrationView) -> Void = { _ in }
  ) -> Migration.Status {
    var view = MigrationView(migration: migration, now: now)
    view.machine = machine
    view.hosts = hosts
    change(&view)
    return plan(view)
  }

  @Test("A free host is chosen before anything happens to the machine")
  func chooses() {
    let source = base.host(claimedBy: "u")
    let status = status(migration(), machine: machine(), hosts: [source, base.host("t")])
    #expect(status.phase == .reserving)
    #expect(status.targetHost == "t" && status.sourceHost == "h")
    #expect(status.beyondReturn != true)
    var view = base.prepared(machine(), power: .on)
    view.hosts.append(base.host("t"))
    view.move = MachineMove(migration: "go", target: "t")
    let plan = plan(view)
    #expect(plan.steps == [.claimHost("t")], "the machine goes on until the target is held")
    #expect(plan.status.bootedAt != nil)
  }

  @Test("Where no host is free the migration waits, and changes nothing")
  func waits() {
    let status = status(
      migration(), machine: machine(), hosts: [base.host(claimedBy: "u"), base.host("t", claimedBy: "x")])
    #expect(status.phase == .pending && status.reason == "NoHostFree")
    #expect(MachineMove(ofMachine: "u", among: [migration(phase: .pending)]) == nil)
  }

  @Test("What can never work is refused with a reason")
  func refuses() {
    let source = base.host(claimedBy: "u")
    func reason(
      _ migration: Migration, hosts: [BareMetalHost] = [], _ change: (inout BareMetalMachine) -> Void = { _ in }
    ) -> String? {
      var machine = machine()
      change(&machine)
      let result = status(migration, machine: machine, hosts: [source] + hosts)
      return result.phase == .failed ? result.reason : nil
    }
    #expect(reason(migration(to: "h")) == "AlreadyThere")
    #expect(reason(migration(to: "none")) == "HostNotFound")
    #expect(reason(migration(to: "t"), hosts: [base.host("t")]) { $0.spec.hostName = "h" } == "Pinned")
    #expect(
      reason(migration(to: "t"), hosts: [base.host("t")]) { $0.spec.hostSelector = .init(matchLabels: ["a": "b"]) }
        == "NotSelected")
    #expect(reason(migration(), hosts: [base.host("t")]) { $0.status?.host = nil } == "NoHost")
    #expect(reason(migration(), hosts: [base.host("t")]) { $0.status?.host = "lost" } == "HostLost")
    #expect(reason(migration(), hosts: [base.host("t")]) { $0.metadata.deletionTimestamp = .now() } == "MachineDeleted")
    #expect(reason(migration(), hosts: [base.host("t")]) { $0.spec.disks = [] } == "MachineInvalid")
    #expect(status(migration(), machine: nil, hosts: []).reason == "MachineNotFound")
  }

  @Test("A host of another architecture, boot mode or with less memory is not taken")
  func misfits() {
    var source = base.host(claimedBy: "u")
    var hardware = BareMetalHost.Hardware()
    hardware.cpu = .init(architecture: "x86_64")
    hardware.firmwareMode = "UEFI"
    hardware.memoryMiB = 1024
    source.status?.hardware = hardware
    func target(_ change: (inout BareMetalHost.Hardware) -> Void) -> BareMetalHost {
      var host = base.host("t")
      change(&hardware)
      host.status?.hardware = hardware
      return host
    }
    let arm = target { $0.cpu = .init(architecture: "aarch64") }
    #expect(status(migration(), machine: machine(), hosts: [source, arm]).phase == .pending)
    #expect(status(migration(to: "t"), machine: machine(), hosts: [source, arm]).reason == "DoesNotFit")
    let legacy = target {
      $0.cpu = .init(architecture: "x86_64")
      $0.firmwareMode = "Legacy"
    }
    #expect(status(migration(to: "t"), machine: machine(), hosts: [source, legacy]).reason == "DoesNotFit")
    let small = target {
      $0.firmwareMode = "UEFI"
      $0.memoryMiB = 512
    }
    #expect(status(migration(), machine: machine(), hosts: [source, small]).phase == .pending)
    #expect(status(migration(to: "t"), machine: machine(), hosts: [source, small]).phase == .reserving)
  }

  @Test("One migration of a machine at a time: the one that holds a target, then the older one")
  func oneAtATime() {
    let hosts = [base.host(claimedBy: "u"), base.host("t")]
    let active = migration(phase: .moving, chosen: "t", name: "z")
    let waiting = status(migration(name: "a"), machine: machine(), hosts: hosts) { $0.others = [active] }
    #expect(waiting.phase == .pending && waiting.reason == "AnotherFirst")
    let first = status(migration(name: "a"), machine: machine(), hosts: hosts) { $0.others = [migration(name: "b")] }
    #expect(first.phase == .reserving)
    let reserving = migration(phase: .reserving, chosen: "t", name: "b")
    let beaten = status(reserving, machine: machine(), hosts: hosts) { $0.others = [migration(name: "a")] }
    #expect(beaten.phase == .pending && beaten.targetHost == nil)
  }

  /// The machine with its target held.
  func moving(power: PowerView, _ change: (inout MachineView) -> Void = { _ in }) -> MachinePlan {
    var view = base.prepared(machine(), power: power.power)
    view.power = ["h": power, "t": PowerView(power: .off)]
    view.hosts.append(base.host("t", claimedBy: "u"))
    view.move = MachineMove(migration: "go", target: "t", grace: .seconds(7))
    change(&view)
    return plan(view)
  }

  @Test("With the target held the source is turned off, and nothing is taken from it before that is proven")
  func fence() {
    let stopping = moving(power: PowerView(power: .on))
    #expect(stopping.steps == [.power(host: "h", .off(grace: .seconds(7)))])
    #expect(stopping.status.phase == .stopping)
    let read = moving(power: PowerView(power: .off, confirmedOff: true))
    #expect(read.steps == [.power(host: "h", .off(grace: .seconds(7)))], "a reading is no fence")
    let off = moving(power: PowerView(power: .off, confirmedOff: true, fencedOff: true))
    #expect(off.steps == [.deleteAttachment("ycloud-pvc-c", uid: "a")])
    #expect(off.status.bootedAt == nil && off.status.boot == 2)
    #expect(off.status.host == "h", "the source counts until it is given back")
  }

  @Test("The source is given back only while the target is held, and then the target counts")
  func release() {
    let off = PowerView(power: .off, confirmedOff: true, fencedOff: true)
    let cleared = moving(power: off) {
      $0.attachments = []
      $0.bootData = [:]
      $0.hosts[0] = base.host(claimedBy: "u")
    }
    #expect(cleared.steps == [.releaseHost("h", unlessLast: "t")])
    let there = moving(power: off) {
      $0.attachments = []
      $0.bootData = [:]
      $0.hosts = [base.host(), base.host("t", claimedBy: "u")]
    }
    #expect(there.status.host == "t")
    #expect(there.status.bootedAt == nil, "a boot on one host is none on another")
    #expect(there.steps.contains { if case .createAttachment = $0 { true } else { false } })
  }

  @Test("A migration that is deleted before the source is given back gives the target back, not the source")
  func cancelled() {
    let plan = moving(power: PowerView(power: .on)) {
      $0.move = nil
      $0.power["t"] = PowerView(power: .off, confirmedOff: true, fencedOff: true)
    }
    #expect(plan.steps == [.releaseHost("t", unlessLast: "h")])
    #expect(plan.status.host == "h" && plan.status.bootedAt != nil)
  }

  @Test("A target that fails before anything was moved ends the migration, and the machine stays")
  func targetFails() {
    var target = base.host("t", claimedBy: "u")
    target.status?.conditions?.set(BareMetalHost.ConditionType.dpuReady, .false, reason: "HandlerSilent", message: "")
    let result = status(
      migration(phase: .stopping, chosen: "t"), machine: machine(), hosts: [base.host(claimedBy: "u"), target])
    #expect(result.phase == .failed && result.reason == "TargetFailed")
    let lost = status(
      migration(phase: .moving, chosen: "t"), machine: machine(), hosts: [base.host(claimedBy: "u"), base.host("t")])
    #expect(lost.phase == .failed && lost.reason == "TargetLost")
    #expect(lost.beyondReturn != true)
  }

  @Test("It is beyond return when the source is given back, and done when the target is on")
  func done() {
    let hosts = [base.host(), base.host("t", claimedBy: "u")]
    let starting = status(
      migration(phase: .moving, chosen: "t"), machine: machine(on: "t", booted: false), hosts: hosts)
    #expect(starting.phase == .starting && starting.beyondReturn == true)
    let done = status(migration(phase: .starting, chosen: "t"), machine: machine(on: "t"), hosts: hosts)
    #expect(done.phase == .succeeded && done.timeline?.poweredOn != nil)
    var stopped = machine(on: "t", booted: false)
    stopped.spec.running = false
    #expect(status(migration(phase: .moving, chosen: "t"), machine: stopped, hosts: hosts).phase == .succeeded)
  }
}

@Suite("Limits of phases")
struct PhaseClockTests {
  @Test("A machine counts as overdue when it is longer in one phase than that has, and no longer")
  func overdue() {
    var clock = PhaseClock()
    let key = ObjectKey(namespace: "n", name: "m")
    clock.observe(key, .provisioning, at: .zero)
    clock.observe(key, .provisioning, at: .seconds(200))
    #expect(clock.overdue(at: .seconds(299))[.provisioning] == 0)
    #expect(clock.overdue(at: .seconds(301))[.provisioning] == 1)
    clock.observe(key, .starting, at: .seconds(301))
    #expect(clock.overdue(at: .seconds(302)).values.allSatisfy { $0 == 0 })
    clock.observe(key, .running, at: .seconds(303))
    #expect(clock.overdue(at: .seconds(100_000)).values.allSatisfy { $0 == 0 }, "it may run for ever")
    clock.observe(key, .deleting, at: .seconds(100_000))
    clock.observe(key, nil, at: .seconds(100_001))
    #expect(clock.overdue(at: .seconds(200_000)).values.allSatisfy { $0 == 0 })
  }
}

/// How hosts are emptied, and what an operator's word does.
@Suite("Drains and dead hosts")
struct DrainPlanTests {
  let base = PlannerTests()

  func host(drain: Bool = true, cut: Bool = false, silent: Bool = false) -> BareMetalHost {
    var host = base.host(claimedBy: "u")
    host.spec.drain = drain
    host.spec.powerCut = cut
    if silent {
      host.status?.conditions?.set(BareMetalHost.ConditionType.dpuReady, .false, reason: "HandlerSilent", message: "")
    }
    return host
  }

  func view(_ change: (inout DrainView) -> Void = { _ in }) -> DrainView {
    var view = DrainView(host: host())
    view.machine = base.machine()
    view.hosts = 20
    change(&view)
    return view
  }

  @Test("A drained host's machine gets one migration, within the limits")
  func limits() {
    guard case .create(let made)? = plan(view()).step else {
      Issue.record("no migration is made")
      return
    }
    #expect(made.spec.machineName == "m" && made.metadata.labels?[Names.evacuatedHostLabel] == "h")
    #expect(plan(view { $0.underWay = 4 }).step == nil)
    #expect(plan(view { $0.underWay = 4 }).condition?.reason == "WaitsForTurn")
    #expect(plan(view { $0.troubledHosts = 5 }).step != nil)
    let troubled = plan(view { $0.troubledHosts = 6 })
    #expect(troubled.step == nil && troubled.condition?.reason == "FleetTroubled")
    #expect(plan(view { $0.host.spec.drain = false }).condition == nil)
    #expect(plan(view { $0.host.status?.claim = nil }).condition?.holds == true)
  }

  @Test("A migration that failed is not made again and again, and one of an earlier time is replaced")
  func again() {
    guard case .create(var made)? = plan(view()).step else { return }
    made.metadata.uid = "g"
    var status = BareMetalMachineMigration.Status()
    status.phase = .failed
    status.reason = "Pinned"
    status.message = "pinned"
    made.status = status
    let failed = plan(view { $0.migration = made })
    #expect(failed.step == nil && failed.condition?.reason == "Pinned")
    let later = plan(
      view {
        $0.migration = made
        $0.host.metadata.generation = 9
      })
    #expect(later.step == .delete(made.key, uid: "g"))
  }

  func evacuation(_ host: BareMetalHost, power: PowerView, deleted: Bool = true) -> Evacuation {
    var attachment = base.attachment()
    if deleted { attachment.metadata.deletionTimestamp = .now() }
    return evacuate(
      hostName: "h", host: host, uid: "u", attachments: [attachment], bootData: nil, power: power, grace: .zero)
  }

  @Test(
    "Only an operator's word and a silent DPU together let an attachment go without the DPU, and it is written down")
  func word() {
    let unknown = PowerView(power: .unknown, problem: "the BMC does not answer")
    #expect(evacuation(host(), power: unknown, deleted: false).steps == [.power(host: "h", .off(grace: .zero))])
    let awake = evacuation(host(cut: true), power: unknown)
    #expect(awake.steps == [], "a DPU that gives signs of life is asked")
    let first = evacuation(host(cut: true, silent: true), power: unknown)
    #expect(first.steps == [.noteLeftovers(host: "h", volumes: ["pvc-c"], machine: "n/m")])
    var noted = host(cut: true, silent: true)
    noted.status?.leftovers = [.init(volume: "pvc-c", machine: "n/m", since: .now())]
    #expect(evacuation(noted, power: unknown).steps == [.waiveAttachment("ycloud-pvc-c", uid: "a", host: "h")])
    let contradicted = evacuation(noted, power: PowerView(power: .on), deleted: false)
    #expect(contradicted.steps == [.power(host: "h", .off(grace: .zero))], "a BMC that reads on counts more")
  }

  @Test("A host with leftovers takes no machine, until its DPU has come back and shows none")
  func leftovers() {
    var back = base.host()
    back.status?.leftovers = [.init(volume: "pvc-c", machine: "n/m", since: .now())]
    #expect(Scheduler.objection(to: back, for: base.machine())?.contains("pvc-c") == true)
    func left(_ change: (inout HostView) -> Void) -> Int {
      var view = HostView(host: back, now: base.now)
      change(&view)
      return plan(view).status.leftovers?.count ?? 0
    }
    #expect(left { $0.handlerAlive = nil } == 1)
    #expect(left { $0.handlerAlive = true } == 0)
    #expect(
      left {
        $0.handlerAlive = true
        $0.host.status?.dpu?.slots = [.init(name: "blk-01-pvc-c", kind: .disk, volume: "pvc-c")]
      } == 1)
    #expect(
      left {
        $0.handlerAlive = true
        $0.host.spec.powerCut = true
      } == 1)
  }

  @Test("A function that nobody asked for is told, and keeps machines away")
  func drift() {
    var view = HostView(host: base.host(), now: base.now)
    view.host.status?.dpu?.slots = [.init(name: "blk-01-pvc-c", kind: .disk, volume: "pvc-c")]
    let type = BareMetalHost.ConditionType.noDrift
    #expect(plan(view).status.conditions?.condition(type) == nil, "its own are repaired by the handler")
    view.host.status?.dpu?.slots = [.init(name: "evil", kind: .disk, volume: "v")]
    let condition = plan(view).status.conditions?.condition(type)
    #expect(condition?.status == .false && condition?.message.contains("'evil'") == true)
    #expect(Scheduler.objection(to: view.host, for: base.machine())?.contains("evil") == true)
  }

  @Test("A machine that is deleted by force goes with what could not be given back, and says what that is")
  func forced() {
    var view = base.prepared(base.machine { $0.metadata.deletionTimestamp = .now() }, power: .unknown)
    #expect(plan(view).steps == [.power(host: "h", .off(grace: .zero))])
    view.machine.metadata.annotations = [Names.forceDeleteAnnotation: "true"]
    let forced = plan(view)
    #expect(forced.steps == [.removeFinalizer], "neither the claim nor an attachment is touched")
    #expect(forced.status.message?.contains("the claim of h") == true)
    #expect(forced.status.message?.contains("pvc-c") == true)
  }
}
