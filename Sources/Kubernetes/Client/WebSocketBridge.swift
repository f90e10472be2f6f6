import NIOCore
import NIOPosix
import NIOWebSocket

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// A WebSocket and a stream socket of one event loop, of which each is read as long as the other takes it.
///
/// The socket belongs to the loop only from the moment on when the WebSocket is open: before, there is nobody to take what
/// it says, and the end of what it says would be read together with all that stands before it.
final class WebSocketBridge: Sendable {
  private struct State {
    /// The socket, until it belongs to the loop.
    var descriptor: CInt?
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

  init(
    descriptor: CInt, ending: [UInt8]?, loop: any EventLoop, onEvent: @escaping @Sendable (WebSocketEvent) -> Void
  ) {
    self.loop = loop
    self.ending = ending
    self.onEvent = onEvent
    state = NIOLoopBoundBox.makeBoxSendingValue(State(descriptor: descriptor), eventLoop: loop)
  }

  /// The WebSocket is open. What comes on it meanwhile waits until the future is there.
  func begin(on channel: any Channel) -> EventLoopFuture<Void> {
    guard let descriptor = state.value.descriptor else { return loop.makeFailedFuture(ChannelError.alreadyClosed) }
    state.value.descriptor = nil
    state.value.web = channel
    return ClientBootstrap(group: loop)
      .channelOption(.autoRead, value: false)
      .channelOption(.allowRemoteHalfClosure, value: ending != nil)
      .channelInitializer { [self] local in
        loop.makeCompletedFuture {
          state.value.local = local
          try local.pipeline.syncOperations.addHandler(LocalHandler(bridge: self))
        }
      }
      .withConnectedSocket(descriptor)
      .flatMapThrowing { [self] local in
        try channel.pipeline.syncOperations.addHandler(WebHandler(bridge: self))
        onEvent(.opened)
        local.setOption(.autoRead, value: true).whenComplete { _ in }
      }
  }

  // MARK: From outside of the loop

  /// The WebSocket did not come about.
  func giveUp() {
    loop.execute { [self] in
      if let descriptor = state.value.descriptor {
        state.value.descriptor = nil
        if ending != nil {
          var none = linger(l_onoff: 1, l_linger: 0)
          setsockopt(descriptor, SOL_SOCKET, SO_LINGER, &none, socklen_t(MemoryLayout<linger>.size))
        }
        close(descriptor)
      }
      state.value.web?.close(promise: nil)
      webGone()
    }
  }

  /// Ends both at once.
  func breakOff() {
    loop.execute { [self] in
      state.value.web?.close(promise: nil)
      guard let local = state.value.local else { return }
      reset(local)
    }
  }

  /// Waits until the socket has everything, or is gone.
  func localClosed() async {
    try? await loop.flatSubmit { [self] in state.value.local?.closeFuture ?? loop.makeSucceededVoidFuture() }.get()
  }

  // MARK: From the socket

  fileprivate func localRead(_ buffer: ByteBuffer) {
    state.value.web?.writeAndFlush(
      WebSocketFrame(fin: true, opcode: .binary, maskKey: .random(), data: buffer), promise: nil)
  }

  fileprivate func localWritable(_ isWritable: Bool) {
    state.value.web?.setOption(.autoRead, value: isWritable).whenComplete { _ in }
  }

  /// The local side has sent all that it wants to.
  fileprivate func localEnded() {
    guard let ending, let web = state.value.web, !state.value.localEnded else { return }
    state.value.localEnded = true
    web.writeAndFlush(
      WebSocketFrame(fin: true, opcode: .text, maskKey: .random(), data: web.allocator.buffer(bytes: ending)),
      promise: nil)
  }

  /// - Parameter isBroken: it ended by an error.
  fileprivate func localGone(isBroken: Bool) {
    guard let web = state.value.web else { return }
    // Behind the end of the other direction, NIO tells this one's as that of the whole socket.
    if state.value.webEnded, !isBroken { localEnded() }
    var reason = web.allocator.buffer(capacity: 2)
    reason.write(webSocketErrorCode: .normalClosure)
    let frame = WebSocketFrame(fin: true, opcode: .connectionClose, maskKey: .random(), data: reason)
    web.writeAndFlush(frame).whenComplete { _ in web.close(promise: nil) }
    // What was ended arrives as a whole, however long the other side takes; what was broken off is worth no wait.
    if isBroken || !state.value.localEnded { loop.scheduleTask(in: .seconds(5)) { web.close(promise: nil) } }
  }

  // MARK: From the WebSocket

  fileprivate func webWritable(_ isWritable: Bool) {
    state.value.local?.setOption(.autoRead, value: isWritable).whenComplete { _ in }
  }

  fileprivate func webRead(_ frame: WebSocketFrame) {
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
        takeText(data, isFinal: frame.fin)
      } else if data.readableBytes > 0 {
        onEvent(.delivered(data.readableBytes))
        state.value.local?.writeAndFlush(data, promise: nil)
      }
    default: break
    }
  }

  private func takeText(_ data: ByteBuffer, isFinal: Bool) {
    guard state.value.text.count + data.readableBytes <= Self.textMax else {
      // Nobody who means well says so much.
      state.value.web?.close(promise: nil)
      return
    }
    state.value.text += Array(data.readableBytesView)
    guard isFinal else { return }
    onEvent(.text(state.value.text))
    if state.value.text == ending { webEnded() }
    state.value.text = []
  }

  /// Nothing more comes from the other side: the local one is told when it has everything.
  private func webEnded() {
    guard let local = state.value.local, !state.value.webEnded else { return }
    state.value.webEnded = true
    // The end of both is the end of the socket, which comes with the WebSocket's.
    guard !state.value.localEnded else { return }
    local.writeAndFlush(local.allocator.buffer(capacity: 0)).whenSuccess { local.close(mode: .output, promise: nil) }
  }

  fileprivate func webGone() {
    guard let local = state.value.local else { return }
    guard ending != nil else { return local.close(promise: nil) }
    if state.value.webEnded {
      local.writeAndFlush(local.allocator.buffer(capacity: 0)).whenComplete { _ in local.close(promise: nil) }
    } else {
      reset(local)
    }
  }

  private func reset(_ local: any Channel) {
    // With no time to linger, the kernel tells the peer that it was broken off.
    if ending != nil {
      _ = (local as? any SocketOptionProvider)?.setSoLinger(linger(l_onoff: 1, l_linger: 0))
    }
    local.close(promise: nil)
  }
}

private final class LocalHandler: ChannelInboundHandler {
  typealias InboundIn = ByteBuffer
  private let bridge: WebSocketBridge
  private var isBroken = false

  init(bridge: WebSocketBridge) { self.bridge = bridge }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) { bridge.localRead(unwrapInboundIn(data)) }
  func channelWritabilityChanged(context: ChannelHandlerContext) { bridge.localWritable(context.channel.isWritable) }
  func channelInactive(context: ChannelHandlerContext) { bridge.localGone(isBroken: isBroken) }

  func errorCaught(context: ChannelHandlerContext, error: any Error) {
    isBroken = true
    context.close(promise: nil)
  }

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
