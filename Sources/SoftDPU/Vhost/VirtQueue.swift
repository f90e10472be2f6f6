import CLinux
import Glibc

/// A request of the guest, from the moment its chain is taken until its chain is given back.
///
/// There is one for each index that a chain can start at, so that none has to be found or allocated.
@unsafe
struct Slot {
  /// First, so that the slot's address is its request's. Its vectors have room for `Slot.maximumVectors` pieces.
  var io: BlockIO
  var queue: UnsafeMutablePointer<VirtQueue>
  var status: UnsafeMutableRawPointer
  /// What the guest is told about bytes written to its memory.
  var written: UInt32 = 0
  var head: UInt16
  var isBusy = false
  /// Discard and write-zeroes: `segments[segment..<segmentEnd]` are still to be done.
  var segment = 0
  var segmentEnd = 0

  init(
    queue: UnsafeMutablePointer<VirtQueue>, target: UnsafeMutablePointer<BlockTarget>,
    vectors: UnsafeMutablePointer<iovec>, head: UInt16
  ) {
    unsafe io = BlockIO(
      target: target, vectors: vectors,
      done: { slot, result, core in
        unsafe requestDone(
          slot.assumingMemoryBound(to: Slot.self), result, core.assumingMemoryBound(to: ReactorCore.self))
      })
    unsafe io.asker = unsafe queue.pointee.session.pointee.asker
    unsafe self.queue = unsafe queue
    unsafe status = UnsafeMutableRawPointer(queue)
    unsafe self.head = head
  }

  /// 126 pieces of data (`seg_max`), and room for pieces that cross from one region of memory into the next.
  static let maximumVectors = 192
}

/// The state that the queues of one front end share.
@unsafe
struct SessionState {
  var memory: GuestMemory
  let target: UnsafeMutablePointer<BlockTarget>
  let asker: UnsafeMutablePointer<IOLabel>
  /// Requests in the kernel's hands.
  var inflight = 0
  /// Nothing new is taken from the rings: the session waits until its requests are back.
  var isFrozen = false
  var isReadOnly: Bool
  /// A write counts as done when it is durable: the driver did not take FLUSH.
  var isWriteThrough = false
}

/// A split virtqueue (virtio 1.2, section 2.7) in the front end's memory.
@unsafe
struct VirtQueue {
  var size: UInt16 = 0
  var descriptors: UnsafeMutableRawPointer?
  var available: UnsafeMutableRawPointer?
  var used: UnsafeMutableRawPointer?
  /// The next entry of the available ring to take.
  var lastAvailable: UInt16 = 0
  /// The next entry of the used ring to fill.
  var usedIndex: UInt16 = 0
  /// `usedIndex` as the guest knows it.
  var publishedUsed: UInt16 = 0
  var hasEventIndex = false
  var isStarted = false
  var isEnabled = true
  /// The guest broke the rules of the ring: nothing is taken from it any more.
  var isBroken = false
  /// In the reactor's list of queues to look at before it sleeps.
  var isDirty = false
  /// Bytes that were moved for this queue since its turn began.
  var moved = 0
  var callFD: CInt = -1
  var kickFD: CInt = -1
  var errorFD: CInt = -1
  var slots: UnsafeMutablePointer<Slot>?
  var vectors: UnsafeMutablePointer<iovec>?
  var segments: UnsafeMutablePointer<Segment>?
  /// Chains that were given back since the last `publish`.
  var batch: UnsafeMutablePointer<UInt16>?
  var batchCount = 0
  /// This queue's part of the in-flight region, or nil where the front end keeps none.
  var tracking: InflightQueue?
  /// Order of the requests, for resubmission after a restart.
  var order: UInt64 = 0
  let session: UnsafeMutablePointer<SessionState>
  let counters: UnsafeMutablePointer<QueueCounters>
  let index: Int

  init(session: UnsafeMutablePointer<SessionState>, counters: UnsafeMutablePointer<QueueCounters>, index: Int) {
    unsafe self.session = unsafe session
    unsafe self.counters = unsafe counters
    unsafe self.index = index
  }

  @inline(__always)
  var mask: UInt16 { unsafe size &- 1 }

  static let maximumSize: UInt16 = 1024
}

/// A range of a discard or write-zeroes request, as the guest gives it.
struct Segment {
  var sector: UInt64
  var sectors: UInt32
  var flags: UInt32

  /// What `max_discard_seg` and `max_write_zeroes_seg` offer.
  static let maximumCount = 16
  /// What `max_discard_sectors` and `max_write_zeroes_sectors` offer: 2 GiB.
  static let maximumSectors: UInt32 = 1 << 22
}

extension UnsafeMutablePointer where Pointee == Slot {
  /// The slot's request, which stands at its start.
  var io: UnsafeMutablePointer<BlockIO> {
    // SAFETY: the first member of a structure has its address.
    unsafe UnsafeMutableRawPointer(self).assumingMemoryBound(to: BlockIO.self)
  }
}
