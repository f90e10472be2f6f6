import Synchronization

/// Lets one task at a time through, in the order of arrival, with a bound on how many may wait.
///
/// BMCs are small computers: parallel requests make them slower, and parallel logins with a wrong password lock them.
package final class Turnstile: Sendable {
  package enum Refusal: Error {
    /// The queue is full.
    case full
  }

  private struct State {
    var taken = false
    var waiters: [(id: Int, continuation: CheckedContinuation<Void, any Error>)] = []
    /// Cancelled between taking a number and starting to wait.
    var cancelledEarly: Set<Int> = []
    var nextID = 0
  }

  private let state = Mutex(State())
  private let limit: Int

  package init(limit: Int) {
    self.limit = limit
  }

  /// Runs `body` when it is this task's turn. Throws `CancellationError` if cancelled while waiting.
  package func withTurn<R: Sendable>(_ body: @Sendable () async throws -> R) async throws -> R {
    try await enter()
    defer { leave() }
    return try await body()
  }

  private func enter() async throws {
    try Task.checkCancellation()
    let id: Int? = try state.withLock { state in
      guard state.taken else {
        state.taken = true
        return nil
      }
      guard state.waiters.count < limit else { throw Refusal.full }
      state.nextID += 1
      return state.nextID
    }
    guard let id else { return }
    try await withTaskCancellationHandler {
      try await withCheckedThrowingContinuation { (continuation: CheckedContinuation<Void, any Error>) in
        let outcome: Result<Void, any Error>? = state.withLock { state in
          if state.cancelledEarly.remove(id) != nil { return .failure(CancellationError()) }
          guard state.taken else {
            state.taken = true
            return .success(())
          }
          state.waiters.append((id, continuation))
          return nil
        }
        if let outcome { continuation.resume(with: outcome) }
      }
    } onCancel: {
      let waiter = state.withLock { state -> CheckedContinuation<Void, any Error>? in
        guard let index = state.waiters.firstIndex(where: { $0.id == id }) else {
          state.cancelledEarly.insert(id)
          return nil
        }
        return state.waiters.remove(at: index).continuation
      }
      waiter?.resume(throwing: CancellationError())
    }
    // A cancellation that came after the turn was given left a mark that nobody would take away.
    state.withLock { _ = $0.cancelledEarly.remove(id) }
  }

  private func leave() {
    let next = state.withLock { state -> CheckedContinuation<Void, any Error>? in
      guard !state.waiters.isEmpty else {
        state.taken = false
        return nil
      }
      return state.waiters.removeFirst().continuation
    }
    next?.resume()
  }
}
