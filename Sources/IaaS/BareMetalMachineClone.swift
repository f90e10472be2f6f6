public import Kubernetes

/// Machines made from a machine or from a snapshot of one (`baremetalmachineclones.iaas.yusur.io`, namespaced).
///
/// The meaning of every field is in the schema, `deploy/crds/baremetalmachineclones.yaml`.
public struct BareMetalMachineClone: KubernetesObject, Hashable {
  public static let definition = ResourceDefinition(
    group: Names.group, version: "v1", kind: "BareMetalMachineClone", plural: "baremetalmachineclones",
    namespaced: true)

  public enum Phase: String, Codable, Sendable, Hashable, CaseIterable {
    case pending = "Pending"
    case capturing = "Capturing"
    case creating = "Creating"
    case succeeded = "Succeeded"
    case failed = "Failed"
    case deleting = "Deleting"
  }

  public enum ConditionType {
    public static let sourceReady = "SourceReady"
    public static let created = "Created"
    public static let ready = "Ready"
  }

  /// One of both.
  public struct Source: Codable, Sendable, Hashable {
    public var machineName: String?
    public var snapshotName: String?

    public init(machineName: String? = nil, snapshotName: String? = nil) {
      self.machineName = machineName
      self.snapshotName = snapshotName
    }
  }

  public struct Spec: Codable, Sendable, Hashable {
    public var source: Source
    public var replicas: Int
    public var namePattern: String?
    public var firstIndex: Int
    public var running: Bool
    public var addresses: [String]

    public init(
      source: Source, replicas: Int = 1, namePattern: String? = nil, firstIndex: Int = 1, running: Bool = true,
      addresses: [String] = []
    ) {
      self.source = source
      self.replicas = replicas
      self.namePattern = namePattern
      self.firstIndex = firstIndex
      self.running = running
      self.addresses = addresses
    }

    public init(from decoder: any Decoder) throws {
      let values = try decoder.container(keyedBy: CodingKeys.self)
      source = try values.decode(Source.self, forKey: .source)
      replicas = try values.decodeIfPresent(Int.self, forKey: .replicas) ?? 1
      namePattern = try values.decodeIfPresent(String.self, forKey: .namePattern)
      firstIndex = try values.decodeIfPresent(Int.self, forKey: .firstIndex) ?? 1
      running = try values.decodeIfPresent(Bool.self, forKey: .running) ?? true
      addresses = try values.decodeIfPresent([String].self, forKey: .addresses) ?? []
    }
  }

  public struct Machine: Codable, Sendable, Hashable {
    public var name: String
    public var phase: String?
    public var volumesReady: Bool?
    public var message: String?

    public init(name: String, phase: String? = nil, volumesReady: Bool? = nil, message: String? = nil) {
      self.name = name
      self.phase = phase
      self.volumesReady = volumesReady
      self.message = message
    }
  }

  public struct Status: Codable, Sendable, Hashable {
    public var observedGeneration: Int64?
    public var phase: Phase?
    public var message: String?
    public var snapshotName: String?
    public var replicas: Int?
    public var created: Int?
    /// Machines whose disks are whole.
    public var ready: Int?
    public var running: Int?
    public var machines: [Machine]?
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
