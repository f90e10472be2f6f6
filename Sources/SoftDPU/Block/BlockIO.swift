import CLinux
import Glibc

// The path of a request through the block devices. Free functions on plain pointers: nothing here allocates, locks or
// counts references.
//
// SAFETY, for every `unsafe` here: a request lives in a slot of the way out that made it, from `start` until `done` is
// called; its target outlives it, because a way out keeps the device that it serves. One thread, the reactor's, touches
// a request, but for the time in which `hop` has handed it to another reactor. What `vectors` name stays mapped for
// as long.

/// A request to a block device, from the way out that made it (a guest's queue, a peer's connection) to the file,
/// memory or peer that carries it out.
@unsafe
struct BlockIO {
  enum Kind: UInt8 {
    case read, write, flush
    /// Gives the space back; the blocks read as zeros or as they were.
    case unmap
    /// The blocks read as zeros from now on.
    case writeZeroes

    /// Latencies are told of reads, of writes, and of all others together: 0, 1 and 2.
    @inline(__always)
    var group: Int { Int(min(rawValue, 2)) }
    static let groups = ["read", "write", "other"]
  }

  /// Takes the outcome, 0 or a negative error number, on the reactor's thread: the request, the outcome, the reactor's
  /// core.
  typealias Completion = @convention(c) (UnsafeMutableRawPointer, CInt, UnsafeMutableRawPointer) -> Void

  var target: UnsafeMutablePointer<BlockTarget>
  /// Pieces of memory that are still to be moved: `vectors[first..<end]`.
  var vectors: UnsafeMutablePointer<iovec>
  var first = 0
  var end = 0
  /// Where the next byte goes, and how many bytes are left.
  var offset: UInt64 = 0
  var remaining: UInt64 = 0
  /// Length in bytes, and the time at which the device took it, in nanoseconds of the monotonic clock.
  var length: UInt64 = 0
  var began: UInt64 = 0
  /// Where the request began, and the time at which its engine got it: later than `began` where it had to wait.
  var place: UInt64 = 0
  var admitted: UInt64 = 0
  /// Who asks, for the trace of slow requests.
  var asker: UnsafeMutablePointer<IOLabel>?
  var done: Completion
  /// What the layers above the present one wait for.
  var frame: UnsafeMutablePointer<BlockFrame>?
  /// The next of the requests that wait for their turn.
  var next: UnsafeMutablePointer<BlockIO>?
  var kind = Kind.read
  /// A change counts as done when it is durable (FUA).
  var isDurable = false
  /// Zeros may be written by punching a hole.
  var mayUnmap = false
  /// Moved by way of memory that direct I/O takes, piece by piece.
  var isBounced = false
  /// How often a remote target was asked once more.
  var retries: UInt8 = 0
  /// The mode of fallocate.
  var mode: CInt = 0

  init(
    target: UnsafeMutablePointer<BlockTarget>, vectors: UnsafeMutablePointer<iovec>, done: @escaping Completion
  ) {
    unsafe self.target = unsafe target
    unsafe self.vectors = unsafe vectors
    unsafe self.done = unsafe done
    unsafe asker = nil
  }

  /// Leaves out the first `length` bytes of what is still to be moved.
  @inline(__always)
  mutating func advance(_ length: Int) {
    var left = length
    while left > 0 {
      let vector = unsafe vectors + first
      if unsafe vector.pointee.iov_len > left {
        unsafe vector.pointee.iov_base += left
        unsafe vector.pointee.iov_len -= left
        return
      }
      unsafe left -= vector.pointee.iov_len
      unsafe first += 1
    }
  }
}

/// What a layer (delay, encryption, another reactor) keeps of a request while the layer below has it.
@unsafe
struct BlockFrame {
  var target: UnsafeMutablePointer<BlockTarget>
  var vectors: UnsafeMutablePointer<iovec>
  var first: Int
  var end: Int
  var offset: UInt64
  var length: UInt64
  var began: UInt64
  var admitted: UInt64
  var done: BlockIO.Completion
  /// Of the layer above.
  var frame: UnsafeMutablePointer<BlockFrame>?
  /// Memory of the layer's own.
  var buffer: UnsafeMutableRawPointer?
  /// A number of the layer's own.
  var note: UInt64 = 0
  var result: CInt = 0
}

/// Starts a request on its target. The caller has checked the range against the target's capacity and block size.
@inline(__always)
func start(_ io: UnsafeMutablePointer<BlockIO>, _ core: UnsafeMutablePointer<ReactorCore>) {
  let target = unsafe io.pointee.target
  unsafe io.pointee.length = io.pointee.remaining
  unsafe io.pointee.place = io.pointee.offset
  // When the turn began, or when the last request ended: a look at the clock for each request would cost as much as the
  // rest of its way.
  let now = unsafe core.pointee.now
  unsafe io.pointee.began = now
  unsafe io.pointee.admitted = now
  guard unsafe target.pointee.reactor == core.pointee.number else { return unsafe hop(io, core) }
  // Looked at with each request: a device can become read-only while it is in use.
  if unsafe target.pointee.isReadOnly, unsafe io.pointee.kind != .read, unsafe io.pointee.kind != .flush {
    return unsafe io.pointee.done(io, -EROFS, core)
  }
  unsafe target.pointee.inflight += 1
  if unsafe target.pointee.limiter != nil, unsafe !admit(io, core) { return }
  unsafe dispatch(io, core)
}

