import Dispatch
import GRPCCore
import GRPCNIOTransportHTTP2Posix
import Glibc
import JSONRPC
public import Logging
import OPI
import Synchronization
public import Telemetry

/// opi-bridge: the storage API of the Open Programmable Infrastructure project in front of SPDK.
///
/// What was asked for is on disk, what is there is at the target. The bridge may be stopped and started at any time;
/// guest I/O does not go through it.
public final class OPIBridge: Sendable {
  /// Where the API is served.
  public enum Address: Sendable, Hashable {
    /// A unix socket that only the owner may use.
    case unix(String)
    /// TLS 1.2 or later, and clients need a certificate.
    case tls(host: String, port: Int, TLSFiles)
  }

  /// PEM files.
  public struct TLSFiles: Sendable, Hashable {
    public var certificate: String
    public var key: String
    /// Who may sign the clients' certificates.
    public var clientAuthority: String

    public init(certificate: String, key: String, clientAuthority: String) {
      self.certificate = certificate
      self.key = key
      self.clientAuthority = clientAuthority
    }
  }

  private let address: Address
  private let socket: String
  private let bridge: Bridge
  private let registry: MetricsRegistry
  private let logger: Logger
  private let isConnected = Atomic(false)
  private let repairWanted: AsyncStream<Void>
  private let news: AsyncStream<Void>.Continuation

  /// - Parameters:
  ///   - spdkSocket: SPDK's JSON-RPC socket; nothing has to listen there yet.
  ///   - stateDirectory: where what was asked for is written down; made where it is missing.
  public init(
    address: Address, spdkSocket: String, stateDirectory: String, registry: MetricsRegistry, logger: Logger
  ) throws {
    self.address = address
    self.registry = registry
    self.logger = logger
    socket = spdkSocket
    let (stream, continuation) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
    repairWanted = stream
    news = continuation
    bridge = try Bridge(
      target: Target(socket: spdkSocket), store: RecordStore(directory: stateDirectory), registry: registry,
      logger: logger, wantsRepair: { continuation.yield() })
  }

  /// Whether the target was there, and was what the records say, when it was looked at last.
  public var isReady: Bool { isConnected.load(ordering: .relaxed) }

  /// Serves until the task is cancelled.
  public func run() async throws {
    let server = GRPCServer(
      transport: try transport(),
      services: [
        AioVolumesService(bridge: bridge), NullVolumesService(bridge: bridge), MallocVolumesService(bridge: bridge),
        QosVolumesService(bridge: bridge), EncryptedVolumesService(bridge: bridge), VirtioBlksService(bridge: bridge),
        FrontendNvmeService(bridge: bridge), NvmeRemoteService(bridge: bridge), VolumesService(bridge: bridge),
      ],
      interceptors: [CallObserver(registry: registry, logger: logger), CallWordsReader()])
    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask { try await server.serve() }
      group.addTask { try await self.keepUp() }
      defer {
        group.cancelAll()
        if case .unix(let path) = self.address { unlink(path) }
      }
      try await group.next()
    }
  }

  private func transport() throws -> HTTP2ServerTransport.Posix {
    // Messages of this API are small; what is larger is no request.
    let configure: @Sendable (inout HTTP2ServerTransport.Posix.Config) -> Void = { config in
      config.rpc.maxRequestPayloadSize = 1 << 20
    }
    switch address {
    case .unix(let path):
      return HTTP2ServerTransport.Posix(
        listeningSocketDescriptor: Int(try UnixSocket.listen(path: path)), transportSecurity: .plaintext,
        config: .defaults(configure: configure))
    case .tls(let host, let port, let files):
      for (flag, file) in [
        ("certificate", files.certificate), ("key", files.key), ("client authority", files.clientAuthority),
      ] where access(file, R_OK) != 0 {
        throw RPCError(
          code: .invalidArgument, message: "the \(flag) '\(file)' cannot be read: \(String(cString: strerror(errno)))")
      }
      let endpoint: GRPCNIOTransportCore.SocketAddress =
        host.contains(":") ? .ipv6(host: host, port: port) : .ipv4(host: host, port: port)
      return HTTP2ServerTransport.Posix(
        address: endpoint,
        transportSecurity: .mTLS(
          certificateChain: [.file(path: files.certificate, format: .pem)],
          privateKey: .file(path: files.key, format: .pem)
        ) { tls in
          tls.trustRoots = .certificates([.file(path: files.clientAuthority, format: .pem)])
          tls.requireALPN = true
        }, config: .defaults(configure: configure))
    }
  }

  // MARK: Keeping up with the target

  /// Makes good what the target lacks whenever it was started, and whenever a call ended in doubt.
  private func keepUp() async throws {
    let connected = registry.gauge(
      "opi_bridge_target_connected", help: "1 while the data plane's JSON-RPC socket is connected.")
    let failed = registry.gauge(
      "opi_bridge_resources_failed", help: "Resources that the last repair could not make good.")
    var pause = Duration.milliseconds(100)
    while !Task.isCancelled {
      let watch: TargetWatch
      do { watch = try TargetWatch(socket: socket, news: news) } catch {
        connected.set(0)
        isConnected.store(false, ordering: .relaxed)
        try await Task.sleep(for: pause)
        pause = min(pause * 2, .seconds(2))
        continue
      }
      connected.set(1)
      pause = .milliseconds(100)
      try await repair(while: watch, failed)
    }
    throw CancellationError()
  }

  private func repair(while watch: TargetWatch, _ failed: GaugeFamily) async throws {
    var pause = Duration.seconds(1)
    var known: [String: RPCError] = [:]
    while !Task.isCancelled, !watch.isOver {
      let failures = try await bridge.repair()
      failed.set(Double(failures.count))
      isConnected.store(true, ordering: .relaxed)
      for (name, error) in failures where known[name]?.message != error.message {
        logger.warning("cannot repair", metadata: ["resource": "\(name)", "error": "\(error.message)"])
      }
      known = failures
      guard !watch.isOver else { return }
      // With nothing left to do it sleeps until there is news; otherwise it tries again, and less and less often. A
      // target that went and came back is news as well, and does not wait for that.
      if failures.isEmpty {
        pause = .seconds(1)
      } else {
        let news = news
        DispatchQueue.global().asyncAfter(deadline: .now() + .seconds(Int(pause.components.seconds))) { news.yield() }
        pause = min(pause * 2, .seconds(30))
      }
      await next()
    }
  }

  private func next() async {
    for await _ in repairWanted { return }
  }
}

/// A connection that says nothing, kept to learn at once when the target goes.
private final class TargetWatch: Sendable {
  private let connection: JSONConnection
  private let ended: Flag

  private final class Flag: Sendable {
    let value = Atomic(false)
  }

  init(socket: String, news: AsyncStream<Void>.Continuation) throws(JSONRPCError) {
    let flag = Flag()
    ended = flag
    connection = JSONConnection(
      adopting: try UnixSocket.connect(path: socket), maximumLength: 1 << 16, onValue: { _ in },
      onClose: { _ in
        flag.value.store(true, ordering: .releasing)
        news.yield()
      })
    connection.start()
  }

  deinit { connection.close() }

  var isOver: Bool { ended.value.load(ordering: .acquiring) }
}
