import NIOCore
import NIOPosix
import Telemetry

/// One server's serial line, shared among those who have its console open. Everything happens on the event loop.
final class ConsoleLine {
  let key: ConsoleLineKey
  let socketPath: String
  /// Names this tape: a place on it is no place on another.
  let epoch: String
  private let loop: any EventLoop
  private let metrics: ConsoleMetrics
  private let limits: ConsoleLimits
  private(set) var sessions: [Int: ConsoleSession] = [:]
  private var tape: ConsoleTape
  private var seat = WriterSeat()
  private var server: (any Channel)?
  private var toServer = 0
  private var isUp = false
  private var isClosed = false
  /// Since when nobody has it open.
  private(set) var idleSince: NIODeadline? = .now()

  init(_ ticket: ConsoleTicket, loop: any EventLoop, limits: ConsoleLimits, metrics: ConsoleMetrics) {
    key = ticket.line
    socketPath = ticket.socketPath
    self.loop = loop
    self.limits = limits
    self.metrics = metrics
    tape = ConsoleTape(capacity: limits.tapeBytes)
    epoch = String(UInt64.random(in: .min ... .max), radix: 36)
    connect()
  }

  // MARK: Sessions

  func join(_ session: ConsoleSession) {
    sessions[session.id] = session
    idleSince = nil
    session.begin(on: tape, epoch: epoch, history: limits.historyBytes)
    if session.ticket.takesOver, !session.ticket.isReadOnly { takeOver(session) }
    if let holder = seat.holder, holder.session != session.id {
      session.tell(.writer(user: holder.user, isYou: false))
    }
    if !isUp { session.tell(.line(isUp: false)) }
    pump(session.id)
  }

  func leave(_ id: Int) {
    guard sessions.removeValue(forKey: id) != nil else { return }
    if seat.leave(session: id) { tellWriter() }
    if sessions.isEmpty { idleSince = .now() }
  }

  func typed(_ bytes: [UInt8], by id: Int) {
    guard let session = sessions[id] else { return }
    guard !session.ticket.isReadOnly else {
      session.refuse("this session only reads (readOnly)")
      return
    }
    switch seat.type(session: id, user: session.ticket.identity.user) {
    case .refused(let holder):
      session.refuse("\(holder) has the line; take it with takeover=true")
      return
    case .tookSeat: tellWriter()
    case .mayType: break
    }
    guard let server, isUp else {
      session.refuse("the server's line is away; what was typed is lost")
      return
    }
    guard toServer + bytes.count <= limits.inputBytes else {
      session.refuse("the server does not read its line; \(bytes.count) bytes are lost")
      return
    }
    toServer += bytes.count
    let bound = NIOLoopBound(self, eventLoop: loop)
    server.writeAndFlush(server.allocator.buffer(bytes: bytes)).whenComplete { _ in
      bound.value.toServer -= bytes.count
    }
  }

  func takeOver(_ session: ConsoleSession) {
    guard !session.ticket.isReadOnly else {
      session.refuse("this session only reads (readOnly)")
      return
    }
    guard session.mayTakeOver() else {
      session.refuse("the line was taken over just now; wait a moment")
      return
    }
    if seat.takeOver(session: session.id, user: session.ticket.identity.user) { tellWriter() }
  }

  private func tellWriter() {
    for session in sessions.values {
      session.tell(.writer(user: seat.holder?.user, isYou: seat.holder?.session == session.id))
    }
  }

  private func pump(_ id: Int) {
    guard let session = sessions[id] else { return }
    let bound = NIOLoopBound(self, eventLoop: loop)
    let missed = session.pump(tape, epoch: epoch) { bound.value.pump(id) }
    if missed > 0 { metrics.skipped.increment(by: Double(missed)) }
  }

  // MARK: The server's side

  private func connect() {
    guard !isClosed else { return }
    let bound = NIOLoopBound(self, eventLoop: loop)
    ClientBootstrap(group: loop)
      .channelOption(.maxMessagesPerRead, value: 4)
      .channelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          try channel.pipeline.syncOperations.addHandler(ServerLineHandler(line: bound.value))
        }
      }
      .connectTimeout(.seconds(5))
      .connect(unixDomainSocketPath: socketPath)
      .whenFailure { _ in bound.value.serverGone() }
  }

  fileprivate func serverCame(_ channel: any Channel) {
    guard !isClosed else {
      channel.close(promise: nil)
      return
    }
    server = channel
    toServer = 0
    if !isUp {
      isUp = true
      for session in sessions.values { session.tell(.line(isUp: true)) }
    }
  }

  fileprivate func serverGone() {
    server = nil
    if isUp {
      isUp = false
      for session in sessions.values { session.tell(.line(isUp: false)) }
    }
    guard !isClosed else { return }
    let bound = NIOLoopBound(self, eventLoop: loop)
    loop.scheduleTask(in: limits.reconnect) { bound.value.connect() }
  }

  fileprivate func serverWrote(_ buffer: ByteBuffer) {
    tape.append(buffer.readableBytesView)
    metrics.bytes.increment(by: Double(buffer.readableBytes))
  }

  fileprivate func serverPaused() {
    for id in sessions.keys { pump(id) }
  }

  /// Ends all sessions and lets the server's line go.
  func close(_ code: Int, _ reason: String) {
    isClosed = true
    for session in sessions.values { session.end(code, reason) }
    server?.close(promise: nil)
  }
}

private final class ServerLineHandler: ChannelInboundHandler {
  typealias InboundIn = ByteBuffer
  private let line: ConsoleLine

  init(line: ConsoleLine) { self.line = line }

  func channelActive(context: ChannelHandlerContext) { line.serverCame(context.channel) }
  func channelRead(context: ChannelHandlerContext, data: NIOAny) { line.serverWrote(unwrapInboundIn(data)) }
  func channelReadComplete(context: ChannelHandlerContext) { line.serverPaused() }
  func channelInactive(context: ChannelHandlerContext) { line.serverGone() }
  func errorCaught(context: ChannelHandlerContext, error: any Error) { context.close(promise: nil) }
}
