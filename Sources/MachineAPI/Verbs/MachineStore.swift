package import IaaS
package import JSON
package import Kubernetes

/// The machines as bm-api reads and patches them at the API server.
package struct MachineStore: Sendable {
  package let client: KubernetesClient

  static let fieldManager = "bm-api"
  /// How often a change is made anew on a machine that was changed meanwhile.
  static let attempts = 8

  package init(client: KubernetesClient) { self.client = client }

  /// What a change has come to.
  package struct Outcome: Sendable, Hashable {
    package var message: String
    package var isChanged: Bool
    package var uid: String?

    init(_ message: String, isChanged: Bool, uid: String?) {
      self.message = message
      self.isChanged = isChanged
      self.uid = uid
    }
  }

  /// A decision about a machine: what to patch, and the words for it.
  package enum Decision: Sendable, Hashable {
    case patch(JSONValue, String)
    case unchanged(String)
  }

  package func machine(_ key: ObjectKey) async throws -> BareMetalMachine {
    try await attempt(key) {
      try await client.get(BareMetalMachine.self, name: key.name, namespace: key.namespace)
    }
  }

  package func object(_ key: ObjectKey) async throws -> DynamicObject {
    try await attempt(key) {
      try await client.get(BareMetalMachine.definition, name: key.name, namespace: key.namespace)
    }
  }

  /// Reads the machine, decides, and patches exactly the version that was read; where somebody was faster, again.
  func change(
    _ key: ObjectKey, _ options: VerbOptions, decide: (DynamicObject) throws(APIFailure) -> Decision
  ) async throws -> Outcome {
    for _ in 0..<Self.attempts {
      let machine = try await object(key)
      try check(machine, key, options)
      switch try decide(machine) {
      case .unchanged(let message):
        return Outcome(message, isChanged: false, uid: machine.uid)
      case .patch(var patch, let message):
        var metadata = patch["metadata"] ?? [:]
        metadata["resourceVersion"] = machine.resourceVersion.map { .string($0) }
        metadata["uid"] = machine.uid.map { .string($0) }
        patch["metadata"] = metadata
        var query = [("fieldManager", Self.fieldManager)]
        if options.isDryRun { query.append(("dryRun", "All")) }
        do {
          _ = try await client.request(
            method: "PATCH", path: Self.path(key), query: query, body: patch,
            contentType: "application/merge-patch+json")
          return Outcome(
            options.isDryRun ? "\(message) (dry run)" : message, isChanged: !options.isDryRun, uid: machine.uid)
        } catch let error as KubernetesError {
          // With a version of the caller's own, the caller has to look again.
          guard error.code == .conflict, options.resourceVersion == nil else {
            throw APIFailure(error, machine: key.name)
          }
        }
      }
    }
    throw APIFailure.conflict(
      key.name, "machine \(key) was changed by others \(Self.attempts) times meanwhile; nothing was done, try again")
  }

  private func check(_ machine: DynamicObject, _ key: ObjectKey, _ options: VerbOptions) throws(APIFailure) {
    try options.check(
      key, uid: machine.uid, resourceVersion: machine.resourceVersion,
      isBeingDeleted: machine["metadata"]?["deletionTimestamp"]?.stringValue != nil)
  }

  func attempt<Result>(_ key: ObjectKey, _ body: () async throws -> Result) async throws -> Result {
    do {
      return try await body()
    } catch let error as KubernetesError {
      throw APIFailure(error, machine: key.name)
    }
  }

  private static func path(_ key: ObjectKey) -> String {
    "/apis/\(BareMetalMachine.definition.apiVersion)/namespaces/\(key.namespace ?? "")/"
      + "\(BareMetalMachine.definition.plural)/\(key.name)"
  }
}

extension VerbOptions {
  /// Refuses a machine that is not the one that the caller meant.
  func check(
    _ key: ObjectKey, uid present: String?, resourceVersion: String?, isBeingDeleted: Bool
  ) throws(APIFailure) {
    if let uid, uid != present {
      throw .conflict(key.name, "machine \(key) has the uid \(present ?? ""), not \(uid): it is another one by now")
    }
    if let version = self.resourceVersion, version != resourceVersion {
      throw .conflict(
        key.name, "machine \(key) has the version \(resourceVersion ?? ""), not \(version): look at it again")
    }
    if isBeingDeleted { throw .conflict(key.name, "machine \(key) is being deleted") }
  }
}
