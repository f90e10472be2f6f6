import JSON
import NIOCore
import NIOWebSocket

/// One client's connection, as long as it is a console.
final class ConsoleSocket: ChannelInboundHandler {
  typealias InboundIn = WebSocketFrame
  typealias OutboundOut = WebSocketFrame

  private let switchboard: ConsoleSwitchboard
  private let ticket: ConsoleTicket
  private var input: WebSocketInput
  private var joined: (session: ConsoleSession, line: ConsoleLine)?

  init(switchboard: ConsoleSwitchboard, ticket: ConsoleTicket) {
    self.switchboard = switchboard
    self.ticket = ticket
    input = WebSocketInput(ticket.spoken)
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
    session.heardAt = .now()
    switch input.take(unwrapInboundIn(data)) {
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
    if let (code, reason) = WebSocketInput.violation(error) {
      session.end(code, reason)
    } else {
      context.close(promise: nil)
    }
  }
}
