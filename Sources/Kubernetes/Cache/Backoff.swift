/// Waiting times that double up to a limit, with jitter so that many clients do not come back together. Pure.
public struct Backoff: Sendable {
  public var initial: Duration
  public var maximum: Duration
  /// The share of each time that is random, 0 to 1.
  public var jitter: Double
  private(set) var attempt = 0

  public init(initial: Duration, maximum: Duration, jitter: Double = 0.5) {
    self.initial = initial
    self.maximum = maximum
    self.jitter = min(max(jitter, 0), 1)
  }

  /// The time to wait before the next attempt.
  public mutating func next(using random: inout some RandomNumberGenerator) -> Duration {
    let delay = Backoff.delay(
      attempt: attempt, initial: initial, maximum: maximum, jitter: jitter, using: &random)
    attempt = min(attempt + 1, 64)
    return delay
  }

  public mutating func next() -> Duration {
    var random = SystemRandomNumberGenerator()
    return next(using: &random)
  }

  /// Starts over, after a success.
  public mutating func reset() { attempt = 0 }

  /// The time after so many failures (0 for the first one): between `(1 - jitter)` of the full time and all of it.
  public static func delay(
    attempt: Int, initial: Duration, maximum: Duration, jitter: Double, using random: inout some RandomNumberGenerator
  ) -> Duration {
    let factor = Double(UInt64(1) << UInt64(min(max(attempt, 0), 40)))
    let full = min(initial.inSeconds * factor, maximum.inSeconds)
    let share = Double.random(in: (1 - jitter)...1, using: &random)
    return .seconds(full * share)
  }
}
