package import Kubernetes
package import Logging
import NIOCore
import NIOHTTP1
import NIOPosix
import NIOSSL
package import Telemetry
package import WebServer

/// `subresources.iaas.yusur.io`: what is done to a machine and seen of it, behind kube-apiserver's aggregation.
///
/// It keeps nothing: any number of them may run, and each of them may be killed at any time.
package struct MachineAPIServer: Sendable {
  package struct Configuration: Sendable {
    package var host: String
    /// 0 takes a free one.
    package var port: Int
    package var tls: TLSFiles
    /// The folder below which consoles' sockets are; nil where this process serves no consoles.
    package var consoleFolder: String?
    package var consoles = ConsoleLimits()
    /// Which addresses of machines are connected to.
    package var addresses = AddressRule()
    package var forwards = ForwardLimits()
    /// Nil where this process takes no pictures of machines' screens.
    package var camera: ScreenCamera?
    package var screenshots = ScreenshotLimits()
    /// Connections that have not shown who they are, and all of them.
    package var strangersMax = 256
    package var connectionsMax = 2048

    package init(host: String, port: Int, tls: TLSFiles) {
      self.host = host
      self.port = port
      self.tls = tls
    }
  }

  private let configuration: Configuration
  private let client: KubernetesClient
  private let registry: MetricsRegistry
  private let logger: Logger
  private let service: MachineAPIService
  private let screens: ScreenshotDesk?
  private let onRunning: (@Sendable (Int) -> Void)?

  /// - Parameter onRunning: called with the port once it serves.
  package init(
    configuration: Configuration, client: KubernetesClient, registry: MetricsRegistry, logger: Logger,
    onRunning: (@Sendable (Int) -> Void)? = nil
  ) {
    self.configuration = configuration
    self.client = client
    self.registry = registry
    self.logger = logger
    self.onRunning = onRunning
    screens = configuration.camera.map { ScreenshotDesk(camera: $0, limits: configuration.screenshots) }
    service = MachineAPIService(
      client: client, consoleFolder: configuration.consoleFolder, addresses: configuration.addresses, screens: screens,
      registry: registry, logger: logger)
  }

  /// Whether it knows whom to believe.
  package var isReady: Bool { service.isReady }

  /// Serves until cancelled.
  /// - Throws: `WebServerError` where the address is taken or a certificate file cannot be read.
  package func run() async throws {
    let tls = try tlsContext()
    // One thread: requests are few, and consoles on one loop need no locks.
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    do {
      try await serve(on: group, tls)
      try? await group.shutdownGracefully()
    } catch {
      try? await group.shutdownGracefully()
      throw error
    }
  }

  private func serve(on group: MultiThreadedEventLoopGroup, _ tls: NIOSSLContext) async throws {
    let switchboard = ConsoleSwitchboard(
      loop: group.next(), limits: configuration.consoles, registry: registry, logger: logger)
    let forwards = ForwardBoard(
      loop: group.next(), limits: configuration.forwards, registry: registry, logger: logger)
    let census = ConnectionCensus(
      strangersMax: configuration.strangersMax, connectionsMax: configuration.connectionsMax)
    let service = service
    let server: any Channel
    do {
      server = try await ServerBootstrap(group: group)
        .serverChannelOption(.backlog, value: 256)
        .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
        .childChannelOption(.socketOption(.so_keepalive), value: 1)
        // When a client goes, what the kernel holds of it is read at once, whoever takes it.
        .childChannelOption(.socketOption(.so_rcvbuf), value: 256 << 10)
        .childChannelOption(
          .writeBufferWaterMark, value: .init(low: 32 << 10, high: ConsoleSession.inFlightMax + (64 << 10))
        )
        .childChannelInitializer { channel in
          channel.eventLoop.makeCompletedFuture {
            guard let place = census.enter(from: channel.remoteAddress?.ipAddress) else {
              throw ChannelError.inputClosed
            }
            do {
              try Self.configure(channel, place, tls, service, switchboard, forwards, census)
            } catch {
              census.leave(place)
              throw error
            }
          }
        }
        .bind(host: configuration.host, port: configuration.port).get()
    } catch {
      throw WebServerError(subject: "\(configuration.host):\(configuration.port)", message: "cannot serve: \(error)")
    }
    onRunning?(server.localAddress?.port ?? 0)
    logger.info("serving", metadata: ["port": "\(server.localAddress?.port ?? 0)"])
    let trust = ObjectCache<ConfigMap>(
      client: client, namespace: TrustSettings.namespace,
      fieldSelector: "metadata.name=\(TrustSettings.configMap)", logger: logger)
    trust.onChange { [logger] change in
      switch change {
      case .added(let map), .updated(_, let map):
        do {
          service.authenticator.settings = try TrustSettings(configMap: map.data ?? [:])
        } catch {
          // What held until now goes on to hold.
          logger.error("whom to believe cannot be read", metadata: ["error": "\(error)"])
        }
      case .deleted:
        service.authenticator.settings = nil
      }
    }
    do {
      try await withThrowingTaskGroup(of: Void.self) { group in
        group.addTask { try await trust.run() }
        group.addTask { try await switchboard.run { await service.objections($0, "console") } }
        group.addTask { try await forwards.run { await service.objections($0, "connection") } }
        if let screens { group.addTask { await screens.run() } }
        try await group.next()
        group.cancelAll()
      }
    } catch {
      try? await server.close()
      throw error
    }
    try? await server.close()
  }

  private static func configure(
    _ channel: any Channel, _ place: ConnectionCensus.Place, _ tls: NIOSSLContext, _ service: MachineAPIService,
    _ switchboard: ConsoleSwitchboard, _ forwards: ForwardBoard, _ census: ConnectionCensus
  ) throws {
    let sync = channel.pipeline.syncOperations
    // Any certificate may be shown; whose it is, and who signed it, is looked at with the request. The handshake proves
    // that the peer has its key.
    try sync.addHandler(
      NIOSSLServerHandler(
        context: tls, customVerificationCallback: { _, promise in promise.succeed(.certificateVerified) }))
    try sync.addHandler(HTTPResponseEncoder(), name: HTTPConnection.encoder)
    var limits = NIOHTTPDecoderLimitConfiguration()
    limits.maxHeaderFieldSize = HTTPConnection.headersMax
    limits.maxHeaderListSize = HTTPConnection.headersMax
    // The front proxy names each group of a user in a header of its own.
    limits.maxHeaderFieldCount = HTTPConnection.headerFieldsMax
    try sync.addHandler(
      ByteToMessageHandler(
        HTTPRequestDecoder(leftOverBytesStrategy: .forwardBytes, limitConfiguration: limits),
        maximumBufferSize: HTTPConnection.unparsedMax), name: HTTPConnection.decoder)
    try sync.addHandler(
      HTTPConnection(
        service: service, switchboard: switchboard, forwards: forwards, census: census, place: place))
  }

  private func tlsContext() throws -> NIOSSLContext {
    let files = configuration.tls
    do {
      let chain = try NIOSSLCertificate.fromPEMFile(files.certificateChain).map {
        NIOSSLCertificateSource.certificate($0)
      }
      let key = try NIOSSLPrivateKey(file: files.privateKey, format: .pem)
      var configuration = TLSConfiguration.makeServerConfiguration(
        certificateChain: chain, privateKey: .privateKey(key))
      configuration.minimumTLSVersion = .tlsv12
      configuration.applicationProtocols = ["http/1.1"]
      configuration.certificateVerification = .optionalVerification
      return try NIOSSLContext(configuration: configuration)
    } catch {
      throw WebServerError(
        subject: "\(files.certificateChain), \(files.privateKey)", message: "cannot be used for TLS: \(error)")
    }
  }
}
