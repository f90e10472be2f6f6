public import Kubernetes

/// One move of a machine to another host (`baremetalmachinemigrations.iaas.yusur.io`, namespaced): its disks, MAC and IP
/// addresses go along, its guest is stopped and booted again.
///
/// The meaning of every field is in the schema, `deploy/crds/baremetalmachinemigrations.yaml`.
public struct BareMetalMachineMigration: KubernetesObject, Hashable {
  public static let definition = ResourceDefinition(
    group: Names.group, version: "v1", kind: "BareMetalMachineMigration", plural: "baremetalmachinemigrations",
    namespaced: true)

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

extension BareMetalMachineMigration {
  public struct Spec: Codable, Sendable, Hashable {
    public var machineName: String
    public var targetHost: String?
    public var hostSelector: BareMetalMachine.HostSelector?
    public var graceSeconds: Int?

    public init(
      machineName: String, targetHost: String? = nil, hostSelector: BareMetalMachine.HostSelector? = nil,
      graceSeconds: Int? = nil
    ) {
      self.machineName = machineName
      self.targetHost = targetHost
      self.hostSelector = hostSelector
      self.graceSeconds = graceSeconds
    }
  }

  public enum Phase: String, Codable, Sendable, Hashable, CaseIterable {
    /// Waits for its turn or for a host.
    case pending = "Pending"
    /// A target is chosen and not held yet.
    case reserving = "Reserving"
    /// The target is held; the source is being stopped.
    case stopping = "Stopping"
    /// The source is off; its disks and network are being taken away.
    case moving = "Moving"
    /// The machine is the target's; the source is given back.
    case starting = "Starting"
    case succeeded = "Succeeded"
    case failed = "Failed"
  }

  /// Condition types of a migration.
  public enum ConditionType {
    /// The target is held for the machine.
    public static let targetReserved = "TargetReserved"
    /// The source's server was seen off for sure.
    public static let sourceStopped = "SourceStopped"
    /// Nothing of the machine is on the source any more.
    public static let sourceReleased = "SourceReleased"
    /// The migration has done what it was asked for.
    public static let complete = "Complete"
  }

  public struct Status: Codable, Sendable, Hashable {
    public var phase: Phase?
    public var reason: String?
    public var message: String?
    public var machineUID: String?
    public var sourceHost: String?
    public var targetHost: String?
    /// Whether the source is given back: what is deleted before goes back to the source.
    public var beyondReturn: Bool?
    public var timeline: Timeline?
    public var conditions: [Condition]?

    public init() {}
  }

  public struct Timeline: Codable, Sendable, Hashable {
    public var accepted: MicroTimestamp?
    public var reserved: MicroTimestamp?
    public var wentOff: MicroTimestamp?
    public var stopped: MicroTimestamp?
    public var released: MicroTimestamp?
    public var poweredOn: MicroTimestamp?
    /// From `wentOff` to `stopped`: the readings that prove that the source is off.
    public var fenceSeconds: Double?
    /// From `stopped` to `poweredOn`: everything that is done in between.
    public var ownSeconds: Double?
    /// From `wentOff` to `poweredOn`.
    public var downSeconds: Double?

    public init() {}
  }

  public var isFinished: Bool { status?.phase == .succeeded || status?.phase == .failed }
}
