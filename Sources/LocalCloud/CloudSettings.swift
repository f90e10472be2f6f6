/// What one local cloud is made of. Kept in `cloud.json`, so that a later `up` and `down` find the same cloud again.
public struct CloudSettings: Codable, Sendable, Hashable {
  /// The version of this file's layout.
  public var version = 1
  /// The instance's name, which is also its bridge's.
  public var name: String
  /// The bridge's address with its network, such as `192.168.77.1/24`.
  public var subnet: String
  /// Number of simulated servers.
  public var hosts: Int
  /// Memory of one server in MiB.
  public var hostMemoryMiB: Int
  /// Processors of one server.
  public var hostCPUs: Int
  /// `bios` or `uefi`.
  public var firmware: Firmware
  /// A directory on a file system with reflink, or nil for a file system of the cloud's own in a sparse file.
  public var pool: String?
  /// Size of that file system in GiB; the space is taken as it is used.
  public var poolGiB: Int
  /// TCP ports on 127.0.0.1 by their use; see ``PortPlan``.
  public var ports: [String: Int]

  public enum Firmware: String, Codable, Sendable, CaseIterable {
    case bios, uefi
  }

  /// The names of the simulated servers: `host-01`, `host-02`, ...
  public var hostNames: [String] {
    (1...max(hosts, 1)).prefix(hosts).map { "host-\(Self.twoDigits($0))" }
  }

  /// The name of the DPU in a server: `dpu-01` for `host-01`.
  public static func dpuNode(of host: String) -> String {
    "dpu" + host.drop { $0 != "-" }
  }

  private static func twoDigits(_ number: Int) -> String {
    number < 10 ? "0\(number)" : "\(number)"
  }
}

/// What the caller of `up` asks for; nil keeps what the cloud has, or takes the default for a new one.
public struct CloudOptions: Sendable {
  public var name: String?
  public var subnet: String?
  public var hosts: Int?
  public var hostMemoryMiB: Int?
  public var hostCPUs: Int?
  public var firmware: CloudSettings.Firmware?
  public var pool: String?
  public var poolGiB: Int?
  public var portBase: Int?

  public init() {}
}

extension CloudSettings {
  /// The largest number of servers: their ports must fit into one range.
  public static let hostsMax = 64

  /// Combines what is asked for with what the cloud already is.
  ///
  /// Settings that existing data depends on (name, subnet, pool) cannot be changed later, and servers are not taken
  /// away: their claims may be held by machines.
  package static func resolve(_ options: CloudOptions, existing: CloudSettings?) throws -> CloudSettings {
    var settings =
      existing
      ?? CloudSettings(
        name: "yc0", subnet: "192.168.77.1/24", hosts: 2, hostMemoryMiB: 1024, hostCPUs: 1, firmware: .bios, pool: nil,
        poolGiB: 64, ports: [:])

    func fix<Value: Equatable>(_ path: WritableKeyPath<CloudSettings, Value>, _ value: Value?, _ flag: String) throws {
      guard let value else { return }
      if let existing, existing[keyPath: path] != value {
        throw LocalCloudError(
          .invalidSettings, operation: "change \(flag)",
          "this cloud has \(existing[keyPath: path]); remove it first with 'ycloud down --purge', or use another --dir")
      }
      settings[keyPath: path] = value
    }
    try fix(\.name, options.name, "--name")
    try fix(\.subnet, options.subnet, "--subnet")
    try fix(\.pool, options.pool.map(Optional.some), "--pool")
    try fix(\.poolGiB, options.poolGiB, "--pool-size")
    if let hosts = options.hosts {
      if let existing, hosts < existing.hosts {
        throw LocalCloudError(
          .invalidSettings, operation: "take servers away",
          "this cloud has \(existing.hosts) servers, \(hosts) were asked for; more can be added, but not fewer")
      }
      settings.hosts = hosts
    }
    settings.hostMemoryMiB = options.hostMemoryMiB ?? settings.hostMemoryMiB
    settings.hostCPUs = options.hostCPUs ?? settings.hostCPUs
    settings.firmware = options.firmware ?? settings.firmware
    try settings.check()
    return settings
  }

  /// Throws if a value is malformed or out of its range.
  package func check() throws {
    func fail(_ message: String) -> LocalCloudError {
      LocalCloudError(.invalidSettings, operation: "use the settings", message)
    }
    guard version == 1 else {
      throw fail("cloud.json has version \(version), this program knows version 1; use the program that made it")
    }
    // A Linux interface name has at most 15 bytes; taps and logs add to the name.
    let characters = name.utf8
    guard (1...11).contains(characters.count), characters.first.map({ (97...122).contains($0) }) == true,
      characters.allSatisfy({ (97...122).contains($0) || (48...57).contains($0) || $0 == 45 })
    else {
      throw fail("--name '\(name)' must be 1 to 11 lower-case letters, digits or hyphens and begin with a letter")
    }
    guard let network = IPv4Network(subnet), (16...28).contains(network.prefixLength) else {
      throw fail("--subnet '\(subnet)' must be an address with a prefix from /16 to /28, such as 192.168.77.1/24")
    }
    guard network.address > network.first, network.address.value < network.first.value + 8 else {
      throw fail(
        "--subnet '\(subnet)' must begin with one of the network's first addresses, such as \(network.first)+1")
    }
    guard (0...Self.hostsMax).contains(hosts) else {
      throw fail("--hosts \(hosts) is not between 0 and \(Self.hostsMax)")
    }
    guard (64...1_048_576).contains(hostMemoryMiB) else {
      throw fail("--host-memory \(hostMemoryMiB) is not between 64 and 1048576 MiB")
    }
    guard (1...64).contains(hostCPUs) else { throw fail("--host-cpus \(hostCPUs) is not between 1 and 64") }
    guard (1...65_536).contains(poolGiB) else { throw fail("--pool-size \(poolGiB) is not between 1 and 65536 GiB") }
    if let pool, !pool.hasPrefix("/") { throw fail("--pool '\(pool)' must be an absolute path") }
  }
}
