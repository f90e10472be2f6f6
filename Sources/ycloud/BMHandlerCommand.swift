import ArgumentParser
import BareMetal
import DPU
import Kubernetes
import Logging
import Telemetry

/// `ycloud bm-handler`: one server's disks and interfaces, on the processor of its DPU.
struct BMHandlerCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "bm-handler",
    abstract: "Shows a server its disks, seed disk and network interfaces, and sees its guest come up.",
    discussion: """
      It may be stopped and started at any time: guests go on, and what is there is listed first.
      """)

  @Option(help: "The BareMetalHost's name.") var host: String
  @Option(help: "The unix socket of the data plane's SPDK JSON-RPC server.") var spdkSocket: String
  @Option(help: "The directory that is the server's PCIe bus.") var busDir: String
  @Option(help: "The storage pool; volumes are in its folder volumes/.") var pool: String
  @Option(help: "Where seed disks are kept.") var stateDir: String
  @Option(help: "The bridge that interfaces are put into.") var bridge: String
  @Option(help: "The directory of dnsmasq's reservations (dhcp-hostsdir).") var dhcpHostsDir: String
  @Option(help: "dnsmasq's lease file.") var dhcpLeaseFile: String
  @Option(
    help: "dnsmasq's pid file, to tell it about reservations that change; without it they count from its next start.")
  var dhcpPidFile: String?
  @Option(help: "The kubeconfig; without it $KUBECONFIG, ~/.kube/config or the pod's service account.")
  var kubeconfig: String?
  @Option(help: "Serve /metrics, /healthz and /readyz here, HOST:PORT; empty for not.") var metricsAddress = ""
  @Option(help: "trace, debug, info, notice, warning, error or critical.") var logLevel = Logger.Level.info

  func run() async throws {
    LoggingSetup.bootstrap(level: logLevel)
    var logger = Logger(label: "bm-handler")
    logger[metadataKey: "host"] = "\(host)"
    let registry = MetricsRegistry()
    let client = try KubernetesClient(
      configuration: ClientConfiguration.load(kubeconfigPath: kubeconfig), logger: logger, registry: registry)
    var configuration = BMHandler.Configuration(
      host: host, busDirectory: busDir, pool: pool, stateDirectory: stateDir, bridge: bridge,
      dhcpHostsDirectory: dhcpHostsDir, dhcpLeaseFile: dhcpLeaseFile)
    configuration.dhcpPidFile = dhcpPidFile
    configuration.metricsAddress = metricsAddress
    let handler = BMHandler(
      client: client, dpu: SPDKClient(socket: spdkSocket), configuration: configuration, registry: registry,
      logger: logger)
    do {
      try await handler.run()
    } catch {
      try? await client.shutdown()
      throw error
    }
    try await client.shutdown()
  }
}
