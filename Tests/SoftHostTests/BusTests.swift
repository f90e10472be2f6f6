import SoftHost
import Testing
import TestSupport

@Suite struct BusFunctionTests {
  @Test func namesInTheBusDirectory() {
    #expect(BusFunction.entry("blk-00-pvc-1") == .disk(id: "blk-00-pvc-1", order: 0))
    #expect(BusFunction.entry("blk-99-seed") == .disk(id: "blk-99-seed", order: 99))
    #expect(BusFunction.entry("nic-01-eth0.json") == .nic(id: "nic-01-eth0", order: 1))
    for name in [
      "", ".", "blk", "blk-1-a", "blk-001-a", "blk-aa-x", "blk-00-", "blk-00", "nic-00-x", "nic-00-x.json.tmp",
      ".nic-00-x.json", "blk-00-a b", "blk-00-a,b", "blk-00-\u{e9}", "disk-00-x", "blk-+1-a",
      "blk-00-" + String(repeating: "a", count: 200),
    ] {
      #expect(BusFunction.entry(name) == nil, "\(name)")
    }
  }

  @Test func networkCards() throws {
    let card = try BusFunction.nic(
      id: "nic-00-a", order: 0, content: Array(#"{"mac": "02:AB:00:00:00:01", "tap": "yc0-t1"}"#.utf8))
    #expect(card.kind == .nic(mac: "02:ab:00:00:00:01", tap: "yc0-t1"))
    for text in [
      "", "[]", "{}", #"{"mac":"02:00:00:00:00:01"}"#, #"{"mac":"01:00:00:00:00:01","tap":"t"}"#,
      #"{"mac":"00:00:00:00:00:00","tap":"t"}"#, #"{"mac":"02:00:00:00:00","tap":"t"}"#,
      #"{"mac":"02:00:00:00:00:+1","tap":"t"}"#, #"{"mac":"02:00:00:00:00:01","tap":"a/b"}"#,
      #"{"mac":"02:00:00:00:00:01","tap":"sixteencharslong"}"#, #"{"mac":"02:00:00:00:00:01","tap":"t,script=x"}"#,
    ] {
      #expect(throws: SoftHostError.self, "\(text)") {
        try BusFunction.nic(id: "nic-00-a", order: 0, content: Array(text.utf8))
      }
    }
  }

  @Test func survivesRandomBytes() {
    var random = SeededGenerator(seed: 5)
    for _ in 0..<20_000 {
      let bytes = random.bytes(Int.random(in: 0...60, using: &random))
      _ = BusFunction.entry(String(decoding: bytes, as: UTF8.self))
      _ = BusFunction.entry("blk-" + String(decoding: bytes, as: UTF8.self))
      _ = try? BusFunction.nic(id: "nic-00-a", order: 0, content: bytes)
    }
  }
}

@Suite struct BusPlanTests {
  private func disk(_ order: Int, _ name: String) -> BusFunction {
    BusFunction(id: "blk-0\(order)-\(name)", order: order, kind: .disk(socket: "/bus/blk-0\(order)-\(name)"))
  }

  @Test func plugsInBootOrderIntoFreePorts() {
    let plan = BusPlan(
      bus: [disk(2, "b"), disk(1, "a")], plugged: [BusPlan.Plugged(id: "blk-00-root", port: 0, mac: nil)], ports: 4)
    #expect(
      plan.steps == [.unplug(id: "blk-00-root"), .plug(disk(1, "a"), port: 1), .plug(disk(2, "b"), port: 2)])
  }

  @Test func doesNothingWhenAllIsAsItShouldBe() {
    let plan = BusPlan(bus: [disk(0, "a")], plugged: [BusPlan.Plugged(id: "blk-00-a", port: 3)], ports: 4)
    #expect(plan.steps.isEmpty && plan.withoutPort.isEmpty)
  }

