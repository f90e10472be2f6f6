package import NIOCore
import NIOHTTP1
import NIOPosix
package import NIOSSL
package import SoftHost

/// HTTPS for many BMCs in one process: each has an address of its own in 127.0.0.0/8, all the same port.
///
/// One address for each BMC, because that is what a BMC is to its clients: what shares a login, a lock-out and a turn.
package final class FleetListener: Sendable {
  package typealias Respond = @Sendable (_ host: Int, RedfishRequest) async throws -> SimulatedBMC.Outcome

  private let channels: [any Channel]
  package let port: Int

  /// Hosts that have an address.
  package static let hostsMax = 60_000

  /// The address of the BMC of a host, counted from 0.
  package static func address(of host: Int) -> String { "127.77.\(host / 250).\(host % 250 + 1)" }

  private init(channels: [any Channel], port: Int) {
    self.channels = channels
    self.port = port
  }

  /// Begins to listen for so many hosts.
  /// - Parameter port: 0 takes one that is free on all addresses.
  package static func open(
    hosts: Int, port: Int, tls: NIOSSLContext, group: any EventLoopGroup, respond: @escaping Respond
  ) async throws -> FleetListener {
    var mistake: (any Error)?
    for _ in 0..<(port == 0 ? 10 : 1) {
      var channels: [any Channel] = []
      do {
        var taken = port
        for host in 0..<hosts {
          let channel = try await bind(host, port: taken, tls: tls, group: group, respond: respond)
          channels.append(channel)
          taken = channel.localAddress?.port ?? taken
        }
        return FleetListener(channels: channels, port: taken)
      } catch {
        mistake = error
        for channel in channels { try? await channel.close() }
        try Task.checkCancellation()
      }
    }
    throw FleetError(
      "listen for \(hosts) BMCs on 127.77.0.0/16, port \(port)",
      "\(mistake.map { "\($0)" } ?? "no port is free"); is another simulation running, and does the limit of open files "
        + "(ulimit -n) allow it?")
  }

  private static func bind(
    _ host: Int, port: Int, tls: NIOSSLContext, group: any EventLoopGroup, respond: @escaping Respond
  ) async throws -> any Channel {
    try await ServerBootstrap(group: group)
      .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
      .serverChannelOption(.backlog, value: 16)
      .childChannelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          let pipeline = channel.pipeline.syncOperations
          try pipeline.addHandler(NIOSSLServerHandler(context: tls))
          try pipeline.configureHTTPServerPipeline()
          try pipeline.addHandler(FleetConnection(host: host, respond: respond))
        }
      }
      .childChannelOption(.socketOption(.tcp_nodelay), value: 1)
      .bind(host: address(of: host), port: port).get()
  }

  package func close() async {
    for channel in channels { try? await channel.close() }
  }
}

/// One connection to a BMC: one request after the other, as HTTP/1.1 has them.
private final class FleetConnection: ChannelInboundHandler {
  typealias InboundIn = HTTPServerRequestPart
  typealias OutboundOut = HTTPServerResponsePart

  private let host: Int
  private let respond: FleetListener.Respond
  private var head: HTTPRequestHead?
  private var body: [UInt8] = []
  private static let bodyMax = 64 << 10

  init(host: Int, respond: @escaping FleetListener.Respond) {
    self.host = host
    self.respond = respond
  }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    switch unwrapInboundIn(data) {
    case .head(let head):
      self.head = head
      body = []
    case .body(let part):
      body += part.readableBytesView
      if body.count > Self.bodyMax { context.close(promise: nil) }
    case .end:
      guard let head else { return }
      self.head = nil
      answer(head, context)
    }
  }

  private func answer(_ head: HTTPRequestHead, _ context: ChannelHandlerContext) {
    let path = head.uri.prefix { $0 != "?" }
    var headers: [String: String] = [:]
    for (name, value) in head.headers { headers[name.lowercased()] = value }
    let request = RedfishRequest(method: head.method.rawValue, path: String(path), headers: headers, body: body)
    let (host, respond) = (host, respond)
    context.eventLoop.makeFutureWithTask { try await respond(host, request) }
      .assumeIsolated().whenComplete { [self] result in
        guard context.channel.isActive, case .success(.reply(let reply)) = result else {
          context.close(promise: nil)
          return
        }
        write(reply, to: head, context)
      }
  }

  private func write(_ reply: RedfishReply, to request: HTTPRequestHead, _ context: ChannelHandlerContext) {
    let content = reply.content
    var headers = HTTPHeaders(reply.headers.map { ($0.key, $0.value) })
    headers.replaceOrAdd(name: "content-length", value: "\(content?.bytes.count ?? 0)")
    if let content { headers.replaceOrAdd(name: "content-type", value: content.type) }
    if reply.status == 204 || reply.status == 304 { headers.remove(name: "content-length") }
    if !request.isKeepAlive { headers.replaceOrAdd(name: "connection", value: "close") }
    let head = HTTPResponseHead(version: request.version, status: .init(statusCode: reply.status), headers: headers)
    context.write(wrapOutboundOut(.head(head)), promise: nil)
    if let content, request.method != .HEAD {
      context.write(wrapOutboundOut(.body(.byteBuffer(ByteBuffer(bytes: content.bytes)))), promise: nil)
    }
    let isLast = !request.isKeepAlive
    context.writeAndFlush(wrapOutboundOut(.end(nil))).assumeIsolated().whenComplete { _ in
      if isLast { context.close(promise: nil) }
    }
  }

  func errorCaught(context: ChannelHandlerContext, error: any Error) { context.close(promise: nil) }
}
