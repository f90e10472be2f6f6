import JSON
import NIOCore
import NIOPosix
import NIOWebSocket
import Telemetry

/// A client and the port of a machine. Everything happens on the event loop.
///
/// What one side does not take is not read from the other; so no more waits here than the channels' own buffers hold.
final class ForwardSession {
  /// Bytes that wait for the machine before its client is not read any more.
  static let waitingMax = 128 << 10
  /// A text message: nothing more comes in this direction.
  private static let ending: JSONValue = ["type": "end"]

  let id: Int
  let ticket: ForwardTicket
  private let client: any Channel
  private let bytes: CounterFamily
  private var guest: (any Channel)?
  private var isOpen = false
  private var isEnding = false
  private var isClientGone = false
  private var isGuestGone = false
  private var clientEnded = false
  private var guestEnded = false
  private var isClientPaused = false
  private var heardAt: NIODeadline = .now()
  /// When bytes of the machine were last given to the client's connection.
  private var sentAt: NIODeadline = .distantPast
  private var movedAt: NIODeadline = .now()

  init(id: Int, ticket: ForwardTicket, client: any Channel, bytes: CounterFamily) {
    self.id = id
    self.ticket = ticket
    self.client = client
    self.bytes = bytes
  }

  /// Whether nothing of it is left.
  var isOver: Bool { isGuestGone && (isClientGone || !isOpen) }

  /// The machine has accepted the connection.
  func connected(_ channel: any Channel) {
    guard client.isActive, !isEnding else { return Self.reset(channel) }
    guest = channel
  }

  /// The machine's connection is gone, or never came.
  func guestClosed() { isGuestGone = true }

  /// The client speaks WebSocket now.
  func begin() {
    isOpen = true
    readGuest(client.isWritable)
  }

  private func readGuest(_ reads: Bool) {
    guest?.setOption(.autoRead, value: reads).whenComplete { _ in }
  }

  private func readClient(_ reads: Bool) {
    isClientPaused = !reads
    client.setOption(.autoRead, value: reads).whenComplete { _ in }
  }

  // MARK: From the client

  func take(_ event: WebSocketInput.Event) {
    heardAt = .now()
    guard !isEnding else { return }
    switch event {
    case .typed(let bytes): toGuest(bytes)
    case .text(let text):
      guard let message = try? JSONValue.parse(text), message == Self.ending else {
        return end(1008, "a text message is {\"type\":\"end\"}; bytes go into binary messages")
      }
      endOfClient()
    case .ping(let data): send(.pong, data)
    case .pong, .nothing: break
    // Who leaves without an end has broken off.
    case .close: if clientEnded { finish() } else { end(1000, "") }
    case .violation(let code, let reason): end(code, reason)
    }
  }

  private func toGuest(_ data: [UInt8]) {
    guard !clientEnded else { return end(1002, "more came after the end") }
    guard let guest else { return }
    bytes.increment(by: Double(data.count), "in")
    let bound = NIOLoopBound(self, eventLoop: guest.eventLoop)
    guest.writeAndFlush(guest.allocator.buffer(bytes: data)).whenSuccess { bound.value.movedAt = .now() }
    if !guest.isWritable { readClient(false) }
  }

  func guestWritable(_ isWritable: Bool) {
    guard !isEnding else { return }
    // Who was not read could not be heard.
    if isWritable { heardAt = .now() }
    readClient(isWritable)
  }

  private func endOfClient() {
    guard !clientEnded, let guest else { return }
    clientEnded = true
    if guestEnded { return finish() }
    // An end that overtakes what was sent before would cost it.
    guest.writeAndFlush(guest.allocator.buffer(capacity: 0)).whenSuccess { guest.close(mode: .output, promise: nil) }
  }

  func clientWritable(_ isWritable: Bool) { if isOpen, !isEnding { readGuest(isWritable) } }

  /// The client's connection is gone. What was not ended is broken off: the machine must not take a part for the whole.
  func clientGone() {
    isClientGone = true
    isEnding = true
    guard let guest else { return }
    self.guest = nil
    if clientEnded { Self.close(guest) } else { Self.reset(guest) }
  }

  // MARK: From the machine

  func guestRead(_ buffer: ByteBuffer) {
    guard !isEnding else { return }
    // Nothing is read before; what came all the same could go nowhere.
    guard isOpen else { return end(1011, "the connection to the machine broke") }
    movedAt = .now()
    sentAt = movedAt
    bytes.increment(by: Double(buffer.readableBytes), "out")
    client.write(WebSocketFrame(fin: true, opcode: .binary, data: buffer), promise: nil)
    if !client.isWritable { readGuest(false) }
  }

  func guestPaused() { if isOpen { client.flush() } }

  /// The machine has sent all that it wants to.
  func endOfGuest() {
    guard !guestEnded, !isEnding else { return }
    guestEnded = true
    let buffer = client.allocator.buffer(bytes: Self.ending.serialize())
    client.writeAndFlush(WebSocketFrame(fin: true, opcode: .text, data: buffer), promise: nil)
    if clientEnded { finish() }
  }

