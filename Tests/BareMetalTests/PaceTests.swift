import BareMetal
import IaaS
import Kubernetes
import TestSupport
import Testing

@Suite("What a large fleet is spared")
struct PaceTests {
  typealias Status = BareMetalMachine.Status
  static let key = ObjectKey(namespace: "t", name: "m")

  private func status(_ phase: BareMetalMachine.Phase, host: String? = nil, ready: Bool = false) -> Status {
    var status = Status()
    status.phase = phase
    status.host = host
    status.boot = 1
    var conditions: [Condition] = []
    conditions.set("Ready", Condition.Status(ready), reason: ready ? "Running" : "Starting", message: "m")
    status.conditions = conditions
    return status
  }

  @Test("Progress of one machine waits for more, at most a second; what others act on is written at once")
  func status() {
    var pace = StatusPace()
    func consider(_ old: Status?, _ new: Status, at milliseconds: Int) -> StatusPace.Verdict {
      pace.consider(Self.key, uid: "u", old: old, new: new, at: .milliseconds(milliseconds))
    }
    let pending = status(.pending)
    #expect(consider(nil, pending, at: 0) == .wait(.seconds(1)))
    #expect(consider(nil, pending, at: 400) == .wait(.milliseconds(600)), "the first news counts")
    #expect(consider(nil, pending, at: 1000) == .write)
    #expect(consider(pending, pending, at: 1001) == .nothing)

    let provisioning = status(.provisioning, host: "h")
    #expect(consider(pending, provisioning, at: 2000) == .wait(.seconds(1)), "its claim and attachments name the host")
    var starting = status(.starting, host: "h")
    #expect(consider(pending, starting, at: 2100) == .wait(.milliseconds(900)))
    starting.bootedAt = MicroTimestamp(microseconds: 1)
    #expect(consider(pending, starting, at: 2200) == .wait(.milliseconds(800)), "plans know of the boot all the same")
    #expect(consider(pending, starting, at: 3000) == .write)
    pace.notWritten(Self.key)
    #expect(consider(pending, starting, at: 3050) == .write, "what is refused does not wait from the beginning")
    #expect(consider(starting, starting, at: 3060) == .nothing)
    let moved = status(.provisioning, host: "other")
    #expect(consider(provisioning, moved, at: 2250) == .write, "of two hosts this is the one that counts")
    var secondBoot = provisioning
    secondBoot.boot = 2
    var hostless = secondBoot
    hostless.host = nil
    #expect(consider(provisioning, hostless, at: 2260) == .write)
    #expect(consider(starting, status(.running, host: "h", ready: true), at: 2300) == .write)

    var broken = provisioning
    broken.conditions?.set("Attached", .false, reason: "AttachFailed", message: "no such file")
    #expect(consider(provisioning, broken, at: 3000) == .write, "trouble is told at once")
    var told = broken
    told.conditions?.set("Attached", .false, reason: "Attaching", message: "again")
    #expect(consider(broken, told, at: 3100) == .write, "and that it is over")
    var next = starting
    next.boot = 2
    #expect(consider(starting, next, at: 3200) == .write)
    var second = next
    second.bootedAt = nil
    #expect(consider(second, next, at: 3250) == .write, "a later boot is one that somebody asked for and waits for")
    var generation = starting
    generation.observedGeneration = 2
    #expect(consider(starting, generation, at: 3300) == .wait(.seconds(1)), "the first one tells nobody anything")
    var later = generation
    later.observedGeneration = 3
    #expect(consider(generation, later, at: 3400) == .write)
  }

  @Test("The more machines have news of progress, the longer it waits, and trouble waits for none")
  func crowd() {
    var pace = StatusPace()
    func consider(_ number: Int, _ new: Status, at milliseconds: Int) -> StatusPace.Verdict {
      pace.consider(
        ObjectKey(namespace: "t", name: "m\(number)"), uid: "u\(number)", old: nil, new: new,
        at: .milliseconds(milliseconds))
    }
    let pending = status(.pending)
    for number in 0..<100 { _ = consider(number, pending, at: 0) }
    #expect(consider(0, pending, at: 1000) == .wait(.seconds(4)))
    for number in 100..<2000 { _ = consider(number, pending, at: 1000) }
    #expect(consider(0, pending, at: 2000) == .wait(.seconds(58)), "and no longer than that")
    #expect(consider(0, pending, at: 60_000) == .write)
    var running = status(.running, host: "h", ready: true)
    running.bootedAt = MicroTimestamp(microseconds: 1)
    #expect(consider(1, running, at: 2000) == .write)
    var broken = pending
    broken.conditions?.set("VolumesReady", .false, reason: "SourceNotFound", message: "no such claim")
    #expect(consider(2, broken, at: 2000) == .write)
    #expect(pace.isCrowded)
    for number in 3..<2000 { pace.forget(ObjectKey(namespace: "t", name: "m\(number)")) }
    #expect(consider(5, pending, at: 2000) == .wait(.seconds(1)), "when the others are done, it is as with one")
    #expect(!pace.isCrowded)
  }

