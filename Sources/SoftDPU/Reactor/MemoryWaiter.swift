// Those who wait for memory of the reactor's pool.
//
// SAFETY, for every `unsafe` here: who is listed lives until it is woken or taken out of the list, which its owner does
// before it frees it; one thread touches the lists.

/// A connection that has stopped to take what its peer sends, because there is no memory for it: it is woken when some
/// is given back, in the order of arrival, and lists itself again where that is not enough.
@unsafe
struct MemoryWaiter {
  /// Called with the context and the reactor's core.
  let wake: ReactorCore.Deferred
  let context: UnsafeMutableRawPointer
  fileprivate var next: UnsafeMutablePointer<MemoryWaiter>?
  fileprivate var isListed = false

  init(context: UnsafeMutableRawPointer, wake: @escaping ReactorCore.Deferred) {
    unsafe self.context = unsafe context
    unsafe self.wake = unsafe wake
    unsafe next = nil
  }
}

/// Those who wait, in the order of their arrival.
@unsafe
struct MemoryWaiters {
  private var first: UnsafeMutablePointer<MemoryWaiter>?
  private var last: UnsafeMutablePointer<MemoryWaiter>?
  fileprivate var isWaking = false

  init() {
    unsafe first = nil
    unsafe last = nil
  }

  fileprivate var isEmpty: Bool { unsafe first == nil }

  fileprivate mutating func append(_ waiter: UnsafeMutablePointer<MemoryWaiter>) {
    guard unsafe !waiter.pointee.isListed else { return }
    unsafe waiter.pointee.isListed = true
    unsafe waiter.pointee.next = nil
    if let last = unsafe last { unsafe last.pointee.next = unsafe waiter } else { unsafe first = unsafe waiter }
    unsafe last = unsafe waiter
  }

  fileprivate mutating func removeFirst() -> UnsafeMutablePointer<MemoryWaiter>? {
    guard let waiter = unsafe first else { return nil }
    unsafe first = unsafe waiter.pointee.next
    if unsafe first == nil { unsafe last = nil }
    unsafe waiter.pointee.isListed = false
    return unsafe waiter
  }

  fileprivate mutating func remove(_ waiter: UnsafeMutablePointer<MemoryWaiter>) {
    guard unsafe waiter.pointee.isListed else { return }
    var others = unsafe MemoryWaiters()
    while let present = unsafe removeFirst() { if unsafe present != waiter { unsafe others.append(present) } }
    unsafe first = unsafe others.first
    unsafe last = unsafe others.last
  }

  fileprivate var count: Int {
    var count = 0
    var next = unsafe first
    while let waiter = unsafe next {
      count += 1
      unsafe next = unsafe waiter.pointee.next
    }
    return count
  }
}

extension ReactorCore {
  /// Has the waiter woken when memory is given back.
  mutating func wait(_ waiter: UnsafeMutablePointer<MemoryWaiter>) { unsafe waiters.append(waiter) }

  /// Forgets a waiter that is about to go away.
  mutating func forget(_ waiter: UnsafeMutablePointer<MemoryWaiter>) { unsafe waiters.remove(waiter) }

  /// Memory was given back: those who wait for it look again, before the thread sleeps.
  @inline(__always)
  mutating func memoryReturned() {
    guard unsafe !waiters.isEmpty, unsafe !waiters.isWaking else { return }
    unsafe waiters.isWaking = true
    unsafe `defer`(
      { _, core in
        let core = unsafe core.assumingMemoryBound(to: ReactorCore.self)
        unsafe core.pointee.waiters.isWaking = false
        // Each once: who still gets nothing is behind the others then.
        for _ in unsafe 0..<core.pointee.waiters.count {
          guard let waiter = unsafe core.pointee.waiters.removeFirst() else { return }
          unsafe waiter.pointee.wake(waiter.pointee.context, core)
        }
      }, UnsafeMutableRawPointer(scratch.received))
  }

  /// Memory for a peer that has `held` bytes of it.
  @inline(__always)
  mutating func give(_ buffer: UnsafeMutableRawPointer, _ length: Int, peer held: inout Int) {
    unsafe buffers.give(buffer, length, peer: &held)
    unsafe memoryReturned()
  }
}

/// What a device has of the reactor's memory, and the requests that wait for some.
@unsafe
struct DeviceMemory {
  var held = 0
  private var first: UnsafeMutablePointer<BlockIO>?
  private var last: UnsafeMutablePointer<BlockIO>?
  private var isServing = false

  init() {
    unsafe first = nil
    unsafe last = nil
  }

  /// Whether a request has to wait behind others.
  @inline(__always)
  var hasWaiting: Bool { unsafe first != nil }

  mutating func append(_ io: UnsafeMutablePointer<BlockIO>) {
    unsafe io.pointee.next = nil
    if let last = unsafe last { unsafe last.pointee.next = unsafe io } else { unsafe first = unsafe io }
    unsafe last = unsafe io
  }

  /// Gives memory back, and has `go` take the requests that wait, as far as there is memory for them.
  static func give(
    _ buffer: UnsafeMutableRawPointer, _ length: Int, _ target: UnsafeMutablePointer<BlockTarget>,
    _ core: UnsafeMutablePointer<ReactorCore>,
    _ go: (UnsafeMutablePointer<BlockIO>, UnsafeMutableRawPointer, Int) -> Void
  ) {
    unsafe core.pointee.buffers.give(buffer, length, device: &target.pointee.budget.held)
    unsafe core.pointee.memoryReturned()
    guard unsafe target.pointee.budget.hasWaiting, unsafe !target.pointee.budget.isServing else { return }
    unsafe target.pointee.budget.isServing = true
    while let io = unsafe target.pointee.budget.first {
      let length = unsafe DeviceMemory.length(of: io)
      guard let memory = unsafe core.pointee.buffers.take(length, device: &target.pointee.budget.held) else { break }
      unsafe target.pointee.budget.first = unsafe io.pointee.next
      if unsafe io.pointee.next == nil { unsafe target.pointee.budget.last = nil }
      unsafe io.pointee.next = nil
      unsafe go(io, memory, length)
    }
    unsafe target.pointee.budget.isServing = false
  }

  /// A page of a device's own stands before a request's bytes.
  static let head = 4096
  /// How many bytes of a request are under way at a time: whole blocks of any size.
  static let pieceLength = unsafe BufferPool.piece - 65536

  /// How much memory a request takes.
  @inline(__always)
  static func length(of io: UnsafeMutablePointer<BlockIO>) -> Int {
    unsafe head + min(Int(clamping: io.pointee.remaining), pieceLength)
  }

  /// Memory for a request; nil where it waits, until `give` takes it.
  static func take(
    _ io: UnsafeMutablePointer<BlockIO>, _ length: Int, _ target: UnsafeMutablePointer<BlockTarget>,
    _ core: UnsafeMutablePointer<ReactorCore>
  ) -> UnsafeMutableRawPointer? {
    if unsafe !target.pointee.budget.hasWaiting,
      let memory = unsafe core.pointee.buffers.take(length, device: &target.pointee.budget.held)
    {
      return unsafe memory
    }
    unsafe target.pointee.budget.append(io)
    return nil
  }
}
