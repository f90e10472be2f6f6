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
  @Option(help: "The storage API of the DPU, OPI's: unix:PATH, or ADDRESS:PORT with the three --opi-tls options.")
  var opi: String?
  @Option(help: "The client's certificate for --opi, a PEM file.") var opiTLSCertificate: String?
  @Option(help: "The key of that certificate, a PEM file.") var opiTLSKey: String?
  @Option(help: "Who may sign the certificate of the server at --opi, a PEM file.") var opiTLSCA: String?
  @Option(help: "Instead of --opi: the unix socket of the data plane's own SPDK JSON-RPC server.")
  var spdkSocket: String?
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

  func validate() throws {
    guard (opi == nil) != (spdkSocket == nil) else {
      throw ValidationError("give either --opi or --spdk-socket")
    }
    _ = try opiAddress()
  }

  private func opiAddress() throws -> OPIClient.Address? {
    guard let opi else { return nil }
    if opi.hasPrefix("unix:/") { return .unix(String(opi.dropFirst(5))) }
    let place = try HostAndPort(opi, flag: "--opi")
    guard let opiTLSCertificate, let opiTLSKey, let opiTLSCA else {
      throw ValidationError(
        "--opi '\(opi)': over a network --opi-tls-certificate, --opi-tls-key and --opi-tls-ca are needed; or use "
          + "unix:PATH")
    }
    return .tls(
      host: place.host, port: place.port, certificate: opiTLSCertificate, key: opiTLSKey, authority: opiTLSCA)
  }

  func run() async throws {
    LoggingSetup.bootstrap(level: logLevel)
    var logger = Logger(label: "bm-handler")
    logger[metadataKey: "host"] = "\(host)"
    let registry = MetricsRegistry()
    var access = try ClientConfiguration.load(kubeconfigPath: kubeconfig)
    access.userAgent = "bm-handler"
    let client = try KubernetesClient(configuration: access, logger: logger, registry: registry)
    var configuration = BMHandler.Configuration(
      host: host, busDirectory: busDir, pool: pool, stateDirectory: stateDir, bridge: bridge,
      dhcpHostsDirectory: dhcpHostsDir, dhcpLeaseFile: dhcpLeaseFile)
    configuration.dhcpPidFile = dhcpPidFile
    configuration.metricsAddress = metricsAddress
    let settings = configuration
    do {
      if let address = try opiAddress() {
        let dpu = try OPIClient(address)
        try await withThrowingTaskGroup(of: Void.self) { group in
          group.addTask { try await dpu.run() }
          group.addTask { [logger] in try await Self.handle(client, dpu, settings, registry, logger) }
          // The handler ends in order at a signal; the connection has no end of its own.
          defer { group.cancelAll() }
          try await group.next()
        }
      } else {
        try await Self.handle(client, SPDKClient(socket: spdkSocket ?? ""), settings, registry, logger)
      }
    } catch {
      try? await client.shutdown()
      throw error
    }
    try await client.shutdown()
  }

  private static func handle(
    _ client: KubernetesClient, _ dpu: any DPU, _ configuration: BMHandler.Configuration, _ registry: MetricsRegistry,
    _ logger: Logger
  ) async throws {
    try await BMHandler(
      client: client, dpu: dpu, configuration: configuration, registry: registry, logger: logger
    ).run()
  }
}
