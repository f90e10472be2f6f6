/// What a reactor has to do later: a heap of deadlines. Reactor's thread only.
///
/// SAFETY: a context is only handed back; who schedules a timer keeps its context, or removes the timer.
@safe
struct TimerQueue {
  /// Called with the timer's context and the reactor's core.
  typealias Action = @convention(c) (UnsafeMutableRawPointer, UnsafeMutableRawPointer) -> Void

  @safe
  private struct Entry {
    /// In nanoseconds of the monotonic clock.
    var deadline: UInt64
    var sequence: UInt64
    var action: Action
    var context: UInt
  }

  private var heap: [Entry] = []
  private var sequence: UInt64 = 0

  /// The next deadline; nil where there is none.
  var next: UInt64? { heap.first?.deadline }

  mutating func add(at deadline: UInt64, _ action: Action, context: UnsafeMutableRawPointer) {
    sequence &+= 1
    unsafe heap.append(
      Entry(deadline: deadline, sequence: sequence, action: action, context: UInt(bitPattern: context)))
    var child = heap.count - 1
    while child > 0 {
      let parent = (child - 1) / 2
      guard isBefore(child, parent) else { return }
      heap.swapAt(child, parent)
      child = parent
    }
  }

  /// Takes out the first timer that is due.
  mutating func takeDue(_ now: UInt64) -> (action: Action, context: UInt)? {
    guard let first = heap.first, first.deadline <= now else { return nil }
    let last = heap.removeLast()
    if !heap.isEmpty {
      heap[0] = last
      sink(0)
    }
    return unsafe (first.action, first.context)
  }

  /// Forgets the timers of a context that is about to go away.
  mutating func remove(context: UnsafeMutableRawPointer) {
    let address = UInt(bitPattern: context)
    guard heap.contains(where: { $0.context == address }) else { return }
    heap.removeAll { $0.context == address }
    for index in stride(from: heap.count / 2 - 1, through: 0, by: -1) { sink(index) }
  }

  private mutating func sink(_ start: Int) {
    var parent = start
    while true {
      var least = parent
      for child in [2 * parent + 1, 2 * parent + 2] where child < heap.count && isBefore(child, least) {
        least = child
      }
      guard least != parent else { return }
      heap.swapAt(parent, least)
      parent = least
    }
  }

  private func isBefore(_ a: Int, _ b: Int) -> Bool {
    (heap[a].deadline, heap[a].sequence) < (heap[b].deadline, heap[b].sequence)
  }
}
