import CLinux
import Glibc

// Requests to files and block devices, through the reactor's ring, or at once where the file is memory.
//
// SAFETY, for every `unsafe` here: a request's pieces lie within memory that its way out keeps mapped; everything
// below stays within their counts and lengths, and the kernel checks the pieces once more as it copies.

/// A mode of fallocate that no file system has: what was done is being made durable.
private let syncing: CInt = -1

/// Another: zeros are written one by one, because the file is not to have holes.
private let zeroing: CInt = -2

/// Starts a request on a file. A file's requests are either all direct or all through the page cache: where both met on
/// neighbouring blocks, the cache could write back what is older.
func startFile(
  _ io: UnsafeMutablePointer<BlockIO>, _ target: UnsafeMutablePointer<BlockTarget>,
  _ core: UnsafeMutablePointer<ReactorCore>
) {
  switch unsafe io.pointee.kind {
  case .read, .write:
    if unsafe target.pointee.directFD >= 0, unsafe !isAligned(io, target.pointee.memoryMask) {
      return unsafe submitBounced(io, target, core)
    }
  case .flush: break
  case .unmap: unsafe io.pointee.mode = CInt(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
  case .writeZeroes:
    unsafe io.pointee.mode =
      unsafe target.pointee.canUnmap
      ? CInt((io.pointee.mayUnmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) | FALLOC_FL_KEEP_SIZE) : zeroing
  }
  unsafe submitFile(io, target, core)
}

/// Whether direct I/O takes the pieces of memory.
@inline(__always)
private func isAligned(_ io: UnsafeMutablePointer<BlockIO>, _ mask: UInt) -> Bool {
  var bits: UInt = 0
  for index in unsafe io.pointee.first..<io.pointee.end {
    let vector = unsafe io.pointee.vectors[index]
    unsafe bits |= UInt(bitPattern: vector.iov_base) | UInt(vector.iov_len)
  }
  return bits & mask == 0
}

/// Carries out a request whose memory direct I/O refuses, by way of memory that it takes: piece by piece, so that the
/// length that a guest asks for is not what it costs.
private func submitBounced(
  _ io: UnsafeMutablePointer<BlockIO>, _ target: UnsafeMutablePointer<BlockTarget>,
  _ core: UnsafeMutablePointer<ReactorCore>
) {
  let length = unsafe DeviceMemory.length(of: io)
  guard let memory = unsafe DeviceMemory.take(io, length, target, core) else { return }
  unsafe bounce(io, memory, length, core)
}

/// Goes on with a request that has memory: a page for the vector, then the bytes, on a boundary that every device takes.
private func bounce(
  _ io: UnsafeMutablePointer<BlockIO>, _ memory: UnsafeMutableRawPointer, _ length: Int,
  _ core: UnsafeMutablePointer<ReactorCore>
) {
  guard let frame = unsafe push(io, core) else {
    unsafe finish(io, -ENOMEM, core)
    return unsafe giveBounced(memory, length, io.pointee.target, core)
  }
  unsafe frame.pointee.buffer = unsafe memory
  unsafe io.pointee.isBounced = true
  unsafe io.pointee.done = { raw, result, core in
    let io = unsafe raw.assumingMemoryBound(to: BlockIO.self)
    let core = unsafe core.assumingMemoryBound(to: ReactorCore.self)
    guard let frame = unsafe io.pointee.frame, let memory = unsafe frame.pointee.buffer else { return }
    let length = unsafe DeviceMemory.head + min(Int(frame.pointee.length), DeviceMemory.pieceLength)
    let target = unsafe frame.pointee.target
    unsafe io.pointee.isBounced = false
    unsafe pop(io, core)
    unsafe giveBounced(memory, length, target, core)
    unsafe io.pointee.done(io, result, core)
  }
  unsafe setPiece(io, frame)
  unsafe submitFile(io, io.pointee.target, core)
}

private func giveBounced(
  _ memory: UnsafeMutableRawPointer, _ length: Int, _ target: UnsafeMutablePointer<BlockTarget>,
  _ core: UnsafeMutablePointer<ReactorCore>
) {
  unsafe DeviceMemory.give(memory, length, target, core) { unsafe bounce($0, $1, $2, core) }
}

/// Aims the request at its next piece, and fills it where it is a write's. The frame's note counts what is done.
private func setPiece(_ io: UnsafeMutablePointer<BlockIO>, _ frame: UnsafeMutablePointer<BlockFrame>) {
  guard let memory = unsafe frame.pointee.buffer else { return }
  let done = unsafe Int(frame.pointee.note)
  let length = unsafe min(Int(frame.pointee.length) - done, DeviceMemory.pieceLength)
  let bytes = unsafe memory + DeviceMemory.head
  if unsafe io.pointee.kind == .write {
    unsafe movePieces(
      frame.pointee.vectors, frame.pointee.first..<frame.pointee.end, at: done, bytes, length, intoPieces: false)
  }
  let vector = unsafe memory.bindMemory(to: iovec.self, capacity: 1)
  unsafe vector.initialize(to: iovec(iov_base: bytes, iov_len: length))
  unsafe io.pointee.vectors = unsafe vector
  unsafe io.pointee.first = 0
  unsafe io.pointee.end = 1
  unsafe io.pointee.offset = unsafe frame.pointee.offset + UInt64(done)
  unsafe io.pointee.remaining = UInt64(length)
}

/// Takes note of a piece that was moved; false where it was the last.
private func nextPiece(_ io: UnsafeMutablePointer<BlockIO>) -> Bool {
  guard let frame = unsafe io.pointee.frame, let memory = unsafe frame.pointee.buffer else { return false }
  let done = unsafe Int(frame.pointee.note)
  let length = unsafe min(Int(frame.pointee.length) - done, DeviceMemory.pieceLength)
  if unsafe io.pointee.kind == .read {
    unsafe movePieces(
      frame.pointee.vectors, frame.pointee.first..<frame.pointee.end, at: done, memory + DeviceMemory.head, length,
      intoPieces: true)
  }
  unsafe frame.pointee.note = UInt64(done + length)
  guard unsafe frame.pointee.note < frame.pointee.length else { return false }
  unsafe setPiece(io, frame)
  return true
}

/// Copies between contiguous bytes and pieces of memory, `offset` bytes behind the start of the pieces.
func movePieces(
  _ vectors: UnsafeMutablePointer<iovec>, _ pieces: Range<Int>, at offset: Int, _ bytes: UnsafeMutableRawPointer,
  _ length: Int, intoPieces: Bool
) {
  var skip = offset
  var done = 0
  for index in pieces where done < length {
    let piece = unsafe vectors[index]
    let size = unsafe piece.iov_len
    if skip >= size {
      skip -= size
      continue
    }
    let part = min(size - skip, length - done)
    if let base = unsafe piece.iov_base {
      let place = unsafe base + skip
      if intoPieces {
        unsafe place.copyMemory(from: bytes + done, byteCount: part)
      } else {
        unsafe (bytes + done).copyMemory(from: place, byteCount: part)
      }
    }
    done += part
    skip = 0
  }
}

/// Copies between a request's pieces and contiguous memory of the same length.
func copyPieces(_ io: UnsafeMutablePointer<BlockIO>, _ bytes: UnsafeMutableRawPointer, isRead: Bool) {
  var place = unsafe bytes
  for index in unsafe io.pointee.first..<io.pointee.end {
    let vector = unsafe io.pointee.vectors[index]
    guard let base = unsafe vector.iov_base else { continue }
    if isRead {
      unsafe base.copyMemory(from: place, byteCount: vector.iov_len)
    } else {
      unsafe place.copyMemory(from: base, byteCount: vector.iov_len)
    }
    unsafe place += vector.iov_len
  }
}

/// Hands the request, or what is left of it, to the kernel.
private func submitFile(
  _ io: UnsafeMutablePointer<BlockIO>, _ target: UnsafeMutablePointer<BlockTarget>,
  _ core: UnsafeMutablePointer<ReactorCore>
) {
  if unsafe target.pointee.isInline { return unsafe performInline(io, target, core) }
  guard let entry = unsafe core.pointee.ring.next() else { return unsafe submitLater(io, core) }
  let data = UInt64(UInt(bitPattern: io)) | Tag.request
  switch unsafe io.pointee.kind {
  case .read, .write:
    let isWrite = unsafe io.pointee.kind == .write
    unsafe clinux_prep_rw(
      entry, isWrite ? 1 : 0, target.pointee.directFD >= 0 ? target.pointee.directFD : target.pointee.bufferedFD,
      io.pointee.vectors + io.pointee.first, UInt32(io.pointee.end - io.pointee.first), io.pointee.offset,
      isWrite && io.pointee.isDurable ? RWF_DSYNC : 0, data)
  case .flush:
    unsafe clinux_prep_datasync(entry, target.pointee.bufferedFD, data)
  case .unmap, .writeZeroes:
    if unsafe io.pointee.mode == zeroing {
      let fd = unsafe target.pointee.directFD >= 0 ? target.pointee.directFD : target.pointee.bufferedFD
      let flags = unsafe io.pointee.isDurable ? RWF_DSYNC : 0
      return unsafe withZeroPieces(io, core) { pieces, count in
        unsafe clinux_prep_rw(entry, 1, fd, pieces, UInt32(count), io.pointee.offset, flags, data)
      }
    }
    if unsafe io.pointee.mode == syncing {
      return unsafe clinux_prep_datasync(entry, target.pointee.bufferedFD, data)
    }
    unsafe clinux_prep_fallocate(
      entry, target.pointee.bufferedFD, io.pointee.mode, io.pointee.offset, io.pointee.remaining, data)
  }
}

/// Does the request at once: the file is memory, and the kernel only copies.
private func performInline(
  _ io: UnsafeMutablePointer<BlockIO>, _ target: UnsafeMutablePointer<BlockTarget>,
  _ core: UnsafeMutablePointer<ReactorCore>
) {
  let fd = unsafe target.pointee.bufferedFD
  while true {
    let result: Int
    switch unsafe io.pointee.kind {
    case .read, .write:
      let vectors = unsafe io.pointee.vectors + io.pointee.first
      let count = unsafe CInt(io.pointee.end - io.pointee.first)
      let offset = unsafe off_t(io.pointee.offset)
      if unsafe io.pointee.kind == .read {
        result =
          unsafe count == 1
          ? pread(fd, vectors.pointee.iov_base, vectors.pointee.iov_len, offset) : preadv(fd, vectors, count, offset)
      } else {
        result =
          unsafe count == 1
          ? pwrite(fd, vectors.pointee.iov_base, vectors.pointee.iov_len, offset) : pwritev(fd, vectors, count, offset)
      }
    case .flush: result = 0
    case .unmap, .writeZeroes:
      if unsafe io.pointee.mode == syncing {
        result = 0
      } else if unsafe io.pointee.mode == zeroing {
        result = unsafe withZeroPieces(io, core) { pieces, count in
          unsafe pwritev(fd, pieces, CInt(count), off_t(io.pointee.offset))
        }
      } else {
        result = unsafe Int(clinux_fallocate(fd, io.pointee.mode, io.pointee.offset, io.pointee.remaining))
      }
    }
    let answer = result < 0 ? -Int(errno) : result
    if Retry(afterRequest: answer) == .later { return unsafe submitLater(io, core) }
    if unsafe take(io, answer, core) { return }
  }
}

/// Hands the request in again after a while: the kernel has no room for it now.
private func submitLater(_ io: UnsafeMutablePointer<BlockIO>, _ core: UnsafeMutablePointer<ReactorCore>) {
  unsafe core.pointee.schedule(
    at: clinux_monotonic_nanoseconds() &+ Retry.pause,
    { raw, core in
      let io = unsafe raw.assumingMemoryBound(to: BlockIO.self)
      unsafe submitFile(io, io.pointee.target, core.assumingMemoryBound(to: ReactorCore.self))
    }, io)
}

/// Takes the kernel's answer to what `submitFile` handed in.
@inline(__always)
func fileAnswered(_ io: UnsafeMutablePointer<BlockIO>, _ result: Int, _ core: UnsafeMutablePointer<ReactorCore>) {
  if Retry(afterRequest: result) == .later { return unsafe submitLater(io, core) }
  if unsafe !take(io, result, core) { unsafe submitFile(io, io.pointee.target, core) }
}

/// Takes the kernel's answer; false where the request, changed, has to be handed in again.
private func take(_ io: UnsafeMutablePointer<BlockIO>, _ result: Int, _ core: UnsafeMutablePointer<ReactorCore>) -> Bool
{
  if Retry(afterRequest: result) == .now { return false }
  switch unsafe io.pointee.kind {
  case .read, .write:
    guard result > 0, unsafe UInt64(result) <= io.pointee.remaining else {
      // Nothing moved: the file is shorter than it was.
      unsafe finish(io, result < 0 ? CInt(clamping: result) : -EIO, core)
      return true
    }
    unsafe io.pointee.remaining -= UInt64(result)
    if unsafe io.pointee.remaining == 0 {
      if unsafe io.pointee.isBounced, unsafe nextPiece(io) { return false }
      unsafe finish(io, 0, core)
      return true
    }
    unsafe io.pointee.offset += UInt64(result)
    unsafe io.pointee.advance(result)
    return false
  case .flush:
    unsafe finish(io, CInt(clamping: min(0, result)), core)
    return true
  case .writeZeroes where unsafe io.pointee.mode == zeroing:
    guard result > 0, unsafe UInt64(result) <= io.pointee.remaining else {
      unsafe finish(io, result < 0 ? CInt(clamping: result) : -EIO, core)
      return true
    }
    unsafe io.pointee.offset += UInt64(result)
    unsafe io.pointee.remaining -= UInt64(result)
    guard unsafe io.pointee.remaining == 0 else { return false }
    unsafe finish(io, 0, core)
    return true
  case .unmap, .writeZeroes:
    if result == -Int(EOPNOTSUPP), unsafe io.pointee.mode & CInt(FALLOC_FL_ZERO_RANGE) != 0 {
      // A hole reads as zeros as well; every file system that has one of the two has holes.
      unsafe io.pointee.mode = CInt(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
      return false
    }
    if result >= 0, unsafe io.pointee.isDurable, unsafe io.pointee.mode != syncing {
      unsafe io.pointee.mode = syncing
      return false
    }
    unsafe finish(io, CInt(clamping: min(0, result)), core)
    return true
  }
}

/// Calls `body` with pieces of zeros for the next part of a request. A single piece is read during the call; several are
/// the reactor's own, which do not change.
private func withZeroPieces<Result>(
  _ io: UnsafeMutablePointer<BlockIO>, _ core: UnsafeMutablePointer<ReactorCore>,
  _ body: (UnsafePointer<iovec>, Int) -> Result
) -> Result {
  let whole = unsafe Int(clamping: io.pointee.remaining) / ReactorCore.zeroLength
  if whole > 1 { return unsafe body(core.pointee.zeroVectors, min(whole, ReactorCore.maximumZeroVectors)) }
  var piece = unsafe iovec(
    iov_base: core.pointee.zeros, iov_len: min(Int(clamping: io.pointee.remaining), ReactorCore.zeroLength))
  return unsafe body(&piece, 1)
}
