public import JSON
import NIOHTTP1

/// What happens to the dependents of a deleted object.
public enum PropagationPolicy: String, Sendable, Hashable {
  /// The garbage collector deletes them after the owner.
  case background = "Background"
  /// The owner stays until they are gone.
  case foreground = "Foreground"
  /// They stay.
  case orphan = "Orphan"
}

/// Typed objects. All methods throw `KubernetesError`, and `CancellationError` where the task was cancelled.
extension KubernetesClient {
  public func get<T: KubernetesObject>(_ type: T.Type, name: String, namespace: String? = nil) async throws -> T {
    try await send(.get(T.definition, name: name, namespace: namespace), as: T.self)
  }

  /// One page of a collection.
  /// - Parameter namespace: nil for all namespaces.
  public func list<T: KubernetesObject>(
    _ type: T.Type, namespace: String? = nil, labelSelector: String? = nil, fieldSelector: String? = nil,
    limit: Int? = nil, continueToken: String? = nil
  ) async throws -> ObjectList<T> {
    let page: ObjectList<T> = try await listPage(
      T.definition, namespace: namespace, labelSelector: labelSelector, fieldSelector: fieldSelector, limit: limit,
      continueToken: continueToken)
    return ObjectList(
      items: page.items.map { $0.typed() }, resourceVersion: page.resourceVersion, continueToken: page.continueToken,
      remainingItemCount: page.remainingItemCount)
  }

  /// The whole collection, read in pages. Where the server forgets the pages' common version on the way, the
  /// collection is read again in one piece, so that the answer is consistent always.
  public func listAll<T: KubernetesObject>(
    _ type: T.Type, namespace: String? = nil, labelSelector: String? = nil, fieldSelector: String? = nil,
    pageSize: Int = 500
  ) async throws -> ObjectList<T> {
    let all: ObjectList<T> = try await listPages(
      T.definition, namespace: namespace, labelSelector: labelSelector, fieldSelector: fieldSelector,
      pageSize: pageSize)
    return ObjectList(items: all.items.map { $0.typed() }, resourceVersion: all.resourceVersion)
  }

  public func create<T: KubernetesObject>(_ object: T) async throws -> T {
    let body = try encode(object.typed(), "create \(T.definition.plural)")
    return try await send(
      .write(
        T.definition, verb: "create", .POST, name: nil, namespace: object.metadata.namespace, body: body,
        shownName: object.metadata.name ?? object.metadata.generateName), as: T.self)
  }

  /// Replaces an object of one's own. Fields that `T` does not know are lost: patch foreign objects instead.
  public func update<T: KubernetesObject>(_ object: T) async throws -> T {
    try await replace(object, subresource: nil)
  }

  /// Replaces the status of an object of one's own.
  public func updateStatus<T: KubernetesObject>(_ object: T) async throws -> T {
    try await replace(object, subresource: "status")
  }

  private func replace<T: KubernetesObject>(_ object: T, subresource: String?) async throws -> T {
    let body = try encode(object.typed(), "update \(T.definition.plural)")
    return try await send(
      .write(
        T.definition, verb: "update", .PUT, name: object.metadata.name ?? "", namespace: object.metadata.namespace,
        subresource: subresource, body: body), as: T.self)
  }

  /// Server-side apply: the fields of `configuration` become `fieldManager`'s own; fields that it applied before and
  /// that are missing now are removed. `apiVersion`, `kind` and `metadata.name` are filled in.
  /// - Parameter force: Takes fields over from other managers instead of failing with `conflict`.
  public func apply<T: KubernetesObject>(
    _ type: T.Type, name: String, namespace: String? = nil, configuration: JSONValue, fieldManager: String,
    force: Bool = true, subresource: String? = nil
  ) async throws -> T {
    try await send(
      .apply(
        T.definition, name: name, namespace: namespace, configuration: configuration, fieldManager: fieldManager,
        force: force, subresource: subresource), as: T.self)
  }

  /// JSON merge patch (RFC 7386). With `metadata.resourceVersion` in the patch, it fails with `conflict` where the
  /// object has changed since.
  public func mergePatch<T: KubernetesObject>(
    _ type: T.Type, name: String, namespace: String? = nil, patch: JSONValue, subresource: String? = nil,
    fieldManager: String? = nil
  ) async throws -> T {
    try await send(
      .patch(
        T.definition, name: name, namespace: namespace, subresource: subresource, body: patch.serialize(),
        contentType: "application/merge-patch+json", fieldManager: fieldManager), as: T.self)
  }

  /// JSON patch (RFC 6902): a list of operations.
  public func jsonPatch<T: KubernetesObject>(
    _ type: T.Type, name: String, namespace: String? = nil, operations: [JSONValue], subresource: String? = nil,
    fieldManager: String? = nil
  ) async throws -> T {
    try await send(
      .patch(
        T.definition, name: name, namespace: namespace, subresource: subresource,
        body: JSONValue.array(operations).serialize(), contentType: "application/json-patch+json",
        fieldManager: fieldManager), as: T.self)
  }

  /// Asks for a delete. With finalizers or a grace period the object stays for a while.
  /// - Parameters:
  ///   - uid: Delete only this incarnation; `conflict` where the name means another object by now.
  ///   - resourceVersion: Delete only this version.
  public func delete<T: KubernetesObject>(
    _ type: T.Type, name: String, namespace: String? = nil, uid: String? = nil, resourceVersion: String? = nil,
    propagation: PropagationPolicy? = nil, gracePeriodSeconds: Int? = nil
  ) async throws {
    _ = try await send(
      .delete(
        T.definition, name: name, namespace: namespace, uid: uid, resourceVersion: resourceVersion,
        propagation: propagation, gracePeriodSeconds: gracePeriodSeconds))
  }

  /// The changes of a collection after `resourceVersion`, as they happen. The request starts with the first element
  /// asked for; the sequence ends where the server ends it, which it does every few minutes.
  ///
  /// - Parameter timeout: After how long the server shall end it.
  public func watch<T: KubernetesObject>(
    _ type: T.Type, namespace: String? = nil, labelSelector: String? = nil, fieldSelector: String? = nil,
    resourceVersion: String, allowBookmarks: Bool = true, timeout: Duration = .seconds(300)
  ) -> WatchStream<T> {
    WatchStream(
      client: self, definition: T.definition,
      options: .init(
        namespace: namespace, labelSelector: labelSelector, fieldSelector: fieldSelector,
        resourceVersion: resourceVersion, allowBookmarks: allowBookmarks, timeout: timeout),
      finish: { (object: T) in object.typed() })
  }

  private func encode(_ value: some Encodable, _ operation: String) throws(KubernetesError) -> [UInt8] {
    do {
      return try Coding.encode(value)
    } catch {
      throw KubernetesError(
        code: .badRequest, operation: operation, message: "the object cannot be encoded: \(error)", cause: error)
    }
  }

  private func send<T: KubernetesObject>(_ call: Call, as type: T.Type) async throws -> T {
    let bytes = try await send(call)
    return try decode(type, from: bytes, operation: call.operation).typed()
  }
}
