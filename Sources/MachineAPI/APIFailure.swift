import IaaS
package import JSON
package import Kubernetes

/// A refusal or failure as the Kubernetes API tells it (`metav1.Status`).
package struct APIFailure: Error, Sendable, Hashable, CustomStringConvertible {
  /// The HTTP status.
  package var code: Int
  /// A word for programs, of those that the Kubernetes API has.
  package var reason: String
  /// What is wrong with which object or field, and what to do about it.
  package var message: String
  /// The machine that it is about.
  package var machine: String?
  /// The field of the body, or the parameter, that is wrong.
  package var field: String?
  /// After how many seconds the same call may succeed.
  package var retryAfterSeconds: Int?

  package init(
    _ code: Int, _ reason: String, _ message: String, machine: String? = nil, field: String? = nil,
    retryAfterSeconds: Int? = nil
  ) {
    self.code = code
    self.reason = reason
    self.message = message
    self.machine = machine
    self.field = field
    self.retryAfterSeconds = retryAfterSeconds
  }

  package var description: String { message }

  package static func badRequest(_ message: String, field: String? = nil) -> APIFailure {
    APIFailure(400, "BadRequest", message, field: field)
  }

  package static func notFound(_ path: String) -> APIFailure {
    APIFailure(404, "NotFound", "there is nothing at \(path); GET \(APIGroup.path) lists what there is")
  }

  package static func conflict(_ machine: String, _ message: String) -> APIFailure {
    APIFailure(409, "Conflict", message, machine: machine)
  }

  package static func unavailable(_ message: String) -> APIFailure {
    APIFailure(503, "ServiceUnavailable", message, retryAfterSeconds: 1)
  }

  /// The answer's body.
  package var body: JSONValue {
    var status: JSONValue = [
      "kind": "Status", "apiVersion": "v1", "metadata": [:], "status": "Failure", "message": .string(message),
      "reason": .string(reason), "code": .integer(Int64(code)),
    ]
    var details: JSONValue = [:]
    if let machine {
      details = ["name": .string(machine), "group": .string(APIGroup.name), "kind": .string(APIGroup.plural)]
    }
    if let field {
      details["causes"] = [["reason": "FieldValueInvalid", "message": .string(message), "field": .string(field)]]
    }
    if let retryAfterSeconds { details["retryAfterSeconds"] = .integer(Int64(retryAfterSeconds)) }
    if details != [:] { status["details"] = details }
    return status
  }

  /// What the API server said to bm-api, for whoever called it.
  ///
  /// That bm-api itself may not do something is not the caller's fault, and is not told as if it were.
  package init(_ error: KubernetesError, machine: String) {
    switch error.code {
    case .notFound, .conflict, .invalid, .badRequest, .alreadyExists:
      self.init(
        error.httpStatus ?? 400, error.status?.reason ?? "BadRequest", error.message, machine: machine,
        field: error.causes.first?.field)
    case .tooManyRequests:
      self.init(429, "TooManyRequests", error.message, machine: machine, retryAfterSeconds: 1)
    case .forbidden, .unauthorized:
      self.init(
        500, "InternalError", "bm-api is not allowed to do this: apply deploy/rbac/bm-api.yaml", machine: machine)
    case .timeout:
      self.init(504, "Timeout", "the API server did not answer bm-api in time", machine: machine)
    case .unavailable, .invalidResponse, .gone, .configuration, .other:
      self = .unavailable("bm-api cannot reach the API server; try again")
    }
  }
}

/// The group that bm-api serves.
package enum APIGroup {
  package static let name = Names.subresourceGroup
  package static let version = "v1"
  package static let plural = "baremetalmachines"
  package static var groupVersion: String { "\(name)/\(version)" }
  package static var path: String { "/apis/\(groupVersion)" }
}
