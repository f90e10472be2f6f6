/// What a BMC reports of its server. BMCs leave fields out or send null: those are nil here.
public struct HardwareInventory: Sendable, Hashable, Codable {
  public struct CPU: Sendable, Hashable, Codable {
    /// Sockets in use.
    public var count: Int?
    /// Cores of all sockets.
    public var cores: Int?
    /// Hardware threads of all sockets.
    public var threads: Int?
    public var model: String?
    /// For example `x86_64` or `aarch64`.
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

  public struct NIC: Sendable, Hashable, Codable {
    public var name: String
    /// Lower-case, colon separated.
    public var mac: String?
    public var speedMbps: Int?

    public init(name: String, mac: String? = nil, speedMbps: Int? = nil) {
      self.name = name
      self.mac = mac
      self.speedMbps = speedMbps
    }
  }

  public struct Drive: Sendable, Hashable, Codable {
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

  public struct Thermal: Sendable, Hashable, Codable {
    /// The worst of all sensors and fans, `OK`, `Warning` or `Critical`.
    public var health: String?
    /// The sensor with the highest temperature, and that in degrees Celsius.
    public var warmestSensor: String?
    public var warmestCelsius: Int?
    /// Fans that are there.
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

  public struct PowerSupply: Sendable, Hashable, Codable {
    public var name: String
    public var health: String?
    public var capacityWatts: Int?

    public init(name: String, health: String? = nil, capacityWatts: Int? = nil) {
      self.name = name
      self.health = health
      self.capacityWatts = capacityWatts
    }
  }

  /// Of the system with all its parts: `OK`, `Warning` or `Critical`.
  public var health: String?
  /// How the firmware boots: `UEFI` or `Legacy`.
  public var firmwareMode: String?
  public var manufacturer: String?
  public var model: String?
  public var serialNumber: String?
  public var biosVersion: String?
  public var bmcFirmwareVersion: String?
  public var cpu: CPU
  public var memoryMiB: Int?
  /// Ordered by name, so that equal hardware gives equal values.
  public var nics: [NIC]
  /// Ordered by name.
  public var drives: [Drive]
  /// Temperatures and fans, where the chassis tells of them.
  public var thermal: Thermal?
  /// Power that the server takes now.
  public var consumedWatts: Int?
  /// Ordered by name.
  public var powerSupplies: [PowerSupply] = []

  public init(
    manufacturer: String? = nil, model: String? = nil, serialNumber: String? = nil, biosVersion: String? = nil,
    bmcFirmwareVersion: String? = nil, cpu: CPU = CPU(), memoryMiB: Int? = nil, nics: [NIC] = [], drives: [Drive] = []
  ) {
    self.manufacturer = manufacturer
    self.model = model
    self.serialNumber = serialNumber
    self.biosVersion = biosVersion
    self.bmcFirmwareVersion = bmcFirmwareVersion
    self.cpu = cpu
    self.memoryMiB = memoryMiB
    self.nics = nics
    self.drives = drives
  }
}
