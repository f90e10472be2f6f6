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

/// Connections to a machine's ports, through kube-apiserver: the machine's address is this computer's, which bm-api is told
/// not to take for its own.
@Suite(.timeLimit(.minutes(5)), .serialized) struct ForwardServerTests {
  private static let mac = "02:00:00:00:00:01"

  private func start(
    _ change: @escaping (inout ForwardLimits) -> Void = { _ in }
  ) async throws -> (Installation, GuestServer) {
    let own = AddressRule.ownAddresses().filter { $0.bytes.count == 4 && $0.objection == nil }
    let address = try #require(own.min { $0.description < $1.description }, "this computer has an address")
    let installation = try await Installation.start { configuration in
      configuration.addresses = AddressRule(
        networks: ["\(address)/32", "127.0.0.0/8"].compactMap { AddressPrefix($0) }, own: { [] })
      change(&configuration.forwards)
    }
    try await show(address.description, by: address.description, installation)
    return (installation, try await GuestServer.start(on: address.description))
  }

  /// What the machine's status and its DPU say of its address.
  private func show(_ address: String, by dpu: String, _ installation: Installation) async throws {
    _ = try await installation.client.mergePatch(
      BareMetalHost.self, name: "host-01",
      patch: [
        "status": [
          "dpu": ["interfaces": [["name": "eth0", "mac": .string(Self.mac), "address": .string(dpu)]]]
        ]
      ], subresource: "status")
    _ = try await installation.client.mergePatch(
      BareMetalMachine.self, name: Installation.machine, namespace: installation.namespace,
      patch: [
        "status": ["addresses": [["interface": "eth0", "mac": .string(Self.mac), "address": .string(address)]]]
      ], subresource: "status")
  }

  @Test func everythingArrivesAndEachDirectionEndsByItself() async throws {
    let (installation, guest) = try await start()
    let alice = try installation.client(as: "alice")
    // Several at once; none gets another's bytes.
    try await withThrowingTaskGroup(of: Void.self) { group in
      for number in 1...4 {
        group.addTask {
          let line = Forwarded(alice, installation.path("portforward"), port: guest.port)
          let sent = [UInt8](repeating: UInt8(number), count: number << 20)
          async let received = line.read()
          try await line.write(sent)
          line.end()
          let got = try await received
          #expect(got.count == sent.count + 4 && Array(got.dropLast(4)) == sent)
          // The machine wrote this after it had seen the end.
          #expect(Array(got.suffix(4)) == Array("bye\n".utf8))
          _ = await line.task.result
          #expect(line.closed == .closed(code: 1000, reason: ""))
        }
      }
      try await group.waitForAll()
    }
  }

  @Test func whoMayNotAndWhatIsNotThereIsRefusedInWords() async throws {
    let (installation, guest) = try await start()
    func refusal(
      _ user: String, port: Int, query: [(String, String)]? = nil
    ) async throws -> KubernetesError {
      let line = Forwarded(
        try installation.client(as: user), installation.path("portforward"), port: port, query: query)
      if case .failure(let error as KubernetesError) = await line.task.result { return error }
      throw TestEnvironmentError("the connection was made, but should have been refused")
    }
    for user in ["bob", "mallory"] { #expect(try await refusal(user, port: guest.port).code == .forbidden) }
    let closed = try await refusal("alice", port: try TestEnvironment.freePort())
    #expect(closed.code == .conflict && closed.message.contains("refuses connections"), "\(closed)")
    #expect(try await refusal("alice", port: 0).causes.first?.field == "port")
    #expect(try await refusal("alice", port: 1, query: []).causes.first?.field == "port")
    #expect(try await refusal("alice", port: 1, query: [("port", "1"), ("port", "2")]).causes.first?.field == "port")
    #expect(try await refusal("alice", port: 1, query: [("port", "1"), ("host", "x")]).causes.first?.field == "host")
    // The machine's word alone is none, and no word makes a loopback address a machine's.
    try await show("127.0.0.1", by: guest.address, installation)
    #expect(try await refusal("alice", port: guest.port).message.contains("no address yet"))
    try await show("127.0.0.1", by: "127.0.0.1", installation)
    #expect(try await refusal("alice", port: installation.port).message.contains("loopback"))
    #expect(guest.accepted == 0)
    let plain = await #expect(throws: KubernetesError.self) {
      _ = try await installation.client(as: "alice").request(
        method: "GET", path: installation.path("portforward"), query: [("port", "22")])
    }
    #expect(plain?.httpStatus == 400)
  }

  @Test func whatOneSideDoesNotTakeTheOtherDoesNotSend() async throws {
    let (installation, guest) = try await start()
    let line = Forwarded(try installation.client(as: "alice"), installation.path("portforward"), port: guest.port)
    // The guest sends all of it back, and nobody reads: what is sent must come to a halt.
    let whole = 96 << 20
    let writer = Task { try await line.write([UInt8](repeating: 0x78, count: whole)) }
    var before = -1
    try await eventually(within: .seconds(60), every: .seconds(1), "it comes to a halt") {
      defer { before = line.written }
      return before > 0 && line.written == before
    }
    #expect(line.written < whole - (16 << 20), "\(line.written) bytes are under way")
    // Now somebody reads, and everything is there.
    async let received = line.read()
    try await writer.value
    line.end()
    #expect(try await received.count == whole + 4)
  }

  @Test func boundsAndRightsHoldWhileConnectionsAreOpen() async throws {
    let (installation, guest) = try await start { limits in
      limits.sessionsOfOneUser = 2
      limits.sessionsOfOneMachine = 3
      limits.recheck = .milliseconds(200)
    }
    let path = installation.path("portforward")
    func open(_ user: String) async throws -> Forwarded {
      let line = Forwarded(try installation.client(as: user), path, port: guest.port)
      try await line.write(Array("hello".utf8))
      try await eventually(within: .seconds(20), "it answers") { line.available >= 5 }
      return line
    }
    let first = try await open("alice")
    let second = try await open("alice")
    func refusal(_ user: String) async throws -> String {
      let line = Forwarded(try installation.client(as: user), path, port: guest.port)
      guard case .failure(let error as KubernetesError) = await line.task.result else { return "none" }
      #expect(error.code == .tooManyRequests)
      return error.message
    }
    #expect(try await refusal("alice").contains("you have 2"))
    let other = try await open("carol")
    #expect(try await refusal("carol").contains("to machine bm-01"))
    // A place comes back with the end of a connection, also with one that nobody ended in an orderly way.
    first.task.cancel()
    _ = await first.task.result
    try await eventually(within: .seconds(20), "there is a place again") {
      let again = Forwarded(try installation.client(as: "alice"), path, port: guest.port)
      defer { again.task.cancel() }
      try await again.write(Array("x".utf8))
      try await eventually(within: .seconds(2), "it answers") { again.available == 1 }
      return true
    }
    try await installation.plane.kubectl("delete", "rolebinding", "alice-edit", "-n", installation.namespace)
    try await eventually(within: .seconds(30), "it is closed") { second.closed != nil }
    #expect(
      second.closed == .closed(code: 1008, reason: "you are not allowed to use this connection any more"))
    #expect(other.closed == nil)
    // The machine sees that it was broken off.
    try await eventually(within: .seconds(20), "only carol's is left") { guest.open == 1 }
    other.task.cancel()
  }

  /// Python's client goes the whole way; what breaks the rules ends alone.
  @Test func anotherClientIsServedAndAbuseIsEnded() async throws {
    let (installation, guest) = try await start()
    let result = try await installation.python(
      "forward", path: "\(installation.path("portforward"))?port=\(guest.port)")
    #expect(result["echo"]?.stringValue == "hellobye\n")
    #expect(result["ended"]?.boolValue == true)
    #expect(result["status"]?.intValue == 1000)
    #expect(result["giant"]?.intValue == 1009)
    #expect(result["unmasked"]?.intValue == 1002)
    #expect(result["afterTheEnd"]?.intValue == 1002)
    #expect(result["words"]?.intValue == 1008)
    #expect(result["witness"]?.stringValue == "still here")
    #expect(result["unspoken"]?.intValue == 400)
    try await eventually(within: .seconds(20), "the machine's connections are gone") { guest.open == 0 }
  }

  @Test func whatNobodyUsesIsClosed() async throws {
    let (installation, guest) = try await start { limits in
      limits.ping = .milliseconds(100)
      limits.idle = .seconds(1)
    }
    let line = Forwarded(try installation.client(as: "alice"), installation.path("portforward"), port: guest.port)
    try await eventually(within: .seconds(20), "it is closed") { line.closed != nil }
    #expect(line.closed == .closed(code: 1001, reason: "nothing was carried for a long time"))
    try await eventually(within: .seconds(20), "the machine sees it") { guest.open == 0 }
  }

  @Test func bmctlForwardsSeveralConnectionsAtOnce() async throws {
    let (installation, guest) = try await start()
    let bmctl = try TestEnvironment.builtProduct("bmctl")
    let closed = try TestEnvironment.freePort()
    let child = try ChildProcess(
      bmctl,
      [
        "port-forward", Installation.machine, ":\(guest.port)", ":\(closed)", "-n", installation.namespace,
        "--kubeconfig", installation.plane.kubeconfig,
      ])
    defer { child.kill() }
    try await eventually(within: .seconds(20), "it listens") {
      child.output.split(separator: "\n").count { $0.hasPrefix("127.0.0.1:") } == 2
    }
    func port(_ remote: Int) throws -> Int {
      let line = try #require(child.output.split(separator: "\n").first { $0.contains("is port \(remote) of") })
      return try #require(Int(line.dropFirst("127.0.0.1:".count).prefix { $0 != " " }))
    }
    let local = try port(guest.port)
    try await withThrowingTaskGroup(of: Void.self) { group in
      for number in 1...5 {
        group.addTask {
          let text = try await ChildProcess.run(
            "python3",
            [
              "-c",
              """
              import socket, sys
              s = socket.create_connection(("127.0.0.1", \(local)), 20)
              s.sendall(b"\(number)" * 100000)
              s.shutdown(socket.SHUT_WR)
              got = b""
              while part := s.recv(65536): got += part
              print(got == b"\(number)" * 100000 + b"bye\\n")
              """,
            ], within: .seconds(60))
          #expect(text.contains("True"))
        }
      }
      try await group.waitForAll()
    }
    // A connection that the machine refuses ends alone, and says why.
    let refused = try port(closed)
    _ = try await ChildProcess.run(
      "python3",
      [
        "-c",
        """
        import socket
        s = socket.create_connection(("127.0.0.1", \(refused)), 20)
        try: assert s.recv(1) == b""
        except ConnectionResetError: pass
        """,
      ], within: .seconds(30))
    try await eventually(within: .seconds(20), "the refusal is told") { child.output.contains("refuses connections") }
    kill(child.pid, SIGINT)
    #expect(try await child.waitForExit() != .code(0))
    #expect(!child.output.contains("bye"))
  }
}

