/// What went wrong in a storage operation: a code to decide by, and a message a person can act on.
public struct StorageError: Error, Sendable, CustomStringConvertible {
  /// The kinds of failure that callers tell apart.
  public enum Code: String, Sendable, Hashable, CaseIterable {
    /// The pool's folder is missing, on the wrong kind of file system, or not usable.
    case poolUnusable
    /// Another process works on the pool.
    case poolInUse
    /// A handle that is not `[a-z0-9-]{1,128}`.
    case invalidHandle
    /// A size that is not positive or beyond what a file can have.
    case invalidSize
    /// More than the pool could ever hold: repeating is useless.
    case exceedsPool
    /// More than the pool may promise at the moment; room may be made.
    case overcommitted
    /// The pool has less free space than its reserve, or none; room may be made.
    case poolFull
    /// The volume is there already and differs from what was asked for.
    case conflict
    /// There is no such volume.
    case notFound
    /// The volume is being written by an upload.
    case busy
    /// The volume was deleted while it was being written.
    case discarded
    /// An upload does not hold what it announced.
    case contentMismatch
    /// A system call failed for a reason not listed here.
    case io

    /// The code as conditions and events write it.
    var reason: String { rawValue.prefix(1).uppercased() + rawValue.dropFirst() }
  }

  public let code: Code
  /// What was attempted, for example `clone`.
  public let operation: String
  /// Which object, which limit, and what to do about it; constant as long as the cause is.
  public let message: String
  /// The error number of the system call that failed, if one did.
  public let errorNumber: Int32?

  public init(_ code: Code, operation: String, message: String, errorNumber: Int32? = nil) {
    self.code = code
    self.operation = operation
    self.message = message
    self.errorNumber = errorNumber
  }

  /// Whether the same request may succeed later without having been changed, because room may be made.
  public var isWaitingForSpace: Bool { code == .overcommitted || code == .poolFull }

  public var description: String { "\(operation): \(message)" }
}
