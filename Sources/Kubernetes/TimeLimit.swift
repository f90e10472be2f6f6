/// A step that did not end in its time.
package struct TimeLimitExceeded: Error, CustomStringConvertible {
  package let limit: Duration
  package var description: String { "no answer within \(limit)" }
}

/// Runs `body`, cancels it after `limit` and throws `TimeLimitExceeded` then.
///
/// `body` must react to cancellation: this function returns only after `body` did.
package func withTimeLimit<R: Sendable>(
  _ limit: Duration, _ body: @escaping @Sendable () async throws -> R
) async throws -> R {
  try await withThrowingTaskGroup(of: R?.self) { group in
    group.addTask { try await body() }
    group.addTask {
      try await Task.sleep(for: limit)
      return nil
    }
    defer { group.cancelAll() }
    guard let first = try await group.next(), let result = first else { throw TimeLimitExceeded(limit: limit) }
    return result
  }
}
