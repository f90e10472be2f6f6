import BMC
import Synchronization
import Testing

/// A clock that stands still until somebody sleeps.
private final class ManualClock: Clock, Sendable {
  struct Instant: InstantProtocol {
    var offset: Duration
    func advanced(by duration: Duration) -> Instant { Instant(offset: offset + duration) }
    func duration(to other: Instant) -> Duration { other.offset - offset }
    static func < (left: Instant, right: Instant) -> Bool { left.offset < right.offset }
  }

  private let time = Mutex(Instant(offset: .zero))
  var now: Instant { time.withLock { $0 } }
  var minimumResolution: Duration { .nanoseconds(1) }
  func sleep(until deadline: Instant, tolerance: Duration?) async throws { time.withLock { $0 = max($0, deadline) } }
}

/// A BMC whose power is scripted by time.
private struct ScriptedBMC: BMC {
  let clock: ManualClock
  let state: @Sendable (Duration) throws -> PowerState
  func power() async throws -> PowerState { try state(clock.now.offset) }
  func setPower(_ action: PowerAction) async throws {}
  func inventory() async throws -> HardwareInventory { HardwareInventory() }
  func setBootOverride(_ override: BootOverride) async throws {}
}

@Suite struct PowerConfirmationTests {
  @Test func offCountsAfterSeveralReadings() async throws {
    let clock = ManualClock()
    let bmc = ScriptedBMC(clock: clock) { _ in .off }
    #expect(try await bmc.confirmOff(clock: clock))
    #expect(clock.now.offset == .seconds(6))
  }

  @Test func aBMCThatLiesForFiveSecondsIsNotBelieved() async throws {
    let clock = ManualClock()
    let bmc = ScriptedBMC(clock: clock) { $0 < .seconds(5) ? .off : .on }
    #expect(try await !bmc.confirmOff(clock: clock))
  }

  @Test(arguments: [PowerState.on, .poweringOff, .poweringOn, .unknown])
  func anythingElseRefutes(_ state: PowerState) async throws {
    let clock = ManualClock()
    let bmc = ScriptedBMC(clock: clock) { $0 == .zero ? .off : state }
    #expect(try await !bmc.confirmOff(clock: clock))
  }

  @Test func noAnswerIsNoProof() async {
    let clock = ManualClock()
    let bmc = ScriptedBMC(clock: clock) { time in
      guard time == .zero else { throw BMCError(.timeout, operation: "read power", message: "no answer") }
      return .off
    }
    await #expect(throws: BMCError.self) { try await bmc.confirmOff(clock: clock) }
  }

  @Test func readingsTooCloseTogetherDoNotCount() {
    var confirmation = PowerOffConfirmation(readings: 2, interval: .seconds(3))
    let first = confirmation.observe(.off, at: .zero)
    let second = confirmation.observe(.off, at: .seconds(1))
    let third = confirmation.observe(.off, at: .seconds(3))
    #expect(first == .readAgain(after: .seconds(3)))
    #expect(second == .readAgain(after: .seconds(2)))
    #expect(third == .confirmed)
  }

  @Test func oneReadingIsNeverEnough() {
    var confirmation = PowerOffConfirmation(readings: 1, interval: .seconds(1))
    let verdict = confirmation.observe(.off, at: .zero)
    #expect(verdict == .readAgain(after: .seconds(1)))
  }
}
