import Kubernetes
import TestSupport
import Testing

@Suite struct BackoffTests {
  @Test func growsToItsLimitWithJitterBelow() {
    var random = SeededGenerator(seed: 5)
    var backoff = Backoff(initial: .seconds(1), maximum: .seconds(10), jitter: 0.5)
    let full: [Double] = [1, 2, 4, 8, 10, 10, 10]
    for expected in full {
      let delay = backoff.next(using: &random).inSeconds
      #expect(delay <= expected + 1e-9 && delay >= expected / 2)
    }
    backoff.reset()
    let first = backoff.next(using: &random)
    #expect(first <= .seconds(1))
  }

  @Test func neverOverflows() {
    var random = SeededGenerator(seed: 6)
    for attempt in [0, 1, 63, 64, 1000, .max] {
      let delay = Backoff.delay(
        attempt: attempt, initial: .milliseconds(1), maximum: .seconds(60), jitter: 0, using: &random)
      #expect(delay <= .seconds(60) && delay > .zero)
    }
  }

  @Test func aTokenBucketHoldsTheRateAfterTheBurst() {
    let start = ContinuousClock.now
    var bucket = TokenBucket(rate: 10, burst: 3, now: start)
    var waits = (0..<5).map { _ in bucket.reserve(now: start).inSeconds }
    bucket.cancel()
    waits.append(bucket.reserve(now: start).inSeconds)
    #expect(zip(waits, [0, 0, 0, 0.1, 0.2, 0.2]).allSatisfy { abs($0 - $1) < 1e-6 })
    let later = start + .seconds(10)
    var granted = 0
    while bucket.take(now: later) { granted += 1 }
    #expect(granted == 3, "a pause saves up no more than the burst")
  }
}
