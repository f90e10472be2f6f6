public import Kubernetes

extension BareMetalHost {
  public enum Phase: String, Codable, Sendable, Hashable {
    case registering = "Registering"
    case available = "Available"
    case claimed = "Claimed"
    case maintenance = "Maintenance"
    case error = "Error"
  }

  public enum Power: String, Codable, Sendable, Hashable {
    case on = "On"
    case off = "Off"
    case poweringOn = "PoweringOn"
    case poweringOff = "PoweringOff"
    case unknown = "Unknown"
  }

  /// Condition types of a host.
  public enum ConditionType {
    public static let ready = "Ready"
    public static let bmcReachable = "BMCReachable"
    public static let dpuReady = "DPUReady"
    /// While something of a machine that is no more is on the host: what its removal waits for.
    public static let released = "Released"
    /// While the host's machines are to go to other hosts: how far that is.
    public static let drained = "Drained"
    /// While the DPU shows something that nobody asked for.
    public static let noDrift = "NoDrift"
    /// While an operator says that the power is cut: false where what is read says otherwise.
    public static let powerCut = "PowerCut"
    /// The BMC's account: false while a new one is refused and the one before is used.
    public static let credentials = "CredentialsCurrent"
    /// While a host is deleted: what it waits for.
    public static let deleted = "Deleted"
  }

  public struct Status: Codable, Sendable, Hashable {
    public var observedGeneration: Int64?
    public var phase: Phase?
    public var power: Power?
    public var powerReadAt: Timestamp?
    public var hardware: Hardware?
    public var dpu: DPUStatus?
    public var claim: Claim?
    /// What was taken from machines on an operator's word and has to be removed from the DPU when it comes back.
    public var leftovers: [Leftover]?
    public var snapshot: SnapshotRequest?
    public var conditions: [Condition]?

    public init() {}
  }

  /// A volume that the DPU showed when it was given away without the DPU's own word.
  public struct Leftover: Codable, Sendable, Hashable {
    public var volume: String
    public var machine: String
    public var since: Timestamp

    public init(volume: String, machine: String, since: Timestamp) {
      self.volume = volume
      self.machine = machine
      self.since = since
    }
  }

  /// Which machine holds the host.
  public struct Claim: Codable, Sendable, Hashable {
    public var namespace: String
    public var name: String
    public var uid: String

    public init(namespace: String, name: String, uid: String) {
      self.namespace = namespace
      self.name = name
      self.uid = uid
    }
  }

  /// A snapshot that bm-controller asks bm-handler to have taken of several disks at one moment.
  public struct SnapshotRequest: Codable, Sendable, Hashable {
    /// What the group is called in the pool.
    public var token: String
    public var machineUID: String
    /// PersistentVolumes of the machine that are attached.
    public var volumes: [String]

    public init(token: String, machineUID: String, volumes: [String]) {
      self.token = token
      self.machineUID = machineUID
      self.volumes = volumes
    }
  }

  /// What became of a snapshot that was asked for.
  public struct SnapshotAnswer: Codable, Sendable, Hashable {
    public var token: String
    public var takenAt: MicroTimestamp?
    /// For how long the server's writes were kept back.
    public var pauseMicroseconds: Int64?
    /// Why there is none.
    public var error: String?
    /// The data plane cannot, and will not.
    public var unsupported: Bool?

    public init(
      token: String, takenAt: MicroTimestamp? = nil, pauseMicroseconds: Int64? = nil, error: String? = nil,
      unsupported: Bool? = nil
    ) {
      self.token = token
      self.takenAt = takenAt
      self.pauseMicroseconds = pauseMicroseconds
      self.error = error
      self.unsupported = unsupported
    }
  }

  public struct Hardware: Codable, Sendable, Hashable {
    public struct CPU: Codable, Sendable, Hashable {
      public var count: Int?
      public var cores: Int?
      public var threads: Int?
      public var model: String?
      public var architecture: String?

