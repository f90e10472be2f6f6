/// What an error of a target says about trying again.
package enum NVMeRefusal: Sendable, Hashable {
  /// The same would happen again.
  case final
  /// It may work in a moment, over any path.
  case forNow
  /// It may work over another path, or over this one in a moment.
  case ofPath

  /// How long to wait between two tries over the same path, in nanoseconds.
  static let pause: UInt64 = 100_000_000

  /// How often a request is tried again: three times, as SPDK does, and for ten seconds where a path has to become
  /// accessible.
  var maximumRetries: UInt8 { self == .ofPath ? 100 : 3 }

  /// - Parameter status: the completion's status field without its phase bit (NVMe Base 1.4, section 4.6.1).
  package init(status: UInt16) {
    let code = status & 0xFF
    let type = status >> 8 & 7
    switch (status & 0x4000 != 0, type, code) {
    case (true, _, _): self = .final
    // Path related, and what was aborted because its queue was deleted.
    case (false, 3, _), (false, 0, 0x08): self = .ofPath
    // Data transfer error, internal error, command interrupted, transient transport error, namespace not ready.
    case (false, 0, 0x04), (false, 0, 0x06), (false, 0, 0x21), (false, 0, 0x22), (false, 0, 0x82): self = .forNow
    default: self = .final
    }
  }
}
