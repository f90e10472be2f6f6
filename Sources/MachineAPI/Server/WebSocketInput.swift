import NIOCore
package import NIOWebSocket

/// Takes a client's frames and says what they mean (RFC 6455, section 5). Pure.
package struct WebSocketInput: Sendable {
  package enum Event: Sendable, Hashable {
    case typed([UInt8])
    /// A text message: a JSON object.
    case text([UInt8])
    case ping([UInt8])
    case pong
    case close
    /// The peer breaks the protocol: a status of section 7.4.1, and why.
    case violation(Int, String)
    case nothing
  }

  /// The longest frame, and the longest text message.
  package static let frameMax = 64 << 10
  package static let textMax = 4 << 10

  private enum Message { case binary, text }

  private let spoken: ConsoleProtocol
  private var message: Message?
  private var text: [UInt8] = []
  /// In a message of channels: whether its channel is that of what is typed; nil before its first byte.
  private var isTyped: Bool?

  package init(_ spoken: ConsoleProtocol) { self.spoken = spoken }

  mutating func take(_ frame: WebSocketFrame) -> Event {
    take(
      opcode: frame.opcode, isFinal: frame.fin, isMasked: frame.maskKey != nil,
      hasReservedBits: frame.rsv1 || frame.rsv2 || frame.rsv3, data: Array(frame.unmaskedData.readableBytesView))
  }

  /// What to tell the client where its bytes could not be taken for frames; nil where that is not what went wrong.
  static func violation(_ error: any Error) -> (code: Int, reason: String)? {
    switch error as? NIOWebSocketError {
    case .invalidFrameLength: (1009, "a frame has at most \(frameMax) bytes")
    case .some: (1002, "this is no WebSocket frame")
    case nil: nil
    }
  }

  package mutating func take(
    opcode: WebSocketOpcode, isFinal: Bool, isMasked: Bool, hasReservedBits: Bool, data: [UInt8]
  ) -> Event {
    guard isMasked else { return .violation(1002, "a client's frames are masked") }
    guard !hasReservedBits else { return .violation(1002, "no extension was agreed on") }
    switch opcode {
    case .ping, .pong, .connectionClose:
      guard isFinal, data.count <= 125 else { return .violation(1002, "a control frame is whole and short") }
      return opcode == .ping ? .ping(data) : opcode == .pong ? .pong : .close
    case .binary, .text:
      guard message == nil else { return .violation(1002, "the former message is not complete") }
      message = opcode == .text ? .text : .binary
      text = []
      isTyped = nil
    case .continuation:
      guard message != nil else { return .violation(1002, "nothing is there to continue") }
    default:
      return .violation(1002, "there is no such kind of frame")
    }
    let kind = message
    if isFinal { message = nil }
    if kind == .text, spoken == .plain { return takeText(data, isFinal: isFinal) }
    return takeBinary(data)
  }

  private mutating func takeText(_ data: [UInt8], isFinal: Bool) -> Event {
    guard text.count + data.count <= Self.textMax else {
      return .violation(1009, "a text message has at most \(Self.textMax) bytes; type in binary messages")
    }
    text += data
    guard isFinal else { return .nothing }
    defer { text = [] }
    guard String(validating: text, as: UTF8.self) != nil else { return .violation(1007, "a text message is UTF-8") }
    return .text(text)
  }

  private mutating func takeBinary(_ data: [UInt8]) -> Event {
    guard spoken == .channels else { return data.isEmpty ? .nothing : .typed(data) }
    var rest = data[...]
    if isTyped == nil {
      guard let channel = rest.popFirst() else { return .nothing }
      // 4 is the terminal's size, which a serial line has no word for.
      guard channel == 0 || channel == 4 else { return .violation(1002, "channel 0 is for what is typed") }
      isTyped = channel == 0
    }
    return isTyped == true && !rest.isEmpty ? .typed(Array(rest)) : .nothing
  }
}
