public import JSON

/// An object of any kind as plain JSON.
public struct DynamicObject: Sendable, Hashable {
  /// The whole object.
  public var content: JSONValue

  public init(content: JSONValue) { self.content = content }

  public var apiVersion: String? {
    get { content["apiVersion"]?.stringValue }
    set { content["apiVersion"] = newValue.map { .string($0) } }
  }

  public var kind: String? {
    get { content["kind"]?.stringValue }
    set { content["kind"] = newValue.map { .string($0) } }
  }

  public var name: String? { content["metadata"]?["name"]?.stringValue }
  public var namespace: String? { content["metadata"]?["namespace"]?.stringValue }
  public var uid: String? { content["metadata"]?["uid"]?.stringValue }
  public var resourceVersion: String? { content["metadata"]?["resourceVersion"]?.stringValue }

  /// The metadata as a typed value; empty where `metadata` is missing or has a wrong shape.
  public var metadata: ObjectMeta {
    (try? Coding.decode(ObjectMeta.self, from: (content["metadata"] ?? [:]).serialize())) ?? ObjectMeta()
  }

  public var key: ObjectKey { ObjectKey(namespace: namespace, name: name ?? "") }

  public subscript(member: String) -> JSONValue? {
    get { content[member] }
    set { content[member] = newValue }
  }
}

extension DynamicObject: Codable {
  public init(from decoder: any Decoder) throws { content = try JSONValue(from: decoder) }
  public func encode(to encoder: any Encoder) throws { try content.encode(to: encoder) }
}
