import CLinux
import Synchronization

// What keeps changes of a device back for the moment in which several devices are captured together.
//
// SAFETY, for every `unsafe` here: a hold is allocated on its target's reactor and freed there, when it ends; whoever
// holds a device keeps it for as long. Requests that are kept back are counted in their target's `inflight`.

/// Changes of one target that wait, in the order of their arrival. Reads and flushes go on. Reactor's thread.
@unsafe
struct ChangeHold {
  /// Which hold it is: one that has ended by itself is not to be taken for the next.
  let number: UInt64
  let target: UnsafeMutablePointer<BlockTarget>
  var first: UnsafeMutablePointer<BlockIO>?
  var last: UnsafeMutablePointer<BlockIO>?
  /// Called once, when no change is under way any more: true.
  var settled: (@Sendable (Bool) -> Void)?
}

extension BlockIO.Kind {
  /// Whether it changes what the device holds.
  @inline(__always)
  var isChange: Bool { self != .read && self != .flush }
}

/// Puts a change into the queue of its target's hold.
func keepBack(_ io: UnsafeMutablePointer<BlockIO>, _ hold: UnsafeMutablePointer<ChangeHold>) {
  unsafe io.pointee.next = nil
  if let last = unsafe hold.pointee.last {
    unsafe last.pointee.next = unsafe io
  } else {
    unsafe hold.pointee.first = unsafe io
  }
  unsafe hold.pointee.last = unsafe io
}

/// Tells who waits for it that the target's last change is done.
func tellSettled(_ hold: UnsafeMutablePointer<ChangeHold>) {
  guard let settled = unsafe hold.pointee.settled else { return }
  unsafe hold.pointee.settled = nil
  settled(true)
}

/// Ends a target's hold: what waited goes on.
private func endHold(_ target: UnsafeMutablePointer<BlockTarget>, _ core: UnsafeMutablePointer<ReactorCore>) {
  guard let hold = unsafe target.pointee.hold else { return }
  unsafe target.pointee.hold = nil
  unsafe core.pointee.timers.remove(context: hold)
  let now = clinux_monotonic_nanoseconds()
  var next = unsafe hold.pointee.first
  while let io = unsafe next {
    unsafe next = unsafe io.pointee.next
    unsafe io.pointee.next = nil
    unsafe io.pointee.admitted = now
    unsafe dispatch(io, core)
  }
  let unsettled = unsafe hold.pointee.settled
  unsafe hold.deinitialize(count: 1)
  unsafe hold.deallocate()
  unsettled?(false)
}

private let holdDue: TimerQueue.Action = { hold, core in
  let hold = unsafe hold.assumingMemoryBound(to: ChangeHold.self)
  unsafe endHold(hold.pointee.target, core.assumingMemoryBound(to: ReactorCore.self))
}

extension BlockDevice {
  /// Keeps back changes that come from now on, until `releaseChanges` or the deadline, whichever is first.
  ///
  /// - Parameters:
  ///   - deadline: In nanoseconds of the monotonic clock. The hold ends then by itself, whatever became of its owner.
  ///   - settled: Called once: with true when every change that was under way is done, with false where another holds
  ///     the device or the hold ended before.
  func holdChanges(_ number: UInt64, until deadline: UInt64, settled: @escaping @Sendable (Bool) -> Void) {
    let isPosted = reactor.post { [self] in
      guard unsafe target.pointee.hold == nil else { return settled(false) }
      let hold = UnsafeMutablePointer<ChangeHold>.allocate(capacity: 1)
      unsafe hold.initialize(to: ChangeHold(number: number, target: target, first: nil, last: nil, settled: settled))
      unsafe target.pointee.hold = unsafe hold
      unsafe reactor.core.pointee.schedule(at: deadline, holdDue, hold)
      if unsafe target.pointee.changing == 0 { unsafe tellSettled(hold) }
    }
    if !isPosted { settled(false) }
  }

  /// Lets changes go on. Whether the hold of this number was in effect until now. Not on the reactor's thread.
  func releaseChanges(_ number: UInt64) -> Bool {
    let done = Latch()
    let wasHeld = Mutex(false)
    // A reactor that has stopped has no memory left to look at.
    let isPosted = reactor.post { [self] in
      if let hold = unsafe target.pointee.hold, unsafe hold.pointee.number == number {
        unsafe endHold(target, reactor.core)
        wasHeld.withLock { $0 = true }
      }
      done.open()
    }
    guard isPosted else { return false }
    done.wait()
    return wasHeld.withLock { $0 }
  }
}
