import NIOCore
import NIOHTTP1
import NIOPosix
import NIOSSL
import NIOWebSocket
import Synchronization

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

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
    let local: any Channel
    let bridge = WebSocketBridge(loop: Transport.eventLoopGroup.next(), ending: ending, onEvent: onEvent)
    do {
      local = try await ClientBootstrap(group: bridge.loop)
        .channelOption(.autoRead, value: false)
        .channelOption(.allowRemoteHalfClosure, value: ending != nil)
        .channelInitializer { channel in bridge.addLocal(to: channel) }
        .withConnectedSocket(descriptor).get()
    } catch {
      close(descriptor)
      throw translate(error, operation: operation)
    }
    do {
      let call = Call(
        operation: operation, verb: "connect", resource: "raw", method: .GET, path: path, query: query)
      let credential = try await prepare(call)
      let web = try await connect(call, subprotocol, as: credential, bridge)
      try await withTaskCancellationHandler {
        try await web.closeFuture.get()
        // What came before the end is still on its way to whoever reads.
        if ending == nil { local.close(promise: nil) }
        try? await local.closeFuture.get()
      } onCancel: {
        web.close(promise: nil)
        local.close(promise: nil)
      }
    } catch {
      local.close(promise: nil)
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
              channel.pipeline.removeHandler(name: HandshakeHandler.name).flatMap {
                accepted.succeed()
                return bridge.addWeb(to: channel)
              }
            }
            return channel.pipeline.addHTTPClientHandlers(
              leftOverBytesStrategy: .forwardBytes,
              withClientUpgrade: (upgraders: [upgrader], completionHandler: { _ in }))
          }.flatMap {
            Transport.keepAlive(channel)
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
      try await accepted.futureResult.get()
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

/// Two connections of one event loop, of which each is read as long as the other takes it.
private final class WebSocketBridge: Sendable {
  private struct State {
    var web: (any Channel)?
    var local: (any Channel)?
    var isMessageText = false
    var text: [UInt8] = []
    var localEnded = false
    var webEnded = false
  }

  private static let textMax = 64 << 10

  let loop: any EventLoop
  private let ending: [UInt8]?
  private let onEvent: @Sendable (WebSocketEvent) -> Void
  private let state: NIOLoopBoundBox<State>

  init(loop: any EventLoop, ending: [UInt8]?, onEvent: @escaping @Sendable (WebSocketEvent) -> Void) {
    self.loop = loop
    self.ending = ending
    self.onEvent = onEvent
    state = NIOLoopBoundBox.makeBoxSendingValue(State(), eventLoop: loop)
  }

  func addLocal(to channel: any Channel) -> EventLoopFuture<Void> {
    channel.eventLoop.makeCompletedFuture {
      state.value.local = channel
      try channel.pipeline.syncOperations.addHandler(LocalHandler(bridge: self))
    }
  }

  func addWeb(to channel: any Channel) -> EventLoopFuture<Void> {
    channel.eventLoop.makeCompletedFuture {
      state.value.web = channel
      try channel.pipeline.syncOperations.addHandler(WebHandler(bridge: self))
      onEvent(.opened)
      // Only now is there somebody to take what is typed.
      state.value.local?.setOption(.autoRead, value: true).whenComplete { _ in }
    }
  }

  func localRead(_ buffer: ByteBuffer) {
    state.value.web?.writeAndFlush(
      WebSocketFrame(fin: true, opcode: .binary, maskKey: .random(), data: buffer), promise: nil)
  }

  func localWritable(_ isWritable: Bool) {
    state.value.web?.setOption(.autoRead, value: isWritable).whenComplete { _ in }
  }

  func webWritable(_ isWritable: Bool) {
    state.value.local?.setOption(.autoRead, value: isWritable).whenComplete { _ in }
  }

  func localGone() {
    guard let web = state.value.web else { return }
    // Behind the end of the other direction, NIO tells this one's as that of the whole socket.
    if state.value.webEnded { localEnded() }
    var reason = web.allocator.buffer(capacity: 2)
    reason.write(webSocketErrorCode: .normalClosure)
    let frame = WebSocketFrame(fin: true, opcode: .connectionClose, maskKey: .random(), data: reason)
    web.writeAndFlush(frame).whenComplete { _ in web.close(promise: nil) }
  }

  func webGone() {
    guard let local = state.value.local else { return }
    guard ending != nil else { return local.close(promise: nil) }
    if state.value.webEnded {
      local.writeAndFlush(local.allocator.buffer(capacity: 0)).whenComplete { _ in local.close(promise: nil) }
    } else {
      // With no time to linger, the kernel tells the peer that it was broken off.
      _ = (local as? any SocketOptionProvider)?.setSoLinger(linger(l_onoff: 1, l_linger: 0))
      local.close(promise: nil)
    }
  }

  /// The local side has sent all that it wants to.
  func localEnded() {
    guard let ending, let web = state.value.web, !state.value.localEnded else { return }
    state.value.localEnded = true
    web.writeAndFlush(
      WebSocketFrame(fin: true, opcode: .text, maskKey: .random(), data: web.allocator.buffer(bytes: ending)),
      promise: nil)
  }

  /// Nothing more comes from the other side: the local one is told when it has everything.
  private func webEnded() {
    guard let local = state.value.local, !state.value.webEnded else { return }
    state.value.webEnded = true
    // The end of both is the end of the socket, which comes with the WebSocket's.
    guard !state.value.localEnded else { return }
    local.writeAndFlush(local.allocator.buffer(capacity: 0)).whenSuccess { local.close(mode: .output, promise: nil) }
  }

  func webRead(_ frame: WebSocketFrame) {
    let data = frame.unmaskedData
    switch frame.opcode {
    case .ping:
      state.value.web?.writeAndFlush(
        WebSocketFrame(fin: true, opcode: .pong, maskKey: .random(), data: data), promise: nil)
    case .connectionClose:
      var data = data
      let code = data.readInteger(as: UInt16.self).map { Int($0) } ?? 1005
      onEvent(.closed(code: code, reason: String(buffer: data)))
      state.value.web?.close(promise: nil)
    case .binary, .text, .continuation:
      if frame.opcode != .continuation { state.value.isMessageText = frame.opcode == .text }
      if state.value.isMessageText {
        guard state.value.text.count + data.readableBytes <= Self.textMax else { return }
        state.value.text += Array(data.readableBytesView)
        if frame.fin {
          onEvent(.text(state.value.text))
          if state.value.text == ending { webEnded() }
          state.value.text = []
        }
      } else if data.readableBytes > 0 {
        onEvent(.delivered(data.readableBytes))
        state.value.local?.writeAndFlush(data, promise: nil)
      }
    default: break
    }
  }
}

private final class LocalHandler: ChannelInboundHandler {
  typealias InboundIn = ByteBuffer
  private let bridge: WebSocketBridge

  init(bridge: WebSocketBridge) { self.bridge = bridge }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) { bridge.localRead(unwrapInboundIn(data)) }
  func channelWritabilityChanged(context: ChannelHandlerContext) { bridge.localWritable(context.channel.isWritable) }
  func channelInactive(context: ChannelHandlerContext) { bridge.localGone() }
  func errorCaught(context: ChannelHandlerContext, error: any Error) { context.close(promise: nil) }

  func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
    if case ChannelEvent.inputClosed? = event as? ChannelEvent { bridge.localEnded() }
    context.fireUserInboundEventTriggered(event)
  }
}

private final class WebHandler: ChannelInboundHandler {
  typealias InboundIn = WebSocketFrame
  private let bridge: WebSocketBridge

  init(bridge: WebSocketBridge) { self.bridge = bridge }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) { bridge.webRead(unwrapInboundIn(data)) }
  func channelWritabilityChanged(context: ChannelHandlerContext) { bridge.webWritable(context.channel.isWritable) }
  func channelInactive(context: ChannelHandlerContext) { bridge.webGone() }
  func errorCaught(context: ChannelHandlerContext, error: any Error) { context.close(promise: nil) }
}
