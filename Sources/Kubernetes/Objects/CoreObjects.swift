#if canImport(FoundationEssentials)
  public import FoundationEssentials
#else
  public import Foundation
#endif

/// `v1.Namespace`.
public struct Namespace: KubernetesObject, Hashable {
  public static let definition = ResourceDefinition(
    group: "", version: "v1", kind: "Namespace", plural: "namespaces", namespaced: false)

  public var apiVersion: String?
  public var kind: String?
  public var metadata: ObjectMeta

  public init(metadata: ObjectMeta) {
    apiVersion = Self.definition.apiVersion
    kind = Self.definition.kind
    self.metadata = metadata
  }
}

/// `v1.Secret`. Its description does not show the values.
public struct Secret: KubernetesObject, Hashable, CustomStringConvertible, CustomDebugStringConvertible,
  CustomReflectable
{
  public static let definition = ResourceDefinition(
    group: "", version: "v1", kind: "Secret", plural: "secrets", namespaced: true)

  public var apiVersion: String?
  public var kind: String?
  public var metadata: ObjectMeta
  public var type: String?
  /// Values as bytes; Base64 on the wire.
  public var data: [String: Data]?
  public var stringData: [String: String]?
  public var immutable: Bool?

  public init(
    metadata: ObjectMeta, type: String? = nil, data: [String: Data]? = nil, stringData: [String: String]? = nil
  ) {
    apiVersion = Self.definition.apiVersion
    kind = Self.definition.kind
    self.metadata = metadata
    self.type = type
    self.data = data
    self.stringData = stringData
  }

  public init(from decoder: any Decoder) throws {
    let container = try decoder.container(keyedBy: CodingKeys.self)
    apiVersion = try container.decodeIfPresent(String.self, forKey: .apiVersion)
    kind = try container.decodeIfPresent(String.self, forKey: .kind)
    metadata = try container.decode(ObjectMeta.self, forKey: .metadata)
    type = try container.decodeIfPresent(String.self, forKey: .type)
    // The API server writes an empty value as null.
    data = try container.decodeIfPresent([String: Data?].self, forKey: .data)?.mapValues { $0 ?? Data() }
    stringData = try container.decodeIfPresent([String: String].self, forKey: .stringData)
    immutable = try container.decodeIfPresent(Bool.self, forKey: .immutable)
  }

  /// The value of `key` as text, if it is there and is UTF-8.
  public func string(_ key: String) -> String? {
    if let text = stringData?[key] { return text }
    return data?[key].flatMap { String(validating: $0, as: UTF8.self) }
  }

  public var description: String {
    let keys = Set(data.map { Array($0.keys) } ?? []).union(stringData.map { Array($0.keys) } ?? []).sorted()
    return "Secret \(key) \(keys)"
  }
  public var debugDescription: String { description }
  public var customMirror: Mirror { Mirror(self, children: ["description": description]) }
}

/// `v1.ConfigMap`.
public struct ConfigMap: KubernetesObject, Hashable {
  public static let definition = ResourceDefinition(
    group: "", version: "v1", kind: "ConfigMap", plural: "configmaps", namespaced: true)

  public var apiVersion: String?
  public var kind: String?
  public var metadata: ObjectMeta
  public var data: [String: String]?
  public var binaryData: [String: Data]?

  public init(metadata: ObjectMeta, data: [String: String]? = nil) {
    apiVersion = Self.definition.apiVersion
    kind = Self.definition.kind
    self.metadata = metadata
    self.data = data
  }
}

/// `v1.Event`: something that happened to an object, for people to read.
public struct Event: KubernetesObject, Hashable {
  public static let definition = ResourceDefinition(
    group: "", version: "v1", kind: "Event", plural: "events", namespaced: true)

  public struct Source: Codable, Sendable, Hashable {
    public var component: String?
    public var host: String?

    public init(component: String? = nil, host: String? = nil) {
      self.component = component
      self.host = host
    }
  }

  public var apiVersion: String?
  public var kind: String?
  public var metadata: ObjectMeta
  public var involvedObject: ObjectReference
  public var reason: String?
  public var message: String?
  public var source: Source?
  public var firstTimestamp: Timestamp?
  public var lastTimestamp: Timestamp?
  public var count: Int?
  /// `Normal` or `Warning`.
  public var type: String?
  public var action: String?
  public var eventTime: MicroTimestamp?
  public var reportingComponent: String?
  public var reportingInstance: String?

  public init(metadata: ObjectMeta, involvedObject: ObjectReference) {
    apiVersion = Self.definition.apiVersion
    kind = Self.definition.kind
    self.metadata = metadata
    self.involvedObject = involvedObject
  }
}

/// `coordination.k8s.io/v1.Lease`: who leads, and since when.
public struct Lease: KubernetesObject, Hashable {
  public static let definition = ResourceDefinition(
    group: "coordination.k8s.io", version: "v1", kind: "Lease", plural: "leases", namespaced: true)

  public struct Spec: Codable, Sendable, Hashable {
    public var holderIdentity: String?
    public var leaseDurationSeconds: Int?
    public var acquireTime: MicroTimestamp?
    public var renewTime: MicroTimestamp?
    public var leaseTransitions: Int?

    public init(
      holderIdentity: String? = nil, leaseDurationSeconds: Int? = nil, acquireTime: MicroTimestamp? = nil,
      renewTime: MicroTimestamp? = nil, leaseTransitions: Int? = nil
    ) {
      self.holderIdentity = holderIdentity
      self.leaseDurationSeconds = leaseDurationSeconds
      self.acquireTime = acquireTime
      self.renewTime = renewTime
      self.leaseTransitions = leaseTransitions
    }
  }

  public var apiVersion: String?
  public var kind: String?
  public var metadata: ObjectMeta
  public var spec: Spec?

  public init(metadata: ObjectMeta, spec: Spec? = nil) {
    apiVersion = Self.definition.apiVersion
    kind = Self.definition.kind
    self.metadata = metadata
    self.spec = spec
  }
}
