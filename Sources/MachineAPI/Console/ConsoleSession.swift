import JSON
import NIOCore
import NIOWebSocket

/// Who has a console open, and what they may do with it.
struct ConsoleTicket: Sendable {
  var machine: String
  var holding: Holding
  /// Where the server's line is served.
  var socketPath: String
  var spoken: ConsoleProtocol
  /// Whether the client named the protocol, and has to be told.
  var namesProtocol: Bool
  var since: ConsolePlace?
  var takesOver: Bool
  var isReadOnly: Bool

  var line: ConsoleLineKey { holding.line }
  var identity: Identity { holding.identity }
}

/// One line: a machine on a host. The same machine on another host is another line.
struct ConsoleLineKey: Sendable, Hashable {
  var host: String
  var machineUID: String
  var namespace: String
  var name: String
}

/// One client of a console. Everything happens on the event loop.
final class ConsoleSession {
  /// Bytes on their way to one client; the rest stays on the tape.
  static let inFlightMax = 128 << 10
  private static let piece = 32 << 10
  /// Words about the session that may be on their way to one client: they are not on the tape, so one that takes none of
  /// them is cut off, and goes on at its place when it comes back.
  private static let noticesMax = 32

  let id: Int
  let ticket: ConsoleTicket
  let channel: any Channel
  private var place: UInt64 = 0
  private var inFlight = 0
  private var noticesInFlight = 0
  private var isEnding = false
  /// Refusals are told once a second at most.
  private var refusedAt: NIODeadline?
  private var tookOverAt: NIODeadline?
  var heardAt: NIODeadline = .now()

  init(id: Int, ticket: ConsoleTicket, channel: any Channel) {
    self.id = id
    self.ticket = ticket
    self.channel = channel
  }

  /// Finds the beginning and greets.
  func begin(on tape: ConsoleTape, epoch: String, history: Int) {
    var resumed = false
    if let since = ticket.since, since.epoch == epoch, since.offset <= tape.end {
      place = since.offset
      resumed = true
    } else {
      place = tape.beginning(history: history)
    }
    tell(.hello(place: ConsolePlace(epoch: epoch, offset: place), resumed: resumed, machine: ticket.machine))
  }

  /// Sends what is on the tape, as far as the client takes it.
  /// - Returns: Bytes that the client missed.
  func pump(_ tape: ConsoleTape, epoch: String, again: @escaping @Sendable () -> Void) -> UInt64 {
    var missed: UInt64 = 0
    var wrote = false
    while !isEnding, inFlight < Self.inFlightMax {
      let (skipped, bytes) = tape.read(from: place, atMost: Self.piece)
      if skipped > 0 {
        missed += skipped
        place += skipped
        tell(.skipped(bytes: skipped, place: ConsolePlace(epoch: epoch, offset: place)))
      }
      guard !bytes.isEmpty else { break }
      place += UInt64(bytes.count)
      let count = bytes.count
      var buffer = channel.allocator.buffer(capacity: count + 1)
      if ticket.spoken == .channels { buffer.writeInteger(UInt8(1)) }
      buffer.writeBytes(bytes)
      inFlight += count
      let promise = channel.eventLoop.makePromise(of: Void.self)
      let bound = NIOLoopBound(self, eventLoop: channel.eventLoop)
      promise.futureResult.whenComplete { _ in
        bound.value.inFlight -= count
        again()
      }
      channel.write(WebSocketFrame(fin: true, opcode: .binary, data: buffer), promise: promise)
      wrote = true
    }
    if wrote { channel.flush() }
    return missed
  }

  func tell(_ notice: ConsoleNotice) {
    guard !isEnding else { return }
    guard noticesInFlight < Self.noticesMax else { return cutOff() }
    let frame: WebSocketFrame
    switch ticket.spoken {
    case .plain:
      frame = WebSocketFrame(
        fin: true, opcode: .text, data: channel.allocator.buffer(bytes: notice.json.serialize()))
    case .channels:
      guard let words = notice.words else { return }
      var buffer = channel.allocator.buffer(capacity: words.utf8.count + 16)
      buffer.writeInteger(UInt8(2))
      buffer.writeString("\r\n[console: \(words)]\r\n")
      frame = WebSocketFrame(fin: true, opcode: .binary, data: buffer)
    }
    noticesInFlight += 1
    let bound = NIOLoopBound(self, eventLoop: channel.eventLoop)
    channel.writeAndFlush(frame).whenComplete { _ in bound.value.noticesInFlight -= 1 }
  }

  private func cutOff() {
    isEnding = true
    let channel = channel
    channel.eventLoop.execute { channel.close(promise: nil) }
  }

  /// Whether its client may take the line now: not again and again, as all others are told each time.
  func mayTakeOver() -> Bool {
    let now = NIODeadline.now()
    if let tookOverAt, now - tookOverAt < .milliseconds(250) { return false }
    tookOverAt = now
    return true
  }

  func refuse(_ reason: String) {
    let now = NIODeadline.now()
    if let refusedAt, now - refusedAt < .seconds(1) { return }
    refusedAt = now
    tell(.refused(reason: reason))
  }

  func ping() { send(.ping, []) }
  func pong(_ data: [UInt8]) { send(.pong, data) }

  private func send(_ opcode: WebSocketOpcode, _ data: [UInt8]) {
    // One who takes nothing gets no answers either: they would queue up.
    guard !isEnding, channel.isWritable else { return }
    channel.writeAndFlush(
      WebSocketFrame(fin: true, opcode: opcode, data: channel.allocator.buffer(bytes: data)), promise: nil)
  }

  /// Ends the session with a status (RFC 6455, section 7.4) and a reason.
  func end(_ code: Int, _ reason: String) {
    guard !isEnding else { return }
    isEnding = true
    channel.endWebSocket(code, reason, within: .seconds(5))
  }
}
