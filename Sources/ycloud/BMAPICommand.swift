import ArgumentParser
import BMC
import Kubernetes
import Logging
import MachineAPI
import Telemetry
import WebServer

/// `ycloud bm-api`: what is done to machines and seen of them, as an aggregated API.
struct BMAPICommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "bm-api",
    abstract: "Serves subresources.iaas.yusur.io/v1 behind kube-apiserver: power, consoles, plans of machines.",
    discussion: """
      It keeps nothing; any number may run. Whom it believes it learns from kube-apiserver's ConfigMap \
      kube-system/extension-apiserver-authentication, and who may do what from its SubjectAccessReviews.
      """)

  @Option(help: "Serve here, HOST:PORT.") var listen: String
  @Option(help: "The certificate chain that kube-apiserver checks (PEM).") var tlsCert: String
  @Option(help: "The private key of that certificate (PEM).") var tlsKey: String
  @Option(help: "The kubeconfig; without it $KUBECONFIG, ~/.kube/config or the pod's service account.")
  var kubeconfig: String?
  @Option(
    help: ArgumentHelp(
      "The folder below which the servers' console sockets are; without it consoles are not served.",
      valueName: "folder"))
  var consoleSockets: String?
  @Option(
    help: ArgumentHelp(
      """
      Networks that machines have addresses in, with commas between: only there are ports of machines connected to, and \
      without it none are.
      """, valueName: "CIDR,..."))
  var machineNetworks = ""
  @Flag(
    help: """
      Take pictures of machines' screens through the BMCs of their hosts, with the accounts that the hosts name. bm-api has \
      to reach the BMCs.
      """)
  var screenshots = false
  @Option(help: "Serve /metrics, /healthz and /readyz here, HOST:PORT; empty for not.") var metricsAddress = ""
  @Option(help: "trace, debug, info, notice, warning, error or critical.") var logLevel = Logger.Level.info

  func validate() throws {
    if let consoleSockets, !consoleSockets.hasPrefix("/") {
      throw ValidationError("--console-sockets must be an absolute path.")
    }
    _ = try networks()
  }

  private func networks() throws -> [AddressPrefix] {
    try machineNetworks.split(separator: ",").map { text in
      guard let network = AddressPrefix(String(text)) else {
        throw ValidationError("--machine-networks: '\(text)' is no network, such as 10.1.0.0/16 or fd00:1::/64.")
      }
      return network
    }
  }

  func run() async throws {
    LoggingSetup.bootstrap(level: logLevel)
    let logger = Logger(label: "bm-api")
    let registry = MetricsRegistry()
    let address = try HostAndPort(listen, flag: "--listen")
    var access = try ClientConfiguration.load(kubeconfigPath: kubeconfig)
    access.userAgent = "bm-api"
    // Every call of a user is a review and one or two calls here.
    access.queriesPerSecond = 500
    access.burst = 1000
    access.requestTimeout = .seconds(10)
    let client = try KubernetesClient(configuration: access, logger: logger, registry: registry)
    var configuration = MachineAPIServer.Configuration(
      host: address.host, port: address.port, tls: TLSFiles(certificateChain: tlsCert, privateKey: tlsKey))
    configuration.consoleFolder = consoleSockets
    configuration.addresses.networks = try networks()
    configuration.addresses.servers = AddressRule.addresses(inURL: access.server)
    // A picture is waited for: what is slower than this is told as such, before the API server's own minute is over.
    var limits = BMCLimits()
    limits.request = .seconds(15)
    let bmcs = screenshots ? BMCClientPool(limits: limits, logger: logger) : nil
    configuration.camera = bmcs.map { ScreenCamera.bmcs(of: client, through: $0) }
    let server = MachineAPIServer(configuration: configuration, client: client, registry: registry, logger: logger)
    let operations = try metricsAddress.isEmpty ? nil : HostAndPort(metricsAddress, flag: "--metrics-address")
    defer { logger.info("ended") }
    try await untilTerminated {
      try await withThrowingTaskGroup(of: Void.self) { group in
        group.addTask { try await server.run() }
        if let operations {
          group.addTask {
            try await WebServer(
              host: operations.host, port: operations.port, tls: nil,
              router: operationsRouter(registry: registry, isReady: { server.isReady }), logger: logger
            ).run()
          }
        }
        defer { group.cancelAll() }
        try await group.next()
      }
    }
    try? await bmcs?.shutdown()
    try? await client.shutdown()
  }
}
