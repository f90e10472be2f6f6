extension BMC {
  /// Whether the server is off for sure: `readings` readings in a row, `interval` apart, all say off.
  ///
  /// BMCs report off before the server is, some for seconds, so the readings should span longer than the longest lie:
  /// by default 6 seconds. Returns false at the first reading that says anything else, so that a controller may come
  /// back later; throws what `power()` throws, because no answer is no proof.
  public func confirmOff<C: Clock>(
    readings: Int = 3, interval: Duration = .seconds(3), clock: C
  ) async throws -> Bool where C.Duration == Duration {
    var confirmation = PowerOffConfirmation(readings: readings, interval: interval)
    let start = clock.now
    while true {
      switch confirmation.observe(try await power(), at: start.duration(to: clock.now)) {
      case .confirmed: return true
      case .refuted: return false
      case .readAgain(let wait): try await clock.sleep(until: clock.now.advanced(by: wait), tolerance: nil)
      }
    }
  }

  /// `confirmOff(readings:interval:clock:)` on the monotonic clock.
  public func confirmOff(readings: Int = 3, interval: Duration = .seconds(3)) async throws -> Bool {
    try await confirmOff(readings: readings, interval: interval, clock: ContinuousClock())
  }
}

/// The decision behind `confirmOff`, without a clock of its own: several readings of off in a row, far enough apart.
public struct PowerOffConfirmation: Sendable, Hashable {
  public enum Verdict: Sendable, Hashable {
    case confirmed
    case refuted
    case readAgain(after: Duration)
  }

  /// Readings that must agree; at least 2.
  public let readings: Int
  /// The least time between two readings that count.
  public let interval: Duration
  private var agreed = 0
  private var last: Duration?

  public init(readings: Int, interval: Duration) {
    self.readings = max(2, readings)
    self.interval = interval
  }

  /// Takes a reading at a monotonic time. One that comes too early after the last does not count.
  public mutating func observe(_ state: PowerState, at time: Duration) -> Verdict {
    guard state == .off else {
      agreed = 0
      last = nil
      return .refuted
    }
    if let last, time - last < interval { return .readAgain(after: interval - (time - last)) }
    agreed += 1
    last = time
    return agreed >= readings ? .confirmed : .readAgain(after: interval)
  }
}
