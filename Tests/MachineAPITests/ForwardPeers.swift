import Glibc
import IaaS
import JSON
import Kubernetes
import MachineAPI
import NIOCore
import NIOPosix
import Synchronization
import TestSupport
import Testing

extension Installation {
  /// With a machine whose address is this computer's, which bm-api is told not to take for its own, and a service there.
  static func startWithService(
    _ manner: GuestServer.Manner = .echo, _ change: @escaping (inout ForwardLimits) -> Void = { _ in }
  ) async throws -> (Installation, GuestServer) {
    let own = try #require(AddressRule.ownAddresses()).filter { $0.bytes.count == 4 && $0.objection == nil }
    let address = try #require(own.min { $0.description < $1.description }, "this computer has an address")
    let installation = try await Installation.start { configuration in
      configuration.addresses = AddressRule(
        networks: ["\(address)/32", "127.0.0.0/8"].compactMap { AddressPrefix($0) }, own: { [] })
      change(&configuration.forwards)
    }
    try await installation.show(address.description, by: address.description)
    return (installation, try await GuestServer.start(on: address.description, manner))
  }

  /// What the machine's status and its DPU say of its address.
  /// - Parameter isProven: whether the DPU saw the guest use it.
  func show(_ address: String, by dpu: String, isProven: Bool = true) async throws {
    let mac = "02:00:00:00:00:01"
    _ = try await client.mergePatch(
      BareMetalHost.self, name: "host-01",
      patch: [
        "status": [
          "dpu": [
            "interfaces": [
              [
                "name": "eth0", "mac": .string(mac), "address": .string(dpu),
                "leasedAt": isProven ? .string(MicroTimestamp.now().description) : .null,
              ]
            ]
          ]
        ]
      ], subresource: "status")
    _ = try await client.mergePatch(
      BareMetalMachine.self, name: Installation.machine, namespace: namespace,
      patch: [
        "status": ["addresses": [["interface": "eth0", "mac": .string(mac), "address": .string(address)]]]
      ], subresource: "status")
  }
}

/// A connection through the API server, whose one end is a socket here.
final class Forwarded: Sendable {
  let task: Task<Void, any Error>
  private let socket: CInt
  private let seen = Seen()

  init(_ client: KubernetesClient, _ path: String, port: Int, query: [(String, String)]? = nil) {
    var ends: [CInt] = [-1, -1]
    socketpair(AF_UNIX, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_NONBLOCK.rawValue), 0, &ends)
    socket = ends[0]
    let far = ends[1]
    let seen = seen
    task = Task {
      try await client.carry(
        path: path, query: query ?? [("port", "\(port)")], subprotocol: "portforward.iaas.yusur.io",
        ending: Array(#"{"type":"end"}"#.utf8), over: far
      ) { event in
        if case .closed = event { seen.closed.withLock { $0 = event } }
      }
    }
  }

  private final class Seen: Sendable {
    let closed = Mutex<WebSocketEvent?>(nil)
    let written = Mutex(0)
  }

  deinit {
    task.cancel()
    close(socket)
  }

  var closed: WebSocketEvent? { seen.closed.withLock { $0 } }
  var written: Int { seen.written.withLock { $0 } }

  /// Bytes that came and were not read.
  var available: Int {
    var buffer = [UInt8](repeating: 0, count: 4096)
    return max(0, recv(socket, &buffer, buffer.count, CInt(MSG_PEEK) | CInt(MSG_DONTWAIT)))
  }

  func write(_ bytes: [UInt8]) async throws {
    var place = 0
    while place < bytes.count {
      let count = bytes.withUnsafeBytes {
        send(socket, $0.baseAddress?.advanced(by: place), min(1 << 20, bytes.count - place), CInt(MSG_NOSIGNAL))
      }
      if count > 0 {
        place += count
        seen.written.withLock { $0 += count }
      } else if errno == EAGAIN {
        try await Task.sleep(for: .milliseconds(1))
      } else {
        throw TestEnvironmentError("the connection broke: \(String(cString: strerror(errno)))")
      }
    }
  }

  func end() { shutdown(socket, CInt(SHUT_WR)) }

