/// Why the DPU did not do what it was asked.
public struct DPUError: Error, Sendable, CustomStringConvertible {
  public enum Code: Sendable, Hashable {
    /// The data plane is not running, or the connection broke: try again later.
    case unavailable
    /// No answer in time: the change may or may not have been made. Read back before trying again.
    case timeout
    /// The object is there with other parameters.
    case conflict
    /// The object, or the file behind it, is not there.
    case notFound
    /// The object is in use by another.
    case busy
    /// The data plane cannot do this at all.
    case unsupported
    /// The data plane refused, for another reason.
    case refused
    /// The answer was not understood.
    case malformed
  }

  public let code: Code
  /// The operation and the object: "create volume pvc-1".
  public let operation: String
  /// A message that a person can act on.
  public let message: String
  /// The data plane's own error code (SPDK's), where it gave one.
  public let serverCode: Int?

  public init(code: Code, operation: String, message: String, serverCode: Int? = nil) {
    self.code = code
    self.operation = operation
    self.message = message
    self.serverCode = serverCode
  }

  public var description: String {
    serverCode.map { "\(operation): \(message) (code \($0))" } ?? "\(operation): \(message)"
  }
}
