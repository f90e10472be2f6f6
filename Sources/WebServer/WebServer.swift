public import Hummingbird
import HummingbirdCore
import HummingbirdTLS
public import Logging
import NIOCore
import NIOPosix
import NIOSSL
import Synchronization

/// Certificate files of a TLS server, in PEM.
public struct TLSFiles: Sendable, Hashable {
  /// Path of the server's certificate followed by its intermediates.
  public var certificateChain: String
  /// Path of the private key.
  public var privateKey: String
  /// Path of the authorities that sign client certificates; where it is set, a client must present one.
  public var clientCA: String?

  public init(certificateChain: String, privateKey: String, clientCA: String? = nil) {
    self.certificateChain = certificateChain
    self.privateKey = privateKey
    self.clientCA = clientCA
  }

  func configuration() throws -> TLSConfiguration {
    let chain = try NIOSSLCertificate.fromPEMFile(certificateChain).map { NIOSSLCertificateSource.certificate($0) }
    let key = try NIOSSLPrivateKey(file: privateKey, format: .pem)
    var configuration = TLSConfiguration.makeServerConfiguration(certificateChain: chain, privateKey: .privateKey(key))
    configuration.minimumTLSVersion = .tlsv12
    if let clientCA {
      configuration.trustRoots = .file(clientCA)
      configuration.certificateVerification = .noHostnameVerification
    }
    return configuration
  }
}

/// Why a server could not start.
public struct WebServerError: Error, CustomStringConvertible {
  /// The address or the file that the operation was about.
  public let subject: String
  public let message: String

  public init(subject: String, message: String) {
    self.subject = subject
    self.message = message
  }

  public var description: String { "\(subject): \(message)" }
}

/// An HTTP/1.1 server around a Hummingbird router.
///
/// A connection on which no request is under way, or on which a request does not come in, is closed after a minute.
public struct WebServer: Sendable {
  private static let idleTimeout = TimeAmount.seconds(60)

  /// One thread for all servers of a process: they serve operators and management, not bulk data.
  private static let eventLoopGroup = MultiThreadedEventLoopGroup(numberOfThreads: 1)

  private let host: String
  private let port: Int
  private let tls: TLSFiles?
  private let responder: RouterResponder<BasicRequestContext>
  private let logger: Logger
  private let maximumConnections: Int
  private let onRunning: (@Sendable (Int) async -> Void)?

  /// - Parameters:
  ///   - port: 0 takes a free one; `onRunning` gets the actual one.
  ///   - maximumConnections: Further ones wait until one of these ends.
  ///   - onRunning: Called once the server accepts connections.
  public init(
    host: String, port: Int, tls: TLSFiles?, router: Router<BasicRequestContext>, logger: Logger,
    maximumConnections: Int = 512, onRunning: (@Sendable (Int) async -> Void)? = nil
  ) {
    self.host = host
    self.port = port
    self.tls = tls
    responder = router.buildResponder()
    self.logger = logger
    self.maximumConnections = maximumConnections
    self.onRunning = onRunning
  }

  /// Serves until the task is cancelled; connections in use are given up then.
  ///
  /// - Throws: `WebServerError` where the address is taken or a certificate file cannot be read.
  public func run() async throws {
    let plain = HTTPServerBuilder.http1(configuration: .init(idleTimeout: Self.idleTimeout))
    let server: HTTPServerBuilder
    if let tls {
      do {
        server = try .tls(plain, tlsConfiguration: tls.configuration())
      } catch {
        throw WebServerError(
          subject: "\(tls.certificateChain), \(tls.privateKey)", message: "cannot be used for TLS: \(error)")
      }
    } else {
      server = plain
    }
    let state = ServerState()
    let outer = logger
    let inner = Logger(label: logger.label) { _ in ServerLogHandler(logger: outer, state: state) }
    let onRunning = onRunning
    let application = Application(
      responder: responder, server: server,
      configuration: ApplicationConfiguration(
        address: .hostname(host, port: port), serverName: nil,
        availableConnectionsDelegate: MaximumAvailableConnections(maximumConnections, logger: inner)),
      onServerRunning: { channel in await onRunning?(channel.localAddress?.port ?? 0) },
      eventLoopGroupProvider: .shared(WebServer.eventLoopGroup), logger: inner)
    do {
      try await withTaskCancellationHandler {
        try await application.run()
      } onCancel: {
        state.stop()
      }
    } catch {
      if Task.isCancelled { return }
      throw WebServerError(subject: "\(host):\(port)", message: "cannot serve: \(error)")
    }
  }
}

/// Whether a server was told to stop.
private final class ServerState: Sendable {
  private let stopping = Mutex(false)
  var isStopping: Bool { stopping.withLock { $0 } }
  func stop() { stopping.withLock { $0 = true } }
}

/// Passes on what the HTTP framework logs, except what everybody knows: its start and stop at level info, and the
/// cancellation that ends it, which it takes for an error.
private struct ServerLogHandler: LogHandler {
  private var logger: Logger
  private let state: ServerState

  init(logger: Logger, state: ServerState) {
    self.logger = logger
    self.state = state
  }

  var logLevel: Logger.Level {
    get { logger.logLevel }
    set { logger.logLevel = newValue }
  }

  var metadata: Logger.Metadata {
    get { logger.handler.metadata }
    set { logger.handler.metadata = newValue }
  }

  subscript(metadataKey key: String) -> Logger.Metadata.Value? {
    get { logger[metadataKey: key] }
    set { logger[metadataKey: key] = newValue }
  }

  func log(event: LogEvent) {
    if state.isStopping { return }
    let level: Logger.Level = event.level == .info ? .debug : event.level
    logger.log(level: level, event.message, metadata: event.metadata)
  }
}
