import CLinux
import Glibc

// Requests to memory and to nothing (SPDK's bdev_malloc and bdev_null), done at once.
//
// SAFETY: the caller of `start` checked the range against the target's capacity, which is the length of its memory.

/// Carries out a request on the target's memory.
func performMemory(
  _ io: UnsafeMutablePointer<BlockIO>, _ target: UnsafeMutablePointer<BlockTarget>,
  _ core: UnsafeMutablePointer<ReactorCore>
) {
  guard let memory = unsafe target.pointee.memory else { return unsafe finish(io, -ENXIO, core) }
  let place = unsafe memory + Int(io.pointee.offset)
  switch unsafe io.pointee.kind {
  case .read, .write: unsafe copyPieces(io, place, isRead: io.pointee.kind == .read)
  case .flush: break
  case .unmap, .writeZeroes: unsafe clear(place, Int(io.pointee.remaining))
  }
  unsafe finish(io, 0, core)
}

/// Fills with zeros; whole pages are given back to the system, and come as zeros again.
private func clear(_ start: UnsafeMutableRawPointer, _ length: Int) {
  let page: UInt = 4096
  let begin = UInt(bitPattern: start)
  let end = begin + UInt(length)
  let (firstPage, lastPage) = ((begin + page - 1) & ~(page - 1), end & ~(page - 1))
  guard firstPage < lastPage, let pages = unsafe UnsafeMutableRawPointer(bitPattern: firstPage),
    unsafe madvise(pages, Int(lastPage - firstPage), MADV_DONTNEED) == 0,
    let tail = unsafe UnsafeMutableRawPointer(bitPattern: lastPage)
  else {
    unsafe memset(start, 0, length)
    return
  }
  unsafe memset(start, 0, Int(firstPage - begin))
  unsafe memset(tail, 0, Int(end - lastPage))
}

/// Reads give zeros, and writes go nowhere.
func performNull(_ io: UnsafeMutablePointer<BlockIO>, _ core: UnsafeMutablePointer<ReactorCore>) {
  if unsafe io.pointee.kind == .read {
    for index in unsafe io.pointee.first..<io.pointee.end {
      let vector = unsafe io.pointee.vectors[index]
      if let base = unsafe vector.iov_base { unsafe memset(base, 0, vector.iov_len) }
    }
  }
  unsafe finish(io, 0, core)
}
