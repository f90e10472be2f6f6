import ArgumentParser
import Logging
import SoftDPU
import Telemetry
import WebServer

/// `ycloud softdpu`: the data plane where there is no DPU, and a look at what it does.
struct SoftDPUCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "softdpu",
    abstract: "A storage data plane: files, volumes and remote disks, over vhost-user-blk, NBD and NVMe/TCP.",
    subcommands: [SoftDPUServeCommand.self, SoftDPUTopCommand.self, SoftDPUSlowCommand.self],
    defaultSubcommand: SoftDPUServeCommand.self)
}

/// `ycloud softdpu serve`, which is what `ycloud softdpu` alone means.
struct SoftDPUServeCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "serve",
    abstract: "Serve disks, driven over SPDK's JSON-RPC (the default).",
    discussion: """
      Any client of SPDK works with it, for example the one from PyPI: \
      spdk-rpc -s PATH bdev_aio_create disk.img disk0 512, then vhost_create_blk_controller blk-00-disk0 disk0. \
      Every controller is a socket in the vhost directory.

      With --state-dir the configuration outlives the process: after a restart the same controllers stand at the same \
      sockets, and front ends that reconnect go on, with the requests that were in flight.
      """)

  @Option(help: "The unix socket of the JSON-RPC server.") var rpcSocket: String
  @Option(help: "The directory of the controllers' sockets; made where it is missing.") var vhostDir: String
  @Option(help: "Where the configuration is kept over restarts; without it, nowhere.") var stateDir: String?
  @Option(help: "How many threads serve I/O, 1 to 64. A volume belongs to one of them.") var reactors = 1
  @Option(help: "Keep the last requests that took so many microseconds or longer, for `slow`; 0 keeps none.")
  var slowIo: UInt64 = 1_000_000
  @Option(help: "How many connections each address of NBD and NVMe/TCP has at a time; those beyond are refused.")
  var maxConnections = 4096
  @Option(help: "Serve /metrics, /healthz and /readyz here, HOST:PORT; empty for not.") var metricsAddress = ""
  @Option(help: "trace, debug, info, notice, warning, error or critical.") var logLevel = Logger.Level.info

  func run() async throws {
    LoggingSetup.bootstrap(level: logLevel)
    let logger = Logger(label: "softdpu")
    let softDPU = try SoftDPU(
      SoftDPU.Configuration(
        rpcSocket: rpcSocket, vhostDirectory: vhostDir, stateDirectory: stateDir, reactors: reactors,
        slowMicroseconds: slowIo, maximumConnections: maxConnections),
      logger: logger)
    logger.notice("serving", metadata: ["rpc": "\(rpcSocket)", "vhost": "\(vhostDir)"])
    let registry = MetricsRegistry()
    registry.addProcessMetrics()
    softDPU.addMetrics(to: registry)
    var operations: WebServer?
    if !metricsAddress.isEmpty {
      let address = try HostAndPort(metricsAddress, flag: "--metrics-address")
      operations = WebServer(
        host: address.host, port: address.port, tls: nil,
        router: operationsRouter(registry: registry, isReady: { true }), logger: logger)
    }
    let servers = operations
    try await untilTerminated {
      try await withThrowingTaskGroup(of: Void.self) { group in
        group.addTask { await softDPU.run() }
        if let servers { group.addTask { try await servers.run() } }
        defer { group.cancelAll() }
        try await group.next()
      }
    }
    logger.notice("stopped")
  }
}
