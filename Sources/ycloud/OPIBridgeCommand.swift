import ArgumentParser
import Logging
import OPIBridge
import Telemetry
import WebServer

/// `ycloud opi-bridge`: the storage API of OPI in front of SPDK.
struct OPIBridgeCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "opi-bridge",
    abstract: "Serves OPI's storage API (gRPC) in front of SPDK or softdpu.",
    discussion: """
      What clients ask for is written down in --state-dir and made good at the data plane whenever that comes back \
      without it. The bridge may be stopped and started at any time: no I/O goes through it.

      Over a network it takes TLS with client certificates only; on the same machine, a unix socket that its owner \
      alone may open: ycloud opi-bridge --grpc unix:/run/ycloud/opi.sock --spdk /var/tmp/spdk.sock --state-dir \
      /var/lib/ycloud/opi.
      """)

  @Option(help: "Where to serve: unix:PATH, or ADDRESS:PORT with the three TLS options.") var grpc: String
  @Option(help: "The unix socket of SPDK's JSON-RPC server.") var spdk: String
  @Option(help: "Where the resources are written down; made where it is missing.") var stateDir: String
  @Option(help: "The server's certificate, a PEM file.") var tlsCertificate: String?
  @Option(help: "The key of the certificate, a PEM file.") var tlsKey: String?
  @Option(help: "Who may sign certificates of clients, a PEM file.") var tlsClientCa: String?
  @Option(help: "Serve /metrics, /healthz and /readyz here, HOST:PORT; empty for not.") var metricsAddress = ""
  @Option(help: "trace, debug, info, notice, warning, error or critical.") var logLevel = Logger.Level.info

  func validate() throws {
    _ = try address()
  }

  private func address() throws -> OPIBridge.Address {
    if grpc.hasPrefix("unix:") {
      let path = String(grpc.dropFirst(5))
      guard path.hasPrefix("/") else {
        throw ValidationError("--grpc '\(grpc)': give an absolute path, such as unix:/run/ycloud/opi.sock")
      }
      guard tlsCertificate == nil, tlsKey == nil, tlsClientCa == nil else {
        throw ValidationError("--grpc '\(grpc)': a unix socket has no TLS; leave out the --tls options")
      }
      return .unix(path)
    }
    let place = try HostAndPort(grpc, flag: "--grpc")
    guard let tlsCertificate, let tlsKey, let tlsClientCa else {
      throw ValidationError(
        "--grpc '\(grpc)': over a network --tls-certificate, --tls-key and --tls-client-ca are needed; or use unix:PATH"
      )
    }
    return .tls(
      host: place.host, port: place.port,
      OPIBridge.TLSFiles(certificate: tlsCertificate, key: tlsKey, clientAuthority: tlsClientCa))
  }

  func run() async throws {
    LoggingSetup.bootstrap(level: logLevel)
    let logger = Logger(label: "opi-bridge")
    let registry = MetricsRegistry()
    registry.addProcessMetrics()
    let bridge = try OPIBridge(
      address: address(), spdkSocket: spdk, stateDirectory: stateDir, registry: registry, logger: logger)
    var operations: WebServer?
    if !metricsAddress.isEmpty {
      let place = try HostAndPort(metricsAddress, flag: "--metrics-address")
      operations = WebServer(
        host: place.host, port: place.port, tls: nil,
        router: operationsRouter(registry: registry, isReady: { bridge.isReady }), logger: logger)
    }
    let servers = operations
    logger.notice("serving", metadata: ["grpc": "\(grpc)", "spdk": "\(spdk)"])
    try await untilTerminated {
      try await withThrowingTaskGroup(of: Void.self) { group in
        group.addTask { try await bridge.run() }
        if let servers { group.addTask { try await servers.run() } }
        defer { group.cancelAll() }
        try await group.next()
      }
    }
    logger.notice("stopped")
  }
}