  /// Everything until the end.
  func read() async throws -> [UInt8] {
    var all: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 1 << 18)
    while true {
      let count = recv(socket, &buffer, buffer.count, 0)
      if count > 0 {
        all += buffer[..<count]
      } else if count == 0 {
        return all
      } else if errno == EAGAIN {
        try await Task.sleep(for: .milliseconds(1))
      } else {
        throw TestEnvironmentError("the connection broke: \(String(cString: strerror(errno)))")
      }
    }
  }
}

/// What listens in the guest.
final class GuestServer: Sendable {
  let address: String
  let port: Int
  private let server: any Channel
  private let counts: Counts

  fileprivate final class Counts: Sendable {
    let accepted = Atomic(0)
    let open = Atomic(0)
    let received = Atomic(0)
    let ended = Atomic(0)
    let broken = Atomic(0)
  }

  /// What a guest's service does.
  enum Manner: Sendable {
    /// Sends back what it gets, and says goodbye when nothing more comes. What is not taken from it, it does not read.
    case echo
    /// Sends so many bytes and ends its direction, but reads on until the other one ends.
    case pour(Int)
  }

  /// Bytes that came, connections whose other side ended its direction, and those that were broken off.
  var received: Int { counts.received.load(ordering: .relaxed) }
  var ended: Int { counts.ended.load(ordering: .relaxed) }
  var broken: Int { counts.broken.load(ordering: .relaxed) }
  var accepted: Int { counts.accepted.load(ordering: .relaxed) }
  var open: Int { counts.open.load(ordering: .relaxed) }

  private init(address: String, server: any Channel, counts: Counts) {
    self.address = address
    self.server = server
    self.counts = counts
    port = server.localAddress?.port ?? 0
  }

  deinit { server.close(promise: nil) }

  static func start(on address: String, _ manner: Manner = .echo) async throws -> GuestServer {
    let counts = Counts()
    let server = try await ServerBootstrap(group: MultiThreadedEventLoopGroup.singleton)
      .childChannelOption(.allowRemoteHalfClosure, value: true)
      .childChannelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          try channel.pipeline.syncOperations.addHandler(Service(counts, manner))
        }
      }
      .bind(host: address, port: 0).get()
    return GuestServer(address: address, server: server, counts: counts)
  }

  private final class Service: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    private let counts: Counts
    private let manner: Manner
    private var isBroken = false

    init(_ counts: Counts, _ manner: Manner) {
      self.counts = counts
      self.manner = manner
    }

    func channelActive(context: ChannelHandlerContext) {
      counts.accepted.wrappingAdd(1, ordering: .relaxed)
      counts.open.wrappingAdd(1, ordering: .relaxed)
      guard case .pour(let count) = manner else { return }
      let channel = context.channel
      context.writeAndFlush(NIOAny(channel.allocator.buffer(repeating: 0x78, count: count)))
        .whenSuccess { channel.close(mode: .output, promise: nil) }
    }

    func channelInactive(context: ChannelHandlerContext) {
      counts.open.wrappingSubtract(1, ordering: .relaxed)
      // Behind the end of its own direction, NIO tells the other's as that of the whole connection.
      if case .pour = manner, !isBroken { counts.ended.wrappingAdd(1, ordering: .relaxed) }
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
      counts.received.wrappingAdd(unwrapInboundIn(data).readableBytes, ordering: .relaxed)
      if case .echo = manner { context.writeAndFlush(data, promise: nil) }
    }

    func channelWritabilityChanged(context: ChannelHandlerContext) {
      guard case .echo = manner else { return }
      context.channel.setOption(.autoRead, value: context.channel.isWritable).whenComplete { _ in }
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
      guard case ChannelEvent.inputClosed? = event as? ChannelEvent else { return }
      guard case .echo = manner else { return }
      counts.ended.wrappingAdd(1, ordering: .relaxed)
      let channel = context.channel
      context.writeAndFlush(NIOAny(channel.allocator.buffer(string: "bye\n")))
        .whenComplete { _ in channel.close(promise: nil) }
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
      isBroken = true
      counts.broken.wrappingAdd(1, ordering: .relaxed)
      context.close(promise: nil)
    }
  }
}
