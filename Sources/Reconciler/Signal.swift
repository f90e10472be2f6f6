import Deadlines
import Synchronization

/// Wakes those who wait for work. A signal that nobody waits for is kept for the next one who comes, once.
package final class Signal: Sendable {
  private struct State {
    var isPending = false
    var nextID = 0
    var waiters: [(id: Int, continuation: CheckedContinuation<Void, Never>)] = []
    /// Those who are about to wait; who is taken out here need not begin.
    var coming: Set<Int> = []
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

  /// Waits for a signal, but not beyond `deadline`, or until the task is cancelled.
  package func wait(until deadline: ContinuousClock.Instant? = nil) async {
    let id = state.withLock { state in
      state.nextID += 1
      state.coming.insert(state.nextID)
      return state.nextID
    }
    let ticket = deadline.map { Deadlines.shared.add($0) { self.release(id) } }
    await withTaskCancellationHandler {
      await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
        let resumeNow = state.withLock { state in
          let isReleased = state.coming.remove(id) == nil
          if state.isPending {
            state.isPending = false
            return true
          }
          if isReleased { return true }
          state.waiters.append((id, continuation))
          return false
        }
        if resumeNow { continuation.resume() }
      }
    } onCancel: {
      release(id)
    }
    if let ticket { Deadlines.shared.remove(ticket) }
  }

  /// Ends the waiting of one who got no signal.
  private func release(_ id: Int) {
    let waiter = state.withLock { state -> CheckedContinuation<Void, Never>? in
      guard let index = state.waiters.firstIndex(where: { $0.id == id }) else {
        state.coming.remove(id)
        return nil
      }
      return state.waiters.remove(at: index).continuation
    }
    waiter?.resume()
  }
}