      public init(
        count: Int? = nil, cores: Int? = nil, threads: Int? = nil, model: String? = nil, architecture: String? = nil
      ) {
        self.count = count
        self.cores = cores
        self.threads = threads
        self.model = model
        self.architecture = architecture
      }
    }

    public struct NIC: Codable, Sendable, Hashable {
      public var name: String
      public var mac: String?
      public var speedMbps: Int?

      public init(name: String, mac: String? = nil, speedMbps: Int? = nil) {
        self.name = name
        self.mac = mac
        self.speedMbps = speedMbps
      }
    }

    public struct Drive: Codable, Sendable, Hashable {
      public var name: String
      public var model: String?
      public var serialNumber: String?
      public var capacityBytes: Int64?

      public init(name: String, model: String? = nil, serialNumber: String? = nil, capacityBytes: Int64? = nil) {
        self.name = name
        self.model = model
        self.serialNumber = serialNumber
        self.capacityBytes = capacityBytes
      }
    }

    public struct Thermal: Codable, Sendable, Hashable {
      public var health: String?
      public var warmestSensor: String?
      public var warmestCelsius: Int?
      public var fans: Int?

      public init(
        health: String? = nil, warmestSensor: String? = nil, warmestCelsius: Int? = nil, fans: Int? = nil
      ) {
        self.health = health
        self.warmestSensor = warmestSensor
        self.warmestCelsius = warmestCelsius
        self.fans = fans
      }
    }

    public struct PowerSupply: Codable, Sendable, Hashable {
      public var name: String
      public var health: String?
      public var capacityWatts: Int?

      public init(name: String, health: String? = nil, capacityWatts: Int? = nil) {
        self.name = name
        self.health = health
        self.capacityWatts = capacityWatts
      }
    }

    /// `OK`, `Warning` or `Critical`, of the system with all its parts.
    public var health: String?
    /// `UEFI` or `Legacy`.
    public var firmwareMode: String?
    public var manufacturer: String?
    public var model: String?
    public var serialNumber: String?
    public var biosVersion: String?
    public var bmcFirmwareVersion: String?
    public var cpu: CPU?
    public var memoryMiB: Int?
    public var nics: [NIC]?
    public var drives: [Drive]?
    public var thermal: Thermal?
    public var consumedWatts: Int?
    public var powerSupplies: [PowerSupply]?

    public init() {}
  }

  /// What bm-handler reports; only it writes here, with server-side apply.
  public struct DPUStatus: Codable, Sendable, Hashable {
    public var ready: Bool?
    public var version: String?
    /// The boot whose seed disk and NICs are in place (`Names.bootAnnotation` of the boot data).
    public var boot: String?
    public var slots: [Slot]?
    public var interfaces: [Interface]?
    public var snapshot: SnapshotAnswer?
    public var conditions: [Condition]?

    public init() {}
  }

  public struct Slot: Codable, Sendable, Hashable {
    public enum Kind: String, Codable, Sendable, Hashable {
      case disk
      case seed
      case nic
    }

    public var name: String
    public var kind: Kind
    public var device: String?
    public var volume: String?
    public var state: String?

    public init(name: String, kind: Kind, device: String? = nil, volume: String? = nil, state: String? = nil) {
      self.name = name
      self.kind = kind
      self.device = device
      self.volume = volume
      self.state = state
    }
  }

  /// A machine's interface as the DPU sees it; the times are those of the boot in `DPUStatus.boot`.
  public struct Interface: Codable, Sendable, Hashable {
    public var name: String
    public var mac: String
    public var address: String?
    public var leasedAt: MicroTimestamp?
    public var reachable: Bool?
    public var reachableAt: MicroTimestamp?

    public init(
      name: String, mac: String, address: String? = nil, leasedAt: MicroTimestamp? = nil, reachable: Bool? = nil,
      reachableAt: MicroTimestamp? = nil
    ) {
      self.name = name
      self.mac = mac
      self.address = address
      self.leasedAt = leasedAt
      self.reachable = reachable
      self.reachableAt = reachableAt
    }
  }
}
