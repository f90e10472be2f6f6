public import ArgumentParser
public import Fleet
import Kubernetes
import Logging
import Synchronization
import Telemetry

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// `ycloud simulate`: a fleet of hosts that are not there.
struct SimulateCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "simulate",
    abstract: "Plays thousands of hosts in one process: their BMCs over HTTPS, and the bm-handlers on their DPUs.",
    discussion: """
      The hosts are registered in the cluster, with the accounts of their BMCs, and removed when the process is told to \
      end. bm-controller and csi-controller are the real ones and are run beside it; it must be on the machine where \
      bm-controller runs, because the BMCs' addresses are in 127.77.0.0/16.

      Times are seconds: min,mode,max of a triangular distribution, or one number. The same seed gives each host the \
      same times and faults.

      Faults are NAME=NUMBER, separated by commas: shares of the requests to BMCs that hang (for hang-seconds, 60), \
      fail with error 500 (error), or are carried out while the answer is lost (lost); how often an hour each DPU starts \
      anew (reboot) and each host dies (death); and how many BMCs never answer (stuck).
      """)

  @Option(help: "How many hosts (1 to 60000).") var hosts: Int
  @Option(help: "The hosts are called PREFIX-0000 and so on.") var prefix = "sim"
  @Option(help: "The seed of all times and faults.") var seed: UInt64 = 1
  @Option(help: "How long a BMC takes for an answer.") var bmcDelay = TriangularDelay(constant: 0.02)
  @Option(help: "How long a DPU takes for a change.") var dpuDelay = TriangularDelay(constant: 0.01)
  @Option(help: "How long a server takes to go on.") var powerOnDelay = TriangularDelay(constant: 0.2)
  @Option(help: "How long a guest takes to shut down.") var shutdownDelay = TriangularDelay(constant: 1)
  @Option(help: "How long a guest takes from power on until it has its address.")
  var guestDelay = TriangularDelay(constant: 1)
  @Option(help: "What goes wrong, such as hang=0.001,error=0.01,reboot=0.5; nothing by default.")
  var faults = Faults()
  @Option(help: "The port of the BMCs; 0 takes one that is free.") var bmcPort = 0
  @Option(help: "csi-controller's pool: volumes must be files in it. Without it they are taken to be there.")
  var pool: String?
  @Flag(help: "Leave hosts and secrets behind at the end.") var keep = false
  @Option(help: "Seconds between two reports of progress; 0 for none.") var interval = 2.0
  @Option(help: "End after so many seconds; 0 is when told to.") var duration = 0.0
  @Option(help: "The kubeconfig; without it $KUBECONFIG, ~/.kube/config or the pod's service account.")
  var kubeconfig: String?
  @Option(help: "Serve /metrics, /healthz and /readyz here, HOST:PORT; empty for not.") var metricsAddress = ""
  @Option(help: "trace, debug, info, notice, warning, error or critical.") var logLevel = Logger.Level.notice

  func validate() throws {
    guard (1...FleetConfiguration.hostsMax).contains(hosts) else {
      throw ValidationError("--hosts must be 1 to \(FleetConfiguration.hostsMax).")
    }
    guard (0...65_535).contains(bmcPort) else { throw ValidationError("--bmc-port must be 0 to 65535.") }
    guard interval >= 0, interval <= 3600 else { throw ValidationError("--interval must be 0 to 3600 seconds.") }
    guard duration >= 0, duration <= 1e7 else { throw ValidationError("--duration must be 0 to 10000000 seconds.") }
    let isPlain = prefix.utf8.allSatisfy { byte in
      (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte) || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
        || byte == UInt8(ascii: "-")
    }
    guard isPlain, let first = prefix.first, first != "-", prefix.utf8.count <= 40 else {
      throw ValidationError("--prefix must be 1 to 40 of a-z, 0-9 and '-', and not begin with '-'.")
    }
  }

  func run() async throws {
    LoggingSetup.bootstrap(level: logLevel)
    let logger = Logger(label: "simulate")
    let registry = MetricsRegistry()
    var settings = try ClientConfiguration.load(kubeconfigPath: kubeconfig)
    // Each handler is a client of its own in a real fleet.
    settings.queriesPerSecond = 1e6
    settings.burst = 1_000_000
    settings.userAgent = "ycloud-simulate"
    let client = try KubernetesClient(configuration: settings, logger: logger, registry: registry)
    let fleet = Fleet(client: client, configuration: fleetConfiguration, registry: registry, logger: logger)
    let signals = Termination.signals()
    let limit = duration
    let picture = FleetPicture(isTerminal: isatty(1) == 1)
    do {
      try await fleet.run(
        tell: { picture.show($0) },
        until: {
          await withTaskGroup(of: Void.self) { group in
            group.addTask { for await _ in signals { break } }
            if limit > 0 { group.addTask { try? await Task.sleep(for: .seconds(limit)) } }
            await group.next()
            group.cancelAll()
          }
        })
    } catch {
      try? await client.shutdown()
      throw error
    }
    try await client.shutdown()
  }

  private var fleetConfiguration: FleetConfiguration {
    var settings = FleetConfiguration(hosts: hosts)
    settings.prefix = prefix
    settings.seed = seed
    settings.bmcDelay = bmcDelay
    settings.dpuDelay = dpuDelay
    settings.powerOnDelay = powerOnDelay
    settings.shutdownDelay = shutdownDelay
    settings.guestDelay = guestDelay
    settings.faults = faults
    settings.bmcPort = bmcPort
    settings.pool = pool
    settings.metricsAddress = metricsAddress
    settings.keeps = keep
    settings.progress = interval > 0 ? .seconds(interval) : nil
    return settings
  }
}

/// Progress for people: one table that is written anew on a terminal, a line for each report elsewhere.
private final class FleetPicture: Sendable {
  private let isTerminal: Bool
  private let linesShown = Mutex(0)

  init(isTerminal: Bool) { self.isTerminal = isTerminal }

  func show(_ report: FleetReport) {
    let text: String
    if isTerminal {
      let lines = FleetTable.lines(report)
      let back = linesShown.withLock { shown in
        defer { shown = lines.count }
        return shown
      }
      text =
        (back > 0 ? "\u{1B}[\(back)A" : "") + lines.map { $0 + "\u{1B}[K\n" }.joined()
    } else {
      text = FleetTable.line(report) + "\n"
    }
    print(text, terminator: "")
    fflush(nil)
  }
}

extension TriangularDelay: ExpressibleByArgument {
  public init?(argument: String) { self.init(argument) }
  public var defaultValueDescription: String {
    minimum == maximum ? "\(maximum)" : "\(minimum),\(mode),\(maximum)"
  }
}

extension Faults: ExpressibleByArgument {
  public init?(argument: String) {
    guard let faults = try? Faults(argument) else { return nil }
    self = faults
  }
  public var defaultValueDescription: String { "none" }
}
