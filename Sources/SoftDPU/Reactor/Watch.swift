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

  func arm(_ ring: Ring) {
    guard !isArmed, !isCancelled, let entry = unsafe ring.next() else { return }
    isArmed = true
    _ = unsafe Unmanaged.passRetained(self)
    unsafe clinux_prep_poll(entry, fd, UInt32(POLLIN) | Watch.hangup, data)
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
    if !hasMore { unsafe reference.release() }
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
    // The kernel ends a poll when its completions overflow, or on an error: a broken descriptor is left alone.
    if !hasMore, result >= 0 || result == -EINTR || result == -EAGAIN { unsafe arm(core.pointee.ring) }
  }
}
