public import JSON
public import Kubernetes

/// A machine's disks at one moment, with its spec (`baremetalmachinesnapshots.iaas.yusur.io`, namespaced).
///
/// The meaning of every field is in the schema, `deploy/crds/baremetalmachinesnapshots.yaml`.
public struct BareMetalMachineSnapshot: KubernetesObject, Hashable {
  public static let definition = ResourceDefinition(
    group: Names.group, version: "v1", kind: "BareMetalMachineSnapshot", plural: "baremetalmachinesnapshots",
    namespaced: true)

  public enum DeletionPolicy: String, Codable, Sendable, Hashable, CaseIterable {
    case delete = "Delete"
    case retain = "Retain"
  }

  /// What is asked for where a machine has several disks and runs.
  public enum Wish: String, Codable, Sendable, Hashable, CaseIterable {
    case group = "Group"
    case perDisk = "PerDisk"
  }

  public enum Phase: String, Codable, Sendable, Hashable, CaseIterable {
    case pending = "Pending"
    case capturing = "Capturing"
    case ready = "Ready"
    case failed = "Failed"
    case deleting = "Deleting"
  }

  /// What the disks are like.
  public enum Consistency: String, Codable, Sendable, Hashable, CaseIterable {
    /// As after a power failure: all disks at one moment, while the machine may have been writing.
    case crash = "Crash"
    /// The machine was off all the time.
    case clean = "Clean"
    /// Each disk as after a power failure, but not at the same moment.
    case perDisk = "PerDisk"
  }

  public enum ConditionType {
    public static let captured = "Captured"
    public static let ready = "Ready"
    /// While it is deleted: what it waits for.
    public static let deleted = "Deleted"
  }

  public struct Spec: Codable, Sendable, Hashable {
    public var machineName: String
    public var volumeSnapshotClassName: String?
    public var consistency: Wish
    public var deletionPolicy: DeletionPolicy

    public init(
      machineName: String, volumeSnapshotClassName: String? = nil, consistency: Wish = .group,
      deletionPolicy: DeletionPolicy = .delete
    ) {
      self.machineName = machineName
      self.volumeSnapshotClassName = volumeSnapshotClassName
      self.consistency = consistency
      self.deletionPolicy = deletionPolicy
    }

    public init(from decoder: any Decoder) throws {
      let values = try decoder.container(keyedBy: CodingKeys.self)
      machineName = try values.decode(String.self, forKey: .machineName)
      volumeSnapshotClassName = try values.decodeIfPresent(String.self, forKey: .volumeSnapshotClassName)
      consistency = try values.decodeIfPresent(Wish.self, forKey: .consistency) ?? .group
      deletionPolicy = try values.decodeIfPresent(DeletionPolicy.self, forKey: .deletionPolicy) ?? .delete
    }
  }

  public struct Disk: Codable, Sendable, Hashable {
    public var name: String
    public var claim: String
    public var volume: String
    public var volumeSnapshot: String
    public var storageClassName: String?
    public var bootOrder: Int?
    public var readOnly: Bool?
    /// Whether the disk goes with its machine.
    public var ownedByMachine: Bool?
    public var restoreSize: String?
    public var readyToUse: Bool?

    public init(name: String, claim: String, volume: String, volumeSnapshot: String) {
      self.name = name
      self.claim = claim
      self.volume = volume
      self.volumeSnapshot = volumeSnapshot
    }
  }

  public struct Status: Codable, Sendable, Hashable {
    public var observedGeneration: Int64?
    public var phase: Phase?
    public var message: String?
    public var readyToUse: Bool?
    public var creationTime: MicroTimestamp?
    public var consistency: Consistency?
    public var machineUID: String?
    public var machineGeneration: Int64?
    public var machineBoot: Int64?
    public var machineSpec: JSONValue?
    public var host: String?
    public var attempt: Int64?
    public var attemptedAt: MicroTimestamp?
    public var pauseMicroseconds: Int64?
    public var disks: [Disk]?
    public var conditions: [Condition]?

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
