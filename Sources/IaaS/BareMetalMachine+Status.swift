public import Kubernetes

extension BareMetalMachine {
  public enum Phase: String, Codable, Sendable, Hashable, CaseIterable {
    case pending = "Pending"
    case provisioning = "Provisioning"
    case starting = "Starting"
    case running = "Running"
    case stopping = "Stopping"
    case stopped = "Stopped"
    case deleting = "Deleting"
  }

  /// Condition types of a machine.
  public enum ConditionType {
    /// The spec makes sense; false names the field and the remedy.
    public static let valid = "Valid"
    public static let volumesReady = "VolumesReady"
    public static let hostClaimed = "HostClaimed"
    public static let attached = "Attached"
    /// The server is on, as read back.
    public static let powered = "Powered"
    public static let reachable = "Reachable"
    /// While another machine asks for the same MAC or IPv4 address: which.
    public static let addressesUnique = "AddressesUnique"
    /// While a running machine is not what its spec asks for by now: the fields that take effect at the next boot.
    public static let restartNeeded = "RestartNeeded"
    /// While a template is not what its disk was made from: how they differ.
    public static let templatesApplied = "TemplatesApplied"
    /// While the machine is on its way to another host: from where to where.
    public static let migrating = "Migrating"
    /// While something that was removed is still plugged into the running server: what, and what to do.
    public static let unplugged = "Unplugged"
    /// The machine is what its spec asks for.
    public static let ready = "Ready"
    /// While a machine is deleted: what it waits for.
    public static let deleted = "Deleted"
  }

  public struct Status: Codable, Sendable, Hashable {
    public var observedGeneration: Int64?
    public var phase: Phase?
    public var message: String?
    public var host: String?
    public var boot: Int64?
    public var bootedAt: MicroTimestamp?
    public var observedRestart: String?
    public var addresses: [Address]?
    public var volumes: [Volume]?
    public var timeline: Timeline?
    public var conditions: [Condition]?

    public init() {}
  }

  public struct Address: Codable, Sendable, Hashable {
    public var interface: String
    public var mac: String?
    public var address: String?

    public init(interface: String, mac: String? = nil, address: String? = nil) {
      self.interface = interface
      self.mac = mac
      self.address = address
    }
  }

  public struct Volume: Codable, Sendable, Hashable {
    public var disk: String
    public var claim: String
    public var volume: String?
    public var attached: Bool?
    public var bootOrder: Int?
    /// The PCIe function that shows it.
    public var function: String?
    /// The serial number that the guest reads from the disk.
    public var serial: String?
    /// The path that udev gives the disk in a Linux guest.
    public var device: String?
    /// Size in bytes, as a quantity, that the server sees.
    public var capacity: String?
    public var limits: DiskLimits?

    public init(
      disk: String, claim: String, volume: String? = nil, attached: Bool? = nil, bootOrder: Int? = nil
    ) {
      self.disk = disk
      self.claim = claim
      self.volume = volume
      self.attached = attached
      self.bootOrder = bootOrder
    }
  }

  /// When the first start passed which point.
  public struct Timeline: Codable, Sendable, Hashable {
    public var applied: MicroTimestamp?
    public var hostClaimed: MicroTimestamp?
    public var volumesReady: MicroTimestamp?
    public var disksAttached: MicroTimestamp?
    public var poweredOn: MicroTimestamp?
    public var leased: MicroTimestamp?
    public var reachable: MicroTimestamp?
    /// From `applied` to `poweredOn`.
    public var ownSeconds: Double?
    /// From `poweredOn` to `reachable`: firmware and the guest's boot.
    public var guestSeconds: Double?
    /// From `applied` to `reachable`.
    public var totalSeconds: Double?

    public init() {}
  }
}
