/// Metadata that every object carries (`metav1.ObjectMeta`), without the fields that no client should need.
public struct ObjectMeta: Codable, Sendable, Hashable {
  public var name: String?
  public var generateName: String?
  public var namespace: String?
  public var uid: String?
  public var resourceVersion: String?
  public var generation: Int64?
  public var creationTimestamp: Timestamp?
  public var deletionTimestamp: Timestamp?
  public var deletionGracePeriodSeconds: Int64?
  public var labels: [String: String]?
  public var annotations: [String: String]?
  public var finalizers: [String]?
  public var ownerReferences: [OwnerReference]?

  public init(
    name: String? = nil, namespace: String? = nil, generateName: String? = nil, labels: [String: String]? = nil,
    annotations: [String: String]? = nil, finalizers: [String]? = nil, ownerReferences: [OwnerReference]? = nil,
    uid: String? = nil, resourceVersion: String? = nil
  ) {
    self.name = name
    self.namespace = namespace
    self.generateName = generateName
    self.labels = labels
    self.annotations = annotations
    self.finalizers = finalizers
    self.ownerReferences = ownerReferences
    self.uid = uid
    self.resourceVersion = resourceVersion
  }

  /// Whether a delete was asked for; the object stays until its last finalizer is removed.
  public var isBeingDeleted: Bool { deletionTimestamp != nil }

  public func hasFinalizer(_ finalizer: String) -> Bool { finalizers?.contains(finalizer) ?? false }

  /// The owner that manages this object, if there is one.
  public var controller: OwnerReference? { ownerReferences?.first { $0.controller == true } }
}

/// The object that another one belongs to; with it the dependent is collected as garbage.
public struct OwnerReference: Codable, Sendable, Hashable {
  public var apiVersion: String
  public var kind: String
  public var name: String
  public var uid: String
  /// True for the one owner that manages the dependent.
  public var controller: Bool?
  /// With foreground deletion the owner waits for this dependent.
  public var blockOwnerDeletion: Bool?

  public init(
    apiVersion: String, kind: String, name: String, uid: String, controller: Bool? = nil,
    blockOwnerDeletion: Bool? = nil
  ) {
    self.apiVersion = apiVersion
    self.kind = kind
    self.name = name
    self.uid = uid
    self.controller = controller
    self.blockOwnerDeletion = blockOwnerDeletion
  }

  /// A reference to `owner`, which must have been read from the API server; nil where it has no name or UID yet.
  public init?(owner: some KubernetesObject, controller: Bool = true, blockOwnerDeletion: Bool = true) {
    guard let name = owner.metadata.name, let uid = owner.metadata.uid else { return nil }
    let definition = type(of: owner).definition
    self.init(
      apiVersion: definition.apiVersion, kind: definition.kind, name: name, uid: uid, controller: controller,
      blockOwnerDeletion: blockOwnerDeletion)
  }
}

/// A reference to any object (`v1.ObjectReference`).
public struct ObjectReference: Codable, Sendable, Hashable {
  public var apiVersion: String?
  public var kind: String?
  public var namespace: String?
  public var name: String?
  public var uid: String?
  public var resourceVersion: String?
  public var fieldPath: String?

  public init(
    apiVersion: String? = nil, kind: String? = nil, namespace: String? = nil, name: String? = nil, uid: String? = nil,
    resourceVersion: String? = nil, fieldPath: String? = nil
  ) {
    self.apiVersion = apiVersion
    self.kind = kind
    self.namespace = namespace
    self.name = name
    self.uid = uid
    self.resourceVersion = resourceVersion
    self.fieldPath = fieldPath
  }

  public init(_ object: some KubernetesObject) {
    let definition = type(of: object).definition
    self.init(
      apiVersion: definition.apiVersion, kind: definition.kind, namespace: object.metadata.namespace,
      name: object.metadata.name, uid: object.metadata.uid, resourceVersion: object.metadata.resourceVersion)
  }
}

/// A reference to a secret in any namespace.
public struct SecretReference: Codable, Sendable, Hashable {
  public var name: String?
  public var namespace: String?

  public init(name: String? = nil, namespace: String? = nil) {
    self.name = name
    self.namespace = namespace
  }
}

/// A reference to an object in the same namespace.
public struct LocalObjectReference: Codable, Sendable, Hashable {
  public var name: String?

  public init(name: String? = nil) { self.name = name }
}

/// A reference by group and kind in the same namespace (`v1.TypedLocalObjectReference`).
public struct TypedLocalObjectReference: Codable, Sendable, Hashable {
  public var apiGroup: String?
  public var kind: String
  public var name: String

  public init(apiGroup: String? = nil, kind: String, name: String) {
    self.apiGroup = apiGroup
    self.kind = kind
    self.name = name
  }
}

/// A reference by group and kind, possibly in another namespace (`v1.TypedObjectReference`).
public struct TypedObjectReference: Codable, Sendable, Hashable {
  public var apiGroup: String?
  public var kind: String
  public var name: String
  public var namespace: String?

  public init(apiGroup: String? = nil, kind: String, name: String, namespace: String? = nil) {
    self.apiGroup = apiGroup
    self.kind = kind
    self.name = name
    self.namespace = namespace
  }
}
