import Deadlines
import Synchronization
import TestSupport
import Testing

@Suite("What takes too long")
struct DeadlinesTests {
  private struct Broken: Error {}

  /// Waits for its end, which only a cancellation brings.
  private static func hang() async throws {
    try await Task.sleep(for: .seconds(3600))
  }

  @Test("Actions are called in the order of their times, and one that was taken back is not")
  func order() async throws {
    let deadlines = Deadlines()
    let called = Mutex<[Int]>([])
    let now = ContinuousClock.now
    for (number, milliseconds) in [(3, 30), (1, 10), (2, 20), (9, 15)] {
      let ticket = deadlines.add(now + .milliseconds(milliseconds)) { called.withLock { $0.append(number) } }
      if number == 9 { deadlines.remove(ticket) }
    }
    try await eventually(within: .seconds(20), every: .milliseconds(5), "three were called") {
      called.withLock { $0.count } == 3
    }
    #expect(called.withLock { $0 } == [1, 2, 3])
    #expect(deadlines.count == 0)
    #expect(ContinuousClock.now - now >= .milliseconds(30))
  }

  @Test("A time that is over already, and one that is added while a later one is waited for, come at once")
  func past() async throws {
    let deadlines = Deadlines()
    let called = Mutex(0)
    _ = deadlines.add(.now + .seconds(3600)) { called.withLock { $0 += 100 } }
    _ = deadlines.add(.now - .seconds(5)) { called.withLock { $0 += 1 } }
    _ = deadlines.add(.now + .milliseconds(5)) { called.withLock { $0 += 1 } }
    try await eventually(within: .seconds(20), every: .milliseconds(5), "two were called") {
      called.withLock { $0 } == 2
    }
    #expect(deadlines.count == 1)
  }

  @Test("What is taken back leaves nothing behind")
  func nothingLeft() {
    let deadlines = Deadlines()
    final class Witness: Sendable {}
    weak var witness: Witness?
    do {
      let held = Witness()
      witness = held
      let ticket = deadlines.add(.now + .seconds(3600)) { withExtendedLifetime(held) {} }
      deadlines.remove(ticket)
    }
    #expect(witness == nil)
    for _ in 0..<10_000 { deadlines.remove(deadlines.add(.now + .seconds(3600)) {}) }
    #expect(deadlines.count == 0)
  }

  @Test("A result in time is given, an error is thrown as it is, and what hangs is cancelled and named by its limit")
  func limits() async throws {
    #expect(try await withTimeLimit(.seconds(3600)) { 7 } == 7)
    await #expect(throws: Broken.self) { try await withTimeLimit(.seconds(3600)) { throw Broken() } }
    let error = await #expect(throws: TimeLimitExceeded.self) {
      try await withTimeLimit(.milliseconds(20)) { try await Self.hang() }
    }
    #expect(error?.limit == .milliseconds(20))
    // An inner limit is the inner one's error, an outer limit the outer one's.
    let outer = await #expect(throws: TimeLimitExceeded.self) {
      try await withTimeLimit(.milliseconds(30)) { try await withTimeLimit(.seconds(3600)) { try await Self.hang() } }
    }
    #expect(outer?.limit == .milliseconds(30))
    #expect(try await withTimeLimit(.milliseconds(1)) { (try? await Self.hang()) == nil } == true, "late, but a result")
  }

  @Test("Who is cancelled cancels what he waits for")
  func cancellation() async throws {
    let begun = Mutex(false)
    let task = Task {
      try await withTimeLimit(.seconds(3600)) {
        begun.withLock { $0 = true }
        try await Self.hang()
      }
    }
    try await eventually(within: .seconds(20), every: .milliseconds(5), "it began") { begun.withLock { $0 } }
    task.cancel()
    await #expect(throws: CancellationError.self) { try await task.value }
    let late = Task {
      withUnsafeCurrentTask { $0?.cancel() }
      try await withTimeLimit(.seconds(3600)) { try await Self.hang() }
    }
    await #expect(throws: CancellationError.self) { try await late.value }
  }
}
