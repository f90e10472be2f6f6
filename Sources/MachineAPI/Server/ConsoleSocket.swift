import JSON
import NIOCore
import NIOWebSocket

/// One client's connection, as long as it is a console.
final class ConsoleSocket: ChannelInboundHandler {
  typealias InboundIn = WebSocketFrame
  typealias OutboundOut = WebSocketFrame

  private let switchboard: ConsoleSwitchboard
  private let ticket: ConsoleTicket
  private var input: ConsoleInput
  private var joined: (session: ConsoleSession, line: ConsoleLine)?

  init(switchboard: ConsoleSwitchboard, ticket: ConsoleTicket) {
    self.switchboard = switchboard
    self.ticket = ticket
    input = ConsoleInput(ticket.spoken)
  }

  func handlerAdded(context: ChannelHandlerContext) {
    joined = switchboard.join(ticket, channel: context.channel)
  }

  func channelInactive(context: ChannelHandlerContext) {
    if let joined { switchboard.leave(joined.session, joined.line) }
    joined = nil
    context.fireChannelInactive()
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    guard let (session, line) = joined else { return }
    let frame = unwrapInboundIn(data)
    session.heardAt = .now()
    let event = input.take(
      opcode: frame.opcode, isFinal: frame.fin, isMasked: frame.maskKey != nil,
      hasReservedBits: frame.rsv1 || frame.rsv2 || frame.rsv3, data: Array(frame.unmaskedData.readableBytesView))
    switch event {
    case .typed(let bytes): line.typed(bytes, by: session.id)
    case .text(let text): ask(text, session, line)
    case .ping(let data): session.pong(data)
    case .pong, .nothing: break
    case .close: session.end(1000, "")
    case .violation(let code, let reason): session.end(code, reason)
    }
  }

  private func ask(_ text: [UInt8], _ session: ConsoleSession, _ line: ConsoleLine) {
    switch (try? JSONValue.parse(text))?["type"]?.stringValue {
    case "takeover": line.takeOver(session)
    default: session.refuse("a text message is {\"type\": \"takeover\"}; what is typed goes into binary messages")
    }
  }

  func errorCaught(context: ChannelHandlerContext, error: any Error) {
    guard let (session, _) = joined else {
      context.close(promise: nil)
      return
    }
    switch error as? NIOWebSocketError {
    case .invalidFrameLength: session.end(1009, "a frame has at most \(ConsoleInput.frameMax) bytes")
    case .some: session.end(1002, "this is no WebSocket frame")
    case nil: context.close(promise: nil)
    }
  }
}
