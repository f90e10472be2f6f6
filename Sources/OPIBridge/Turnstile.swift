import GRPCCore
import Synchronization

/// Lets one change after the other through, in the order in which they came; a limited number may wait.
package final class Turnstile: Sendable {
  private struct State {
    var isTaken = false
    var waiting: [CheckedContinuation<Void, Never>] = []
  }

  private let state = Mutex(State())
  private let limit: Int

  package init(limit: Int) { self.limit = limit }

  /// Runs `body` alone. It runs to its end also when the caller gives up: half a change is worth less than a whole one.
  package func pass<Value: Sendable>(_ body: @escaping @Sendable () async throws -> Value) async throws -> Value {
    try await Task {
      try await self.enter()
      defer { self.leave() }
      return try await body()
    }.value
  }

  private func enter() async throws(RPCError) {
    let isFull = state.withLock { $0.isTaken && $0.waiting.count >= limit }
    guard !isFull else {
      throw RPCError(code: .resourceExhausted, message: "\(limit) changes wait for their turn; try again later")
    }
    await withCheckedContinuation { continuation in
      let isFree = state.withLock { state in
        if state.isTaken {
          state.waiting.append(continuation)
          return false
        }
        state.isTaken = true
        return true
      }
      if isFree { continuation.resume() }
    }
  }

  private func leave() {
    let next = state.withLock { state -> CheckedContinuation<Void, Never>? in
      guard !state.waiting.isEmpty else {
        state.isTaken = false
        return nil
      }
      return state.waiting.removeFirst()
    }
    next?.resume()
  }
}
