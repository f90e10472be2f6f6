/// The answer of an API server that refuses (`metav1.Status`).
public struct Status: Codable, Sendable, Hashable {
  public struct Cause: Codable, Sendable, Hashable {
    /// A word for programs, such as `FieldValueInvalid`.
    public var reason: String?
    public var message: String?
    /// The field that the cause is about, such as `spec.disks[0].size`.
    public var field: String?
  }

  public struct Details: Codable, Sendable, Hashable {
    public var name: String?
    public var group: String?
    public var kind: String?
    public var uid: String?
    public var causes: [Cause]?
    public var retryAfterSeconds: Int?
  }

  public var status: String?
  public var message: String?
  public var reason: String?
  public var details: Details?
  /// The HTTP status code.
  public var code: Int?

  public init(status: String? = nil, message: String? = nil, reason: String? = nil, code: Int? = nil) {
    self.status = status
    self.message = message
    self.reason = reason
    self.code = code
  }
}

/// Why a call to the API server failed.
public struct KubernetesError: Error, Sendable, CustomStringConvertible {
  public enum Code: String, Sendable, Hashable {
    /// The object, or the resource itself, does not exist.
    case notFound
    case alreadyExists
    /// The object is newer than the change says, or a field belongs to another manager.
    case conflict
    /// The resource version or the continue token is too old: list again.
    case gone
    /// The object breaks its schema or its validation; the causes name the fields.
    case invalid
    /// The request itself is wrong.
    case badRequest
    case unauthorized
    case forbidden
    case tooManyRequests
    /// The server, or this client, gave up waiting; whether the change happened is not known.
    case timeout
    /// No answer, or none of the API server's: connection refused or cut, 500, 502, 503, 504.
    case unavailable
    /// An answer that does not make sense.
    case invalidResponse
    /// The kubeconfig, a credential or a certificate cannot be used.
    case configuration
    /// Another refusal; see `status`.
    case other
  }

  public var code: Code
  /// What was tried, such as `get secrets ycloud-system/host-a`.
  public var operation: String
  /// What went wrong, for a person.
  public var message: String
  /// The API server's own words, where it had some.
  public var status: Status?
  public var httpStatus: Int?
  /// How long the server asks to wait.
  public var retryAfter: Duration?
  public var cause: (any Error)?

  public init(
    code: Code, operation: String, message: String, status: Status? = nil, httpStatus: Int? = nil,
    retryAfter: Duration? = nil, cause: (any Error)? = nil
  ) {
    self.code = code
    self.operation = operation
    self.message = message
    self.status = status
    self.httpStatus = httpStatus
    self.retryAfter = retryAfter
    self.cause = cause
  }

  public var description: String { "\(operation): \(message)" }

  /// The fields that the server found wrong.
  public var causes: [Status.Cause] { status?.details?.causes ?? [] }

  /// Whether the same call may succeed later without anybody changing anything.
  public var isTransient: Bool {
    switch code {
    case .tooManyRequests, .timeout, .unavailable, .invalidResponse: true
    default: false
    }
  }
}

extension KubernetesError {
  /// The error for an answer with a status of 400 or above.
  init(operation: String, httpStatus: Int, status: Status?, body: String, retryAfterHeader: String?) {
    let retryAfter = status?.details?.retryAfterSeconds ?? retryAfterHeader.flatMap { Int($0) }
    let fallback = body.isEmpty ? "HTTP status \(httpStatus)" : "HTTP status \(httpStatus): \(body.prefix(512))"
    self.init(
      code: KubernetesError.code(httpStatus: httpStatus, reason: status?.reason), operation: operation,
      message: status?.message.flatMap { $0.isEmpty ? nil : $0 } ?? fallback, status: status, httpStatus: httpStatus,
      retryAfter: retryAfter.flatMap { $0 >= 0 ? .seconds(min($0, 3600)) : nil })
  }

  /// The error for an `ERROR` event of a watch.
  init(operation: String, watchError status: Status) {
    self.init(
      operation: operation, httpStatus: status.code ?? 500, status: status, body: "", retryAfterHeader: nil)
  }

  static func code(httpStatus: Int, reason: String?) -> Code {
    switch reason {
    case "NotFound": return .notFound
    case "AlreadyExists": return .alreadyExists
    case "Conflict": return .conflict
    case "Gone", "Expired": return .gone
    case "Invalid": return .invalid
    case "BadRequest": return .badRequest
    case "Unauthorized": return .unauthorized
    case "Forbidden": return .forbidden
    case "TooManyRequests": return .tooManyRequests
    case "Timeout", "ServerTimeout": return .timeout
    case "InternalError", "ServiceUnavailable": return .unavailable
    default: break
    }
    switch httpStatus {
    case 400, 406, 413, 415: return .badRequest
    case 401: return .unauthorized
    case 403: return .forbidden
    case 404: return .notFound
    case 409: return .conflict
    case 410: return .gone
    case 422: return .invalid
    case 408: return .timeout
    case 429: return .tooManyRequests
    case 500...599: return .unavailable
    default: return .other
    }
  }
}
