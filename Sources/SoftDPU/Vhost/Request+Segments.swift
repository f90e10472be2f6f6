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
  let isOffered =
    unsafe slot.pointee.io.kind == .unmap ? target.pointee.canUnmap : target.pointee.canWriteZeroes
  guard isOffered else { return unsafe complete(slot, VIRTIO_BLK_S_UNSUPP, core) }
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
    guard unsafe segment.flags & ~(slot.pointee.io.kind == .unmap ? 0 : unmapFlag) == 0 else {
      return unsafe complete(slot, VIRTIO_BLK_S_UNSUPP, core)
    }
    guard segment.sectors <= Segment.maximumSectors, segment.sector <= UInt64.max >> 10,
      unsafe isInside(target, offset: segment.sector << 9, length: UInt64(segment.sectors) << 9)
    else { return unsafe complete(slot, VIRTIO_BLK_S_IOERR, core) }
  }
  unsafe slot.pointee.segment = 0
  unsafe slot.pointee.segmentEnd = count
  unsafe startNextSegment(slot, core)
}

/// Starts the next range that is not empty; where none is left, the request is done.
func startNextSegment(_ slot: UnsafeMutablePointer<Slot>, _ core: UnsafeMutablePointer<ReactorCore>) {
  guard let all = unsafe slot.pointee.queue.pointee.segments else {
    return unsafe complete(slot, VIRTIO_BLK_S_IOERR, core)
  }
  let segments = unsafe all + Int(slot.pointee.head) * Segment.maximumCount
  while unsafe slot.pointee.segment < slot.pointee.segmentEnd {
    let segment = unsafe segments[slot.pointee.segment]
    unsafe slot.pointee.segment += 1
    guard segment.sectors > 0 else { continue }
    unsafe slot.pointee.io.offset = segment.sector << 9
    unsafe slot.pointee.io.remaining = UInt64(segment.sectors) << 9
    unsafe slot.pointee.io.isDurable = unsafe slot.pointee.queue.pointee.session.pointee.isWriteThrough
    unsafe slot.pointee.io.mayUnmap = segment.flags & unmapFlag != 0
    unsafe start(slot.io, core)
    return
  }
  unsafe complete(slot, VIRTIO_BLK_S_OK, core)
}
