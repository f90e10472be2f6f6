import Glibc

/// What the kernel's answer to a submission asks for: again at once, again after a while, or neither.
///
/// Under memory pressure the kernel answers EAGAIN or ENOMEM to requests that are in order. A guest that is told of an
/// I/O error gives up its file system; so the request waits, at a bounded rate and for as long as it takes.
package enum Retry: Sendable, Hashable {
  case no
  case now
  case later

  /// How long `later` is, in nanoseconds.
  package static let pause: UInt64 = 10_000_000

  /// After an answer to a read, write, flush or discard of a file, or to a whole submission: a count, or a negative
  /// error number.
  @inline(__always)
  package init(afterRequest result: Int) {
    // Nearly all of them.
    guard result < 0 else {
      self = .no
      return
    }
    switch -result {
    case Int(EINTR): self = .now
    case Int(EAGAIN), Int(ENOMEM): self = .later
    default: self = .no
    }
  }

  /// After an answer to a poll that was to stay armed.
  /// - Parameter isArmed: Whether the kernel says that it is.
  package init(afterPoll result: Int, isArmed: Bool) {
    // A descriptor that is no more rings for nobody.
    if isArmed || result == -Int(EBADF) {
      self = .no
    } else {
      // The kernel ends a poll when its completions overflow as well, without an error.
      self = result >= 0 || result == -Int(EINTR) ? .now : .later
    }
  }
}
