import CLinux
import Glibc

/// What the hot path needs of its reactor: a plain value at a fixed address.
///
/// SAFETY: made by the reactor's thread, and touched by no other.
@unsafe
struct ReactorCore {
  let ring: Ring
  let number: Int
  /// Every reactor of the process, at its number.
  var reactors: [Unmanaged<Reactor>] = unsafe []
  /// The monotonic clock in nanoseconds as it was last looked at: when the present turn began, or later.
  var now: UInt64 = clinux_monotonic_nanoseconds()
  var timers = TimerQueue()
  var frames = unsafe FramePool()
  var buffers = unsafe BufferPool()
  /// Connections that wait for buffers.
  var waiters = unsafe MemoryWaiters()
  var slow = unsafe SlowTrace()
  /// Pieces of one call that sends.
  let vectors: UnsafeMutablePointer<iovec>
  static let maximumVectors = 256
  /// Room for bytes of sockets on their way to where they belong; what is there is gone with the next function.
  let scratch: SocketScratch
  /// Zeros to write from.
  let zeros: UnsafeMutableRawPointer
  static let zeroLength = 1 << 20
  /// Pieces that all are those zeros: constant, because the kernel reads them when it takes the submission.
  let zeroVectors: UnsafeMutablePointer<iovec>
  static let maximumZeroVectors = 16
  /// What is done before the thread sleeps: sending, mostly.
  var deferred: [(action: Deferred, context: UnsafeMutableRawPointer)] = unsafe []
  typealias Deferred = @convention(c) (UnsafeMutableRawPointer, UnsafeMutableRawPointer) -> Void
  /// Queues to publish, and to look into, before the thread sleeps.
  let dirty: UnsafeMutablePointer<UnsafeMutablePointer<VirtQueue>>
  var dirtyCount = 0
  /// The other half of `dirty`: the two change places at each turn.
  let turn: UnsafeMutablePointer<UnsafeMutablePointer<VirtQueue>>
  let capacity: Int
  /// Watches whose address the kernel has.
  var armedWatches = 0
  /// The eight bytes that ring every guest's bell.
  let one: UnsafeMutablePointer<UInt64>

  init(ring: Ring, number: Int, capacity: Int) {
    unsafe self.ring = ring
    unsafe self.number = number
    unsafe self.capacity = capacity
    unsafe dirty = .allocate(capacity: capacity)
    unsafe turn = .allocate(capacity: capacity)
    unsafe one = .allocate(capacity: 1)
    unsafe one.initialize(to: 1)
    unsafe vectors = .allocate(capacity: ReactorCore.maximumVectors)
    unsafe scratch = unsafe SocketScratch()
    unsafe zeros = .allocate(byteCount: ReactorCore.zeroLength, alignment: 4096)
    unsafe memset(zeros, 0, ReactorCore.zeroLength)
    unsafe zeroVectors = .allocate(capacity: ReactorCore.maximumZeroVectors)
    unsafe zeroVectors.initialize(
      repeating: iovec(iov_base: zeros, iov_len: ReactorCore.zeroLength), count: ReactorCore.maximumZeroVectors)
  }

  mutating func deallocate() {
    unsafe frames.deallocate()
    unsafe buffers.deallocate()
    unsafe slow.deallocate()
    unsafe vectors.deallocate()
    unsafe scratch.deallocate()
    unsafe zeros.deallocate()
    unsafe zeroVectors.deallocate()
    unsafe dirty.deallocate()
    unsafe turn.deallocate()
    unsafe one.deallocate()
  }

  /// Has the queue looked at before the thread sleeps.
  @inline(__always)
  mutating func touch(_ queue: UnsafeMutablePointer<VirtQueue>) {
    guard unsafe !queue.pointee.isDirty, unsafe dirtyCount < capacity else { return }
    unsafe queue.pointee.isDirty = true
    unsafe dirty[dirtyCount] = unsafe queue
    unsafe dirtyCount += 1
  }

  /// Has `action` called with `context` at a time of the monotonic clock, in nanoseconds, or soon after.
  mutating func schedule(at deadline: UInt64, _ action: TimerQueue.Action, _ context: UnsafeMutableRawPointer) {
    unsafe timers.add(at: deadline, action, context: context)
  }

  /// Has `action` called with `context` before the thread sleeps.
  @inline(__always)
  mutating func `defer`(_ action: @escaping Deferred, _ context: UnsafeMutableRawPointer) {
    unsafe deferred.append((action, context))
  }

  /// Forgets what was to be done with a context that is about to go away.
  mutating func forget(_ context: UnsafeMutableRawPointer) {
    unsafe deferred.removeAll { unsafe $0.context == context }
    unsafe timers.remove(context: context)
  }

  /// Has the stream flushed when its socket takes bytes again.
  mutating func watchWritable(_ stream: UnsafeMutablePointer<Stream>) {
    guard let entry = unsafe ring.next() else { return unsafe flushLater(stream) }
    unsafe clinux_prep_poll_once(
      entry, stream.pointee.fd, UInt32(POLLOUT), UInt64(UInt(bitPattern: stream)) | Tag.writable)
  }

  /// Has the stream flushed after a while: the kernel takes no poll now. It counts as blocked until then.
  mutating func flushLater(_ stream: UnsafeMutablePointer<Stream>) {
    unsafe schedule(
      at: clinux_monotonic_nanoseconds() &+ Retry.pause,
      { raw, core in
        let stream = unsafe raw.assumingMemoryBound(to: Stream.self)
        unsafe stream.pointee.isBlocked = false
        unsafe flush(stream, core.assumingMemoryBound(to: ReactorCore.self))
      }, stream)
  }

  /// The reactor with this number.
  func peer(_ number: Int) -> Reactor? {
    guard unsafe reactors.indices.contains(number) else { return nil }
    // SAFETY: reactors live until the process lets go of all of them, after their threads have ended.
    return unsafe reactors[number].takeUnretainedValue()
  }

  /// Takes a queue that is about to be freed out of the list.
  mutating func forget(_ queue: UnsafeMutablePointer<VirtQueue>) {
    guard unsafe queue.pointee.isDirty else { return }
    for index in unsafe 0..<dirtyCount where unsafe dirty[index] == queue {
      unsafe dirtyCount -= 1
      unsafe dirty[index] = unsafe dirty[dirtyCount]
      return
    }
  }
}

/// What a completion belongs to: the low bits of `user_data`, above which stands an address.
enum Tag {
  static let request: UInt64 = 0
  static let watch: UInt64 = 1
  static let nothing: UInt64 = 2
  /// A stream whose socket takes bytes again.
  static let writable: UInt64 = 3
  static let mask: UInt64 = 7
}
