/// Where everything of one cloud is: state, logs, keys and sockets in one directory.
public struct CloudDirectory: Sendable, Hashable {
  /// The absolute path without a trailing slash.
  public let path: String
  /// The same directory by a path that is short enough for Unix sockets below it: itself, or a link in /run.
  public let shortPath: String

  /// sockaddr_un holds 107 bytes; the longest name below is hosts/host-01/bus/blk-00-pvc-<36 bytes>.
  static let pathBytesMax = 40

  /// - Throws: ``LocalCloudError`` when the path is not absolute or has characters that QEMU or mount give a meaning.
  public init(absolutePath path: String) throws {
    guard path.hasPrefix("/"), path.count > 1, !path.hasSuffix("/"),
      !path.utf8.contains(where: { $0 < 32 || $0 == 0x2c || $0 == 0x22 || $0 == 0x5c })
    else {
      throw LocalCloudError(
        .invalidSettings, operation: "use '\(path)' as --dir",
        "an absolute path without commas, quotes, backslashes and control characters is needed")
    }
    self.path = path
    if path.utf8.count <= Self.pathBytesMax {
      shortPath = path
    } else {
      shortPath = "/run/ycloud/\(String(fnv1a(path), radix: 36))"
    }
  }

  public var kubeconfig: String { "\(path)/kubeconfig" }
  public var settings: String { "\(path)/cloud.json" }
  public var pki: String { "\(path)/pki" }
  public var etcd: String { "\(path)/etcd" }
  public var logs: String { "\(path)/logs" }
  public var run: String { "\(path)/run" }
  public var lock: String { "\(path)/run/lock" }
  public var state: String { "\(path)/run/state.json" }
  public var poolImage: String { "\(path)/pool.xfs" }
  public var poolMount: String { "\(path)/pool" }
  public var dnsmasq: String { "\(path)/dnsmasq" }
  public var dhcpHosts: String { "\(path)/dnsmasq/hosts.d" }
  public var dhcpLeases: String { "\(path)/dnsmasq/leases" }
  var dhcpPidFile: String { "\(path)/dnsmasq/pid" }
  public var credentials: String { "\(path)/credentials" }

  public func log(_ process: String) -> String { "\(logs)/\(process).log" }
  public func pidFile(_ process: String) -> String { "\(run)/\(process).pid" }
  public func certificate(_ name: String) -> String { "\(pki)/\(name).crt" }
  public func privateKey(_ name: String) -> String { "\(pki)/\(name).key" }
  public var serviceAccountPublicKey: String { "\(pki)/service-accounts.pub" }
  /// The kubeconfig of one role.
  public func identityLock(_ role: String) -> String { "\(run)/\(role).lock" }
  public func roleKubeconfig(_ role: String) -> String { "\(credentials)/\(role).kubeconfig" }
  public func host(_ name: String) -> HostDirectory { HostDirectory(path: "\(shortPath)/hosts/\(name)") }

  /// What belongs to one simulated server and its DPU.
  public struct HostDirectory: Sendable, Hashable {
    public let path: String
    /// The vhost-user sockets: the server's PCIe bus.
    public var bus: String { "\(path)/bus" }
    public var spdkSocket: String { "\(path)/spdk.sock" }
    public var consoleSocket: String { "\(path)/console.sock" }
    public var consoleLog: String { "\(path)/console.log" }
    /// State of the chassis.
    public var state: String { "\(path)/state" }
    /// State of the DPU's data plane.
    public var dpuState: String { "\(path)/dpu" }
    /// The socket of the DPU's storage API, and where its bridge writes down what was asked for.
    public var opiSocket: String { "\(path)/opi.sock" }
    public var opiState: String { "\(path)/opi" }
    /// State of the DPU's handler, with the seed disk.
    public var handlerState: String { "\(path)/handler" }
    public var bmcCredentials: String { "\(path)/bmc-credentials" }
  }
}

/// FNV-1a over a text, folded: for names that only have to be spread, not secret.
func fnv1a(_ text: String) -> UInt64 {
  var hash: UInt64 = 0xcbf2_9ce4_8422_2325
  for byte in text.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
  return hash ^ hash >> 32
}
