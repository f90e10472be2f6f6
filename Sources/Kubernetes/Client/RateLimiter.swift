import Synchronization

/// A token bucket: `rate` permits a second, up to `burst` saved. Pure; the caller brings the clock.
package struct TokenBucket: Sendable {
  private let rate: Double
  private let burst: Double
  private var tokens: Double
  private var last: ContinuousClock.Instant

  package init(rate: Double, burst: Int, now: ContinuousClock.Instant) {
    self.rate = max(rate, 0.001)
    self.burst = Double(max(burst, 1))
    tokens = self.burst
    last = now
  }

  /// Takes a permit, maybe from the future, and says how long to wait until it is there.
  package mutating func reserve(now: ContinuousClock.Instant) -> Duration {
    refill(now)
    tokens -= 1
    return tokens >= 0 ? .zero : .seconds(-tokens / rate)
  }

  /// Takes a permit only where one is there.
  package mutating func take(now: ContinuousClock.Instant) -> Bool {
    refill(now)
    guard tokens >= 1 else { return false }
    tokens -= 1
    return true
  }

  /// Gives a reserved permit back that will not be used.
  package mutating func cancel() { tokens = min(tokens + 1, burst) }

  private mutating func refill(_ now: ContinuousClock.Instant) {
    guard now > last else { return }
    let elapsed = (now - last).inSeconds
    tokens = min(tokens + elapsed * rate, burst)
    last = now
  }
}

/// Holds requests back so that one client cannot flood the API server.
final class RateLimiter: Sendable {
  private let bucket: Mutex<TokenBucket>

  init(rate: Double, burst: Int) { bucket = Mutex(TokenBucket(rate: rate, burst: burst, now: .now)) }

  /// Waits for a permit. Returns how long that took.
  func acquire() async throws -> Duration {
    let wait = bucket.withLock { $0.reserve(now: .now) }
    guard wait > .zero else { return .zero }
    do {
      try await Task.sleep(for: wait)
    } catch {
      bucket.withLock { $0.cancel() }
      throw error
    }
    return wait
  }
}

extension Duration {
  /// The duration as a number of seconds.
  package var inSeconds: Double {
    let (seconds, attoseconds) = components
    return Double(seconds) + Double(attoseconds) * 1e-18
  }
}
