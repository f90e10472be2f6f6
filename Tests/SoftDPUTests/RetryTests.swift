import Glibc
import SoftDPU
import Testing

/// What becomes of answers that the kernel gives when it is short of memory.
@Suite struct RetryTests {
  @Test(arguments: [
    (0, Retry.no), (4096, .no), (-Int(EINTR), .now), (-Int(EAGAIN), .later), (-Int(ENOMEM), .later), (-Int(EIO), .no),
    (-Int(ENOSPC), .no), (-Int(EINVAL), .no), (-Int(EOPNOTSUPP), .no),
  ])
  func aRequestWaitsForMemoryAndFailsForTheRest(result: Int, retry: Retry) {
    #expect(Retry(afterRequest: result) == retry)
  }

  @Test(arguments: [
    (1, Retry.now), (0, .now), (-Int(EINTR), .now), (-Int(EAGAIN), .later), (-Int(ENOMEM), .later),
    (-Int(ECANCELED), .later), (-Int(EIO), .later), (-Int(EBADF), .no),
  ])
  func aPollThatEndedIsArmedAgainAsLongAsItsDescriptorLives(result: Int, retry: Retry) {
    #expect(Retry(afterPoll: result, isArmed: false) == retry)
    #expect(Retry(afterPoll: result, isArmed: true) == .no)
  }

  @Test func theRateOfRepetitionsIsBounded() {
    #expect((1_000_000...100_000_000).contains(Retry.pause))
  }
}
