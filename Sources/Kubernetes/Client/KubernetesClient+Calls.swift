import JSON
import NIOHTTP1

/// How each verb looks on the wire.
extension KubernetesClient.Call {
  private static func describe(
    _ verb: String, _ definition: ResourceDefinition, _ namespace: String?, _ name: String?, _ subresource: String?
  ) -> String {
    var text = "\(verb) \(definition.plural)"
    if let subresource { text += "/\(subresource)" }
    if let name { text += " \(ObjectKey(namespace: definition.namespaced ? namespace : nil, name: name))" }
    return text
  }

  private init(
    _ verb: String, _ definition: ResourceDefinition, _ method: HTTPMethod, name: String?, namespace: String?,
    subresource: String? = nil, shownName: String? = nil
  ) {
    self.init(
      operation: Self.describe(verb, definition, namespace, name ?? shownName, subresource), verb: verb,
      resource: definition.plural, method: method,
      path: definition.path(namespace: namespace, name: name, subresource: subresource),
      isUrgent: definition == Lease.definition)
    // With a name missing, the path of an object becomes that of its collection: a delete would empty it.
    if verb != "list", verb != "create", name.map({ $0.isEmpty || $0 == "." || $0 == ".." }) ?? true {
      problem = "'\(name ?? "")' is no name of an object"
    } else if verb != "list", definition.namespaced, namespace?.isEmpty ?? true {
      problem = "a \(definition.kind) lives in a namespace; none was given"
    }
  }

  static func get(_ definition: ResourceDefinition, name: String, namespace: String?) -> Self {
    Self("get", definition, .GET, name: name, namespace: namespace)
  }

  static func list(
    _ definition: ResourceDefinition, namespace: String?, labelSelector: String?, fieldSelector: String?, limit: Int?,
    continueToken: String?
  ) -> Self {
    var call = Self("list", definition, .GET, name: nil, namespace: namespace)
    if let labelSelector, !labelSelector.isEmpty { call.query.append(("labelSelector", labelSelector)) }
    if let fieldSelector, !fieldSelector.isEmpty { call.query.append(("fieldSelector", fieldSelector)) }
    if let limit, limit > 0 { call.query.append(("limit", "\(limit)")) }
    if let continueToken, !continueToken.isEmpty { call.query.append(("continue", continueToken)) }
    return call
  }

  static func write(
    _ definition: ResourceDefinition, verb: String, _ method: HTTPMethod, name: String?, namespace: String?,
    subresource: String? = nil, body: [UInt8], shownName: String? = nil
  ) -> Self {
    var call = Self(
      verb, definition, method, name: name, namespace: namespace, subresource: subresource, shownName: shownName)
    call.body = body
    return call
  }

  static func patch(
    _ definition: ResourceDefinition, name: String, namespace: String?, subresource: String?, body: [UInt8],
    contentType: String, fieldManager: String?
  ) -> Self {
    var call = Self("patch", definition, .PATCH, name: name, namespace: namespace, subresource: subresource)
    if let fieldManager { call.query.append(("fieldManager", fieldManager)) }
    call.body = body
    call.contentType = contentType
    return call
  }

  static func apply(
    _ definition: ResourceDefinition, name: String, namespace: String?, configuration: JSONValue, fieldManager: String,
    force: Bool, subresource: String?
  ) -> Self {
    var object = configuration
    object["apiVersion"] = .string(definition.apiVersion)
    object["kind"] = .string(definition.kind)
    var metadata = object["metadata"] ?? [:]
    metadata["name"] = .string(name)
    if definition.namespaced, let namespace { metadata["namespace"] = .string(namespace) }
    object["metadata"] = metadata
    var call = Self("apply", definition, .PATCH, name: name, namespace: namespace, subresource: subresource)
    call.query = [("fieldManager", fieldManager), ("force", force ? "true" : "false")]
    // JSON is YAML, and the only media type of apply that every server version takes.
    call.body = object.serialize()
    call.contentType = "application/apply-patch+yaml"
    return call
  }

