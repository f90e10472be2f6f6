import NIOCore
import NIOWebSocket

extension Channel {
  /// Ends a WebSocket with a status (RFC 6455, section 7.4) and a reason, behind everything that was written before.
  ///
  /// - Parameter limit: one who takes nothing gets this neither, and is cut off then; nil where somebody else watches.
  func endWebSocket(_ code: Int, _ reason: String, within limit: TimeAmount?) {
    var buffer = allocator.buffer(capacity: 128)
    buffer.write(webSocketErrorCode: WebSocketErrorCode(codeNumber: code))
    buffer.writeString(String(reason.prefix(100)))
    writeAndFlush(WebSocketFrame(fin: true, opcode: .connectionClose, data: buffer))
      .whenComplete { _ in self.close(promise: nil) }
    if let limit { eventLoop.scheduleTask(in: limit) { self.close(promise: nil) } }
  }
}
