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
  let begin = UInt(bitPattern: start)
  guard let pages = wholePages(begin..<begin + UInt(length), size: pageSize),
    let first = unsafe UnsafeMutableRawPointer(bitPattern: pages.lowerBound),
    unsafe madvise(first, pages.count, MADV_DONTNEED) == 0,
    let tail = unsafe UnsafeMutableRawPointer(bitPattern: pages.upperBound)
  else {
    unsafe memset(start, 0, length)
    return
  }
  unsafe memset(start, 0, Int(pages.lowerBound - begin))
  unsafe memset(tail, 0, length - Int(pages.upperBound - begin))
}

/// The system's pages: 4 KiB on x86-64, and 4, 16 or 64 KiB on arm64, as its kernel was built.
private let pageSize = UInt(max(4096, sysconf(Int32(_SC_PAGESIZE))))

/// The pages of `size` bytes, a power of two, that lie wholly within a range of addresses; nil where there is none.
///
/// Never a part of one: madvise(2) takes a length up to the next page's border, and would empty what lies behind.
package func wholePages(_ range: Range<UInt>, size: UInt) -> Range<UInt>? {
  let first = (range.lowerBound + size - 1) & ~(size - 1)
  let last = range.upperBound & ~(size - 1)
  return first < last ? first..<last : nil
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
