/// What went wrong while starting, running or stopping a local cloud.
public struct LocalCloudError: Error, Sendable, CustomStringConvertible {
  public enum Code: Sendable, Hashable {
    /// A setting is out of range, malformed, or cannot be changed any more.
    case invalidSettings
    /// Something else on the machine has the name, the network, the port or the directory.
    case conflict
    /// A program, a file or a right that is needed is missing.
    case missingRequirement
    /// A program that was run to its end failed.
    case commandFailed
    /// A file or directory could not be read, written or removed.
    case fileSystem
    /// A process could not be started or did not end.
    case process
    /// A part did not become ready in time.
    case timedOut
    /// The local API server refused something.
    case controlPlane
  }

  public var code: Code
  /// What was being done, such as "start etcd".
  public var operation: String
  /// What happened and what can be done about it.
  public var message: String
  public var cause: (any Error)?

  public init(_ code: Code, operation: String, _ message: String, cause: (any Error)? = nil) {
    self.code = code
    self.operation = operation
    self.message = message
    self.cause = cause
  }

  public var description: String {
    "cannot \(operation): \(message)" + (cause.map { " (\($0))" } ?? "")
  }
}
