/// When bm-handler looks again: seldom when all is well, soon and then more and more seldom when something fails.
package struct RetryPace: Sendable, Hashable {
  package enum Outcome: Sendable, Hashable {
    /// Everything is as it should be.
    case calm
    /// The data plane does not answer. Asking costs next to nothing, and when it is back the server waits for its disks.
    case unavailable
    /// A step failed. Changes of what is wanted come by themselves, whatever the pace.
    case failed
  }

  /// How often is looked when all is well: a data plane that was started anew tells nobody.
  package static let calm: Duration = .seconds(5)
  package static let first: Duration = .seconds(1)
  package static let longest: Duration = .seconds(30)

  private var failures = 0

  package init() {}

  /// How long to wait after a look with this outcome.
  package mutating func next(_ outcome: Outcome) -> Duration {
    guard outcome != .calm else {
      failures = 0
      return Self.calm
    }
    failures += 1
    let pause = Self.first * (1 << min(failures - 1, 10))
    return min(pause, outcome == .failed ? Self.longest : Self.calm)
  }
}
