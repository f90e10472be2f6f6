import Crypto
import JSON
import NIOCore
import NIOHTTP1
import NIOSSL
import NIOWebSocket

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// One client's connection, as long as it speaks HTTP: one request at a time, each read as a whole before it is looked at.
final class HTTPConnection: ChannelInboundHandler {
  typealias InboundIn = HTTPServerRequestPart
  typealias OutboundOut = HTTPServerResponsePart

  /// How long a stranger may take for a request that shows who they are, and anybody for one that has begun.
  static let patience: TimeAmount = .seconds(15)
  /// How long a connection without a request is kept: longer than the front proxy keeps its own.
  static let idle: TimeAmount = .seconds(300)

  /// Bytes of a request's headers together, their number, and bytes that may wait for the parser: behind the head of an
  /// upgrade it takes none.
  static let headersMax = 128 << 10
  static let headerFieldsMax = 1024
  static let unparsedMax = 384 << 10

  /// The names of the handlers that speak HTTP.
  static let encoder = "http encoder"
  static let decoder = "http decoder"

  private let service: MachineAPIService
  private let switchboard: ConsoleSwitchboard
  private let forwards: ForwardBoard
  private let census: ConnectionCensus
  private var place: ConnectionCensus.Place

  private var head: HTTPRequestHead?
  private var body: [UInt8] = []
  private var problem: APIFailure?
  /// The request that is being answered.
  private var work: Task<Void, Never>?
  private var isBusy = false
  private var timer: Scheduled<Void>?
  /// The connection is a WebSocket now: all that is left to do here is to give its place back.
  private var isWebSocket = false

  init(
    service: MachineAPIService, switchboard: ConsoleSwitchboard, forwards: ForwardBoard,
    census: ConnectionCensus, place: ConnectionCensus.Place
  ) {
    self.service = service
    self.switchboard = switchboard
    self.forwards = forwards
    self.census = census
    self.place = place
  }

  func handlerAdded(context: ChannelHandlerContext) { setTimer(Self.patience, context) }

  func channelInactive(context: ChannelHandlerContext) {
    timer?.cancel()
    work?.cancel()
    census.leave(place)
    context.fireChannelInactive()
  }

  private func reads(_ reads: Bool, _ context: ChannelHandlerContext) {
    context.channel.setOption(.autoRead, value: reads).whenComplete { _ in }
  }

  private func setTimer(_ time: TimeAmount, _ context: ChannelHandlerContext) {
    timer?.cancel()
    let channel = context.channel
    timer = context.eventLoop.scheduleTask(in: time) { channel.close(promise: nil) }
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    if isWebSocket {
      context.fireChannelRead(data)
      return
    }
    switch unwrapInboundIn(data) {
    case .head(let head):
      // Nobody who is served here sends a second request before the answer to the first.
      guard !isBusy, self.head == nil else {
        context.close(promise: nil)
        return
      }
      self.head = head
      body = []
      problem = nil
      setTimer(Self.patience, context)
    case .body(let buffer):
      guard problem == nil, !isBusy else { return }
      if body.count + buffer.readableBytes > VerbOptions.bodyMax {
        problem = APIFailure(
          413, "RequestEntityTooLarge", "the body is longer than \(VerbOptions.bodyMax) bytes")
        body = []
        // What is refused need not be read.
        if let head { refuse(head, context) }
      } else {
        body.append(contentsOf: buffer.readableBytesView)
      }
    case .end:
      guard let head, !isBusy else { return }
      answer(head, context)
    }
  }

  private func refuse(_ head: HTTPRequestHead, _ context: ChannelHandlerContext) {
    guard let problem else { return }
    isBusy = true
    write(.document(status: problem.code, body: problem.body), to: head, closing: true, context)
  }

  private func answer(_ head: HTTPRequestHead, _ context: ChannelHandlerContext) {
    isBusy = true
    timer?.cancel()
    // What comes before the answer waits in the socket: behind the head of an upgrade the parser would collect it all.
    reads(false, context)
    let certificate =
      (try? context.pipeline.syncOperations.handler(type: NIOSSLHandler.self))?.peerCertificate
      .flatMap { try? $0.toDERBytes() }
    let headers = head.headers.map { (name: $0.name, value: $0.value) }
    let request: APIRequest
    do {
      request = try APIRequest(
        method: head.method.rawValue, target: head.uri, proof: Proof(certificate: certificate, headers: headers),
        body: body)
    } catch {
      problem = error
      refuse(head, context)
      return
    }
    body = []
    let service = service
    let bound = NIOLoopBound((self, context), eventLoop: context.eventLoop)
    let loop = context.eventLoop
    // One task for each connection at most: it ends with the answer, or with the connection.
    work = Task {
      let (answer, caller) = await service.answer(request)
      loop.execute {
        let (connection, context) = bound.value
        connection.answered(answer, to: head, of: caller, context)
      }
    }
  }

  private func answered(
    _ answer: APIAnswer, to head: HTTPRequestHead, of caller: Caller?, _ context: ChannelHandlerContext
  ) {
    work = nil
    guard context.channel.isActive else { return }
    if let caller { place = census.recognize(place, isProxy: caller.isProxied) }
    switch answer {
    case .console(let ticket):
      let switchboard = switchboard
      upgrade(ticket.namesProtocol ? ticket.spoken.rawValue : nil, head, context) {
        ConsoleSocket(switchboard: switchboard, ticket: ticket)
      }
      return
    case .forward(let ticket):
      forward(ticket, head, context)
      return
    case .document, .text, .picture: break
    }
    // Behind a refused upgrade the parser takes nothing for HTTP any more.
    let isUpgrade = head.headers.contains(name: "upgrade")
    // Who has not shown who they are has a place for one request.
    write(answer, to: head, closing: isUpgrade || !head.isKeepAlive || place.isStranger, context)
  }

