public import JSON
import NIOHTTP1

/// Objects of kinds that are known only at run time.
extension KubernetesClient {
  public func get(
    _ definition: ResourceDefinition, name: String, namespace: String? = nil
  ) async throws -> DynamicObject {
    try await send(.get(definition, name: name, namespace: namespace), as: DynamicObject.self)
  }

  public func list(
    _ definition: ResourceDefinition, namespace: String? = nil, labelSelector: String? = nil,
    fieldSelector: String? = nil, limit: Int? = nil, continueToken: String? = nil
  ) async throws -> ObjectList<DynamicObject> {
    try await listPage(
      definition, namespace: namespace, labelSelector: labelSelector, fieldSelector: fieldSelector, limit: limit,
      continueToken: continueToken)
  }

  public func listAll(
    _ definition: ResourceDefinition, namespace: String? = nil, labelSelector: String? = nil,
    fieldSelector: String? = nil, pageSize: Int = 500
  ) async throws -> ObjectList<DynamicObject> {
    try await listPages(
      definition, namespace: namespace, labelSelector: labelSelector, fieldSelector: fieldSelector, pageSize: pageSize)
  }

  public func create(_ definition: ResourceDefinition, _ object: DynamicObject) async throws -> DynamicObject {
    try await send(
      .write(
        definition, verb: "create", .POST, name: nil, namespace: object.namespace, body: object.content.serialize(),
        shownName: object.name), as: DynamicObject.self)
  }

  public func update(
    _ definition: ResourceDefinition, _ object: DynamicObject, subresource: String? = nil
  ) async throws -> DynamicObject {
    try await send(
      .write(
        definition, verb: "update", .PUT, name: object.name ?? "", namespace: object.namespace,
        subresource: subresource, body: object.content.serialize()), as: DynamicObject.self)
  }

  public func apply(
    _ definition: ResourceDefinition, name: String, namespace: String? = nil, configuration: JSONValue,
    fieldManager: String, force: Bool = true, subresource: String? = nil
  ) async throws -> DynamicObject {
    try await send(
      .apply(
        definition, name: name, namespace: namespace, configuration: configuration, fieldManager: fieldManager,
        force: force, subresource: subresource), as: DynamicObject.self)
  }

  public func mergePatch(
    _ definition: ResourceDefinition, name: String, namespace: String? = nil, patch: JSONValue,
    subresource: String? = nil, fieldManager: String? = nil
  ) async throws -> DynamicObject {
    try await send(
      .patch(
        definition, name: name, namespace: namespace, subresource: subresource, body: patch.serialize(),
        contentType: "application/merge-patch+json", fieldManager: fieldManager), as: DynamicObject.self)
  }

  public func delete(
    _ definition: ResourceDefinition, name: String, namespace: String? = nil, uid: String? = nil,
    resourceVersion: String? = nil, propagation: PropagationPolicy? = nil, gracePeriodSeconds: Int? = nil
  ) async throws {
    _ = try await send(
      .delete(
        definition, name: name, namespace: namespace, uid: uid, resourceVersion: resourceVersion,
        propagation: propagation, gracePeriodSeconds: gracePeriodSeconds))
  }

  public func watch(
    _ definition: ResourceDefinition, namespace: String? = nil, labelSelector: String? = nil,
    fieldSelector: String? = nil, resourceVersion: String, allowBookmarks: Bool = true,
    timeout: Duration = .seconds(300)
  ) -> WatchStream<DynamicObject> {
    WatchStream(
      client: self, definition: definition,
      options: .init(
        namespace: namespace, labelSelector: labelSelector, fieldSelector: fieldSelector,
        resourceVersion: resourceVersion, allowBookmarks: allowBookmarks, timeout: timeout),
      finish: { (object: DynamicObject) in object })
  }

  private func send(_ call: Call, as type: DynamicObject.Type) async throws -> DynamicObject {
    let bytes = try await send(call)
    return try decode(type, from: bytes, operation: call.operation)
  }
}
