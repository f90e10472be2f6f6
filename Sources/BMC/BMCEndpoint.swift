import Synchronization

/// What all clients of one BMC share, whichever system behind it they speak of: whose turn it is, and which credentials
/// it has refused.
///
/// The refusals live longer than the clients: making a new client with the same wrong password tries nothing.
final class BMCEndpoint: Sendable {
  struct Refusal {
    let credentials: BMCCredentials
    let locked: Bool
    let until: ContinuousClock.Instant
  }

  let turnstile: Turnstile
  private let refusals = Mutex<[Refusal]>([])
  private static let refusalsMax = 8

  init(waiting: Int) {
    turnstile = Turnstile(limit: waiting)
  }

  /// Throws if the BMC refused these credentials lately.
  func check(_ credentials: BMCCredentials, operation: String) throws {
    let now = ContinuousClock.now
    let refusal = refusals.withLock { refusals in
      refusals.removeAll { $0.until <= now }
      return refusals.first { $0.credentials == credentials }
    }
    guard let refusal else { return }
    throw BMCEndpoint.error(
      locked: refusal.locked, operation: operation, username: credentials.username,
      retryAfter: now.duration(to: refusal.until))
  }

  /// Remembers a refusal and gives the error to throw.
  func refused(
    _ credentials: BMCCredentials, locked: Bool, for time: Duration, operation: String
  ) -> BMCError {
    refusals.withLock { refusals in
      refusals.removeAll { $0.credentials == credentials }
      if refusals.count >= BMCEndpoint.refusalsMax { refusals.removeFirst() }
      refusals.append(Refusal(credentials: credentials, locked: locked, until: .now + time))
    }
    return BMCEndpoint.error(locked: locked, operation: operation, username: credentials.username, retryAfter: time)
  }

  func forgetRefusals() { refusals.withLock { $0.removeAll() } }

  /// True while something must be remembered.
  var isInUse: Bool {
    let now = ContinuousClock.now
    return refusals.withLock { refusals in refusals.contains { $0.until > now } }
  }

  private static func error(locked: Bool, operation: String, username: String, retryAfter: Duration) -> BMCError {
    // The text holds no time that runs: it is shown in a status, which must not change by itself.
    if locked {
      return BMCError(
        .lockedOut, operation: operation,
        message: "the BMC has locked the account '\(username)'; unlock it there or wait; it is not "
          + "tried again for a while unless the credentials change", retryAfter: retryAfter)
    }
    return BMCError(
      .unauthorized, operation: operation,
      message: "the BMC refused the password of '\(username)'; correct the credentials secret; it is not "
        + "tried again for a while unless that changes, so that the account is not locked", retryAfter: retryAfter)
  }
}
