/// Why a BMC could not be asked or did not do as asked.
///
/// `message` says what to do about it and never holds a password or a token.
public struct BMCError: Error, Sendable, CustomStringConvertible {
  public enum Code: String, Sendable, Hashable {
    /// Nothing answers at the address.
    case unreachable
    /// Something answers, but not in time.
    case timeout
    /// User name or password are wrong. They are not tried again until they change or a long time has passed.
    case unauthorized
    /// The BMC has locked the account.
    case lockedOut
    /// The account may not do this.
    case forbidden
    /// The BMC's certificate is not trusted.
    case certificate
    /// The BMC cannot do this.
    case unsupported
    /// The BMC answered something that makes no sense.
    case protocolError
    /// The BMC asks to come back later (503, 429), see `retryAfter`.
    case busy
    /// The address is not one of a BMC, or names a system that is not there or not unique.
    case address
    /// The BMC refused the request (4xx), for the reason in the message.
    case rejected
    /// The BMC failed (5xx).
    case failed
    /// A program or a setting on this side is missing.
    case local
  }

  public let code: Code
  /// What was being done, for example `read power of redfish+https://10.0.0.1/redfish/v1/Systems/1`.
  public let operation: String
  public let message: String
  /// When to come back, where the BMC or the client's own caution tells.
  public let retryAfter: Duration?
  /// Whether the answer proves that the BMC took a command and found that it does not apply to the state that the
  /// server is in: off for a server that is off. A refusal for any other reason, a failure or silence proves nothing.
  public let isStateRefusal: Bool
  public let cause: (any Error)?

  public init(
    _ code: Code, operation: String, message: String, retryAfter: Duration? = nil, isStateRefusal: Bool = false,
    cause: (any Error)? = nil
  ) {
    self.code = code
    self.operation = operation
    self.message = message
    self.retryAfter = retryAfter
    self.isStateRefusal = isStateRefusal
    self.cause = cause
  }

  /// Whether the same call may succeed later without anybody changing anything.
  public var isTransient: Bool {
    switch code {
    case .unreachable, .timeout, .busy, .failed, .protocolError: true
    case .unauthorized, .lockedOut, .forbidden, .certificate, .unsupported, .address, .rejected, .local: false
    }
  }

  public var description: String { "cannot \(operation): \(message)" }
}
