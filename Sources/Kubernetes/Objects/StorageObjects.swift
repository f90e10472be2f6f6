/// `v1.PersistentVolumeClaim`, with the fields that volumes are made from.
public struct PersistentVolumeClaim: KubernetesObject, Hashable {
  public static let definition = ResourceDefinition(
    group: "", version: "v1", kind: "PersistentVolumeClaim", plural: "persistentvolumeclaims", namespaced: true)

  public struct Resources: Codable, Sendable, Hashable {
    public var requests: [String: Quantity]?
    public var limits: [String: Quantity]?

    public init(requests: [String: Quantity]? = nil, limits: [String: Quantity]? = nil) {
      self.requests = requests
      self.limits = limits
    }
  }

  public struct Spec: Codable, Sendable, Hashable {
    public var accessModes: [String]?
    public var resources: Resources?
    public var storageClassName: String?
    public var volumeMode: String?
    public var volumeName: String?
    public var dataSource: TypedLocalObjectReference?
    /// The same as `dataSource` on API servers that know both (1.22 and later).
    public var dataSourceRef: TypedObjectReference?
    public var selector: LabelSelector?

    public init(
      accessModes: [String]? = nil, resources: Resources? = nil, storageClassName: String? = nil,
      volumeMode: String? = nil, volumeName: String? = nil, dataSource: TypedLocalObjectReference? = nil,
      dataSourceRef: TypedObjectReference? = nil
    ) {
      self.accessModes = accessModes
      self.resources = resources
      self.storageClassName = storageClassName
      self.volumeMode = volumeMode
      self.volumeName = volumeName
      self.dataSource = dataSource
      self.dataSourceRef = dataSourceRef
    }
  }

  public struct ClaimCondition: Codable, Sendable, Hashable {
    public var type: String
    public var status: String
    public var reason: String?
    public var message: String?
    public var lastTransitionTime: Timestamp?
    public var lastProbeTime: Timestamp?

    public init(
      type: String, status: String, reason: String? = nil, message: String? = nil, lastTransitionTime: Timestamp? = nil
    ) {
      self.type = type
      self.status = status
      self.reason = reason
      self.message = message
      self.lastTransitionTime = lastTransitionTime
    }
  }

  public struct Status: Codable, Sendable, Hashable {
    /// `Pending`, `Bound` or `Lost`.
    public var phase: String?
    public var accessModes: [String]?
    public var capacity: [String: Quantity]?
    public var conditions: [ClaimCondition]?

    public init(phase: String? = nil) { self.phase = phase }
  }

  public var apiVersion: String?
  public var kind: String?
  public var metadata: ObjectMeta
  public var spec: Spec?
  public var status: Status?

  public init(metadata: ObjectMeta, spec: Spec? = nil, status: Status? = nil) {
    apiVersion = Self.definition.apiVersion
    kind = Self.definition.kind
    self.metadata = metadata
    self.spec = spec
    self.status = status
  }
}

/// `metav1.LabelSelector`: all of `matchLabels` and `matchExpressions` must hold.
public struct LabelSelector: Codable, Sendable, Hashable {
  public struct Requirement: Codable, Sendable, Hashable {
    public var key: String
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    public var `operator`: String
    public var values: [String]?

    public init(key: String, operator: String, values: [String]? = nil) {
      self.key = key
      self.operator = `operator`
      self.values = values
    }
  }

  public var matchLabels: [String: String]?
  public var matchExpressions: [Requirement]?

  public init(matchLabels: [String: String]? = nil, matchExpressions: [Requirement]? = nil) {
    self.matchLabels = matchLabels
    self.matchExpressions = matchExpressions
  }

  /// Whether an object with these labels is selected. An empty selector selects everything; an unknown operator
  /// selects nothing.
  public func matches(_ labels: [String: String]?) -> Bool {
    let labels = labels ?? [:]
    for (key, value) in matchLabels ?? [:] where labels[key] != value { return false }
    for requirement in matchExpressions ?? [] {
      let value = labels[requirement.key]
      let values = requirement.values ?? []
      switch requirement.operator {
      case "In": if value.map({ values.contains($0) }) != true { return false }
      case "NotIn": if value.map({ values.contains($0) }) == true { return false }
      case "Exists": if value == nil { return false }
      case "DoesNotExist": if value != nil { return false }
      default: return false
      }
    }
    return true
  }
}

/// `v1.PersistentVolume`, of CSI volumes.
public struct PersistentVolume: KubernetesObject, Hashable {
  public static let definition = ResourceDefinition(
    group: "", version: "v1", kind: "PersistentVolume", plural: "persistentvolumes", namespaced: false)

  public struct CSISource: Codable, Sendable, Hashable {
    public var driver: String
    public var volumeHandle: String
    public var readOnly: Bool?
    public var fsType: String?
    public var volumeAttributes: [String: String]?

    public init(
      driver: String, volumeHandle: String, readOnly: Bool? = nil, fsType: String? = nil,
      volumeAttributes: [String: String]? = nil
    ) {
      self.driver = driver
      self.volumeHandle = volumeHandle
      self.readOnly = readOnly
      self.fsType = fsType
      self.volumeAttributes = volumeAttributes
    }
  }

