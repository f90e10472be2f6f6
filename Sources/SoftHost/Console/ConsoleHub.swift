import JSONRPC
package import Logging
import NIOCore
import NIOPosix
import Telemetry

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// Shares one serial line among many: every reader gets what the guest writes, every writer is heard by the guest.
///
/// Everything happens on one event loop. Nothing here can hold up the guest: its output is always taken, and a reader
/// that does not keep up misses some of it.
package final class ConsoleHub: Sendable {
  /// Bytes that a late reader gets to see.
  package static let historyMax = 64 << 10
  /// Readers and writers at a time.
  package static let clientsMax = 64
  /// Bytes on their way to a guest that does not read its line; more are lost, as on a real line.
  private static let inputMax = 256 << 10

  private struct Client {
    let channel: any Channel
    var reader = ConsoleReader()
  }

  private struct State {
    var clients: [ObjectIdentifier: Client] = [:]
    var history = ConsoleHistory(limit: ConsoleHub.historyMax)
    var guest: (any Channel)?
    var inputWaiting = 0
    var log: ConsoleLog?
  }

  private let loop: any EventLoop
  private let state: NIOLoopBoundBox<State>
  private let socketPath: String
  private let serialPath: String
  private let started: Doorbell
  /// How often a serial line that is not there is looked for without being told. One that is there has no time limit:
  /// a console may be silent for days.
  private let lookAgain: Duration
  private let logger: Logger
  private let metrics: SoftHostMetrics

  /// - Parameters:
  ///   - socketPath: where readers and writers connect.
  ///   - serialPath: QEMU's side of the serial line; it is there while the server is on.
  ///   - started: rings when the server was switched on.
  package init(
    socketPath: String, serialPath: String, logPath: String, started: Doorbell, lookAgain: Duration = .seconds(5),
    metrics: SoftHostMetrics, logger: Logger
  ) {
    self.lookAgain = lookAgain
    self.socketPath = socketPath
    self.serialPath = serialPath
    self.started = started
    self.logger = logger
    self.metrics = metrics
    let loop = MultiThreadedEventLoopGroup.singleton.next()
    self.loop = loop
    var state = State()
    if !logPath.isEmpty {
      let log = ConsoleLog(path: logPath)
      log.rotateIfLong()
      state.history.append(log.present(ConsoleHub.historyMax))
      state.log = log
    }
    self.state = NIOLoopBoundBox.makeBoxSendingValue(state, eventLoop: loop)
  }

  /// Serves until cancelled. Throws `SoftHostError` where the socket cannot be made.
  package func run() async throws {
    let server = try await listen()
    do {
      while true {
        try await connectToGuest()
        // A machine that was switched off has closed the line; the bell tells when there is a new one.
        try await started.wait(upTo: lookAgain)
      }
    } catch {
      try? await server.close()
      unlink(socketPath)
      try? await loop.submit { self.closeAll() }.get()
      if error is CancellationError { return }
      throw error
    }
  }

  private func listen() async throws -> any Channel {
    let descriptor: CInt
    do {
      descriptor = try UnixSocket.listen(path: socketPath, mode: 0o600)
    } catch {
      throw SoftHostError(.file, operation: "listen at \(socketPath)", message: error.message, cause: error)
    }
    return try await ServerBootstrap(group: loop)
      .childChannelInitializer { channel in
        channel.pipeline.addHandler(ClientHandler(hub: self))
      }
      .withBoundSocket(descriptor).get()
  }

  /// Connects to the serial line and returns when it is closed, or at once where there is none.
  private func connectToGuest() async throws {
    guard access(serialPath, F_OK) == 0 else { return }
    let channel: any Channel
    do {
      channel = try await ClientBootstrap(group: loop)
        .channelInitializer { channel in channel.pipeline.addHandler(GuestHandler(hub: self)) }
        .connect(unixDomainSocketPath: serialPath).get()
    } catch {
      return
    }
    try await withTaskCancellationHandler {
      try? await channel.closeFuture.get()
      try Task.checkCancellation()
    } onCancel: {
      channel.close(promise: nil)
    }
  }

  // MARK: - On the loop

  fileprivate func guestConnected(_ channel: any Channel) {
    state.value.guest = channel
    state.value.inputWaiting = 0
    // Another server, or the same one switched on anew, maybe for somebody else: what was before is not shown any more.
    // What it has written already is in the log.
    state.value.history = ConsoleHistory(limit: ConsoleHub.historyMax)
    if let log = state.value.log { state.value.history.append(log.present(ConsoleHub.historyMax)) }
  }

  fileprivate func guestGone() { state.value.guest = nil }

  fileprivate func guestWrote(_ buffer: ByteBuffer) {
    state.value.history.append(buffer.readableBytesView)
    state.value.log?.wrote(buffer.readableBytes)
    metrics.consoleBytes.increment(by: Double(buffer.readableBytes))
    for id in Array(state.value.clients.keys) { offer(buffer, to: id) }
  }

  fileprivate func guestPaused() {
    for client in state.value.clients.values { client.channel.flush() }
  }

  private func offer(_ buffer: ByteBuffer, to id: ObjectIdentifier) {
    guard var client = state.value.clients[id] else { return }
    let isWanted = client.reader.offer(buffer.readableBytes)
    state.value.clients[id] = client
    guard isWanted else { return }
    let promise = loop.makePromise(of: Void.self)
    promise.futureResult.whenComplete { [weak self] _ in self?.sent(buffer.readableBytes, to: id) }
    client.channel.write(buffer, promise: promise)
  }

  private func sent(_ count: Int, to id: ObjectIdentifier) {
    guard var client = state.value.clients[id] else { return }
    let missed = client.reader.sent(count)
    state.value.clients[id] = client
    guard let missed else { return }
    let tail = state.value.history.content.suffix(missed)
    var bytes = client.channel.allocator.buffer(capacity: tail.count + 64)
    metrics.consoleSkipped.increment(by: Double(missed - tail.count))
    if missed > tail.count { bytes.writeString("\r\n[console: \(missed - tail.count) bytes skipped]\r\n") }
    bytes.writeBytes(tail)
    offer(bytes, to: id)
    client.channel.flush()
  }

  fileprivate func joined(_ channel: any Channel) {
    guard state.value.clients.count < ConsoleHub.clientsMax else {
      logger.warning("too many console clients", metadata: ["limit": "\(ConsoleHub.clientsMax)"])
      channel.close(promise: nil)
      return
    }
    let id = ObjectIdentifier(channel)
    state.value.clients[id] = Client(channel: channel)
    metrics.consoleClients.set(Double(state.value.clients.count))
    let history = state.value.history.content
    if !history.isEmpty {
      offer(ByteBuffer(bytes: history), to: id)
      channel.flush()
    }
  }

  fileprivate func left(_ channel: any Channel) {
    state.value.clients[ObjectIdentifier(channel)] = nil
    metrics.consoleClients.set(Double(state.value.clients.count))
  }

  fileprivate func clientWrote(_ buffer: ByteBuffer) {
    guard let guest = state.value.guest else { return }
    let count = buffer.readableBytes
    guard state.value.inputWaiting + count <= ConsoleHub.inputMax else { return }
    state.value.inputWaiting += count
    let promise = loop.makePromise(of: Void.self)
    promise.futureResult.whenComplete { [weak self] _ in self?.state.value.inputWaiting -= count }
    guest.writeAndFlush(buffer, promise: promise)
  }

  private func closeAll() {
    state.value.guest?.close(promise: nil)
    for client in state.value.clients.values { client.channel.close(promise: nil) }
  }
}

