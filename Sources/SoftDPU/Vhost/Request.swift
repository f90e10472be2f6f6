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
  let vectors = unsafe slot.pointee.vectors
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
  unsafe slot.pointee.first = 0
  if unsafe vectors[0].iov_len >= 16, let base = unsafe vectors[0].iov_base {
    type = unsafe base.loadUnaligned(as: UInt32.self)
    sector = unsafe base.loadUnaligned(fromByteOffset: 8, as: UInt64.self)
    unsafe advance(slot, 16)
  } else {
    var header: (UInt64, UInt64) = (0, 0)
    unsafe withUnsafeMutableBytes(of: &header) { unsafe gather(slot, into: $0) }
    type = UInt32(truncatingIfNeeded: header.0)
    sector = header.1
  }

  switch Int32(bitPattern: type) {
  case VIRTIO_BLK_T_IN:
    unsafe slot.pointee.kind = .read
    unsafe slot.pointee.first = unsafe chain.readableCount
    unsafe slot.pointee.end = unsafe vectors[count - 1].iov_len == 0 ? count - 1 : count
    unsafe move(slot, sector: sector, length: chain.writableLength - 1, core)
  case VIRTIO_BLK_T_OUT:
    unsafe slot.pointee.kind = .write
    unsafe slot.pointee.end = unsafe chain.readableCount
    guard unsafe !session.pointee.isReadOnly else { return unsafe complete(slot, VIRTIO_BLK_S_IOERR, core) }
    unsafe move(slot, sector: sector, length: chain.readableLength - 16, core)
  case VIRTIO_BLK_T_FLUSH:
    unsafe slot.pointee.kind = .flush
    unsafe submit(slot, core)
  case VIRTIO_BLK_T_GET_ID:
    unsafe slot.pointee.kind = .identity
    unsafe answerIdentity(slot, from: chain.readableCount, to: count, core)
  case VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES:
    unsafe slot.pointee.kind = type == UInt32(VIRTIO_BLK_T_DISCARD) ? .discard : .writeZeroes
    unsafe slot.pointee.end = unsafe chain.readableCount
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
  let target = unsafe slot.pointee.queue.pointee.session.pointee.target
  guard length % 512 == 0, length <= UInt64(Int32.max), sector <= UInt64.max >> 9,
    unsafe length <= target.pointee.capacity, unsafe sector << 9 <= target.pointee.capacity - length
  else { return unsafe complete(slot, VIRTIO_BLK_S_IOERR, core) }
  guard length > 0 else { return unsafe complete(slot, VIRTIO_BLK_S_OK, core) }
  unsafe slot.pointee.offset = sector << 9
  unsafe slot.pointee.remaining = length
  unsafe slot.pointee.queue.pointee.moved += Int(length)
  if unsafe slot.pointee.kind == .read { unsafe slot.pointee.written = UInt32(length) + 1 }
  unsafe slot.pointee.isBuffered = unsafe target.pointee.directFD < 0 || !isAligned(slot, target)
  unsafe submit(slot, core)
}

/// Whether direct I/O takes the request's shape.
@inline(__always)
private func isAligned(_ slot: UnsafeMutablePointer<Slot>, _ target: UnsafeMutablePointer<BlockTarget>) -> Bool {
  guard unsafe (slot.pointee.offset | slot.pointee.remaining) & target.pointee.offsetMask == 0 else { return false }
  var bits: UInt = 0
  for index in unsafe slot.pointee.first..<slot.pointee.end {
    let vector = unsafe slot.pointee.vectors[index]
    unsafe bits |= UInt(bitPattern: vector.iov_base) | UInt(vector.iov_len)
  }
  return unsafe bits & target.pointee.memoryMask == 0
}

/// Hands the request, or what is left of it, to the kernel.
func submit(_ slot: UnsafeMutablePointer<Slot>, _ core: UnsafeMutablePointer<ReactorCore>) {
  let session = unsafe slot.pointee.queue.pointee.session
  let target = unsafe session.pointee.target
  if unsafe target.pointee.isInline { return unsafe performInline(slot, target, core) }
  guard let entry = unsafe core.pointee.ring.next() else { return unsafe complete(slot, VIRTIO_BLK_S_IOERR, core) }
  let data = UInt64(UInt(bitPattern: slot)) | Tag.request
  switch unsafe slot.pointee.kind {
  case .read, .write:
    let fd = unsafe slot.pointee.isBuffered ? target.pointee.bufferedFD : target.pointee.directFD
    let isWrite = unsafe slot.pointee.kind == .write
    unsafe clinux_prep_rw(
      entry, isWrite ? 1 : 0, fd, slot.pointee.vectors + slot.pointee.first,
      UInt32(slot.pointee.end - slot.pointee.first), slot.pointee.offset,
      isWrite && session.pointee.isWriteThrough ? RWF_DSYNC : 0, data)
  case .flush, .identity:
    unsafe clinux_prep_datasync(entry, target.pointee.bufferedFD, data)
  case .discard, .writeZeroes:
    unsafe clinux_prep_fallocate(
      entry, target.pointee.bufferedFD, slot.pointee.mode, slot.pointee.offset, slot.pointee.remaining, data)
  }
}