  /// - Parameter isBroken: it ended by an error.
  func guestGone(isBroken: Bool) {
    guard !isEnding else { return }
    // Behind the end of its own direction, NIO tells the other's as that of the whole connection.
    if clientEnded, !isBroken { endOfGuest() } else { end(1011, "the connection to the machine broke") }
  }

  // MARK: The end

  /// Both directions are at their end: everything that is on its way arrives.
  private func finish() {
    guard !isEnding else { return }
    isEnding = true
    clientEnded = true
    // From now on only that the client takes the rest is waited for.
    movedAt = .now()
    if isClientPaused { readClient(true) }
    client.endWebSocket(1000, "", within: nil)
    if let guest {
      self.guest = nil
      Self.close(guest)
    }
  }

  /// Breaks it off, with a status (RFC 6455, section 7.4) and a reason.
  func end(_ code: Int, _ reason: String) {
    guard !isEnding else { return }
    isEnding = true
    // Before its handshake is answered, the client has nothing that could be closed in this way.
    if isOpen { client.endWebSocket(code, reason, within: .seconds(5)) } else { client.close(promise: nil) }
    if let guest {
      self.guest = nil
      Self.reset(guest)
    }
  }

  func sweep(_ now: NIODeadline, _ limits: ForwardLimits) {
    guard isOpen else { return }
    if isEnding {
      if now - movedAt > limits.idle { client.close(promise: nil) }
      return
    }
    // Whose client is not read cannot be heard. One that has not taken the machine's bytes yet has the ping behind them, and
    // may have stopped reading on purpose: that it is there is up to TCP then, or to the API server between.
    if !isClientPaused, sentAt < heardAt, now - heardAt > limits.silence {
      end(1001, "no sign of the client")
      client.close(promise: nil)
    } else if now - movedAt > limits.idle {
      end(1001, "nothing was carried for a long time")
    } else {
      send(.ping, [])
    }
  }

  private func send(_ opcode: WebSocketOpcode, _ data: [UInt8]) {
    // One who takes nothing gets no answers either: they would queue up.
    guard !isEnding, client.isWritable else { return }
    client.writeAndFlush(
      WebSocketFrame(fin: true, opcode: opcode, data: client.allocator.buffer(bytes: data)), promise: nil)
  }

  private static func close(_ channel: any Channel) {
    channel.writeAndFlush(channel.allocator.buffer(capacity: 0)).whenComplete { _ in channel.close(promise: nil) }
    // It has the time that a busy machine may take for what is left; until then it counts as open.
    let limit = channel.eventLoop.scheduleTask(in: .minutes(10)) { channel.close(promise: nil) }
    channel.closeFuture.whenComplete { _ in limit.cancel() }
  }

  private static func reset(_ channel: any Channel) {
    // With no time to linger, the kernel tells the peer that it was broken off, and drops what waits.
    _ = (channel as? any SocketOptionProvider)?.setSoLinger(linger(l_onoff: 1, l_linger: 0))
    channel.close(promise: nil)
  }
}

/// The machine's side of a session.
final class ForwardGuest: ChannelInboundHandler {
  typealias InboundIn = ByteBuffer
  private let session: ForwardSession
  private var isBroken = false

  init(session: ForwardSession) { self.session = session }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) { session.guestRead(unwrapInboundIn(data)) }
  func channelReadComplete(context: ChannelHandlerContext) { session.guestPaused() }
  func channelWritabilityChanged(context: ChannelHandlerContext) { session.guestWritable(context.channel.isWritable) }
  func channelInactive(context: ChannelHandlerContext) { session.guestGone(isBroken: isBroken) }

  func errorCaught(context: ChannelHandlerContext, error: any Error) {
    isBroken = true
    context.close(promise: nil)
  }

  func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
    if case ChannelEvent.inputClosed? = event as? ChannelEvent { session.endOfGuest() }
    context.fireUserInboundEventTriggered(event)
  }
}

/// The client's side of a session.
final class ForwardSocket: ChannelInboundHandler {
  typealias InboundIn = WebSocketFrame
  private let session: ForwardSession
  private var input = WebSocketInput(.plain)

  init(session: ForwardSession) { self.session = session }

  func handlerAdded(context: ChannelHandlerContext) { session.begin() }
  func channelRead(context: ChannelHandlerContext, data: NIOAny) { session.take(input.take(unwrapInboundIn(data))) }
  func channelWritabilityChanged(context: ChannelHandlerContext) {
    session.clientWritable(context.channel.isWritable)
    context.fireChannelWritabilityChanged()
  }

  func errorCaught(context: ChannelHandlerContext, error: any Error) {
    if let (code, reason) = WebSocketInput.violation(error) {
      session.end(code, reason)
    } else {
      context.close(promise: nil)
    }
  }
}
