public import Kubernetes

/// Rolls the disks of a machine back to a snapshot (`baremetalmachinerestores.iaas.yusur.io`, namespaced).
///
/// The meaning of every field is in the schema, `deploy/crds/baremetalmachinerestores.yaml`.
public struct BareMetalMachineRestore: KubernetesObject, Hashable {
  public static let definition = ResourceDefinition(
    group: Names.group, version: "v1", kind: "BareMetalMachineRestore", plural: "baremetalmachinerestores",
    namespaced: true)

  public enum Phase: String, Codable, Sendable, Hashable, CaseIterable {
    case pending = "Pending"
    case preparing = "Preparing"
    case stopping = "Stopping"
    case saving = "Saving"
    case switching = "Switching"
    case succeeded = "Succeeded"
    case failed = "Failed"
  }

  public enum ConditionType {
    public static let claimsReady = "ClaimsReady"
    public static let machineStopped = "MachineStopped"
    public static let ready = "Ready"
    /// False while disks of before still wait to be removed.
    public static let cleaned = "Cleaned"
  }

  public struct Spec: Codable, Sendable, Hashable {
    public var snapshotName: String
    public var machineName: String
    public var stopMachine: Bool

    public init(snapshotName: String, machineName: String, stopMachine: Bool = false) {
      self.snapshotName = snapshotName
      self.machineName = machineName
      self.stopMachine = stopMachine
    }

    public init(from decoder: any Decoder) throws {
      let values = try decoder.container(keyedBy: CodingKeys.self)
      snapshotName = try values.decode(String.self, forKey: .snapshotName)
      machineName = try values.decode(String.self, forKey: .machineName)
      stopMachine = try values.decodeIfPresent(Bool.self, forKey: .stopMachine) ?? false
    }
  }

  public struct Disk: Codable, Sendable, Hashable {
    public var name: String
    public var claim: String
    /// The claim that the machine had for this disk before.
    public var replaces: String?
    public var bound: Bool?

    public init(name: String, claim: String, replaces: String? = nil, bound: Bool? = nil) {
      self.name = name
      self.claim = claim
      self.replaces = replaces
      self.bound = bound
    }
  }

  public struct Status: Codable, Sendable, Hashable {
    public var observedGeneration: Int64?
    public var phase: Phase?
    public var message: String?
    public var machineUID: String?
    public var snapshotUID: String?
    /// Whether the machine ran and was stopped for this: it is started again.
    public var startsMachine: Bool?
    public var previousSnapshot: String?
    public var previousAttempt: Int64?
    public var disks: [Disk]?
    public var startedAt: MicroTimestamp?
    public var completedAt: MicroTimestamp?
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
