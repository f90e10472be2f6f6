public import ArgumentParser
import Glibc
public import LocalCloud
import Logging
import Telemetry

/// Which cloud a command is about.
struct CloudDirectoryOption: ParsableArguments {
  @Option(help: ArgumentHelp("The directory with everything of this cloud.", valueName: "path"))
  var dir = ".ycloud"

  func directory() throws -> CloudDirectory {
    var path = dir
    if !path.hasPrefix("/") {
      guard let current = getcwd(nil, 0) else { throw ValidationError("The working directory has been removed.") }
      defer { free(current) }
      path = "\(String(cString: current))/\(path)"
    }
    // Without dots and links, so that the same cloud has the same path however it is named.
    var parts: [Substring] = []
    for part in path.split(separator: "/") where part != "." {
      if part == ".." { parts = parts.dropLast() } else { parts.append(part) }
    }
    return try CloudDirectory(absolutePath: Self.resolvingLinks(parts.map(String.init)))
  }
}

extension CloudDirectoryOption {
  /// The kernel names mounts and programs by paths without links: follows those in the part of the path that exists.
  private static func resolvingLinks(_ parts: [String]) -> String {
    for count in stride(from: parts.count, through: 1, by: -1) {
      guard let resolved = realpath(parts[..<count].map { "/\($0)" }.joined(), nil) else { continue }
      defer { free(resolved) }
      let existing = String(cString: resolved)
      return (existing == "/" ? "" : existing) + parts[count...].map { "/\($0)" }.joined()
    }
    return parts.map { "/\($0)" }.joined()
  }
}

/// Prints progress with the time since the start of the command.
struct ProgressPrinter: Sendable {
  private let start = ContinuousClock.now

  func callAsFunction(_ line: String) {
    let tenths = Int((ContinuousClock.now - start) / .milliseconds(100))
    let time = "\(tenths / 10).\(tenths % 10)"
    let padding = String(repeating: " ", count: max(0, 6 - time.count))
    print("[\(padding)\(time) s] \(line)")
    fflush(nil)
  }
}

/// `ycloud up`: a whole cloud on this machine.
struct UpCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "up",
    abstract: "Start a whole cloud on this machine, or bring a running one in line with the flags.",
    discussion: """
      Starts etcd, kube-apiserver and kube-controller-manager, a storage pool, a bridge with DHCP, simulated servers \
      with their BMCs and DPUs, and every ycloud role, and goes on when all of them are ready. A supervisor in the \
      background starts again what ends. Flags that are left out keep what the cloud in --dir has.

      'ycloud status' shows the parts, 'ycloud down' stops them.
      """)

  @OptionGroup var cloud: CloudDirectoryOption
  @Option(help: "The cloud's name, which is also its bridge's. (default: yc0)") var name: String?
  @Option(help: "The bridge's address and network. (default: 192.168.77.1/24)") var subnet: String?
  @Option(help: "How many servers to simulate. (default: 2)") var hosts: Int?
  @Option(help: "Memory of each server in MiB. (default: 1024)") var hostMemory: Int?
  @Option(help: "Processors of each server. (default: 1)") var hostCpus: Int?
  @Option(help: "The servers' firmware: bios or uefi. (default: bios)") var firmware: CloudSettings.Firmware?
  @Option(
    help: ArgumentHelp(
      "A directory for volumes on a file system with reflink. (default: a sparse XFS file in --dir)", valueName: "dir"))
  var pool: String?
  @Option(help: "Size of the sparse file in GiB. (default: 64)") var poolSize: Int?
  @Option(help: "Where to begin to look for free ports. (default: depends on --dir)") var portBase: Int?
  @Option(help: "Seconds until all parts must be ready.") var timeout = 180
  @Option(help: "The roles' log level: trace, debug, info, notice, warning, error or critical.")
  var logLevel = Logger.Level.info

  func run() async throws {
    LoggingSetup.bootstrap(level: .warning)
    let directory = try cloud.directory()
    let progress = ProgressPrinter()
    let localCloud = LocalCloud(directory: directory) { progress($0) }
    var options = CloudOptions()
    options.name = name
    options.subnet = subnet
    options.hosts = hosts
    options.hostMemoryMiB = hostMemory
    options.hostCPUs = hostCpus
    options.firmware = firmware
    options.pool = pool
    options.poolGiB = poolSize
    options.portBase = portBase
    let state = try await localCloud.up(options, logLevel: logLevel.rawValue, timeout: .seconds(max(1, timeout)))
    progress("the cloud is ready")
    print("\n\(StatusTable.render(state))\n\n  export KUBECONFIG=\(directory.kubeconfig)")
  }
}

/// `ycloud supervise`: what `up` leaves running in the background.
struct SuperviseCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "supervise", abstract: "Keep the parts of a cloud running (started by 'up').", shouldDisplay: false)

  @OptionGroup var cloud: CloudDirectoryOption
  @Option(help: "The roles' log level.") var logLevel = Logger.Level.info

  func run() async throws {
    LoggingSetup.bootstrap(level: .info)
    let localCloud = LocalCloud(directory: try cloud.directory()) { _ in }
    let level = logLevel.rawValue
    try await untilTerminated {
      try await localCloud.supervise(logLevel: level, logger: Logger(label: "supervisor"))
    }
  }
}

/// `ycloud status`: the parts of a running cloud.
struct StatusCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "status", abstract: "Show the parts of the cloud on this machine.",
    discussion: "Exit code 0 when all parts are ready, 1 when some are not, 2 when the cloud is not running.")

  @OptionGroup var cloud: CloudDirectoryOption

  func run() async throws {
    let localCloud = LocalCloud(directory: try cloud.directory()) { _ in }
    guard let state = try localCloud.state() else {
      print("nobody supervises a cloud in \(localCloud.directory.path); 'ycloud up' starts it, or takes it over")
      throw ExitCode(2)
    }
    print(StatusTable.render(state))
    if !state.isReady { throw ExitCode(1) }
  }
}

extension CloudSettings.Firmware: ExpressibleByArgument {}