/// A connection through the API server, whose one end is a socket here.
private final class Forwarded: Sendable {
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

/// What listens in the guest: it sends back what it gets, and says goodbye when nothing more comes. What is not taken from
/// it, it does not read.
private final class GuestServer: Sendable {
  let address: String
  let port: Int
  private let server: any Channel
  private let counts: Counts

  fileprivate final class Counts: Sendable {
    let accepted = Atomic(0)
    let open = Atomic(0)
  }

  var accepted: Int { counts.accepted.load(ordering: .relaxed) }
  var open: Int { counts.open.load(ordering: .relaxed) }

  private init(address: String, server: any Channel, counts: Counts) {
    self.address = address
    self.server = server
    self.counts = counts
    port = server.localAddress?.port ?? 0
  }

  deinit { server.close(promise: nil) }

  static func start(on address: String) async throws -> GuestServer {
    let counts = Counts()
    let server = try await ServerBootstrap(group: MultiThreadedEventLoopGroup.singleton)
      .childChannelOption(.allowRemoteHalfClosure, value: true)
      .childChannelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          try channel.pipeline.syncOperations.addHandler(Echo(counts))
        }
      }
      .bind(host: address, port: 0).get()
    return GuestServer(address: address, server: server, counts: counts)
  }

  private final class Echo: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    private let counts: Counts

    init(_ counts: Counts) { self.counts = counts }

    func channelActive(context: ChannelHandlerContext) {
      counts.accepted.wrappingAdd(1, ordering: .relaxed)
      counts.open.wrappingAdd(1, ordering: .relaxed)
    }

    func channelInactive(context: ChannelHandlerContext) { counts.open.wrappingSubtract(1, ordering: .relaxed) }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
      context.writeAndFlush(data, promise: nil)
    }

    func channelWritabilityChanged(context: ChannelHandlerContext) {
      context.channel.setOption(.autoRead, value: context.channel.isWritable).whenComplete { _ in }
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
      guard case ChannelEvent.inputClosed? = event as? ChannelEvent else { return }
      let channel = context.channel
      context.writeAndFlush(NIOAny(channel.allocator.buffer(string: "bye\n")))
        .whenComplete { _ in channel.close(promise: nil) }
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) { context.close(promise: nil) }
  }
}
