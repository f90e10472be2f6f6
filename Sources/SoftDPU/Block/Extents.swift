import CLinux
import Glibc

/// Calls `body` for the parts of a range, one after the other, with the length of each and whether it is a hole that
/// reads as zeros, until `body` returns false. What cannot be known counts as data.
func forEachExtent(
  _ target: UnsafeMutablePointer<BlockTarget>, offset: UInt64, length: UInt64, _ body: (UInt64, Bool) -> Bool
) {
  // SAFETY: the descriptor lives as long as the target; the position that lseek moves is used by nobody.
  guard unsafe target.pointee.engine == .file else {
    _ = unsafe body(length, target.pointee.engine == .null)
    return
  }
  let fd = unsafe target.pointee.bufferedFD
  let block = unsafe UInt64(target.pointee.blockSize)
  let end = offset + length
  var position = offset
  while position < end {
    let data = lseek(fd, off_t(position), SEEK_DATA)
    if data < 0, errno != ENXIO {
      _ = body(end - position, false)
      return
    }
    // Data that begins within a block makes the whole block data.
    let dataStart = data < 0 ? end : min(end, UInt64(data) / block * block)
    if dataStart > position {
      guard body(dataStart - position, true) else { return }
      position = dataStart
      continue
    }
    let hole = lseek(fd, off_t(position), SEEK_HOLE)
    let holeStart = hole < 0 ? end : min(end, (UInt64(hole) + block - 1) / block * block)
    guard holeStart > position, body(holeStart - position, false) else {
      if holeStart <= position { _ = body(end - position, false) }
      return
    }
    position = holeStart
  }
}
