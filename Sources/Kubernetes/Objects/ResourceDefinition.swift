/// What a kind of object is called, and where the API server serves it.
public struct ResourceDefinition: Sendable, Hashable {
  /// The API group; empty for the core group.
  public var group: String
  public var version: String
  public var kind: String
  /// The name in URLs, in lower case and plural.
  public var plural: String
  public var namespaced: Bool

  public init(group: String, version: String, kind: String, plural: String, namespaced: Bool) {
    self.group = group
    self.version = version
    self.kind = kind
    self.plural = plural
    self.namespaced = namespaced
  }

  /// `v1` or `group/version`, as it stands in an object.
  public var apiVersion: String { group.isEmpty ? version : "\(group)/\(version)" }

  /// The path of the collection, or of one object, or of its subresource.
  ///
  /// A namespaced collection without a namespace is the one of all namespaces.
  func path(namespace: String?, name: String? = nil, subresource: String? = nil) -> String {
    var path = group.isEmpty ? "/api/\(version)" : "/apis/\(group)/\(version)"
    if namespaced, let namespace, !namespace.isEmpty { path += "/namespaces/\(PercentEncoding.segment(namespace))" }
    path += "/\(plural)"
    if let name { path += "/\(PercentEncoding.segment(name))" }
    if let subresource { path += "/\(subresource)" }
    return path
  }
}

/// An object that the API server stores, with its static type.
public protocol KubernetesObject: Codable, Sendable {
  static var definition: ResourceDefinition { get }
  var apiVersion: String? { get set }
  var kind: String? { get set }
  var metadata: ObjectMeta { get set }
}

extension KubernetesObject {
  /// Namespace and name.
  public var key: ObjectKey { ObjectKey(namespace: metadata.namespace, name: metadata.name ?? "") }

  /// This object with `apiVersion` and `kind` filled in, which the items of a list do not carry.
  func typed() -> Self {
    var copy = self
    copy.apiVersion = Self.definition.apiVersion
    copy.kind = Self.definition.kind
    return copy
  }
}

/// Namespace (nil for cluster-scoped objects) and name of an object.
public struct ObjectKey: Hashable, Sendable, Comparable, CustomStringConvertible {
  public var namespace: String?
  public var name: String

  public init(namespace: String? = nil, name: String) {
    self.namespace = namespace.flatMap { $0.isEmpty ? nil : $0 }
    self.name = name
  }

  /// `namespace/name`, or the name alone.
  public var description: String { namespace.map { "\($0)/\(name)" } ?? name }

  public static func < (left: ObjectKey, right: ObjectKey) -> Bool {
    (left.namespace ?? "", left.name) < (right.namespace ?? "", right.name)
  }
}

/// Percent-encoding of URL parts (RFC 3986): everything but unreserved characters.
enum PercentEncoding {
  static func segment(_ text: String) -> String {
    var result = ""
    for byte in text.utf8 {
      switch byte {
      case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
        UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "-"), UInt8(ascii: "."), UInt8(ascii: "_"),
        UInt8(ascii: "~"):
        result.unicodeScalars.append(Unicode.Scalar(byte))
      default:
        let hex = String(byte, radix: 16, uppercase: true)
        result += hex.count < 2 ? "%0\(hex)" : "%\(hex)"
      }
    }
    return result
  }

  static func query(_ items: [(String, String)]) -> String {
    items.map { "\(segment($0.0))=\(segment($0.1))" }.joined(separator: "&")
  }
}
