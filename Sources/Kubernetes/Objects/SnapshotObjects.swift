/// `snapshot.storage.k8s.io/v1.VolumeSnapshot`: the wish for a snapshot of a claim's volume, or for one that exists.
public struct VolumeSnapshot: KubernetesObject, Hashable {
  public static let definition = ResourceDefinition(
    group: "snapshot.storage.k8s.io", version: "v1", kind: "VolumeSnapshot", plural: "volumesnapshots",
    namespaced: true)

  /// One of both.
  public struct Source: Codable, Sendable, Hashable {
    /// The claim, in the same namespace, of which a snapshot is to be taken.
    public var persistentVolumeClaimName: String?
    /// The VolumeSnapshotContent of a snapshot that exists.
    public var volumeSnapshotContentName: String?

    public init(persistentVolumeClaimName: String? = nil, volumeSnapshotContentName: String? = nil) {
      self.persistentVolumeClaimName = persistentVolumeClaimName
      self.volumeSnapshotContentName = volumeSnapshotContentName
    }
  }

  public struct Spec: Codable, Sendable, Hashable {
    public var source: Source
    public var volumeSnapshotClassName: String?

    public init(source: Source, volumeSnapshotClassName: String? = nil) {
      self.source = source
      self.volumeSnapshotClassName = volumeSnapshotClassName
    }
  }

  public struct Status: Codable, Sendable, Hashable {
    public var boundVolumeSnapshotContentName: String?
    public var creationTime: Timestamp?
    public var readyToUse: Bool?
    /// The least that a volume made from it must have.
    public var restoreSize: Quantity?
    public var error: SnapshotError?
    public var volumeGroupSnapshotName: String?

    public init() {}
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

/// What went wrong with a snapshot last; gone when it has gone well.
public struct SnapshotError: Codable, Sendable, Hashable {
  public var message: String?
  public var time: Timestamp?

  public init(message: String? = nil, time: Timestamp? = nil) {
    self.message = message
    self.time = time
  }
}

/// `snapshot.storage.k8s.io/v1.VolumeSnapshotContent`: a snapshot in the storage, or one to be taken.
public struct VolumeSnapshotContent: KubernetesObject, Hashable {
  public static let definition = ResourceDefinition(
    group: "snapshot.storage.k8s.io", version: "v1", kind: "VolumeSnapshotContent", plural: "volumesnapshotcontents",
    namespaced: false)

  /// One of both.
  public struct Source: Codable, Sendable, Hashable {
    /// The volume of which it is to be taken.
    public var volumeHandle: String?
    /// The snapshot that exists.
    public var snapshotHandle: String?

    public init(volumeHandle: String? = nil, snapshotHandle: String? = nil) {
      self.volumeHandle = volumeHandle
      self.snapshotHandle = snapshotHandle
    }
  }

  public struct Spec: Codable, Sendable, Hashable {
    /// `Delete` or `Retain`: whether the snapshot goes with its VolumeSnapshot.
    public var deletionPolicy: String
    public var driver: String
    public var source: Source
    public var sourceVolumeMode: String?
    public var volumeSnapshotClassName: String?
    public var volumeSnapshotRef: ObjectReference

    public init(
      deletionPolicy: String, driver: String, source: Source, sourceVolumeMode: String? = nil,
      volumeSnapshotClassName: String? = nil, volumeSnapshotRef: ObjectReference
    ) {
      self.deletionPolicy = deletionPolicy
      self.driver = driver
      self.source = source
      self.sourceVolumeMode = sourceVolumeMode
      self.volumeSnapshotClassName = volumeSnapshotClassName
      self.volumeSnapshotRef = volumeSnapshotRef
    }
  }

  public struct Status: Codable, Sendable, Hashable {
    public var snapshotHandle: String?
    /// Nanoseconds since 1970.
    public var creationTime: Int64?
    /// Bytes.
    public var restoreSize: Int64?
    public var readyToUse: Bool?
    public var error: SnapshotError?
    public var volumeGroupSnapshotHandle: String?

    public init() {}
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

/// `snapshot.storage.k8s.io/v1.VolumeSnapshotClass`: how snapshots are taken, and whether they are kept.
public struct VolumeSnapshotClass: KubernetesObject, Hashable {
  public static let definition = ResourceDefinition(
    group: "snapshot.storage.k8s.io", version: "v1", kind: "VolumeSnapshotClass", plural: "volumesnapshotclasses",
    namespaced: false)

  public var apiVersion: String?
  public var kind: String?
  public var metadata: ObjectMeta
  public var driver: String
  /// `Delete` or `Retain`.
  public var deletionPolicy: String
  public var parameters: [String: String]?

  public init(metadata: ObjectMeta, driver: String, deletionPolicy: String, parameters: [String: String]? = nil) {
    apiVersion = Self.definition.apiVersion
    kind = Self.definition.kind
    self.metadata = metadata
    self.driver = driver
    self.deletionPolicy = deletionPolicy
    self.parameters = parameters
  }
}
