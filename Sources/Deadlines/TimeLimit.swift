import Synchronization

/// A step that did not end in its time.
package struct TimeLimitExceeded: Error, CustomStringConvertible {
  package let limit: Duration

  package init(limit: Duration) { self.limit = limit }

  package var description: String { "no answer within \(limit)" }
}

/// Runs `body`, cancels it after `limit` and throws `TimeLimitExceeded` then, unless it has a result all the same.
///
/// `body` must react to cancellation: this function returns only after `body` did. Where the caller is cancelled and
/// `body` has no result, this throws `CancellationError`.
package func withTimeLimit<R: Sendable>(
  _ limit: Duration, _ body: @escaping @Sendable () async throws -> R
) async throws -> R {
  let expiry = Expiry()
  let task = Task { try await body() }
  let ticket = Deadlines.shared.add(.now + limit) {
    expiry.expire()
    task.cancel()
  }
  defer { Deadlines.shared.remove(ticket) }
  do {
    return try await withTaskCancellationHandler {
      try await task.value
    } onCancel: {
      task.cancel()
    }
  } catch {
    try Task.checkCancellation()
    if expiry.isExpired { throw TimeLimitExceeded(limit: limit) }
    throw error
  }
}

/// Whether a time is over.
private final class Expiry: Sendable {
  private let state = Atomic(false)

  func expire() { state.store(true, ordering: .releasing) }
  var isExpired: Bool { state.load(ordering: .acquiring) }
}
