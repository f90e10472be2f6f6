import Synchronization

/// Wakes those who wait for work. A signal that nobody waits for is kept for the next one who comes, once.
package final class Signal: Sendable {
  private struct State {
    var isPending = false
    var nextID = 0
    var waiters: [(id: Int, continuation: CheckedContinuation<Void, Never>)] = []
  }

  private let state = Mutex(State())

  package init() {}

  /// Wakes one waiter.
  package func signal() {
    let waiter = state.withLock { state -> CheckedContinuation<Void, Never>? in
      guard !state.waiters.isEmpty else {
        state.isPending = true
        return nil
      }
      return state.waiters.removeFirst().continuation
    }
    waiter?.resume()
  }

  /// Wakes all waiters, and the next one who comes.
  package func broadcast() {
    let waiters = state.withLock { state in
      state.isPending = true
      defer { state.waiters = [] }
      return state.waiters
    }
    for waiter in waiters { waiter.continuation.resume() }
  }

  /// Waits for a signal, or until the task is cancelled.
  package func wait() async {
    let id = state.withLock { state in
      state.nextID += 1
      return state.nextID
    }
    await withTaskCancellationHandler {
      await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
        let resumeNow = state.withLock { state in
          if state.isPending {
            state.isPending = false
            return true
          }
          if Task.isCancelled { return true }
          state.waiters.append((id, continuation))
          return false
        }
        if resumeNow { continuation.resume() }
      }
    } onCancel: {
      let waiter = state.withLock { state -> CheckedContinuation<Void, Never>? in
        guard let index = state.waiters.firstIndex(where: { $0.id == id }) else { return nil }
        return state.waiters.remove(at: index).continuation
      }
      waiter?.resume()
    }
  }

  /// Waits for a signal, but not beyond `deadline`.
  package func wait(until deadline: ContinuousClock.Instant?) async {
    guard let deadline else { return await wait() }
    await withTaskGroup(of: Void.self) { group in
      group.addTask { await self.wait() }
      group.addTask { try? await Task.sleep(until: deadline, clock: .continuous) }
      _ = await group.next()
      group.cancelAll()
    }
  }
}