private final class GuestHandler: ChannelInboundHandler, Sendable {
  typealias InboundIn = ByteBuffer
  private let hub: ConsoleHub

  init(hub: ConsoleHub) { self.hub = hub }

  func channelActive(context: ChannelHandlerContext) { hub.guestConnected(context.channel) }
  func channelRead(context: ChannelHandlerContext, data: NIOAny) { hub.guestWrote(unwrapInboundIn(data)) }
  func channelReadComplete(context: ChannelHandlerContext) { hub.guestPaused() }
  func channelInactive(context: ChannelHandlerContext) { hub.guestGone() }
  func errorCaught(context: ChannelHandlerContext, error: any Error) { context.close(promise: nil) }
}

private final class ClientHandler: ChannelInboundHandler, Sendable {
  typealias InboundIn = ByteBuffer
  private let hub: ConsoleHub

  init(hub: ConsoleHub) { self.hub = hub }

  func channelActive(context: ChannelHandlerContext) { hub.joined(context.channel) }
  func channelRead(context: ChannelHandlerContext, data: NIOAny) { hub.clientWrote(unwrapInboundIn(data)) }
  func channelInactive(context: ChannelHandlerContext) { hub.left(context.channel) }
  func errorCaught(context: ChannelHandlerContext, error: any Error) { context.close(promise: nil) }
}