  static func delete(
    _ definition: ResourceDefinition, name: String, namespace: String?, uid: String?, resourceVersion: String?,
    propagation: PropagationPolicy?, gracePeriodSeconds: Int?
  ) -> Self {
    var options: JSONValue = ["apiVersion": "v1", "kind": "DeleteOptions"]
    var preconditions: JSONValue = [:]
    if let uid { preconditions["uid"] = .string(uid) }
    if let resourceVersion { preconditions["resourceVersion"] = .string(resourceVersion) }
    if preconditions != [:] { options["preconditions"] = preconditions }
    if let propagation { options["propagationPolicy"] = .string(propagation.rawValue) }
    if let gracePeriodSeconds { options["gracePeriodSeconds"] = .integer(Int64(gracePeriodSeconds)) }
    var call = Self("delete", definition, .DELETE, name: name, namespace: namespace)
    call.body = options.serialize()
    return call
  }

  static func watch(_ definition: ResourceDefinition, _ options: WatchOptions, timeoutSeconds: Int) -> Self {
    var call = list(
      definition, namespace: options.namespace, labelSelector: options.labelSelector,
      fieldSelector: options.fieldSelector, limit: nil, continueToken: nil)
    call.verb = "watch"
    call.operation = "watch \(definition.plural)"
    call.query += [("watch", "true"), ("timeoutSeconds", "\(timeoutSeconds)")]
    if !options.resourceVersion.isEmpty { call.query.append(("resourceVersion", options.resourceVersion)) }
    if options.allowBookmarks { call.query.append(("allowWatchBookmarks", "true")) }
    return call
  }
}

extension KubernetesClient {
  func decode<T: Decodable>(_ type: T.Type, from bytes: [UInt8], operation: String) throws(KubernetesError) -> T {
    do {
      return try Coding.decode(type, from: bytes)
    } catch {
      throw KubernetesError(
        code: .invalidResponse, operation: operation, message: "the answer is no \(T.self): \(error)", cause: error)
    }
  }

  private func decodeList<T: Decodable & Sendable>(
    _ bytes: [UInt8], operation: String
  ) throws(KubernetesError) -> ListEnvelope<T> {
    guard T.self == DynamicObject.self else {
      return try decode(ListEnvelope<T>.self, from: bytes, operation: operation)
    }
    // Several times as fast as through Codable.
    let content = try decode(JSONValue.self, from: bytes, operation: operation)
    let metadata = try decode(
      ListMeta.self, from: (content["metadata"] ?? [:]).serialize(), operation: operation)
    let items = (content["items"]?.arrayValue ?? []).compactMap { DynamicObject(content: $0) as? T }
    return ListEnvelope(metadata: metadata, items: items)
  }

  func listPage<T: Decodable & Sendable>(
    _ definition: ResourceDefinition, namespace: String?, labelSelector: String?, fieldSelector: String?, limit: Int?,
    continueToken: String?
  ) async throws -> ObjectList<T> {
    let call = Call.list(
      definition, namespace: namespace, labelSelector: labelSelector, fieldSelector: fieldSelector, limit: limit,
      continueToken: continueToken)
    let bytes = try await send(call)
    let envelope: ListEnvelope<T> = try decodeList(bytes, operation: call.operation)
    return ObjectList(
      items: envelope.items ?? [], resourceVersion: envelope.metadata?.resourceVersion ?? "",
      continueToken: envelope.metadata?.continue.flatMap { $0.isEmpty ? nil : $0 },
      remainingItemCount: envelope.metadata?.remainingItemCount)
  }

  func listPages<T: Decodable & Sendable>(
    _ definition: ResourceDefinition, namespace: String?, labelSelector: String?, fieldSelector: String?, pageSize: Int
  ) async throws -> ObjectList<T> {
    var all: ObjectList<T>?
    var token: String?
    repeat {
      let page: ObjectList<T>
      do {
        page = try await listPage(
          definition, namespace: namespace, labelSelector: labelSelector, fieldSelector: fieldSelector,
          limit: pageSize, continueToken: token)
      } catch let error as KubernetesError where error.code == .gone && token != nil {
        // The version that the first pages showed was compacted away. Pages of different versions must not be mixed,
        // so take the whole in one piece.
        return try await listPage(
          definition, namespace: namespace, labelSelector: labelSelector, fieldSelector: fieldSelector, limit: nil,
          continueToken: nil)
      }
      // Every page repeats the version of the first one.
      if all == nil {
        all = page
      } else {
        all?.items += page.items
      }
      guard page.continueToken == nil || page.continueToken != token else {
        throw KubernetesError(
          code: .invalidResponse, operation: "list \(definition.plural)",
          message: "the server repeats the continue token of the former page")
      }
      token = page.continueToken
    } while token != nil
    return ObjectList(items: all?.items ?? [], resourceVersion: all?.resourceVersion ?? "")
  }
}
