import CLinux
import Glibc

// The two rings of a queue. Free functions on plain pointers: nothing here allocates, locks or counts references.
//
// SAFETY, for every `unsafe` here: queue, session, slot and reactor are allocated by their control objects and freed
// only when nothing of theirs is in flight or listed; one thread touches them. Ring pointers were checked by
// `QueueControl.locate` to lie in mapped memory with the length that the ring's size needs, and offsets into them are
// masked by that size. What is read from a ring is a number, checked before it becomes an index.

/// How many chains are taken from one queue, and how many bytes are moved for it, before the others have their turn.
private let turnLength = 128
private let turnBytes = 4 << 20

/// Takes what the guest made available and starts it.
func takeAvailable(_ queue: UnsafeMutablePointer<VirtQueue>, _ core: UnsafeMutablePointer<ReactorCore>) {
  guard unsafe queue.pointee.isStarted, unsafe queue.pointee.isEnabled, unsafe !queue.pointee.isBroken,
    unsafe !queue.pointee.session.pointee.isFrozen, let available = unsafe queue.pointee.available,
    let used = unsafe queue.pointee.used, let slots = unsafe queue.pointee.slots
  else { return }
  let size = unsafe queue.pointee.size
  let mask = unsafe queue.pointee.mask
  var budget = turnLength
  unsafe queue.pointee.moved = 0
  while true {
    let waiting = unsafe clinux_load_acquire_u16(available + 2) &- queue.pointee.lastAvailable
    if waiting == 0 {
      guard unsafe queue.pointee.hasEventIndex else { return }
      // Ask for a kick at the next entry, then look again: the guest may have added it before it saw the request.
      unsafe clinux_store_release_u16(used + (4 + 8 * Int(size)), queue.pointee.lastAvailable)
      clinux_full_fence()
      if unsafe clinux_load_acquire_u16(available + 2) == queue.pointee.lastAvailable { return }
      continue
    }
    guard waiting <= size else { return unsafe breakQueue(queue, core) }
    for _ in 0..<waiting {
      guard budget > 0, unsafe queue.pointee.moved < turnBytes else {
        unsafe core.pointee.touch(queue)
        return
      }
      budget -= 1
      let head = unsafe clinux_load_relaxed_u16(available + (4 + 2 * Int(queue.pointee.lastAvailable & mask)))
      guard head < size, unsafe !slots[Int(head)].isBusy else { return unsafe breakQueue(queue, core) }
      unsafe queue.pointee.lastAvailable &+= 1
      unsafe begin(slots + Int(head), core)
      if unsafe queue.pointee.isBroken { return }
    }
  }
}

/// Takes one request that starts at a chain's head.
func begin(_ slot: UnsafeMutablePointer<Slot>, _ core: UnsafeMutablePointer<ReactorCore>) {
  let queue = unsafe slot.pointee.queue
  unsafe slot.pointee.isBusy = true
  unsafe queue.pointee.session.pointee.inflight += 1
  if let tracking = unsafe queue.pointee.tracking {
    unsafe tracking.begin(slot.pointee.head, order: queue.pointee.order)
    unsafe queue.pointee.order &+= 1
  }
  unsafe startRequest(slot, core)
}

/// Gives a chain back to the guest. It sees it at the next `publish`.
@inline(__always)
func complete(_ slot: UnsafeMutablePointer<Slot>, _ status: Int32, _ core: UnsafeMutablePointer<ReactorCore>) {
  let queue = unsafe slot.pointee.queue
  unsafe slot.pointee.status.storeBytes(of: UInt8(truncatingIfNeeded: status), as: UInt8.self)
  unsafe release(slot)
  guard let used = unsafe queue.pointee.used, let batch = unsafe queue.pointee.batch else { return }
  if unsafe queue.pointee.batchCount == Int(queue.pointee.size) { unsafe publish(queue, core) }
  let entry = unsafe used + (4 + 8 * Int(queue.pointee.usedIndex & queue.pointee.mask))
  unsafe entry.storeBytes(of: UInt32(slot.pointee.head), as: UInt32.self)
  unsafe entry.storeBytes(of: slot.pointee.written, toByteOffset: 4, as: UInt32.self)
  unsafe queue.pointee.usedIndex &+= 1
  unsafe batch[queue.pointee.batchCount] = unsafe slot.pointee.head
  unsafe queue.pointee.batchCount += 1
  unsafe core.pointee.touch(queue)
}

