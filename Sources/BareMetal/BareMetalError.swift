/// Why something about a machine or its host could not be done.
public struct BareMetalError: Error, Sendable, CustomStringConvertible {
  public enum Code: String, Sendable, Hashable {
    /// The state has changed since the decision; decide again.
    case stale
    /// Something that is needed is not there (yet).
    case missing
    /// What was given cannot be used.
    case invalid
    /// A program or the kernel refused.
    case system
    /// It took too long.
    case timeout
  }

  public let code: Code
  /// What was being done, with the object's name.
  public let operation: String
  /// What is wrong, and what to do about it.
  public let message: String
  public let cause: (any Error)?

  public init(_ code: Code, operation: String, message: String, cause: (any Error)? = nil) {
    self.code = code
    self.operation = operation
    self.message = message
    self.cause = cause
  }

  public var description: String { "cannot \(operation): \(message)" }
}
