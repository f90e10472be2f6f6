import ArgumentParser
import BMC
import BareMetal
import Kubernetes
import Logging
import Reconciler
import SoftHost
import Telemetry

/// `ycloud bm-controller`: the life of machines, from the control plane's side.
struct BMControllerCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "bm-controller",
    abstract: "Claims hosts for machines, makes their volumes and attachments, and switches their power.",
    discussion: """
      Several may run; one leads. SIGTERM finishes what is at hand and gives the lead away.
      """)

  @Option(help: "The kubeconfig; without it $KUBECONFIG, ~/.kube/config or the pod's service account.")
  var kubeconfig: String?
  @Option(help: "Serve /metrics, /healthz and /readyz here, HOST:PORT; empty for not.") var metricsAddress = ""
  @Option(help: "Seconds that an operating system gets to shut down before its power is cut (0 to 3600).")
  var shutdownGrace = 30
  @Option(
    help: ArgumentHelp(
      "Seconds between readings of the power of servers about which nothing is wished (1 to 3600). With more than four "
        + "servers for each of these seconds they are read less often."))
  var powerPoll = 30
  @Option(help: "BMCs that are talked to at the same time (1 to 4096).") var bmcWorkers = 128
  @Option(help: "Machines that are worked on at the same time (1 to 1024).") var machineWorkers = 16
  @Option(help: "Machines that may leave hosts that are drained at the same time (1 to 256).") var evacuations = 4
  @Option(
    help: ArgumentHelp(
      "Drained hosts keep their machines while more than this share of the hosts, in percent, is not ready (1 to 100).",
      valueName: "percent"))
  var evacuationTrouble = 25
  @OptionGroup var requestRate: RequestRate
  @Flag(help: "Do not elect a leader: only one may run then.") var noLeaderElection = false
  @Option(
    help: ArgumentHelp(
      "A file whose lock stands for this controller in the election: started again after a kill, it leads at once "
        + "instead of waiting for its old lease to expire.", valueName: "path"))
  var identityLock: String?
  @Option(help: "trace, debug, info, notice, warning, error or critical.") var logLevel = Logger.Level.info

  func validate() throws {
    guard (0...3600).contains(shutdownGrace) else { throw ValidationError("--shutdown-grace must be 0 to 3600.") }
    guard (1...3600).contains(powerPoll) else { throw ValidationError("--power-poll must be 1 to 3600.") }
    guard (1...4096).contains(bmcWorkers) else { throw ValidationError("--bmc-workers must be 1 to 4096.") }
    guard (1...256).contains(evacuations) else { throw ValidationError("--evacuations must be 1 to 256.") }
    guard (1...100).contains(evacuationTrouble) else { throw ValidationError("--evacuation-trouble must be 1 to 100.") }
    guard (1...1024).contains(machineWorkers) else { throw ValidationError("--machine-workers must be 1 to 1024.") }
  }

  func run() async throws {
    LoggingSetup.bootstrap(level: logLevel)
    let upkeep = AllocatorUpkeep()
    defer { withExtendedLifetime(upkeep) {} }
    let logger = Logger(label: "bm-controller")
    let registry = MetricsRegistry()
    // Each BMC is a connection.
    FileLimit.raise()
    let client = try KubernetesClient(
      configuration: requestRate.applied(to: .load(kubeconfigPath: kubeconfig), role: "bm-controller"), logger: logger,
      registry: registry)
    var configuration = BMController.Configuration()
    configuration.metricsAddress = metricsAddress
    configuration.shutdownGrace = .seconds(shutdownGrace)
    configuration.powerPoll = .seconds(powerPoll)
    configuration.bmcWorkers = bmcWorkers
    configuration.machineWorkers = machineWorkers
    configuration.evacuationsMax = evacuations
    configuration.evacuationTroublePercentMax = evacuationTrouble
    configuration.leaderElection = !noLeaderElection
    let lock = try identityLock.map { try CandidateLock(path: $0) }
    configuration.identity = lock?.identity
    let pool = BMCClientPool(logger: logger)
    let controller = BMController(
      client: client, configuration: configuration, registry: registry, logger: logger,
      makeBMC: { try pool.client(for: $0, credentials: $1, trust: $2) }, releaseBMC: { await pool.remove($0) },
      forgetRefusals: { pool.forgetRefusals($0) })
    do {
      try await controller.run()
    } catch {
      try? await pool.shutdown()
      try? await client.shutdown()
      throw error
    }
    try await pool.shutdown()
    try await client.shutdown()
  }
}