  private func write(
    _ answer: APIAnswer, to head: HTTPRequestHead, closing: Bool, _ context: ChannelHandlerContext
  ) {
    var headers = HTTPHeaders()
    let bytes: [UInt8]
    let status: Int
    var permit: ScreenshotPermit?
    switch answer {
    case .document(let code, let body, let retryAfter):
      status = code
      bytes = body.serialize()
      headers.add(name: "content-type", value: "application/json")
      if let retryAfter { headers.add(name: "retry-after", value: "\(retryAfter)") }
    case .text(let code, let text):
      status = code
      bytes = Array(text.utf8)
      headers.add(name: "content-type", value: "text/plain; charset=utf-8")
    case .picture(let png, let place):
      status = 200
      bytes = png
      permit = place
      headers.add(name: "content-type", value: "image/png")
      headers.add(name: "x-content-type-options", value: "nosniff")
    case .console, .forward: return
    }
    headers.add(name: "content-length", value: "\(bytes.count)")
    headers.add(name: "cache-control", value: "no-store")
    if status == 401 { headers.add(name: "www-authenticate", value: "Bearer") }
    if closing { headers.add(name: "connection", value: "close") }
    context.write(
      wrapOutboundOut(.head(.init(version: .http1_1, status: .init(statusCode: status), headers: headers))),
      promise: nil)
    context.write(wrapOutboundOut(.body(.byteBuffer(context.channel.allocator.buffer(bytes: bytes)))), promise: nil)
    let channel = context.channel
    let done = context.writeAndFlush(wrapOutboundOut(.end(nil)))
    if let permit { done.whenComplete { _ in withExtendedLifetime(permit) {} } }
    if closing {
      reads(true, context)
      // While the client still sends, an end would cost it the answer: it gets a moment to read and to leave by itself.
      if status != 413 { done.whenComplete { _ in channel.close(promise: nil) } }
      setTimer(.seconds(2), context)
      return
    }
    // Who does not take the answer gets no other one.
    setTimer(Self.patience, context)
    let bound = NIOLoopBound((self, context), eventLoop: context.eventLoop)
    done.whenSuccess {
      let (connection, context) = bound.value
      connection.head = nil
      connection.isBusy = false
      connection.reads(true, context)
      connection.setTimer(Self.idle, context)
    }
  }

  // MARK: WebSockets

  /// Connects to the machine first: that it does not accept is told as the answer to the handshake.
  private func forward(_ ticket: ForwardTicket, _ head: HTTPRequestHead, _ context: ChannelHandlerContext) {
    let channel = context.channel
    let bound = NIOLoopBound((self, context), eventLoop: context.eventLoop)
    forwards.connect(ticket, for: channel) { result in
      let (connection, context) = bound.value
      guard channel.isActive else { return }
      switch result {
      case .failure(let failure):
        connection.service.countForward(status: failure.code)
        connection.write(
          .document(status: failure.code, body: failure.body, retryAfterSeconds: failure.retryAfterSeconds), to: head,
          closing: true, context)
      case .success(let session):
        connection.service.countForward(status: 101)
        connection.upgrade(ticket.subprotocol, head, context) { ForwardSocket(session: session) }
      }
    }
  }

  /// Answers the handshake (RFC 6455, section 4.2.2) and gives the connection to what `makeSocket` makes.
  private func upgrade(
    _ subprotocol: String?, _ head: HTTPRequestHead, _ context: ChannelHandlerContext,
    makeSocket: @escaping () -> any ChannelHandler
  ) {
    let key = head.headers.first(name: "sec-websocket-key") ?? ""
    let digest = Insecure.SHA1.hash(data: Data("\(key)258EAFA5-E914-47DA-95CA-C5AB0DC85B11".utf8))
    var headers: HTTPHeaders = [
      "upgrade": "websocket", "connection": "upgrade",
      "sec-websocket-accept": Data(digest).base64EncodedString(),
    ]
    if let subprotocol { headers.add(name: "sec-websocket-protocol", value: subprotocol) }
    context.write(
      wrapOutboundOut(.head(.init(version: .http1_1, status: .switchingProtocols, headers: headers))), promise: nil)
    context.writeAndFlush(wrapOutboundOut(.end(nil)), promise: nil)
    let bound = NIOLoopBound((self, context, makeSocket), eventLoop: context.eventLoop)
    let channel = context.channel
    // What the client sent behind its handshake comes out of the parser when that goes.
    channel.pipeline.removeHandler(name: Self.encoder).flatMapThrowing {
      let sync = channel.pipeline.syncOperations
      try sync.addHandler(WebSocketFrameEncoder())
      try sync.addHandler(
        ByteToMessageHandler(WebSocketFrameDecoder(maxFrameSize: WebSocketInput.frameMax)))
      try sync.addHandler(bound.value.2())
    }.flatMap {
      let (connection, context, _) = bound.value
      connection.timer?.cancel()
      connection.isWebSocket = true
      connection.reads(true, context)
      return context.pipeline.removeHandler(name: Self.decoder)
    }.whenFailure { _ in channel.close(promise: nil) }
  }

  func errorCaught(context: ChannelHandlerContext, error: any Error) {
    // No HTTP, or no TLS: there is nobody to explain it to.
    if isWebSocket { context.fireErrorCaught(error) } else { context.close(promise: nil) }
  }
}
