/// Thrown by `withTimeLimit` when the time is over.
struct TimeLimitExceeded: Error {
  let limit: Duration
}

/// Runs `body` and cancels it when it takes longer than `limit`.
func withTimeLimit<R: Sendable>(
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