/// Does the request at once: the file is memory, and the kernel only copies.
private func performInline(
  _ slot: UnsafeMutablePointer<Slot>, _ target: UnsafeMutablePointer<BlockTarget>,
  _ core: UnsafeMutablePointer<ReactorCore>
) {
  let fd = unsafe target.pointee.bufferedFD
  while true {
    let result: Int
    switch unsafe slot.pointee.kind {
    case .read, .write:
      let vectors = unsafe slot.pointee.vectors + slot.pointee.first
      let count = unsafe CInt(slot.pointee.end - slot.pointee.first)
      let offset = unsafe off_t(slot.pointee.offset)
      if unsafe slot.pointee.kind == .read {
        result =
          unsafe count == 1
          ? pread(fd, vectors.pointee.iov_base, vectors.pointee.iov_len, offset) : preadv(fd, vectors, count, offset)
      } else {
        result =
          unsafe count == 1
          ? pwrite(fd, vectors.pointee.iov_base, vectors.pointee.iov_len, offset) : pwritev(fd, vectors, count, offset)
      }
    case .flush, .identity: result = 0
    case .discard, .writeZeroes:
      result = unsafe Int(clinux_fallocate(fd, slot.pointee.mode, slot.pointee.offset, slot.pointee.remaining))
    }
    if unsafe finish(slot, result < 0 ? -Int(errno) : result, core) { return }
  }
}

/// Takes the kernel's answer; false where the request, changed, has to be handed in again.
func finish(_ slot: UnsafeMutablePointer<Slot>, _ result: Int, _ core: UnsafeMutablePointer<ReactorCore>) -> Bool {
  if result == -Int(EINTR) || result == -Int(EAGAIN) { return false }
  switch unsafe slot.pointee.kind {
  case .read, .write:
    if result == -Int(EINVAL), unsafe !slot.pointee.isBuffered {
      // The file system wants more than it said: the page cache takes any shape.
      unsafe slot.pointee.isBuffered = true
      return false
    }
    // Nothing moved: the file is shorter than it was.
    guard result > 0, unsafe UInt64(result) <= slot.pointee.remaining else {
      unsafe complete(slot, VIRTIO_BLK_S_IOERR, core)
      return true
    }
    unsafe slot.pointee.remaining -= UInt64(result)
    if unsafe slot.pointee.remaining == 0 {
      unsafe complete(slot, VIRTIO_BLK_S_OK, core)
      return true
    }
    unsafe slot.pointee.offset += UInt64(result)
    unsafe advance(slot, result)
    unsafe slot.pointee.isBuffered = true
    return false
  case .flush, .identity:
    unsafe complete(slot, result < 0 ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK, core)
    return true
  case .discard, .writeZeroes:
    return unsafe finishSegment(slot, result, core)
  }
}

/// Leaves out the first `length` bytes of what is still to be moved.
@inline(__always)
private func advance(_ slot: UnsafeMutablePointer<Slot>, _ length: Int) {
  var left = length
  while left > 0 {
    let vector = unsafe slot.pointee.vectors + slot.pointee.first
    if unsafe vector.pointee.iov_len > left {
      unsafe vector.pointee.iov_base += left
      unsafe vector.pointee.iov_len -= left
      return
    }
    unsafe left -= vector.pointee.iov_len
    unsafe slot.pointee.first += 1
  }
}

/// Copies bytes out of the readable pieces; the caller knows that there are enough of them.
func gather(_ slot: UnsafeMutablePointer<Slot>, into buffer: UnsafeMutableRawBufferPointer) {
  guard let destination = buffer.baseAddress else { return }
  var done = 0
  while done < buffer.count {
    let vector = unsafe slot.pointee.vectors[slot.pointee.first]
    let part = unsafe min(vector.iov_len, buffer.count - done)
    if let base = unsafe vector.iov_base { unsafe (destination + done).copyMemory(from: base, byteCount: part) }
    done += part
    unsafe advance(slot, part)
  }
}

/// GET_ID: up to 20 bytes of the volume's name.
private func answerIdentity(
  _ slot: UnsafeMutablePointer<Slot>, from first: Int, to end: Int, _ core: UnsafeMutablePointer<ReactorCore>
) {
  let identity = unsafe slot.pointee.queue.pointee.session.pointee.target.pointee.identity
  var done = 0
  for index in first..<end where done < 20 {
    let vector = unsafe slot.pointee.vectors[index]
    let part = unsafe min(vector.iov_len, 20 - done)
    if let base = unsafe vector.iov_base { unsafe base.copyMemory(from: identity + done, byteCount: part) }
    done += part
  }
  unsafe slot.pointee.written = UInt32(done) + 1
  unsafe complete(slot, VIRTIO_BLK_S_OK, core)
}
