import JSON
package import Kubernetes
package import Telemetry

/// What somebody wants to do, as the API server's authorization sees it.
package enum AccessRequest: Sendable, Hashable {
  /// A subresource of a machine.
  case machine(verb: String, subresource: String, namespace: String, name: String)
  /// A path that is no resource.
  case path(verb: String, path: String)

  var attributes: (String, JSONValue) {
    switch self {
    case .machine(let verb, let subresource, let namespace, let name):
      (
        "resourceAttributes",
        [
          "group": .string(APIGroup.name), "version": .string(APIGroup.version), "resource": .string(APIGroup.plural),
          "subresource": .string(subresource), "verb": .string(verb), "namespace": .string(namespace),
          "name": .string(name),
        ]
      )
    case .path(let verb, let path):
      ("nonResourceAttributes", ["verb": .string(verb), "path": .string(path)])
    }
  }

  /// What the refusal calls it.
  package var description: String {
    switch self {
    case .machine(let verb, let subresource, let namespace, let name):
      "\(verb) \(APIGroup.plural)/\(subresource) in the API group \"\(APIGroup.name)\" of machine \(namespace)/\(name)"
    case .path(let verb, let path): "\(verb) path \"\(path)\""
    }
  }
}

/// Asks the API server whether somebody may do something (`SubjectAccessReview`). Where no answer comes, nobody may.
package final class Authorizer: Sendable {
  private struct Question: Hashable {
    var identity: Identity
    var access: AccessRequest
  }

  private let client: KubernetesClient
  private let answers = ExpiringCache<Question, Bool>(limit: 4096)
  private let refusals: CounterFamily

  package init(client: KubernetesClient, registry: MetricsRegistry) {
    self.client = client
    refusals = registry.counter(
      "bm_api_refused_total", help: "Calls that were refused: whom nobody knows, and what is not allowed.",
      labels: ["reason"])
  }

  package func countUnauthenticated() { refusals.increment("unauthenticated") }

  /// - Throws: `APIFailure` 403 where it is not allowed, 503 where the API server gives no answer.
  package func check(_ identity: Identity, _ access: AccessRequest) async throws {
    guard try await isAllowed(identity, access) else {
      refusals.increment("forbidden")
      throw APIFailure(
        403, "Forbidden", "user \"\(identity.user)\" cannot \(access.description): RBAC does not allow it")
    }
  }

  package func isAllowed(_ identity: Identity, _ access: AccessRequest) async throws -> Bool {
    let question = Question(identity: identity, access: access)
    if let known = answers[question] { return known }
    let (kind, attributes) = access.attributes
    var spec: JSONValue = [
      "user": .string(identity.user), "groups": .array(identity.groups.map { .string($0) }),
      "extra": .object(identity.extra.mapValues { .array($0.map { .string($0) }) }),
    ]
    if let uid = identity.uid { spec["uid"] = .string(uid) }
    spec[kind] = attributes
    let answer: JSONValue
    do {
      answer = try await client.review(
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        ["apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec])
    } catch is KubernetesError {
      throw APIFailure.unavailable("the API server cannot be asked whether this is allowed; try again")
    }
    let status = answer["status"]
    let allowed = status?["allowed"]?.boolValue == true && status?["denied"]?.boolValue != true
    // Long enough for a burst of calls, short enough for whoever takes a right away; a right that was just given is
    // wanted at once.
    answers.store(allowed, for: question, lasting: allowed ? .seconds(5) : .seconds(1))
    return allowed
  }
}
