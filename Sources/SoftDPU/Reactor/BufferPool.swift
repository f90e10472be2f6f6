import Glibc

/// Memory for the bytes of requests, on pages: taken and given back without an allocation each, as long as it is not
/// large. Reactor's thread.
///
/// SAFETY: a free buffer holds the address of the next free one of its class in its first bytes; a buffer is in the list
/// or with its user, never both.
@unsafe
struct BufferPool {
  /// 4 KiB, 8 KiB ... 1 MiB; what is longer comes from the system each time.
  private static let classes = 9
  private static let smallest = 4096
  /// What is kept for later, in bytes, for each reactor.
  private static let maximumKept = 64 << 20

  private var free = unsafe InlineArray<9, UnsafeMutableRawPointer?>(repeating: nil)
  private var kept = 0
  /// Bytes that are with their users.
  private var lent = 0
  /// The most that peers may make one reactor hold.
  private static let maximumLent = 2 << 30

  private static func size(_ length: Int) -> (size: Int, index: Int) {
    guard unsafe length > smallest else { return unsafe (smallest, 0) }
    let index = Int.bitWidth - (length - 1).leadingZeroBitCount - 12
    return unsafe index < classes ? (smallest << index, index) : (length, classes)
  }

  /// Room for `length` bytes, not cleared; nil where the system has none.
  mutating func take(_ length: Int) -> UnsafeMutableRawPointer? {
    let (size, index) = unsafe BufferPool.size(length)
    guard unsafe lent + size <= BufferPool.maximumLent else { return nil }
    unsafe lent += size
    if unsafe index < BufferPool.classes, let buffer = unsafe free[index] {
      unsafe free[index] = unsafe buffer.load(as: UnsafeMutableRawPointer?.self)
      unsafe kept -= size
      return unsafe buffer
    }
    var memory: UnsafeMutableRawPointer?
    guard unsafe posix_memalign(&memory, 4096, size) == 0 else {
      unsafe lent -= size
      return nil
    }
    return unsafe memory
  }

  /// Takes back what `take` gave for the same length.
  mutating func give(_ buffer: UnsafeMutableRawPointer, _ length: Int) {
    let (size, index) = unsafe BufferPool.size(length)
    unsafe lent -= size
    guard unsafe index < BufferPool.classes, unsafe kept + size <= BufferPool.maximumKept else {
      return unsafe Glibc.free(buffer)
    }
    unsafe buffer.storeBytes(of: free[index], as: UnsafeMutableRawPointer?.self)
    unsafe free[index] = unsafe buffer
    unsafe kept += size
  }

  mutating func deallocate() {
    for index in unsafe 0..<BufferPool.classes {
      while let buffer = unsafe free[index] {
        unsafe free[index] = unsafe buffer.load(as: UnsafeMutableRawPointer?.self)
        unsafe Glibc.free(buffer)
      }
    }
  }
}