  @Test func namesWhatFindsNoPort() {
    let plan = BusPlan(bus: [disk(0, "a"), disk(1, "b")], plugged: [], ports: 1)
    #expect(plan.steps == [.plug(disk(0, "a"), port: 0)])
    #expect(plan.withoutPort == ["blk-01-b"])
  }

  @Test func aCardWithAnotherAddressIsAnotherCard() {
    let card = BusFunction(id: "nic-00-a", order: 0, kind: .nic(mac: "02:00:00:00:00:02", tap: "t"))
    let plan = BusPlan(bus: [card], plugged: [.init(id: "nic-00-a", port: 0, mac: "02:00:00:00:00:01")], ports: 2)
    #expect(plan.steps == [.unplug(id: "nic-00-a")])
  }

  @Test func aSocketThatIsReplacedIsNotUnplugged() {
    var attempts = PlugAttempts()
    let plugged = [BusPlan.Plugged(id: "blk-00-a", port: 0)]
    let start = ContinuousClock.now
    let grace = Duration.milliseconds(400)
    let before = attempts.kept([disk(0, "a")], plugged: plugged, now: start, grace: grace)
    let during = attempts.kept([], plugged: plugged, now: start + .milliseconds(10), grace: grace)
    let after = attempts.kept([], plugged: plugged, now: start + .milliseconds(500), grace: grace)
    #expect(before.isEmpty && during == ["blk-00-a"] && after.isEmpty)
    #expect(BusPlan(bus: [], plugged: plugged, kept: during, ports: 4).steps.isEmpty)
    #expect(BusPlan(bus: [], plugged: plugged, kept: after, ports: 4).steps == [.unplug(id: "blk-00-a")])
  }

  @Test func aGracefulRestartIsNotWantedForEver() {
    let start = ContinuousClock.now
    var wish = RestartWish()
    wish.poweredOff(now: start)
    let unasked = wish.take()
    #expect(!unasked)
    wish.ask(now: start)
    wish.poweredOff(now: start + .seconds(299))
    // Said again while the machine does not end: later than the patience, but the guest has done what it was asked to.
    wish.poweredOff(now: start + .seconds(400))
    let asked = wish.take()
    let twice = wish.take()
    #expect(asked && !twice)
    // A guest that ignored its button, and is powered off by its owner hours later, stays off.
    wish.ask(now: start)
    wish.poweredOff(now: start + .seconds(7200))
    let late = wish.take()
    #expect(!late)
    wish.ask(now: start)
    wish.forget()
    wish.poweredOff(now: start)
    let forgotten = wish.take()
    #expect(!forgotten)
    wish.demand()
    let demanded = wish.take()
    #expect(demanded)
  }

  @Test func failuresAreTriedAgainLaterAndLater() {
    var attempts = PlugAttempts()
    var now = ContinuousClock.now
    var waits: [Duration] = []
    for _ in 0..<8 {
      attempts.failed("x", now: now)
      let wait = attempts.nextLook(after: now, default: .seconds(60))
      waits.append(wait)
      let early = attempts.mayTry("x", now: now + wait - .milliseconds(1))
      #expect(!early)
      now += wait
    }
    #expect(waits.first == .milliseconds(100) && waits.last == .seconds(5))
    #expect(waits == waits.sorted())
  }

  /// Whatever comes and goes: no port twice, nothing plugged that is not on the bus, nothing forgotten.
  @Test func randomBusesConverge() {
    var random = SeededGenerator(seed: 9)
    var plugged: [BusPlan.Plugged] = []
    for _ in 0..<2_000 {
      let bus = (0..<6).filter { _ in Bool.random(using: &random) }.map { disk($0, "d") }
      let plan = BusPlan(bus: bus, plugged: plugged, ports: 8)
      for step in plan.steps {
        switch step {
        case .plug(let function, let port):
          #expect(!plugged.contains { $0.port == port })
          plugged.append(.init(id: function.id, port: port))
        case .unplug(let id): plugged.removeAll { $0.id == id }
        }
      }
      #expect(Set(plugged.map(\.id)) == Set(bus.map(\.id)))
    }
  }
}