/// Hands a request that was admitted to what carries it out.
@inline(__always)
func dispatch(_ io: UnsafeMutablePointer<BlockIO>, _ core: UnsafeMutablePointer<ReactorCore>) {
  let target = unsafe io.pointee.target
  if unsafe io.pointee.kind.isChange {
    if let hold = unsafe target.pointee.hold { return unsafe keepBack(io, hold) }
    unsafe target.pointee.changing += 1
  }
  switch unsafe target.pointee.engine {
  case .file: unsafe startFile(io, target, core)
  case .memory: unsafe performMemory(io, target, core)
  case .null: unsafe performNull(io, core)
  case .layer:
    guard let submit = unsafe target.pointee.submit else { return unsafe finish(io, -ENXIO, core) }
    unsafe submit(io, core)
  }
}

/// Ends a request on its target, and tells the way out, or the layer above.
@inline(__always)
func finish(_ io: UnsafeMutablePointer<BlockIO>, _ result: CInt, _ core: UnsafeMutablePointer<ReactorCore>) {
  let target = unsafe io.pointee.target
  unsafe target.pointee.inflight -= 1
  if unsafe io.pointee.kind.isChange {
    unsafe target.pointee.changing -= 1
    if let hold = unsafe target.pointee.hold, unsafe target.pointee.changing == 0 { unsafe tellSettled(hold) }
  }
  let now = clinux_monotonic_nanoseconds()
  unsafe core.pointee.now = now
  let elapsed = unsafe now &- io.pointee.began
  unsafe target.pointee.counters.pointee.count(
    io.pointee.kind, bytes: io.pointee.length, nanoseconds: elapsed, isFailed: result < 0)
  if unsafe elapsed >= core.pointee.slow.threshold { unsafe noteSlow(io, result, now: now, core) }
  unsafe io.pointee.done(io, result, core)
}

/// Has `next` carry the request on, for a layer: `done` is called with its outcome. False, with nothing changed, where
/// the reactor has no memory left for requests that are under way.
func descend(
  _ io: UnsafeMutablePointer<BlockIO>, to next: UnsafeMutablePointer<BlockTarget>, note: UInt64 = 0,
  done: @escaping BlockIO.Completion, _ core: UnsafeMutablePointer<ReactorCore>
) -> Bool {
  guard let frame = unsafe push(io, core) else { return false }
  unsafe frame.pointee.note = note
  unsafe io.pointee.done = unsafe done
  unsafe io.pointee.target = unsafe next
  unsafe start(io, core)
  return true
}

/// Keeps what a layer needs to go on with the request later.
func push(
  _ io: UnsafeMutablePointer<BlockIO>, _ core: UnsafeMutablePointer<ReactorCore>
) -> UnsafeMutablePointer<BlockFrame>? {
  guard let frame = unsafe core.pointee.frames.take() else { return nil }
  unsafe frame.initialize(
    to: BlockFrame(
      target: io.pointee.target, vectors: io.pointee.vectors, first: io.pointee.first, end: io.pointee.end,
      offset: io.pointee.offset, length: io.pointee.length, began: io.pointee.began, admitted: io.pointee.admitted,
      done: io.pointee.done, frame: io.pointee.frame))
  unsafe io.pointee.frame = unsafe frame
  return unsafe frame
}

/// Puts the request back into the hands of the layer that kept its topmost frame.
func pop(_ io: UnsafeMutablePointer<BlockIO>, _ core: UnsafeMutablePointer<ReactorCore>) {
  guard let frame = unsafe io.pointee.frame else { return }
  unsafe io.pointee.target = unsafe frame.pointee.target
  unsafe io.pointee.vectors = unsafe frame.pointee.vectors
  unsafe io.pointee.first = unsafe frame.pointee.first
  unsafe io.pointee.end = unsafe frame.pointee.end
  unsafe io.pointee.offset = unsafe frame.pointee.offset
  unsafe io.pointee.length = unsafe frame.pointee.length
  unsafe io.pointee.place = unsafe frame.pointee.offset
  unsafe io.pointee.began = unsafe frame.pointee.began
  unsafe io.pointee.admitted = unsafe frame.pointee.admitted
  unsafe io.pointee.done = unsafe frame.pointee.done
  unsafe io.pointee.frame = unsafe frame.pointee.frame
  unsafe core.pointee.frames.give(frame)
}

/// Carries a request to the reactor that its target belongs to, and its outcome back.
private func hop(_ io: UnsafeMutablePointer<BlockIO>, _ core: UnsafeMutablePointer<ReactorCore>) {
  guard let owner = unsafe core.pointee.peer(io.pointee.target.pointee.reactor),
    let frame = unsafe push(io, core)
  else { return unsafe io.pointee.done(io, -ENOMEM, core) }
  unsafe frame.pointee.note = UInt64(core.pointee.number)
  unsafe io.pointee.done = { io, result, core in
    let io = unsafe io.assumingMemoryBound(to: BlockIO.self)
    let core = unsafe core.assumingMemoryBound(to: ReactorCore.self)
    guard let frame = unsafe io.pointee.frame, let home = unsafe core.pointee.peer(Int(frame.pointee.note)) else {
      return
    }
    let traveller = unsafe Traveller(io: io)
    home.post {
      let core = unsafe home.core
      unsafe pop(traveller.io, core)
      unsafe traveller.io.pointee.done(traveller.io, result, core)
    }
  }
  let traveller = unsafe Traveller(io: io)
  owner.post { unsafe start(traveller.io, owner.core) }
}

/// A request on its way to another thread, which alone touches it from then on.
@unsafe
private struct Traveller: @unchecked Sendable {
  let io: UnsafeMutablePointer<BlockIO>
}
