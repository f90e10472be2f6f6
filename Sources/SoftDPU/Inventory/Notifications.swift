import JSON
import Synchronization

/// What happened last, for clients that ask (`notify_get_notifications`).
final class Notifications: Sendable {
  private struct Entry {
    var id: UInt64
    var type: String
    var context: String
  }

  private struct State {
    var entries: [Entry] = []
    var next: UInt64 = 0
  }

  static let types = ["bdev_register", "bdev_unregister"]
  /// As many as SPDK keeps.
  private static let capacity = 1024
  private let state = Mutex(State())

  func add(_ type: String, _ context: String) {
    state.withLock { state in
      if state.entries.count >= Notifications.capacity { state.entries.removeFirst(Notifications.capacity / 4) }
      state.entries.append(Entry(id: state.next, type: type, context: context))
      state.next += 1
    }
  }

  /// Those from `id` on, at most `maximum`.
  func list(from id: UInt64, maximum: Int) -> JSONValue {
    state.withLock { state in
      .array(
        state.entries.drop { $0.id < id }.prefix(maximum).map {
          ["type": .string($0.type), "ctx": .string($0.context), "id": .integer(Int64(clamping: $0.id))]
        })
    }
  }
}
