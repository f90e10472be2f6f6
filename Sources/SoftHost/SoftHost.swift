public import Logging
import Synchronization
public import Telemetry
public import WebServer

/// A simulated server: chassis, BMC and serial console, as one long-lived thing.
public struct SoftHost: Sendable {
  /// How the BMC is reached.
  public struct BMCSettings: Sendable {
    public var host: String
    /// 0 takes a free one.
    public var port: Int
    /// Nil serves without TLS.
    public var tls: TLSFiles?
    /// Path of a file with lines `user:password`.
    public var credentialsFile: String
    public var sessionTimeout: Duration

    public init(
      host: String, port: Int, tls: TLSFiles?, credentialsFile: String, sessionTimeout: Duration = .seconds(1800)
    ) {
      self.host = host
      self.port = port
      self.tls = tls
      self.credentialsFile = credentialsFile
      self.sessionTimeout = sessionTimeout
    }
  }

  private let chassis: Chassis
  private let hub: ConsoleHub?
  private let server: WebServer
  private let listening = Flag()

  /// Something that becomes true once.
  private final class Flag: Sendable {
    private let value = Atomic(false)
    func set() { value.store(true, ordering: .releasing) }
    var isSet: Bool { value.load(ordering: .acquiring) }
  }

  /// Whether the BMC accepts connections.
  public var isReady: Bool { listening.isSet }

  /// Opens the chassis, and raises this process' limit of open files. Throws `SoftHostError` where it cannot be built or
  /// another process has it.
  ///
  /// - Parameters:
  ///   - consoleSocket: where readers and writers of the serial console connect; empty for none.
  ///   - onRunning: called with the BMC's port when it accepts connections.
  public init(
    configuration: ChassisConfiguration, bmc: BMCSettings, consoleSocket: String,
    registry: MetricsRegistry, logger: Logger,
    onRunning: (@Sendable (Int) async -> Void)? = nil
  ) throws {
    FileLimit.raise()
    let started = Doorbell()
    let metrics = SoftHostMetrics(registry)
    chassis = try Chassis(configuration: configuration, started: started, metrics: metrics, logger: logger)
    let accounts = Accounts(path: bmc.credentialsFile)
    try accounts.check()
    hub =
      consoleSocket.isEmpty
      ? nil
      : ConsoleHub(
        socketPath: consoleSocket, serialPath: configuration.serialSocket, logPath: configuration.consoleLog,
        started: started, metrics: metrics, logger: logger)
    let service = RedfishService(
      chassis: chassis, accounts: accounts, sessionTimeout: bmc.sessionTimeout, metrics: metrics,
      logger: logger)
    server = WebServer(
      host: bmc.host, port: bmc.port, tls: bmc.tls, router: RedfishRouter.make { await service.respond(to: $0) },
      logger: logger,
      onRunning: { [listening] port in
        listening.set()
        await onRunning?(port)
      })
  }

  /// Serves until cancelled. The server's power stays as it is: QEMU goes on and is taken over by the next start.
  public func run() async throws {
    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask { try await chassis.run() }
      if let hub { group.addTask { try await hub.run() } }
      group.addTask { try await server.run() }
      // One that ends takes the others with it.
      defer { group.cancelAll() }
      try await group.next()
    }
  }
}
