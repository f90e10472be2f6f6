import Kubernetes
import Reconciler
import TestSupport
import Testing

@Suite struct LeaderElectionStateTests {
  private let start = ContinuousClock.now
  private let wall = MicroTimestamp("2026-01-01T00:00:00.000000Z")!

  private func settings(_ identity: String) -> LeaderElection {
    LeaderElection(name: "l", namespace: "n", identity: identity)
  }

  private func lease(_ holder: String, version: Int, renewed: Int64 = 0, duration: Int = 15) -> Lease {
    Lease(
      metadata: ObjectMeta(name: "l", namespace: "n", resourceVersion: "\(version)"),
      spec: .init(
        holderIdentity: holder, leaseDurationSeconds: duration, renewTime: MicroTimestamp(microseconds: renewed),
        leaseTransitions: 3))
  }

  @Test func createsWhatIsNotThere() {
    var state = LeaderElectionState(settings: settings("a"))
    #expect(state.decide(now: start, wallClock: wall) == .look(at: start))
    state.observe(nil, now: start)
    guard case .create(let spec) = state.decide(now: start, wallClock: wall) else {
      Issue.record("no creation")
      return
    }
    #expect(spec.holderIdentity == "a")
    #expect(spec.leaseDurationSeconds == 15)
    #expect(!state.isLeader(now: start))
  }

  @Test func waitsForTheWholeDurationOfWhatItSeesUnchanged() {
    var state = LeaderElectionState(settings: settings("a"))
    // A renewal time years ago: clocks of others mean nothing.
    state.observe(lease("b", version: 1), now: start)
    #expect(state.decide(now: start, wallClock: wall) == .look(at: start + .seconds(3)))
    state.observe(lease("b", version: 2, renewed: 5), now: start + .seconds(10))
    state.observe(lease("b", version: 2, renewed: 5), now: start + .seconds(20))
    #expect(state.decide(now: start + .seconds(24), wallClock: wall) == .look(at: start + .seconds(25)))
    guard case .replace(let spec, "2") = state.decide(now: start + .seconds(25), wallClock: wall) else {
      Issue.record("no take-over")
      return
    }
    #expect(spec.holderIdentity == "a")
    #expect(spec.leaseTransitions == 4)
  }

  @Test func aLabelIsNoSignOfLife() {
    var state = LeaderElectionState(settings: settings("a"))
    state.observe(lease("b", version: 1), now: start)
    state.observe(lease("b", version: 9), now: start + .seconds(14))
    guard case .replace(_, "9") = state.decide(now: start + .seconds(15), wallClock: wall) else {
      Issue.record("no take-over")
      return
    }
  }

  @Test func takesAReleasedLeaseAtOnce() {
    var state = LeaderElectionState(settings: settings("a"))
    state.observe(lease("", version: 1), now: start)
    guard case .replace(_, "1") = state.decide(now: start, wallClock: wall) else {
      Issue.record("no take-over")
      return
    }
  }

  @Test func leadsFromBeforeTheWriteUntilTheDurationEnds() {
    var state = LeaderElectionState(settings: settings("a"))
    state.observe(nil, now: start)
    state.written(lease("a", version: 1), sentAt: start, now: start + .seconds(4))
    #expect(state.isLeader(now: start + .seconds(14.9)))
    #expect(!state.isLeader(now: start + .seconds(15)))
    #expect(state.renewDeadline == start + .seconds(10))
    state.observe(lease("b", version: 2), now: start + .seconds(5))
    #expect(!state.isLeader(now: start + .seconds(5)), "somebody else holds it")
    #expect(state.release(wallClock: wall) == nil)
  }

  /// Two or three candidates with clocks of their own, an API server that is slow, loses answers, and freezes of the
  /// candidates: never two leaders at the same moment.
  @Test func neverTwoLeaders() {
    struct Candidate {
      var state: LeaderElectionState
      var busyUntil = 0
      var answer: (@Sendable (inout LeaderElectionState, ContinuousClock.Instant) -> Void)?
    }
    var changes = 0
    for seed in UInt64(0)..<200 {
      var random = SeededGenerator(seed: seed)
      var stored: Lease?
      var version = 0
      var candidates = (0..<3).map { Candidate(state: LeaderElectionState(settings: settings("c\($0)"))) }
      var last: Int?
      // Steps of 100 ms, for ten minutes.
      for step in 0..<6000 {
        let now = start + .milliseconds(100 * step)
        for index in candidates.indices where candidates[index].busyUntil <= step {
          if let answer = candidates[index].answer {
            candidates[index].answer = nil
            answer(&candidates[index].state, now)
          }
          if random.next() % 400 == 0 {
            candidates[index].busyUntil = step + Int(random.next() % 300)
            continue
          }
          guard random.next() % 10 == 0 else { continue }
          let sentAt = now
          let wallClock = MicroTimestamp(microseconds: Int64(random.next() % 1_000_000))
          let isLost = random.next() % 8 == 0
          candidates[index].busyUntil = step + Int(random.next() % 30)
          switch candidates[index].state.decide(now: now, wallClock: wallClock) {
          case .look(let moment):
            guard moment <= now || random.next() % 10 == 0 else { continue }
            let seen = stored
            candidates[index].answer = { state, now in if !isLost { state.observe(seen, now: now) } }
          case .create(let spec):
            guard stored == nil else {
              candidates[index].answer = { state, _ in state.invalidate() }
              continue
            }
            version += 1
            let lease = Lease(metadata: ObjectMeta(name: "l", resourceVersion: "\(version)"), spec: spec)
            stored = lease
            candidates[index].answer = { state, now in
              if isLost { state.invalidate() } else { state.written(lease, sentAt: sentAt, now: now) }
            }
          case .replace(let spec, let expected):
            guard stored?.metadata.resourceVersion == expected else {
              candidates[index].answer = { state, _ in state.invalidate() }
              continue
            }
            version += 1
            let lease = Lease(metadata: ObjectMeta(name: "l", resourceVersion: "\(version)"), spec: spec)
            stored = lease
            candidates[index].answer = { state, now in
              if isLost { state.invalidate() } else { state.written(lease, sentAt: sentAt, now: now) }
            }
          }
        }
        let leaders = candidates.indices.filter { candidates[$0].state.isLeader(now: now) }
        #expect(leaders.count <= 1, "seed \(seed), step \(step)")
        if let leader = leaders.first, leader != last {
          changes += 1
          last = leader
        }
      }
    }
    #expect(changes > 400, "the simulation must see take-overs: \(changes)")
  }
}
