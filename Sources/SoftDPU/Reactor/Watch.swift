import CLinux
import Glibc

/// A descriptor that a reactor watches for bytes, by a poll that stays armed.
///
/// A guest's bell (kick) is never read: a poll reports each ring, and what was made available is in the ring itself.
///
/// Readers may stop after a read that gave less than there was room for. Where the peer has ended the connection, what
/// tells so may have come together with the bytes before it: they are asked to look twice.
///
/// SAFETY: while it is armed the kernel's copy of its address keeps it alive (an extra reference, given back with the
/// last completion), so that a completion that comes after `cancel` finds it. Reactor's thread only.
@safe
final class Watch {
  private let fd: CInt
  private let onReady: () -> Void
  private let queue: UnsafeMutablePointer<VirtQueue>?
  private var isArmed = false
  private var isCancelled = false

  init(fd: CInt, onReady: @escaping () -> Void) {
    self.fd = fd
    self.onReady = onReady
    unsafe queue = nil
  }

  /// Watches a queue's bell: the queue is served when it rings.
  init(fd: CInt, queue: UnsafeMutablePointer<VirtQueue>) {
    self.fd = fd
    unsafe self.queue = unsafe queue
    onReady = {}
  }

  /// POLLRDHUP: the peer sends no more.
  private static let hangup: UInt32 = 0x2000
  private static let ending = hangup | UInt32(POLLHUP) | UInt32(POLLERR)

  private var data: UInt64 {
    unsafe UInt64(UInt(bitPattern: Unmanaged.passUnretained(self).toOpaque())) | Tag.watch
  }

  func arm(_ core: UnsafeMutablePointer<ReactorCore>) {
    guard !isArmed, !isCancelled else { return }
    guard let entry = unsafe core.pointee.ring.next() else { return unsafe armLater(core) }
    isArmed = true
    unsafe core.pointee.armedWatches += 1
    _ = unsafe Unmanaged.passRetained(self)
    unsafe clinux_prep_poll(entry, fd, UInt32(POLLIN) | Watch.hangup, data)
  }

  /// Arms it after a while: the kernel takes no poll now. Until then the timer keeps it alive.
  private func armLater(_ core: UnsafeMutablePointer<ReactorCore>) {
    unsafe core.pointee.schedule(
      at: clinux_monotonic_nanoseconds() &+ Retry.pause,
      { raw, core in
        let reference = unsafe Unmanaged<Watch>.fromOpaque(raw)
        unsafe reference._withUnsafeGuaranteedRef { unsafe $0.arm(core.assumingMemoryBound(to: ReactorCore.self)) }
        unsafe reference.release()
      }, Unmanaged.passRetained(self).toOpaque())
  }

  /// Ends the watch. The descriptor may be closed after the next submission.
  func cancel(_ ring: Ring) {
    guard !isCancelled else { return }
    isCancelled = true
    guard isArmed, let entry = unsafe ring.next() else { return }
    unsafe clinux_prep_cancel(entry, data, Tag.nothing)
  }

  /// Takes a completion that names the watch at this address.
  static func handle(
    _ pointer: UnsafeRawPointer, result: CInt, hasMore: Bool, _ core: UnsafeMutablePointer<ReactorCore>
  ) {
    let reference = unsafe Unmanaged<Watch>.fromOpaque(pointer)
    unsafe reference._withUnsafeGuaranteedRef { unsafe $0.handle(result, hasMore: hasMore, core) }
    guard !hasMore else { return }
    unsafe core.pointee.armedWatches -= 1
    unsafe reference.release()
  }

  private func handle(_ result: CInt, hasMore: Bool, _ core: UnsafeMutablePointer<ReactorCore>) {
    if !hasMore { isArmed = false }
    guard !isCancelled else { return }
    if let queue = unsafe queue {
      unsafe core.pointee.touch(queue)
    } else {
      onReady()
      if result > 0, UInt32(result) & Watch.ending != 0, !isCancelled { onReady() }
    }
    switch Retry(afterPoll: Int(result), isArmed: hasMore) {
    case .no: break
    case .now: unsafe arm(core)
    case .later: unsafe armLater(core)
    }
  }
}