  @Test("Where many start, a first start that goes as it should has no events; everything else has")
  func events() {
    func reasons(_ old: Status?, _ new: Status) -> [String] {
      machineEvents(from: old, to: new, isOneOfMany: true).map(\.reason)
    }
    let running = status(.running, host: "h", ready: true)
    let starting = status(.starting, host: "h")
    #expect(reasons(nil, starting).isEmpty && reasons(starting, running).isEmpty && reasons(nil, running).isEmpty)
    #expect(machineEvents(from: starting, to: running).map(\.reason) == ["Running"], "a single one is followed")
    var broken = starting
    broken.conditions?.set("Attached", .false, reason: "AttachFailed", message: "no such file")
    #expect(reasons(nil, broken) == ["AttachFailed"])
    #expect(reasons(broken, running) == ["Running"], "that trouble is over is news")
    #expect(reasons(running, status(.stopping, host: "h")) == ["Stopping"])
    #expect(reasons(status(.stopped, host: "h"), starting) == ["Starting"])
    var again = starting
    again.boot = 2
    var up = running
    up.boot = 2
    #expect(reasons(again, up) == ["Running"])
  }

  @Test("A moment that was seen is not lost by waiting, unless another machine has the name by now")
  func moments() {
    var pace = StatusPace()
    var seen = status(.pending)
    var timeline = BareMetalMachine.Timeline()
    timeline.applied = MicroTimestamp(microseconds: 10)
    timeline.volumesReady = MicroTimestamp(microseconds: 20)
    seen.timeline = timeline
    _ = pace.consider(Self.key, uid: "u", old: nil, new: seen, at: .zero)
    func machine(_ uid: String) -> BareMetalMachine {
      BareMetalMachine(metadata: ObjectMeta(name: "m", namespace: "t", uid: uid), spec: .init(disks: []))
    }
    #expect(pace.completed(machine("u")).status?.timeline?.applied?.microseconds == 10)
    #expect(pace.completed(machine("other")).status == nil)
    var written = machine("u")
    written.status = seen
    written.status?.timeline?.applied = MicroTimestamp(microseconds: 5)
    #expect(pace.completed(written).status?.timeline?.applied?.microseconds == 5, "what is written counts")
    pace.forget(Self.key)
    #expect(pace.completed(machine("u")).status == nil)

    seen.phase = .starting
    seen.host = "h"
    seen.bootedAt = MicroTimestamp(microseconds: 30)
    seen.timeline?.poweredOn = seen.bootedAt
    seen.timeline?.ownSeconds = 0.02
    #expect(pace.consider(Self.key, uid: "u", old: nil, new: seen, at: .zero) == .wait(.seconds(1)))
    let known = pace.completed(machine("u")).status
    #expect(known?.host == "h" && known?.boot == 1 && known?.bootedAt == seen.bootedAt)
    #expect(known?.timeline?.poweredOn == seen.bootedAt && known?.timeline?.ownSeconds == 0.02)
    var elsewhere = machine("u")
    elsewhere.status = status(.provisioning, host: "other")
    #expect(pace.completed(elsewhere).status?.bootedAt == nil, "it was seen on another host")
    var later = machine("u")
    later.status = status(.starting, host: "h")
    later.status?.boot = 2
    #expect(pace.completed(later).status?.bootedAt == nil, "that boot is over")
  }

  @Test("A handler reports what frees or holds up others at once, and devices that come a moment later")
  func reports() {
    var pace = ReportPace()
    var old = BareMetalHost.DPUStatus()
    old.ready = true
    #expect(pace.consider(old: nil, new: old, at: .zero) == .write)
    var more = old
    more.slots = [.init(name: "blk-00-v", kind: .disk)]
    #expect(pace.consider(old: old, new: more, at: .zero) == .wait(.seconds(2)))
    #expect(pace.consider(old: old, new: more, at: .milliseconds(1900)) == .wait(.milliseconds(100)))
    #expect(pace.consider(old: old, new: more, at: .seconds(2)) == .write)
    #expect(pace.consider(old: more, new: old, at: .seconds(2)) == .write, "a device that goes frees the host")
    var booted = more
    booted.boot = "b"
    booted.interfaces = [.init(name: "eth0", mac: "02:00:00:00:00:01")]
    #expect(pace.consider(old: more, new: booted, at: .seconds(3)) == .write)
    var leased = booted
    leased.interfaces?[0].address = "192.0.2.1"
    leased.interfaces?[0].leasedAt = MicroTimestamp(microseconds: 1)
    #expect(pace.consider(old: booted, new: leased, at: .seconds(4)) == .wait(.seconds(2)))
    leased.interfaces?[0].reachable = true
    #expect(pace.consider(old: booted, new: leased, at: .milliseconds(4300)) == .write, "with the ping it is whole")
    var silent = leased
    silent.ready = false
    #expect(pace.consider(old: leased, new: silent, at: .seconds(5)) == .write)
  }

