import CLinux
import Glibc

// virtio-blk requests (virtio 1.2, section 5.2.6), from a chain to the file and back.
//
// SAFETY, for every `unsafe` here: `walkChain` fills a slot's vectors with pieces of mapped guest memory, and counts
// them; everything below stays within those counts and lengths. The memory stays mapped while the request is in
// flight, because a session unmaps only when it is drained. The kernel checks the pieces once more as it copies.

/// Reads the request that a chain holds and starts it.
func startRequest(_ slot: UnsafeMutablePointer<Slot>, _ core: UnsafeMutablePointer<ReactorCore>) {
  let queue = unsafe slot.pointee.queue
  let session = unsafe queue.pointee.session
  let vectors = unsafe slot.pointee.io.vectors
  guard let descriptors = unsafe queue.pointee.descriptors,
    let chain = unsafe walkChain(
      descriptors: descriptors, size: queue.pointee.size, head: slot.pointee.head, memory: session.pointee.memory,
      vectors: vectors, capacity: Slot.maximumVectors),
    unsafe chain.writableLength >= 1, unsafe chain.readableLength >= UInt64(MemoryLayout<virtio_blk_outhdr>.size)
  else { return unsafe abandon(slot, core) }

  // The last writable byte is the status, wherever the guest cut its pieces.
  let count = unsafe chain.readableCount + chain.writableCount
  unsafe vectors[count - 1].iov_len -= 1
  unsafe slot.pointee.status = unsafe vectors[count - 1].iov_base + vectors[count - 1].iov_len
  unsafe slot.pointee.written = 1

  // The first 16 readable bytes are the header.
  var type: UInt32 = 0
  var sector: UInt64 = 0
  unsafe slot.pointee.io.first = 0
  if unsafe vectors[0].iov_len >= 16, let base = unsafe vectors[0].iov_base {
    type = unsafe base.loadUnaligned(as: UInt32.self)
    sector = unsafe base.loadUnaligned(fromByteOffset: 8, as: UInt64.self)
    unsafe slot.pointee.io.advance(16)
  } else {
    var header: (UInt64, UInt64) = (0, 0)
    unsafe withUnsafeMutableBytes(of: &header) { unsafe gather(slot, into: $0) }
    type = UInt32(truncatingIfNeeded: header.0)
    sector = header.1
  }

  switch Int32(bitPattern: type) {
  case VIRTIO_BLK_T_IN:
    unsafe slot.pointee.io.kind = .read
    unsafe slot.pointee.io.first = unsafe chain.readableCount
    unsafe slot.pointee.io.end = unsafe vectors[count - 1].iov_len == 0 ? count - 1 : count
    unsafe move(slot, sector: sector, length: chain.writableLength - 1, core)
  case VIRTIO_BLK_T_OUT:
    unsafe slot.pointee.io.kind = .write
    unsafe slot.pointee.io.end = unsafe chain.readableCount
    guard unsafe !session.pointee.isReadOnly else { return unsafe complete(slot, VIRTIO_BLK_S_IOERR, core) }
    unsafe move(slot, sector: sector, length: chain.readableLength - 16, core)
  case VIRTIO_BLK_T_FLUSH:
    unsafe slot.pointee.io.kind = .flush
    unsafe slot.pointee.io.remaining = 0
    unsafe start(slot.io, core)
  case VIRTIO_BLK_T_GET_ID:
    unsafe answerIdentity(slot, from: chain.readableCount, to: count, core)
  case VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES:
    unsafe slot.pointee.io.kind = type == UInt32(VIRTIO_BLK_T_DISCARD) ? .unmap : .writeZeroes
    unsafe slot.pointee.io.end = unsafe chain.readableCount
    unsafe startSegments(slot, length: chain.readableLength - 16, core)
  default:
    unsafe complete(slot, VIRTIO_BLK_S_UNSUPP, core)
  }
}

/// Checks the range of a read or write and starts it.
@inline(__always)
private func move(
  _ slot: UnsafeMutablePointer<Slot>, sector: UInt64, length: UInt64, _ core: UnsafeMutablePointer<ReactorCore>
) {
  let session = unsafe slot.pointee.queue.pointee.session
  let target = unsafe session.pointee.target
  guard length <= BlockConfiguration.maximumRequestLength, sector <= UInt64.max >> 9,
    unsafe isInside(target, offset: sector << 9, length: length)
  else { return unsafe complete(slot, VIRTIO_BLK_S_IOERR, core) }
  guard length > 0 else { return unsafe complete(slot, VIRTIO_BLK_S_OK, core) }
  unsafe slot.pointee.io.offset = sector << 9
  unsafe slot.pointee.io.remaining = length
  unsafe slot.pointee.queue.pointee.moved += Int(length)
  if unsafe slot.pointee.io.kind == .read { unsafe slot.pointee.written = UInt32(length) + 1 }
  unsafe slot.pointee.io.isDurable = unsafe session.pointee.isWriteThrough
  unsafe start(slot.io, core)
}

/// Takes the device's answer to a slot's request, or to one range of it.
func requestDone(_ slot: UnsafeMutablePointer<Slot>, _ result: CInt, _ core: UnsafeMutablePointer<ReactorCore>) {
  unsafe slot.pointee.queue.pointee.counters.count(slot.io, core)
  guard result >= 0 else {
    return unsafe complete(slot, result == -EOPNOTSUPP ? VIRTIO_BLK_S_UNSUPP : VIRTIO_BLK_S_IOERR, core)
  }
  switch unsafe slot.pointee.io.kind {
  case .read, .write, .flush: unsafe complete(slot, VIRTIO_BLK_S_OK, core)
  case .unmap, .writeZeroes: unsafe startNextSegment(slot, core)
  }
}

/// Copies bytes out of the readable pieces; the caller knows that there are enough of them.
func gather(_ slot: UnsafeMutablePointer<Slot>, into buffer: UnsafeMutableRawBufferPointer) {
  guard let destination = buffer.baseAddress else { return }
  var done = 0
  while done < buffer.count {
    let vector = unsafe slot.pointee.io.vectors[slot.pointee.io.first]
    let part = unsafe min(vector.iov_len, buffer.count - done)
    if let base = unsafe vector.iov_base { unsafe (destination + done).copyMemory(from: base, byteCount: part) }
    done += part
    unsafe slot.pointee.io.advance(part)
  }
}

/// GET_ID: up to 20 bytes of the volume's name.
private func answerIdentity(
  _ slot: UnsafeMutablePointer<Slot>, from first: Int, to end: Int, _ core: UnsafeMutablePointer<ReactorCore>
) {
  let identity = unsafe slot.pointee.queue.pointee.session.pointee.target.pointee.identity
  var done = 0
  for index in first..<end where done < 20 {
    let vector = unsafe slot.pointee.io.vectors[index]
    let part = unsafe min(vector.iov_len, 20 - done)
    if let base = unsafe vector.iov_base { unsafe base.copyMemory(from: identity + done, byteCount: part) }
    done += part
  }
  unsafe slot.pointee.written = UInt32(done) + 1
  unsafe complete(slot, VIRTIO_BLK_S_OK, core)
}
