import CLinux
import Glibc

// Discard and write-zeroes: lists of ranges, done one after the other.
//
// SAFETY, for every `unsafe` here: each slot has room for `Segment.maximumCount` ranges of its own, at its head's
// place in the queue's array, and the number of ranges is checked against that before they are copied.

private let unmapFlag = UInt32(VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)

/// Copies the ranges out of the guest's memory, checks all of them, and starts the first.
func startSegments(_ slot: UnsafeMutablePointer<Slot>, length: UInt64, _ core: UnsafeMutablePointer<ReactorCore>) {
  let queue = unsafe slot.pointee.queue
  let session = unsafe queue.pointee.session
  let target = unsafe session.pointee.target
  guard unsafe target.pointee.canUnmap else { return unsafe complete(slot, VIRTIO_BLK_S_UNSUPP, core) }
  guard unsafe !session.pointee.isReadOnly else { return unsafe complete(slot, VIRTIO_BLK_S_IOERR, core) }
  let size = MemoryLayout<Segment>.size
  guard length > 0, length % UInt64(size) == 0, length / UInt64(size) <= UInt64(Segment.maximumCount),
    let all = unsafe queue.pointee.segments
  else { return unsafe complete(slot, VIRTIO_BLK_S_IOERR, core) }
  let segments = unsafe all + Int(slot.pointee.head) * Segment.maximumCount
  let count = Int(length) / size
  unsafe gather(slot, into: UnsafeMutableRawBufferPointer(start: segments, count: Int(length)))
  for index in 0..<count {
    let segment = unsafe segments[index]
    guard unsafe segment.flags & ~(slot.pointee.kind == .discard ? 0 : unmapFlag) == 0 else {
      return unsafe complete(slot, VIRTIO_BLK_S_UNSUPP, core)
    }
    guard segment.sectors <= Segment.maximumSectors, segment.sector <= UInt64.max >> 10,
      unsafe (segment.sector + UInt64(segment.sectors)) << 9 <= target.pointee.capacity
    else { return unsafe complete(slot, VIRTIO_BLK_S_IOERR, core) }
  }
  unsafe slot.pointee.segment = 0
  unsafe slot.pointee.segmentEnd = count
  if unsafe nextSegment(slot) { unsafe submit(slot, core) } else { unsafe complete(slot, VIRTIO_BLK_S_OK, core) }
}

/// Makes the next range that is not empty the one that is under way; false where none is left.
private func nextSegment(_ slot: UnsafeMutablePointer<Slot>) -> Bool {
  guard let all = unsafe slot.pointee.queue.pointee.segments else { return false }
  let segments = unsafe all + Int(slot.pointee.head) * Segment.maximumCount
  while unsafe slot.pointee.segment < slot.pointee.segmentEnd {
    let segment = unsafe segments[slot.pointee.segment]
    unsafe slot.pointee.segment += 1
    guard segment.sectors > 0 else { continue }
    unsafe slot.pointee.offset = segment.sector << 9
    unsafe slot.pointee.remaining = UInt64(segment.sectors) << 9
    let isHole = unsafe slot.pointee.kind == .discard || segment.flags & unmapFlag != 0
    unsafe slot.pointee.mode = CInt((isHole ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) | FALLOC_FL_KEEP_SIZE)
    return true
  }
  return false
}

/// Takes the kernel's answer for one range; false where there is something to hand in again.
func finishSegment(_ slot: UnsafeMutablePointer<Slot>, _ result: Int, _ core: UnsafeMutablePointer<ReactorCore>) -> Bool
{
  if result == -Int(EOPNOTSUPP) {
    if unsafe slot.pointee.mode & CInt(FALLOC_FL_ZERO_RANGE) != 0 {
      // A hole reads as zeros as well; every file system that has one of the two has holes.
      unsafe slot.pointee.mode = CInt(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
      return false
    }
    unsafe complete(slot, VIRTIO_BLK_S_UNSUPP, core)
    return true
  }
  guard result >= 0 else {
    unsafe complete(slot, VIRTIO_BLK_S_IOERR, core)
    return true
  }
  if unsafe nextSegment(slot) { return false }
  unsafe complete(slot, VIRTIO_BLK_S_OK, core)
  return true
}
