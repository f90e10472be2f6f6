/// Keys with the moments at which they are due: a binary heap with one valid entry per key. Pure.
package struct DelayHeap<Key: Hashable & Sendable>: Sendable {
  package typealias Instant = ContinuousClock.Instant

  private struct Entry: Sendable {
    var due: Instant
    var key: Key
  }

  /// Entries that were replaced stay in the heap until they come up or it is rebuilt.
  private var heap: [Entry] = []
  private var due: [Key: Instant] = [:]

  package init() {}

  package var count: Int { due.count }

  package func contains(_ key: Key) -> Bool { due[key] != nil }

  /// When the next key is due.
  package mutating func next() -> Instant? {
    discardReplaced()
    return heap.first?.due
  }

  package mutating func set(_ key: Key, due instant: Instant) {
    due[key] = instant
    heap.append(Entry(due: instant, key: key))
    siftUp(heap.count - 1)
    if heap.count > 2 * due.count + 64 { rebuild() }
  }

  package mutating func remove(_ key: Key) { due[key] = nil }

  package func due(_ key: Key) -> Instant? { due[key] }

  /// Takes a key out that is due by `now`.
  package mutating func pop(now: Instant) -> Key? {
    discardReplaced()
    guard let first = heap.first, first.due <= now else { return nil }
    removeFirst()
    due[first.key] = nil
    return first.key
  }

  private mutating func discardReplaced() {
    while let first = heap.first, due[first.key] != first.due { removeFirst() }
  }

  private mutating func rebuild() {
    heap = due.map { Entry(due: $0.value, key: $0.key) }.sorted { $0.due < $1.due }
  }

  private mutating func removeFirst() {
    let last = heap.removeLast()
    guard !heap.isEmpty else { return }
    heap[0] = last
    var index = 0
    while true {
      let left = 2 * index + 1
      guard left < heap.count else { return }
      let right = left + 1
      let child = right < heap.count && heap[right].due < heap[left].due ? right : left
      guard heap[child].due < heap[index].due else { return }
      heap.swapAt(child, index)
      index = child
    }
  }

  private mutating func siftUp(_ start: Int) {
    var index = start
    while index > 0 {
      let parent = (index - 1) / 2
      guard heap[index].due < heap[parent].due else { return }
      heap.swapAt(index, parent)
      index = parent
    }
  }
}
