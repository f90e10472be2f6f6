import Deadlines
import NIOCore
import NIOHTTP1
import NIOPosix
import NIOSSL
import NIOWebSocket

/// What happens on a WebSocket that carries bytes.
public enum WebSocketEvent: Sendable, Hashable {
  /// The server accepted it.
  case opened
  /// A text message came.
  case text([UInt8])
  /// So many bytes of binary messages were handed on.
  case delivered(Int)
  /// The server closed it: a status of RFC 6455, section 7.4, and a reason.
  case closed(code: Int, reason: String)
}

extension KubernetesClient {
  /// Carries bytes between a WebSocket of the API server and a connected stream socket, until either of them ends.
  ///
  /// Binary messages become bytes of the socket, and its bytes binary messages. Where one side does not read, the other is
  /// not read either.
  ///
  /// - Parameters:
  ///   - path: starts with `/`; already percent-encoded.
  ///   - ending: the text message that stands for the end of one direction, sent and understood, where the other one may
  ///     go on; without it the end of either side ends both.
  ///   - descriptor: a connected stream socket, which is closed at the end, whatever the end is. With `ending` it is reset
  ///     where the WebSocket breaks before both directions ended, so that a part is not taken for the whole.
  ///   - onEvent: called on an event loop; must not wait.
  /// - Throws: `KubernetesError` where the server does not accept it, with the server's own words.
  public func carry(
    path: String, query: [(String, String)] = [], subprotocol: String, ending: [UInt8]? = nil,
    over descriptor: CInt, onEvent: @escaping @Sendable (WebSocketEvent) -> Void
  ) async throws {
    let operation = "open a WebSocket at \(path)"
    let bridge = WebSocketBridge(
      descriptor: descriptor, ending: ending, loop: Transport.eventLoopGroup.next(), onEvent: onEvent)
    do {
      let call = Call(
        operation: operation, verb: "connect", resource: "raw", method: .GET, path: path, query: query)
      let credential = try await prepare(call)
      let web = try await connect(call, subprotocol, as: credential, bridge)
      await withTaskCancellationHandler {
        try? await web.closeFuture.get()
        // What came before the end is still on its way to whoever reads.
        await bridge.localClosed()
      } onCancel: {
        bridge.breakOff()
      }
    } catch {
      bridge.giveUp()
      throw translate(error, operation: operation)
    }
  }

  private func connect(
    _ call: Call, _ subprotocol: String, as credential: RequestCredential, _ bridge: WebSocketBridge
  ) async throws -> any Channel {
    let url = try ServerURL(configuration.server)
    let isSecure = url.scheme == "https"
    let context = try isSecure ? NIOSSLContext(configuration: configuration.tls(credential.certificate)) : nil
    let name = configuration.tlsServerName.flatMap { $0.isEmpty ? nil : $0 } ?? url.host
    let query = call.query.isEmpty ? "" : "?\(PercentEncoding.query(call.query))"
    var head = HTTPRequestHead(version: .http1_1, method: .GET, uri: url.path + call.path + query)
    let port = url.port ?? (isSecure ? 443 : 80)
    head.headers.add(name: "host", value: url.host.contains(":") ? "[\(url.host)]:\(port)" : "\(url.host):\(port)")
    head.headers.add(name: "user-agent", value: configuration.userAgent)
    head.headers.add(name: "sec-websocket-protocol", value: subprotocol)
    if let authorization = credential.authorization { head.headers.add(name: "authorization", value: authorization) }
    if let impersonation = configuration.impersonation {
      head.headers.add(name: "impersonate-user", value: impersonation.user)
      for group in impersonation.groups { head.headers.add(name: "impersonate-group", value: group) }
    }
    let accepted = bridge.loop.makePromise(of: Void.self)
    let operation = call.operation
    let request = head
    let channel: any Channel
    do {
      channel = try await ClientBootstrap(group: bridge.loop)
        .connectTimeout(.seconds(10))
        .channelInitializer { channel in
          channel.eventLoop.makeCompletedFuture {
            let sync = channel.pipeline.syncOperations
            if let context {
              // An address has no name to ask for; it is checked against the certificate all the same.
              let isAddress = (try? SocketAddress(ipAddress: name, port: 0)) != nil
              try sync.addHandler(NIOSSLClientHandler(context: context, serverHostname: isAddress ? nil : name))
            }
          }.flatMap {
            let upgrader = NIOWebSocketClientUpgrader(maxFrameSize: 1 << 20) { channel, _ in
              let opened = channel.pipeline.removeHandler(name: HandshakeHandler.name).flatMap {
                bridge.begin(on: channel)
              }
              opened.cascade(to: accepted)
              return opened
            }
            return channel.pipeline.addHTTPClientHandlers(
              leftOverBytesStrategy: .forwardBytes,
              withClientUpgrade: (upgraders: [upgrader], completionHandler: { _ in }))
          }.flatMap {
            // A peer that is there but takes nothing for long, because nobody takes it there, must not be given up.
            Transport.keepAlive(channel, givesUpUnsent: false)
          }.flatMapThrowing {
            try channel.pipeline.syncOperations.addHandler(
              HandshakeHandler(request: request, accepted: accepted, operation: operation), name: HandshakeHandler.name)
          }
        }
        .connect(host: url.host, port: port).get()
    } catch {
      accepted.fail(error)
      throw error
    }
    let timeout = configuration.requestTimeout
    let limit = bridge.loop.scheduleTask(in: .nanoseconds(timeout.inNanoseconds)) {
      accepted.fail(TimeLimitExceeded(limit: timeout))
    }
    do {
      try await withTaskCancellationHandler {
        try await accepted.futureResult.get()
      } onCancel: {
        accepted.fail(CancellationError())
      }
      limit.cancel()
      return channel
    } catch {
      limit.cancel()
      channel.close(promise: nil)
      throw error
    }
  }
}

/// Asks for the upgrade, and takes the answer where it is a refusal.
private final class HandshakeHandler: ChannelInboundHandler, RemovableChannelHandler {
  typealias InboundIn = HTTPClientResponsePart
  typealias OutboundOut = HTTPClientRequestPart

  static let name = "handshake"
  private static let bodyMax = 64 << 10

  private let request: HTTPRequestHead
  private let accepted: EventLoopPromise<Void>
  private let operation: String
  private var head: HTTPResponseHead?
  private var body: [UInt8] = []

  init(request: HTTPRequestHead, accepted: EventLoopPromise<Void>, operation: String) {
    self.request = request
    self.accepted = accepted
    self.operation = operation
  }

  func channelActive(context: ChannelHandlerContext) {
    context.write(wrapOutboundOut(.head(request)), promise: nil)
    context.writeAndFlush(wrapOutboundOut(.end(nil)), promise: nil)
    context.fireChannelActive()
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    switch unwrapInboundIn(data) {
    case .head(let head): self.head = head
    case .body(let buffer):
      if body.count + buffer.readableBytes <= Self.bodyMax { body.append(contentsOf: buffer.readableBytesView) }
    case .end:
      let status = Int(head?.status.code ?? 0)
      accepted.fail(
        KubernetesError(
          operation: operation, httpStatus: status, status: try? Coding.decode(Status.self, from: body),
          body: String(decoding: body, as: UTF8.self), retryAfterHeader: head?.headers.first(name: "retry-after")))
      context.close(promise: nil)
    }
  }

  func channelInactive(context: ChannelHandlerContext) {
    accepted.fail(ChannelError.eof)
    context.fireChannelInactive()
  }

  func errorCaught(context: ChannelHandlerContext, error: any Error) {
    accepted.fail(error)
    context.close(promise: nil)
  }
}