  public struct Spec: Codable, Sendable, Hashable {
    public var capacity: [String: Quantity]?
    public var accessModes: [String]?
    public var csi: CSISource?
    public var claimRef: ObjectReference?
    /// `Delete`, `Retain` or `Recycle`.
    public var persistentVolumeReclaimPolicy: String?
    public var storageClassName: String?
    public var volumeMode: String?
    public var mountOptions: [String]?

    public init(
      capacity: [String: Quantity]? = nil, accessModes: [String]? = nil, csi: CSISource? = nil,
      claimRef: ObjectReference? = nil, persistentVolumeReclaimPolicy: String? = nil, storageClassName: String? = nil,
      volumeMode: String? = nil
    ) {
      self.capacity = capacity
      self.accessModes = accessModes
      self.csi = csi
      self.claimRef = claimRef
      self.persistentVolumeReclaimPolicy = persistentVolumeReclaimPolicy
      self.storageClassName = storageClassName
      self.volumeMode = volumeMode
    }
  }

  public struct Status: Codable, Sendable, Hashable {
    /// `Pending`, `Available`, `Bound`, `Released` or `Failed`.
    public var phase: String?
    public var reason: String?
    public var message: String?

    public init(phase: String? = nil, reason: String? = nil, message: String? = nil) {
      self.phase = phase
      self.reason = reason
      self.message = message
    }
  }

  public var apiVersion: String?
  public var kind: String?
  public var metadata: ObjectMeta
  public var spec: Spec?
  public var status: Status?

  public init(metadata: ObjectMeta, spec: Spec? = nil, status: Status? = nil) {
    apiVersion = Self.definition.apiVersion
    kind = Self.definition.kind
    self.metadata = metadata
    self.spec = spec
    self.status = status
  }
}

/// `storage.k8s.io/v1.StorageClass`.
public struct StorageClass: KubernetesObject, Hashable {
  public static let definition = ResourceDefinition(
    group: "storage.k8s.io", version: "v1", kind: "StorageClass", plural: "storageclasses", namespaced: false)

  public var apiVersion: String?
  public var kind: String?
  public var metadata: ObjectMeta
  public var provisioner: String
  public var parameters: [String: String]?
  public var reclaimPolicy: String?
  public var volumeBindingMode: String?
  public var allowVolumeExpansion: Bool?

  public init(
    metadata: ObjectMeta, provisioner: String, parameters: [String: String]? = nil, reclaimPolicy: String? = nil,
    volumeBindingMode: String? = nil, allowVolumeExpansion: Bool? = nil
  ) {
    apiVersion = Self.definition.apiVersion
    kind = Self.definition.kind
    self.metadata = metadata
    self.provisioner = provisioner
    self.parameters = parameters
    self.reclaimPolicy = reclaimPolicy
    self.volumeBindingMode = volumeBindingMode
    self.allowVolumeExpansion = allowVolumeExpansion
  }
}

/// `storage.k8s.io/v1.VolumeAttachment`: the record that a volume is, or shall be, attached to a node.
public struct VolumeAttachment: KubernetesObject, Hashable {
  public static let definition = ResourceDefinition(
    group: "storage.k8s.io", version: "v1", kind: "VolumeAttachment", plural: "volumeattachments", namespaced: false)

  public struct Source: Codable, Sendable, Hashable {
    public var persistentVolumeName: String?

    public init(persistentVolumeName: String? = nil) { self.persistentVolumeName = persistentVolumeName }
  }

  public struct Spec: Codable, Sendable, Hashable {
    public var attacher: String
    public var nodeName: String
    public var source: Source

    public init(attacher: String, nodeName: String, source: Source) {
      self.attacher = attacher
      self.nodeName = nodeName
      self.source = source
    }
  }

  public struct VolumeError: Codable, Sendable, Hashable {
    public var message: String?
    public var time: Timestamp?

    public init(message: String? = nil, time: Timestamp? = nil) {
      self.message = message
      self.time = time
    }
  }

  public struct Status: Codable, Sendable, Hashable {
    public var attached: Bool
    public var attachmentMetadata: [String: String]?
    public var attachError: VolumeError?
    public var detachError: VolumeError?

    public init(
      attached: Bool, attachmentMetadata: [String: String]? = nil, attachError: VolumeError? = nil,
      detachError: VolumeError? = nil
    ) {
      self.attached = attached
      self.attachmentMetadata = attachmentMetadata
      self.attachError = attachError
      self.detachError = detachError
    }
  }

  public var apiVersion: String?
  public var kind: String?
  public var metadata: ObjectMeta
  public var spec: Spec
  public var status: Status?

  public init(metadata: ObjectMeta, spec: Spec, status: Status? = nil) {
    apiVersion = Self.definition.apiVersion
    kind = Self.definition.kind
    self.metadata = metadata
    self.spec = spec
    self.status = status
  }
}
