import Glibc
import SoftDPU
import Testing

/// What becomes of answers that the kernel gives when it is short of memory.
@Suite struct RetryTests {
  private static let short: [CInt] = [EAGAIN, ENOMEM]

  @Test func aRequestWaitsForMemoryAndFailsForTheRest() {
    for count in [0, 1, 4096] { #expect(Retry(afterRequest: count) == .no) }
    #expect(Retry(afterRequest: -Int(EINTR)) == .now)
    for error in Self.short { #expect(Retry(afterRequest: -Int(error)) == .later) }
    let faults: [CInt] = [EIO, ENOSPC, EINVAL, EOPNOTSUPP, EBADF]
    for error in faults { #expect(Retry(afterRequest: -Int(error)) == .no) }
  }

  @Test func aPollThatEndedIsArmedAgainAsLongAsItsDescriptorLives() {
    for result in [0, 1, -Int(EINTR)] { #expect(Retry(afterPoll: result, isArmed: false) == .now) }
    let errors: [CInt] = Self.short + [ECANCELED, EIO]
    for error in errors { #expect(Retry(afterPoll: -Int(error), isArmed: false) == .later) }
    #expect(Retry(afterPoll: -Int(EBADF), isArmed: false) == .no)
    #expect(Retry(afterPoll: 1, isArmed: true) == .no)
  }

  @Test func theRateOfRepetitionsIsBounded() {
    let range: ClosedRange<UInt64> = 1_000_000...100_000_000
    #expect(range.contains(Retry.pause))
  }
}
