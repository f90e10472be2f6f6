package import JSON

/// The release of a QEMU, where what it can do depends on it.
package struct QEMUVersion: Sendable, Hashable, Comparable, CustomStringConvertible {
  package let major: Int
  package let minor: Int

  package init(major: Int, minor: Int) {
    self.major = major
    self.minor = minor
  }

  /// Reads the answer to `query-version`; what is missing counts as 0, the oldest.
  package init(_ answer: JSONValue) {
    self.init(major: answer["qemu"]?["major"]?.intValue ?? 0, minor: answer["qemu"]?["minor"]?.intValue ?? 0)
  }

  package var description: String { "\(major).\(minor)" }

  package static func < (left: QEMUVersion, right: QEMUVersion) -> Bool {
    (left.major, left.minor) < (right.major, right.minor)
  }

  /// Whether a socket's time between two attempts may be given in milliseconds; before, in whole seconds.
  package var hasReconnectMilliseconds: Bool { self >= QEMUVersion(major: 9, minor: 2) }

  /// Whether a vhost-user device finds its back end again in every state.
  ///
  /// Before 9.1 a connection that ends while no driver runs the device (in the firmware, or between the firmware and
  /// the kernel), or while it is being made again, is lost for the life of the QEMU: `vhost_user_async_close` calls
  /// back only where the device is started.
  package var reconnectsAlways: Bool { self >= QEMUVersion(major: 9, minor: 1) }
}
