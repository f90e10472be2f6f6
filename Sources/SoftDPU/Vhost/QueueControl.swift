import CLinux
import Glibc

/// The slow side of a queue: what the front end set, and the life of what the hot path uses.
///
/// SAFETY: owned by its session; reactor's thread only. Memory is freed while no request of the queue is in flight.
@safe
final class QueueControl {
  let state: UnsafeMutablePointer<VirtQueue>
  var size: UInt16 = 0
  var base: UInt16 = 0
  var addresses: VhostUserPayload.RingAddresses?
  var kickWatch: Watch?
  private var allocatedSize = 0
  private let ledger: QueueLedger
  /// By what the ledger knows the queue.
  private let tally: QueueLedger.Key

  init(session: UnsafeMutablePointer<SessionState>, controller: String, index: Int, ledger: QueueLedger) {
    let (tally, counters) = unsafe ledger.begin(.vhost, peer: controller, queue: index)
    self.tally = tally
    self.ledger = ledger
    unsafe state = UnsafeMutablePointer<VirtQueue>.allocate(capacity: 1)
    unsafe state.initialize(to: VirtQueue(session: session, counters: counters, index: index))
  }

  /// Finds the rings in the front end's memory; false where they are not wholly inside, or not aligned.
  func locate(_ memory: borrowing GuestMemory) -> Bool {
    guard let addresses, size > 0,
      let descriptors = unsafe memory.translateUser(addresses.descriptors, 16 * UInt64(size)),
      let available = unsafe memory.translateUser(addresses.available, 6 + 2 * UInt64(size)),
      let used = unsafe memory.translateUser(addresses.used, 6 + 8 * UInt64(size)),
      UInt(bitPattern: descriptors) % 16 == 0, UInt(bitPattern: available) % 2 == 0, UInt(bitPattern: used) % 4 == 0
    else {
      unsafe state.pointee.descriptors = nil
      unsafe state.pointee.available = nil
      unsafe state.pointee.used = nil
      return false
    }
    unsafe state.pointee.descriptors = unsafe descriptors
    unsafe state.pointee.available = unsafe available
    unsafe state.pointee.used = unsafe used
    return true
  }

  /// Begins to serve the queue. Requests that an earlier target had taken and not answered are taken up again.
  func start(hasEventIndex: Bool, tracking: InflightQueue?, core: UnsafeMutablePointer<ReactorCore>) -> Int {
    guard let used = unsafe state.pointee.used else { return 0 }
    allocate()
    let usedIndex = unsafe clinux_load_acquire_u16(used + 2)
    unsafe state.pointee.size = size
    unsafe state.pointee.hasEventIndex = hasEventIndex
    unsafe state.pointee.usedIndex = usedIndex
    unsafe state.pointee.publishedUsed = usedIndex
    unsafe state.pointee.lastAvailable = base
    unsafe state.pointee.batchCount = 0
    unsafe state.pointee.isBroken = false
    unsafe state.pointee.tracking = unsafe tracking
    unsafe state.pointee.order = 0
    unsafe state.pointee.isStarted = true
    var resumed = 0
    if let tracking = unsafe tracking, let slots = unsafe state.pointee.slots {
      let heads = unsafe tracking.recover(usedIndex: usedIndex).filter { $0 < size }
      // Everything between the two rings is in flight: the base that the front end guessed does not count that.
      unsafe state.pointee.lastAvailable = usedIndex &+ UInt16(heads.count)
      for head in heads {
        unsafe begin(slots + Int(head), core)
        resumed += 1
      }
    }
    unsafe core.pointee.touch(state)
    return resumed
  }

  /// Ends serving; the next entry of the available ring is where a later start goes on.
  func stop(_ ring: Ring) {
    unsafe state.pointee.isStarted = false
    unsafe state.pointee.tracking = nil
    base = unsafe state.pointee.lastAvailable
    kickWatch?.cancel(ring)
    kickWatch = nil
    unsafe replace(\.kickFD, with: -1, ring)
    unsafe replace(\.callFD, with: -1, ring)
  }

  /// Puts a descriptor in another's place. Submissions that name the old one are handed in before it is closed.
  func replace(_ path: WritableKeyPath<VirtQueue, CInt>, with fd: CInt, _ ring: Ring) {
    let old = unsafe state.pointee[keyPath: path]
    unsafe state.pointee[keyPath: path] = fd
    guard old >= 0 else { return }
    ring.submit()
    close(old)
  }

  private func allocate() {
    let count = Int(size)
    guard count != allocatedSize else { return }
    free()
    let slots = UnsafeMutablePointer<Slot>.allocate(capacity: count)
    let vectors = unsafe UnsafeMutablePointer<iovec>.allocate(capacity: count * Slot.maximumVectors)
    let segments = UnsafeMutablePointer<Segment>.allocate(capacity: count * Segment.maximumCount)
    for head in 0..<count {
      unsafe (slots + head).initialize(
        to: Slot(
          queue: state, target: state.pointee.session.pointee.target,
          vectors: vectors + head * Slot.maximumVectors, head: UInt16(head)))
    }
    unsafe state.pointee.slots = unsafe slots
    unsafe state.pointee.vectors = unsafe vectors
    unsafe state.pointee.segments = unsafe segments
    unsafe state.pointee.batch = UnsafeMutablePointer<UInt16>.allocate(capacity: count)
    allocatedSize = count
  }

  private func free() {
    unsafe state.pointee.slots?.deallocate()
    unsafe state.pointee.vectors?.deallocate()
    unsafe state.pointee.segments?.deallocate()
    unsafe state.pointee.batch?.deallocate()
    unsafe state.pointee.slots = nil
    unsafe state.pointee.vectors = nil
    unsafe state.pointee.segments = nil
    unsafe state.pointee.batch = nil
    allocatedSize = 0
  }

  func destroy(_ core: UnsafeMutablePointer<ReactorCore>) {
    unsafe core.pointee.forget(state)
    ledger.end(tally)
    for fd in unsafe [state.pointee.kickFD, state.pointee.callFD, state.pointee.errorFD] where fd >= 0 { close(fd) }
    free()
    unsafe state.deinitialize(count: 1)
    unsafe state.deallocate()
  }
}
