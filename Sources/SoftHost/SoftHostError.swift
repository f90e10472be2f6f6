import SystemPackage

/// Why the chassis cannot do something.
public struct SoftHostError: Error, Sendable, CustomStringConvertible {
  public enum Code: String, Sendable, Hashable {
    /// A flag, a file or a program on this machine is wrong or missing.
    case configuration
    /// QEMU did not start.
    case start
    /// QEMU refused a command.
    case refused
    /// QEMU or the guest did not answer in time.
    case timeout
    /// The connection to QEMU ended.
    case closed
    /// The request does not fit the present state of the chassis.
    case conflict
    /// The same is being done for somebody else; it may be asked for again in a moment.
    case busy
    /// A file or directory could not be read or written.
    case file
  }

  public let code: Code
  public let operation: String
  public let message: String
  public let cause: (any Error)?

  public init(_ code: Code, operation: String, message: String, cause: (any Error)? = nil) {
    self.code = code
    self.operation = operation
    self.message = message
    self.cause = cause
  }

  public var description: String { "cannot \(operation): \(message)" }

  /// What the kernel said, where it was the kernel that refused.
  var systemError: Errno? { cause as? Errno }
}
