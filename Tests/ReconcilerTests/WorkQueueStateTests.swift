import Reconciler
import TestSupport
import Testing

@Suite struct WorkQueueStateTests {
  private let start = ContinuousClock.now

  private func makeState(_ change: (inout WorkQueueLimits) -> Void = { _ in }) -> WorkQueueState<String> {
    var limits = WorkQueueLimits()
    limits.backoffJitter = 0
    change(&limits)
    return WorkQueueState(limits: limits, now: start)
  }

  private func taken(_ state: inout WorkQueueState<String>, at seconds: Double = 0) -> String? {
    if case .work(let key, _) = state.take(now: start + .seconds(seconds)) { return key }
    return nil
  }

  @Test func keysComeInOrderAndOnce() {
    var state = makeState()
    for key in ["a", "b", "a", "c", "b"] { _ = state.add(key, now: start) }
    let value1 = taken(&state)
    #expect(value1 == "a")
    let value2 = taken(&state)
    #expect(value2 == "b")
    let value3 = taken(&state)
    #expect(value3 == "c")
    let value4 = taken(&state)
    #expect(value4 == nil)
  }

  @Test func aKeyIsNeverGivenOutTwiceAtTheSameTime() {
    var state = makeState()
    _ = state.add("a", now: start)
    let value5 = taken(&state)
    #expect(value5 == "a")
    _ = state.add("a", now: start)
    _ = state.add("a", now: start)
    let value6 = taken(&state)
    #expect(value6 == nil)
    state.succeeded("a", requeueAfter: nil, now: start)
    let value7 = taken(&state)
    #expect(value7 == "a", "it was added while it was worked on")
    state.succeeded("a", requeueAfter: nil, now: start)
    let value8 = taken(&state)
    #expect(value8 == nil)
    #expect(state.isIdle)
  }

  @Test func theEarliestDelayCounts() {
    var state = makeState()
    _ = state.add("a", after: .seconds(10), now: start)
    _ = state.add("a", after: .seconds(5), now: start)
    _ = state.add("a", after: .seconds(20), now: start)
    let value9 = state.take(now: start)
    #expect(value9 == .wait(until: start + .seconds(5)))
    let value10 = taken(&state, at: 5)
    #expect(value10 == "a")
    state.succeeded("a", requeueAfter: nil, now: start + .seconds(5))
    let value11 = state.take(now: start + .seconds(30))
    #expect(value11 == .wait(until: nil))
  }

  @Test func aRunForAnotherReasonVoidsTheOwnRequeueButNotWhatOthersAskedFor() {
    var state = makeState()
    _ = state.add("a", now: start)
    _ = taken(&state)
    state.succeeded("a", requeueAfter: .seconds(10), now: start)
    _ = state.add("a", after: .seconds(20), now: start)
    _ = state.add("a", now: start)
    let value12 = taken(&state)
    #expect(value12 == "a")
    state.succeeded("a", requeueAfter: nil, now: start)
    let value13 = state.take(now: start)
    #expect(value13 == .wait(until: start + .seconds(20)))
  }

