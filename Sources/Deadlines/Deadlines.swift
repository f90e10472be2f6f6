import Dispatch
import Synchronization

/// What is to be done when a time is over, unless it is taken back before; as it mostly is.
///
/// One timer serves them all. A `Task.sleep` that is cancelled leaves its job behind until the time that it was to sleep
/// for is over: 700 bytes for each request, for half a minute, were most of the memory of a controller that talks to a
/// thousand servers.
package final class Deadlines: Sendable {
  package typealias Instant = ContinuousClock.Instant
  package typealias Ticket = UInt64

  private struct State {
    var due = DelayHeap<Ticket>()
    var actions: [Ticket: @Sendable () -> Void] = [:]
    var lastTicket: Ticket = 0
    /// When the timer fires next; nil while it is not set.
    var firesAt: Instant?
  }

  /// Those of the process.
  package static let shared = Deadlines()

  private let state = Mutex(State())
  /// Dispatch says itself that its objects may be used from any thread.
  private nonisolated(unsafe) let timer: any DispatchSourceTimer

  package init() {
    timer = DispatchSource.makeTimerSource(queue: DispatchQueue(label: "deadlines"))
    timer.setEventHandler { [weak self] in self?.fire() }
    timer.resume()
  }

  deinit { timer.cancel() }

  /// How many are pending.
  package var count: Int { state.withLock { $0.actions.count } }

  /// Calls `action`, which must be quick, at `instant` or soon after.
  package func add(_ instant: Instant, _ action: @escaping @Sendable () -> Void) -> Ticket {
    state.withLock { state in
      state.lastTicket += 1
      state.actions[state.lastTicket] = action
      state.due.set(state.lastTicket, due: instant)
      set(&state)
      return state.lastTicket
    }
  }

  /// Takes it back. One whose time was over may still be called, or being called.
  package func remove(_ ticket: Ticket) {
    // The timer stays as it is: where nothing is due when it fires, it is set anew.
    let action = state.withLock { state in
      state.due.remove(ticket)
      return state.actions.removeValue(forKey: ticket)
    }
    // What the action holds ends here, without the lock.
    withExtendedLifetime(action) {}
  }

  private func fire() {
    let actions = state.withLock { state in
      state.firesAt = nil
      var actions: [@Sendable () -> Void] = []
      let now = Instant.now
      while let ticket = state.due.pop(now: now) {
        if let action = state.actions.removeValue(forKey: ticket) { actions.append(action) }
      }
      set(&state)
      return actions
    }
    for action in actions { action() }
  }

  /// Sets the timer to what is due next. Called with the lock, so that an older time never comes last.
  private func set(_ state: inout State) {
    guard let next = state.due.next(), next < state.firesAt ?? .now + .seconds(1 << 30) else { return }
    state.firesAt = next
    let (seconds, attoseconds) = (next - .now).components
    let wait = min(max(Double(seconds) + Double(attoseconds) * 1e-18, 0), 86_400)
    timer.schedule(deadline: .now() + wait, leeway: .milliseconds(1))
  }
}
