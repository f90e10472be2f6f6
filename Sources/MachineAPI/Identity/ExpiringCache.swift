import Synchronization

/// Answers that hold for a while. Bounded: where it is full, what is oldest goes.
package final class ExpiringCache<Key: Hashable & Sendable, Value: Sendable>: Sendable {
  private struct State {
    var values: [Key: (value: Value, until: ContinuousClock.Instant)] = [:]
    /// Keys in the order in which they came; a key that was renewed stands in it twice.
    var order: [Key] = []
  }

  private let limit: Int
  private let state = Mutex(State())

  package init(limit: Int) { self.limit = limit }

  package subscript(key: Key) -> Value? {
    state.withLock { state in
      guard let entry = state.values[key], entry.until > .now else { return nil }
      return entry.value
    }
  }

  package func store(_ value: Value, for key: Key, lasting: Duration) {
    state.withLock { state in
      state.values[key] = (value, .now + lasting)
      state.order.append(key)
      guard state.order.count > 2 * limit || state.values.count > limit else { return }
      let now = ContinuousClock.now
      state.values = state.values.filter { $0.value.until > now }
      // The younger half, in order and without repetition.
      var seen: Set<Key> = []
      var kept: [Key] = []
      for key in state.order.reversed() where state.values[key] != nil && seen.insert(key).inserted {
        if kept.count < limit / 2 { kept.append(key) } else { state.values[key] = nil }
      }
      state.order = kept.reversed()
    }
  }

  package func removeAll() { state.withLock { $0 = State() } }
}