  private func host(_ name: String, held: Bool = false, labels: [String: String] = [:]) -> BareMetalHost {
    var metadata = ObjectMeta(name: name)
    metadata.labels = labels
    metadata.finalizers = [Names.claimFinalizer]
    var host = BareMetalHost(
      metadata: metadata,
      spec: .init(bmc: .init(address: "redfish://b", credentialsSecretRef: .init(name: "s")), dpu: .init(node: "d")))
    var status = BareMetalHost.Status()
    status.phase = held ? .claimed : .available
    status.claim = held ? .init(namespace: "t", name: "m", uid: "u") : nil
    status.dpu = .init()
    status.dpu?.ready = true
    var conditions: [Condition] = []
    conditions.set("BMCReachable", .true, reason: "Answers", message: "")
    conditions.set("DPUReady", .true, reason: "Ready", message: "")
    status.conditions = conditions
    host.status = status
    return host
  }

  @Test("The host that is found without looking at most of them is the one that a look at all of them would give")
  func bestOfMany() {
    var random = SeededGenerator(seed: 5)
    var (placed, waiting) = (0, 0)
    for round in 0..<300 {
      let hosts = (0..<Int.random(in: 0...12, using: &random)).map { number in
        let rack = Bool.random(using: &random) ? "a" : "b"
        var host = host("h\(number)", held: Int.random(in: 0..<3, using: &random) > 0, labels: ["rack": rack])
        if Int.random(in: 0..<4, using: &random) == 0 { host.spec.maintenance = true }
        if Int.random(in: 0..<4, using: &random) == 0 { host.spec.taints = [.init(key: "gpu", effect: "NoSchedule")] }
        return host
      }
      var spec = BareMetalMachine.Spec(disks: [])
      if Bool.random(using: &random) { spec.hostSelector = .init(matchLabels: ["rack": "a"]) }
      let machine = BareMetalMachine(
        metadata: ObjectMeta(name: "m", namespace: "t", uid: "uid-\(round)"), spec: spec)
      let unheld = hosts.filter { $0.status?.claim == nil }.compactMap(\.metadata.name).shuffled(using: &random)
      let best = Scheduler.best(for: machine, among: unheld) { name in hosts.first { $0.metadata.name == name } }
      switch Scheduler.decide(machine, hosts: hosts) {
      case .place(let name):
        placed += 1
        #expect(best?.metadata.name == name)
      case .wait:
        waiting += 1
        #expect(best == nil)
      }
    }
    #expect(placed > 50 && waiting > 50, "\(placed) placed, \(waiting) waiting")
  }

  @Test("A host that becomes free wakes a few of those that may have it, and no other change wakes anybody")
  func invitations() {
    let waiting = (0..<1000).map { number in
      var spec = BareMetalMachine.Spec(disks: [])
      if number == 7 { spec.hostName = "other" }
      if number == 8 { spec.hostSelector = .init(matchLabels: ["rack": "b"]) }
      return BareMetalMachine(
        metadata: ObjectMeta(name: "m\(number)", namespace: "t", uid: "uid-\(number)"), spec: spec)
    }
    let free = host("h1", labels: ["rack": "a"])
    let invited = Scheduler.invited(waiting, to: free)
    #expect(invited.count == Scheduler.invitedMax)
    #expect(invited == Scheduler.invited(waiting.shuffled(), to: free), "the same ones whatever the order")
    #expect(Set(invited) != Set(Scheduler.invited(waiting, to: host("h2"))), "others for another host")
    #expect(Scheduler.invited([waiting[7], waiting[8]], to: free).isEmpty)
    #expect(Scheduler.invited([waiting[8]], to: host("h3", labels: ["rack": "b"])) == [waiting[8].key])

    #expect(Scheduler.isInviting(free, before: nil))
    #expect(Scheduler.isInviting(free, before: host("h1", held: true)))
    #expect(!Scheduler.isInviting(host("h1", held: true), before: free))
    var report = free
    report.status?.powerReadAt = .now()
    #expect(!Scheduler.isInviting(report, before: free), "a reading of its power is nothing to those who wait")
    var relabelled = free
    relabelled.metadata.labels = ["rack": "b"]
    #expect(Scheduler.isInviting(relabelled, before: free))
  }
}