/// Frees a slot.
@inline(__always)
private func release(_ slot: UnsafeMutablePointer<Slot>) {
  let queue = unsafe slot.pointee.queue
  unsafe slot.pointee.isBusy = false
  unsafe queue.pointee.session.pointee.inflight -= 1
}

/// Shows the guest what was given back, and rings its bell where it asked for it.
func publish(_ queue: UnsafeMutablePointer<VirtQueue>, _ core: UnsafeMutablePointer<ReactorCore>) {
  guard unsafe queue.pointee.batchCount > 0, let used = unsafe queue.pointee.used,
    let available = unsafe queue.pointee.available,
    let batch = unsafe queue.pointee.batch
  else { return }
  let count = unsafe queue.pointee.batchCount
  if let tracking = unsafe queue.pointee.tracking {
    // The order of these steps is what lets the next target find out how far this one came.
    for index in 0..<count { unsafe tracking.prepare(batch[index]) }
    clinux_release_fence()
    unsafe clinux_store_release_u16(used + 2, queue.pointee.usedIndex)
    clinux_release_fence()
    for index in 0..<count { unsafe tracking.end(batch[index]) }
    unsafe tracking.settle(queue.pointee.usedIndex)
  } else {
    unsafe clinux_store_release_u16(used + 2, queue.pointee.usedIndex)
  }
  unsafe queue.pointee.batchCount = 0
  let old = unsafe queue.pointee.publishedUsed
  let new = unsafe queue.pointee.usedIndex
  unsafe queue.pointee.publishedUsed = new
  clinux_full_fence()
  let wanted: Bool
  if unsafe queue.pointee.hasEventIndex {
    let event = unsafe clinux_load_relaxed_u16(available + (4 + 2 * Int(queue.pointee.size)))
    // vring_need_event: whether the event's entry is among those just published.
    wanted = new &- event &- 1 < new &- old
  } else {
    wanted = unsafe clinux_load_relaxed_u16(available) & UInt16(VRING_AVAIL_F_NO_INTERRUPT) == 0
  }
  if wanted { unsafe ring(queue.pointee.callFD, core) }
}

/// Adds one to an eventfd, together with the reactor's next submission.
@inline(__always)
private func ring(_ fd: CInt, _ core: UnsafeMutablePointer<ReactorCore>) {
  guard fd >= 0 else { return }
  if let entry = unsafe core.pointee.ring.next() {
    unsafe clinux_prep_write(entry, fd, core.pointee.one, 8, Tag.nothing)
  } else {
    _ = unsafe write(fd, core.pointee.one, 8)
  }
}

/// Stops to serve a queue whose guest broke the rules; the front end is told where it listens.
func breakQueue(_ queue: UnsafeMutablePointer<VirtQueue>, _ core: UnsafeMutablePointer<ReactorCore>) {
  guard unsafe !queue.pointee.isBroken else { return }
  unsafe queue.pointee.isBroken = true
  unsafe ring(queue.pointee.errorFD, core)
}

/// Takes back a request whose chain cannot be answered, and stops its queue.
func abandon(_ slot: UnsafeMutablePointer<Slot>, _ core: UnsafeMutablePointer<ReactorCore>) {
  unsafe breakQueue(slot.pointee.queue, core)
  // Not in flight any more: a driver that starts afresh must not be given this chain as one of its own.
  unsafe slot.pointee.queue.pointee.tracking?.end(slot.pointee.head)
  unsafe release(slot)
}
