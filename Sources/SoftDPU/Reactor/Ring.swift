import CLinux

/// A thread's own io_uring: submission slots are taken here, and handed to the kernel in batches.
///
/// A plain value around a pointer, so that the hot path neither counts references nor checks exclusivity.
///
/// SAFETY: the pointer lives from `create` to `destroy`, and one thread, the reactor's, uses it.
@safe
struct Ring {
  private let ring: UnsafeMutablePointer<io_uring>

  /// Must be called on the thread that will use the ring: the kernel binds the ring to it.
  static func create(entries: UInt32) throws(SoftDPUError) -> Ring {
    let ring = UnsafeMutablePointer<io_uring>.allocate(capacity: 1)
    unsafe ring.initialize(to: io_uring())
    let result = unsafe clinux_ring_create(entries, ring)
    guard result == 0 else {
      unsafe ring.deallocate()
      throw .system(-result, "set up io_uring")
    }
    return unsafe Ring(ring: ring)
  }

  func destroy() {
    unsafe io_uring_queue_exit(ring)
    unsafe ring.deallocate()
  }

  /// The next free submission, or nil where the kernel takes none: the caller fails its request.
  @inline(__always)
  func next() -> UnsafeMutablePointer<io_uring_sqe>? {
    if let entry = unsafe io_uring_get_sqe(ring) { return unsafe entry }
    // Full: what is queued goes to the kernel first.
    _ = unsafe io_uring_submit(ring)
    return unsafe io_uring_get_sqe(ring)
  }

  /// Hands everything queued to the kernel without waiting.
  func submit() { _ = unsafe io_uring_submit(ring) }

  /// Hands everything queued to the kernel and waits for at least `count` completions; 0 takes what is there.
  @inline(__always)
  func submitAndWait(_ count: UInt32) -> CInt { unsafe io_uring_submit_and_wait(ring, count) }

  /// Lets the kernel run its part of what completed without waiting for more.
  @inline(__always)
  func submitAndCollect() -> CInt { unsafe io_uring_submit_and_get_events(ring) }

  /// Copies out up to `capacity` completions; they stay in the ring until `advance`.
  @inline(__always)
  func completions(_ into: UnsafeMutablePointer<UnsafeMutablePointer<io_uring_cqe>?>, capacity: UInt32) -> UInt32 {
    unsafe io_uring_peek_batch_cqe(ring, into, capacity)
  }

  @inline(__always)
  func advance(_ count: UInt32) { unsafe io_uring_cq_advance(ring, count) }
}
