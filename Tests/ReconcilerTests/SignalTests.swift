import Reconciler
import Synchronization
import TestSupport
import Testing

@Suite("Waiting for work")
struct SignalTests {
  private final class Counter: Sendable {
    private let number = Mutex(0)
    func count() { number.withLock { $0 += 1 } }
    var value: Int { number.withLock { $0 } }
  }

  @Test("A wait ends with a signal, also one that came before, with its time, and with its task")
  func ends() async throws {
    let signal = Signal()
    signal.signal()
    await signal.wait()
    await signal.wait(until: .now - .seconds(1))
    let start = ContinuousClock.now
    await signal.wait(until: start + .milliseconds(30))
    #expect(ContinuousClock.now - start >= .milliseconds(30))

    let ended = Counter()
    let waiters = (0..<3).map { _ in
      Task {
        await signal.wait(until: .now + .seconds(3600))
        ended.count()
      }
    }
    signal.signal()
    try await eventually(within: .seconds(20), every: .milliseconds(5), "one was woken") { ended.value == 1 }
    for waiter in waiters { waiter.cancel() }
    for waiter in waiters { await waiter.value }
    #expect(ended.value == 3)
    // Those who gave up take no signal with them.
    signal.signal()
    await signal.wait()
  }
}
