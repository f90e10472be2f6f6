public import Kubernetes

/// A tenant's machine on a whole server (`baremetalmachines.iaas.yusur.io`, namespaced).
///
/// The meaning of every field is in the schema, `deploy/crds/baremetalmachines.yaml`.
public struct BareMetalMachine: KubernetesObject, Hashable {
  public static let definition = ResourceDefinition(
    group: Names.group, version: "v1", kind: "BareMetalMachine", plural: "baremetalmachines", namespaced: true)

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

extension BareMetalMachine {
  public struct Spec: Codable, Sendable, Hashable {
    public var running: Bool
    public var hostName: String?
    public var hostSelector: HostSelector?
    public var tolerations: [Toleration]
    public var disks: [Disk]
    public var interfaces: [Interface]
    public var cloudInit: CloudInit?

    public init(
      running: Bool = true, hostName: String? = nil, hostSelector: HostSelector? = nil,
      tolerations: [Toleration] = [], disks: [Disk], interfaces: [Interface] = [Interface(name: "eth0")],
      cloudInit: CloudInit? = nil
    ) {
      self.running = running
      self.hostName = hostName
      self.hostSelector = hostSelector
      self.tolerations = tolerations
      self.disks = disks
      self.interfaces = interfaces
      self.cloudInit = cloudInit
    }

    public init(from decoder: any Decoder) throws {
      let values = try decoder.container(keyedBy: CodingKeys.self)
      running = try values.decodeIfPresent(Bool.self, forKey: .running) ?? true
      hostName = try values.decodeIfPresent(String.self, forKey: .hostName)
      hostSelector = try values.decodeIfPresent(HostSelector.self, forKey: .hostSelector)
      tolerations = try values.decodeIfPresent([Toleration].self, forKey: .tolerations) ?? []
      disks = try values.decodeIfPresent([Disk].self, forKey: .disks) ?? []
      interfaces = try values.decodeIfPresent([Interface].self, forKey: .interfaces) ?? [Interface(name: "eth0")]
      cloudInit = try values.decodeIfPresent(CloudInit.self, forKey: .cloudInit)
    }
  }

  public struct HostSelector: Codable, Sendable, Hashable {
    public var matchLabels: [String: String]?

    public init(matchLabels: [String: String]? = nil) { self.matchLabels = matchLabels }
  }

  public struct Toleration: Codable, Sendable, Hashable {
    public enum Operator: String, Codable, Sendable, Hashable {
      case exists = "Exists"
      case equal = "Equal"
    }

    public var key: String?
    public var `operator`: Operator?
    public var value: String?
    public var effect: String?

    public init(key: String? = nil, operator: Operator? = nil, value: String? = nil, effect: String? = nil) {
      self.key = key
      self.operator = `operator`
      self.value = value
      self.effect = effect
    }
  }

  public struct Disk: Codable, Sendable, Hashable {
    public var name: String
    public var bootOrder: Int?
    public var readOnly: Bool
    public var limits: DiskLimits?
    public var existingClaim: ExistingClaim?
    public var template: Template?

    public init(
      name: String, bootOrder: Int? = nil, readOnly: Bool = false, limits: DiskLimits? = nil,
      existingClaim: ExistingClaim? = nil, template: Template? = nil
    ) {
      self.name = name
      self.bootOrder = bootOrder
      self.readOnly = readOnly
      self.limits = limits
      self.existingClaim = existingClaim
      self.template = template
    }

    public init(from decoder: any Decoder) throws {
      let values = try decoder.container(keyedBy: CodingKeys.self)
      name = try values.decode(String.self, forKey: .name)
      bootOrder = try values.decodeIfPresent(Int.self, forKey: .bootOrder)
      readOnly = try values.decodeIfPresent(Bool.self, forKey: .readOnly) ?? false
      limits = try values.decodeIfPresent(DiskLimits.self, forKey: .limits)
      existingClaim = try values.decodeIfPresent(ExistingClaim.self, forKey: .existingClaim)
      template = try values.decodeIfPresent(Template.self, forKey: .template)
    }
  }

  /// What a disk may do at most; an absent limit is none.
  public struct DiskLimits: Codable, Sendable, Hashable {
    /// Requests a second, a multiple of 1000.
    public var iops: Int64?
    /// Quantities of bytes a second, whole mebibytes: in both directions together, read, written.
    public var bandwidth: String?
    public var readBandwidth: String?
    public var writeBandwidth: String?

    public init(
      iops: Int64? = nil, bandwidth: String? = nil, readBandwidth: String? = nil, writeBandwidth: String? = nil
    ) {
      self.iops = iops
      self.bandwidth = bandwidth
      self.readBandwidth = readBandwidth
      self.writeBandwidth = writeBandwidth
    }
  }

  public struct ExistingClaim: Codable, Sendable, Hashable {
    public var claimName: String

    public init(claimName: String) { self.claimName = claimName }
  }

  public struct Template: Codable, Sendable, Hashable {
    /// A quantity of bytes, for example `20Gi`.
    public var size: String
    public var storageClassName: String?
    public var source: Source?

    public init(size: String, storageClassName: String? = nil, source: Source? = nil) {
      self.size = size
      self.storageClassName = storageClassName
      self.source = source
    }
  }

  public struct Source: Codable, Sendable, Hashable {
    /// One of both.
    public var persistentVolumeClaim: ClaimSource?
    public var volumeSnapshot: SnapshotSource?

    public init(persistentVolumeClaim: ClaimSource) { self.persistentVolumeClaim = persistentVolumeClaim }

    public init(volumeSnapshot: SnapshotSource) { self.volumeSnapshot = volumeSnapshot }
  }

  /// A VolumeSnapshot in the machine's namespace.
  public struct SnapshotSource: Codable, Sendable, Hashable {
    public var name: String

    public init(name: String) { self.name = name }
  }

  public struct ClaimSource: Codable, Sendable, Hashable {
    public var name: String
    public var namespace: String?

    public init(name: String, namespace: String? = nil) {
      self.name = name
      self.namespace = namespace
    }
  }

  public struct Interface: Codable, Sendable, Hashable {
    public var name: String
    public var macAddress: String?
    public var address: String?

    public init(name: String, macAddress: String? = nil, address: String? = nil) {
      self.name = name
      self.macAddress = macAddress
      self.address = address
    }
  }

  public struct CloudInit: Codable, Sendable, Hashable {
    public var userData: String?
    public var userDataSecretRef: SecretKeyReference?
    public var networkData: String?

    public init(
      userData: String? = nil, userDataSecretRef: SecretKeyReference? = nil, networkData: String? = nil
    ) {
      self.userData = userData
      self.userDataSecretRef = userDataSecretRef
      self.networkData = networkData
    }
  }

  public struct SecretKeyReference: Codable, Sendable, Hashable {
    public var name: String
    public var key: String

    public init(name: String, key: String = "userData") {
      self.name = name
      self.key = key
    }

    public init(from decoder: any Decoder) throws {
      let values = try decoder.container(keyedBy: CodingKeys.self)
      name = try values.decode(String.self, forKey: .name)
      key = try values.decodeIfPresent(String.self, forKey: .key) ?? "userData"
    }
  }
}
