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

/// Carries out a request whose memory direct I/O refuses, by way of memory that it takes.
private func submitBounced(
  _ io: UnsafeMutablePointer<BlockIO>, _ target: UnsafeMutablePointer<BlockTarget>,
  _ core: UnsafeMutablePointer<ReactorCore>
) {
  let length = unsafe Int(io.pointee.remaining)
  // A page for the vector, then the bytes, on a boundary that every device takes.
  var memory: UnsafeMutableRawPointer?
  guard unsafe posix_memalign(&memory, 4096, 4096 + length) == 0, let memory = unsafe memory else {
    return unsafe finish(io, -ENOMEM, core)
  }
  guard let frame = unsafe push(io, core) else {
    unsafe free(memory)
    return unsafe finish(io, -ENOMEM, core)
  }
  unsafe frame.pointee.buffer = unsafe memory
  let bytes = unsafe memory + 4096
  if unsafe io.pointee.kind == .write { unsafe copyPieces(io, bytes, isRead: false) }
  let vector = unsafe memory.bindMemory(to: iovec.self, capacity: 1)
  unsafe vector.initialize(to: iovec(iov_base: bytes, iov_len: length))
  unsafe io.pointee.vectors = unsafe vector
  unsafe io.pointee.first = 0
  unsafe io.pointee.end = 1
  unsafe io.pointee.done = { raw, result, core in
    let io = unsafe raw.assumingMemoryBound(to: BlockIO.self)
    let memory = unsafe io.pointee.frame?.pointee.buffer
    unsafe pop(io, core.assumingMemoryBound(to: ReactorCore.self))
    if let memory = unsafe memory {
      if result >= 0, unsafe io.pointee.kind == .read { unsafe copyPieces(io, memory + 4096, isRead: true) }
      unsafe free(memory)
    }
    unsafe io.pointee.done(io, result, core)
  }
  unsafe submitFile(io, target, core)
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