  @Test func failuresComeBackLaterAndLaterUntilASuccess() {
    var state = makeState {
      $0.backoffInitial = .seconds(1); $0.backoffMaximum = .seconds(4)
    }
    var random = SeededGenerator(seed: 1)
    var now = start
    _ = state.add("a", now: now)
    var delays: [Duration] = []
    for _ in 0..<4 {
      guard case .work = state.take(now: now) else {
        Issue.record("not given out")
        return
      }
      let delay = state.failed("a", now: now, using: &random)
      delays.append(delay)
      guard case .wait(let until?) = state.take(now: now) else {
        Issue.record("no delay")
        return
      }
      now = until
    }
    #expect(delays == [.seconds(1), .seconds(2), .seconds(4), .seconds(4)])
    guard case .work = state.take(now: now) else { return }
    state.succeeded("a", requeueAfter: nil, now: now)
    #expect(state.failureCount("a") == 0)
    _ = state.add("b", now: now)
    guard case .work = state.take(now: now) else { return }
    #expect(
      state.failed("b", atLeast: .seconds(30), now: now, using: &random) == .seconds(30), "the server asks for it")
  }

  @Test func aChangeDoesNotWaitForTheBackoff() {
    var state = makeState {
      $0.backoffInitial = .seconds(100); $0.backoffMaximum = .seconds(100)
    }
    var random = SeededGenerator(seed: 1)
    _ = state.add("a", now: start)
    _ = taken(&state)
    _ = state.failed("a", now: start, using: &random)
    let value14 = taken(&state)
    #expect(value14 == nil)
    _ = state.add("a", now: start)
    let value15 = taken(&state)
    #expect(value15 == "a")
  }

  @Test func aFullQueueRefusesAndAsksAgainWhenThereIsRoom() {
    var state = makeState { $0.capacity = 4 }
    for key in ["a", "b", "c", "d"] { _ = add(&state, key) }
    #expect(state.depth == 4)
    let value16 = add(&state, "e")
    #expect(!value16)
    let value17 = add(&state, "a")
    #expect(value17, "what is there already needs no room")
    #expect(state.refused == 1)
    let value18 = takeOverflow(&state)
    #expect(!value18)
    while let key = taken(&state) { state.succeeded(key, requeueAfter: nil, now: start) }
    let value19 = takeOverflow(&state)
    #expect(value19)
    let value20 = takeOverflow(&state)
    #expect(!value20)
  }

  private func add(_ state: inout WorkQueueState<String>, _ key: String) -> Bool { state.add(key, now: start) }
  private func takeOverflow(_ state: inout WorkQueueState<String>) -> Bool { state.takeOverflow() }

  @Test func aHotLoopIsSlowedDownAndOthersAreNot() {
    var state = makeState {
      $0.hotLoopPerMinute = 10; $0.hotLoopSpacing = .seconds(5)
    }
    var now = start
    var runs = 0
    _ = state.add("hot", now: now)
    // A reconciler that triggers itself at once, for three minutes.
    while now < start + .seconds(180) {
      switch state.take(now: now) {
      case .work(let key, _):
        runs += 1
        _ = state.add(key, now: now)
        state.succeeded(key, requeueAfter: nil, now: now)
        now += .milliseconds(10)
      case .wait(let until):
        _ = state.add("cold", now: now)
        guard case .work("cold", _) = state.take(now: now) else {
          Issue.record("another key is held back")
          return
        }
        state.succeeded("cold", requeueAfter: nil, now: now)
        now = until ?? now + .seconds(1)
      case .closed: return
      }
    }
    #expect(runs < 60, "10 in the first minute at full speed, then one in 5 s: \(runs)")
    #expect(runs > 30)
    #expect(state.hotRuns > 20)
  }

  @Test func afterClosingNothingIsGivenOut() {
    var state = makeState()
    _ = state.add("a", now: start)
    _ = state.add("b", now: start)
    _ = taken(&state)
    state.close()
    let value21 = state.take(now: start)
    #expect(value21 == .closed)
    let value22 = add(&state, "c")
    #expect(!value22)
    state.succeeded("a", requeueAfter: .seconds(1), now: start)
    #expect(state.isIdle)
    #expect(state.delayedCount == 0)
  }

  /// Random operations: a key is never with two workers, and every key that was added runs afterwards.
  @Test func holdsItsPromisesUnderRandomUse() {
    for seed in UInt64(0)..<100 {
      var random = SeededGenerator(seed: seed)
      var state = makeState {
        $0.capacity = 1000; $0.hotLoopPerMinute = 1_000_000
      }
      var now = start
      var working: Set<String> = []
      var owed: Set<String> = []
      for _ in 0..<500 {
        now += .milliseconds(Int(random.next() % 200))
        let key = "k\(random.next() % 6)"
        switch random.next() % 6 {
        case 0, 1:
          if state.add(key, now: now) { owed.insert(key) }
        case 2:
          if state.add(key, after: .milliseconds(Int(random.next() % 500)), now: now) { owed.insert(key) }
        case 3:
          if case .work(let key, _) = state.take(now: now) {
            #expect(working.insert(key).inserted, "seed \(seed): \(key) is with two workers")
            owed.remove(key)
          }
        case 4:
          if let key = working.popFirst() { state.succeeded(key, requeueAfter: nil, now: now) }
        default:
          if let key = working.popFirst() {
            _ = state.failed(key, now: now, using: &random)
            owed.insert(key)
          }
        }
      }
      for key in working { state.succeeded(key, requeueAfter: nil, now: now) }
      working = []
      var limit = 10_000
      drain: while limit > 0 {
        limit -= 1
        switch state.take(now: now) {
        case .work(let key, _):
          owed.remove(key)
          state.succeeded(key, requeueAfter: nil, now: now)
        case .wait(let until?): now = until
        case .wait(nil), .closed: break drain
        }
      }
      #expect(owed.isEmpty, "seed \(seed): \(owed) were lost")
      #expect(state.isIdle && state.delayedCount == 0)
    }
  }
}
