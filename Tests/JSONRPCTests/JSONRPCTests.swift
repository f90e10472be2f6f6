import Dispatch
import Glibc
import JSON
import JSONRPC
import Synchronization
import TestSupport
import Testing

@Suite struct MessageTests {
  @Test func leavesOutEmptyParameters() {
    #expect(Request(id: 1, method: "m", params: [:]).json == ["jsonrpc": "2.0", "id": 1, "method": "m"])
    #expect(Request(id: nil, method: "m", params: [1]).json == ["jsonrpc": "2.0", "method": "m", "params": [1]])
  }

  @Test(arguments: [
    #"{"jsonrpc": "1.0", "id": 1, "method": "m"}"#, #"{"id": 1, "method": "m"}"#, #"{"jsonrpc": "2.0", "id": 1}"#,
    #"{"jsonrpc": "2.0", "id": {}, "method": "m"}"#, #"{"jsonrpc": "2.0", "id": 1, "method": "m", "params": 5}"#,
    #"{"jsonrpc": "2.0", "id": 1, "method": 7}"#, "[]",
  ])
  func refusesRequestsThatBreakTheSpecification(text: String) throws {
    #expect(Request.parse(try JSONValue.parse(text)) == .failure(.invalidRequest))
  }

  @Test func readsResponses() throws {
    #expect(Response(["id": 1, "result": nil]) == Response(id: 1, result: .success(.null)))
    #expect(
      Response(["id": "x", "error": ["code": -19, "message": "No such device"]])
        == Response(id: "x", result: .failure(ResponseError(code: -19, message: "No such device"))))
    #expect(Response(["id": 1]) == nil)
    #expect(Response(["method": "event"]) == nil)
  }
}

/// A server whose methods answer in ways that clients have to cope with.
@Suite struct ClientAndServerTests {
  private static func serve(_ path: String, onNever: @escaping @Sendable () -> Void = {}) throws -> JSONRPCServer {
    let held = Mutex<[@Sendable () -> Void]>([])
    let server = JSONRPCServer(path: path, maximumLength: 1 << 16) { request, reply in
      switch request.method {
      case "echo": reply(.success(request.params ?? .null))
      case "hold": held.withLock { $0.append { reply(.success("held")) } }
      case "release":
        let waiting = held.withLock { held in
          defer { held = [] }
          return held
        }
        reply(.success("released"))
        for reply in waiting.reversed() { reply() }
      case "refuse": reply(.failure(ResponseError(code: -19, message: "No such device")))
      case "never": onNever()
      default: reply(.failure(.methodNotFound))
      }
    }
    try server.start()
    return server
  }

  @Test func matchesAnswersToCalls() async throws {
    let directory = try TemporaryDirectory()
    let server = try Self.serve(directory.file("s"))
    defer { server.stop() }
    let client = JSONRPCClient(path: server.path)
    #expect(try await client.call("echo", ["a": 1]) == ["a": 1])
    async let first = client.call("hold")
    async let second = client.call("hold")
    // Calls that wait are answered by another call, last one first.
    let releasing = Task {
      while !Task.isCancelled { _ = try? await client.call("release") }
    }
    #expect(try await [first, second] == ["held", "held"])
    releasing.cancel()
    let error = await #expect(throws: JSONRPCError.self) { try await client.call("refuse") }
    #expect(error?.code == .server(-19))
    #expect(error?.message == "No such device")
  }

  @Test func limitsTheTimeOfACall() async throws {
    let directory = try TemporaryDirectory()
    let server = try Self.serve(directory.file("s"))
    defer { server.stop() }
    let client = JSONRPCClient(path: server.path)
    let error = await #expect(throws: JSONRPCError.self) {
      try await client.call("never", timeout: .milliseconds(50))
    }
    #expect(error?.code == .timeout)
    #expect(try await client.call("echo", [1]) == [1])
  }

  @Test func endsACancelledCall() async throws {
    let directory = try TemporaryDirectory()
    let server = try Self.serve(directory.file("s"))
    defer { server.stop() }
    let client = JSONRPCClient(path: server.path)
    let call = Task { try await client.call("never") }
    call.cancel()
    await #expect(throws: CancellationError.self) { try await call.value }
  }

  @Test func connectsAgainAfterTheServerCameBack() async throws {
    let directory = try TemporaryDirectory()
    let path = directory.file("s")
    let client = JSONRPCClient(path: path)
    let error = await #expect(throws: JSONRPCError.self) { try await client.call("echo") }
    #expect(error?.code == .unreachable)
    let arrived = Mutex(0)
    for round in 1...3 {
      let server = try Self.serve(path) { arrived.withLock { $0 += 1 } }
      try await eventually { try await client.call("echo", [2]) == [2] }
      async let abandoned = client.call("never")
      try await eventually { arrived.withLock { $0 } == round }
      server.stop()
      do {
        _ = try await abandoned
        Issue.record("a call outlived its server")
      } catch let error as JSONRPCError {
        #expect(error.code == .closed)
      }
    }
  }

  /// Only a call that was under way is lost with a server: the first one after a restart is none.
  @Test func theFirstCallAfterARestartSucceeds() async throws {
    let directory = try TemporaryDirectory()
    let path = directory.file("s")
    let client = JSONRPCClient(path: path)
    for round in 0..<200 {
      let server = try Self.serve(path)
      #expect(try await client.call("echo", [.integer(Int64(round))]) == [.integer(Int64(round))])
      server.stop()
    }
  }

  @Test func answersBatchesInOrderAndGarbageNotAtAll() async throws {
    let directory = try TemporaryDirectory()
    let server = try Self.serve(directory.file("s"))
    defer { server.stop() }
    let stream = try JSONStream.connect(path: server.path)
    try stream.send([
      Request(id: "a", method: "echo", params: [1]).json, 5, Request(id: nil, method: "echo").json,
      Request(id: "b", method: "nope").json,
    ])
    let answer = try await stream.next()
    #expect(
      answer == [
        ["jsonrpc": "2.0", "id": "a", "result": [1]],
        ["jsonrpc": "2.0", "id": nil, "error": ["code": -32600, "message": "Invalid request"]],
        ["jsonrpc": "2.0", "id": "b", "error": ["code": -32601, "message": "Method not found"]],
      ])
    try stream.send([])
    #expect(try await stream.next()?["error"]?["code"] == -32600)
    // Longer than the server's limit: it closes the connection.
    try stream.send([.string(String(repeating: "x", count: 1 << 17))])
    #expect(try await stream.next() == nil)
  }

  /// What a client sends while a handler takes its time waits in the client, not in the server's memory; and none of it
  /// is lost.
  @Test func holdsBackAClientThatSendsFasterThanItIsServed() async throws {
    let directory = try TemporaryDirectory()
    let gate = DispatchSemaphore(value: 0)
    let server = JSONRPCServer(path: directory.file("s")) { _, reply in
      gate.wait()
      reply(.success("late"))
    }
    try server.start()
    defer { server.stop() }
    let socket = try UnixSocket.connect(path: server.path)
    defer { close(socket) }
    let first = Request(id: 1, method: "m").json.serialize()
    #expect(first.withUnsafeBytes { send(socket, $0.baseAddress, $0.count, CInt(MSG_NOSIGNAL)) } == first.count)
    // No requests, so they are answered without the handler; the last one may be cut off by a full socket.
    let text = JSONValue.object(["x": .string(String(repeating: "x", count: 1000))]).serialize()
    let wanted = 8 << 20
    var sent = 0
    while sent < wanted {
      let rest = text.count - sent % text.count
      let count = text.suffix(rest).withUnsafeBytes { send(socket, $0.baseAddress, $0.count, CInt(MSG_NOSIGNAL)) }
      if count > 0 {
        sent += count
        continue
      }
      var poll = pollfd(fd: socket, events: Int16(POLLOUT), revents: 0)
      guard Glibc.poll(&poll, 1, 500) > 0 else { break }
    }
    gate.signal()
    #expect(sent < 2 << 20)

    var splitter = JSONSplitter()
    var answers = 0
    try await eventually(within: .seconds(20), "all answers") {
      var chunk = [UInt8](repeating: 0, count: 1 << 16)
      while true {
        let count = chunk.withUnsafeMutableBytes { recv(socket, $0.baseAddress, $0.count, 0) }
        guard count > 0 else { break }
        splitter.append(chunk[..<count])
        while try splitter.next() != nil { answers += 1 }
      }
      return answers >= 1 + sent / text.count
    }
    #expect(answers == 1 + sent / text.count)
  }

  /// Connections that ask for nothing fill every place, and make room for who does; who has asked before stays.
  @Test func whoSaysNothingMakesRoom() async throws {
    let directory = try TemporaryDirectory()
    let server = try Self.serve(directory.file("s"))
    defer { server.stop() }
    let early = try JSONStream.connect(path: server.path)
    try early.send(Request(id: 1, method: "echo", params: [1]).json)
    #expect(try await early.next()?["result"] == [1])
    var silent: [CInt] = []
    defer { silent.forEach { close($0) } }
    for index in 0..<3 * JSONRPCServer.maximumConnections {
      try await eventually {
        guard let fd = try? UnixSocket.connect(path: server.path) else { return false }
        silent.append(fd)
        return true
      }
      // Some begin to say something.
      if index % 2 == 0 { _ = "{\"jsonrpc\":".withCString { send(silent[index], $0, 11, CInt(MSG_NOSIGNAL)) } }
    }
    #expect(try await JSONRPCClient(path: server.path).call("echo", [2]) == [2])
    try early.send(Request(id: 2, method: "echo", params: [3]).json)
    #expect(try await early.next()?["result"] == [3])
  }

  /// Nobody keeps the server while it ends.
  @Test func givesItsSocketsBackWhenItIsStoppedAndForgotten() async throws {
    let directory = try TemporaryDirectory()
    let path = directory.file("s")
    for _ in 0..<20 {
      let server = try Self.serve(path)
      let client = JSONRPCClient(path: path)
      #expect(try await client.call("echo", [1]) == [1])
      #expect(Self.descriptors(boundTo: path) >= 2)
      server.stop()
    }
    try await eventually(within: .seconds(10)) { Self.descriptors(boundTo: path) == 0 }
  }

  /// How many sockets this process has at a path: the listening one, and those of clients that it has accepted.
  private static func descriptors(boundTo path: String) -> Int {
    (0..<CInt(4096)).count { fd in
      var address = sockaddr_un()
      var length = socklen_t(MemoryLayout<sockaddr_un>.size)
      let result = withUnsafeMutablePointer(to: &address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { getsockname(fd, $0, &length) }
      }
      guard result == 0, address.sun_family == sa_family_t(AF_UNIX) else { return false }
      return withUnsafeBytes(of: address.sun_path) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) == path }
    }
  }

  @Test func replacesTheSocketOfADeadServerOnly() throws {
    let directory = try TemporaryDirectory()
    let path = directory.file("s")
    let first = try Self.serve(path)
    #expect(throws: JSONRPCError.self) { _ = try Self.serve(path) }
    first.stop()
    _ = try directory.write("s", "a file")
    #expect(throws: JSONRPCError.self) { _ = try Self.serve(path) }
    #expect(contentsOfFile(path) == "a file")
  }
}

@Suite struct JSONStreamTests {
  @Test func deliversMoreThanItHolds() async throws {
    let directory = try TemporaryDirectory()
    let server = JSONRPCServer(path: directory.file("s")) { request, reply in reply(.success(request.id ?? .null)) }
    try server.start()
    defer { server.stop() }
    let stream = try JSONStream.connect(path: server.path)
    // More answers than may wait, taken only after all were asked for.
    let count = 3 * JSONStream.maximumWaiting
    for index in 0..<count { try stream.send(Request(id: .integer(Int64(index)), method: "m").json) }
    for index in 0..<count { #expect(try await stream.next()?["result"] == .integer(Int64(index))) }
  }

  @Test func endsWhenThePeerCloses() async throws {
    let directory = try TemporaryDirectory()
    let server = JSONRPCServer(path: directory.file("s")) { _, _ in }
    try server.start()
    let stream = try JSONStream.connect(path: server.path)
    try stream.send(Request(id: 1, method: "m").json)
    let reading = Task { try await stream.next() }
    try stream.send(Request(id: 1, method: "m").json)
    server.stop()
    #expect(try await reading.value == nil)
  }

  /// A server is stopped while it takes a client: the client is closed all the same, and nothing stays open.
  @Test func aStopWhileAClientArrivesLeavesNobodyConnected() async throws {
    let directory = try TemporaryDirectory()
    let path = directory.file("s")
    func round() async throws {
      let server = JSONRPCServer(path: path) { _, _ in }
      try server.start()
      let stream = try JSONStream.connect(path: path)
      let reading = Task { try await stream.next() }
      server.stop()
      let timeLimit = Task {
        try await Task.sleep(for: .seconds(20))
        reading.cancel()
      }
      #expect(try await reading.value == nil)
      timeLimit.cancel()
    }
    try await round()
    let before = serverSockets(path)
    for _ in 0..<500 { try await round() }
    try await eventually { serverSockets(path) <= before }
  }

  /// How many sockets of this process are bound to the path: those that a server listens at or has accepted.
  private func serverSockets(_ path: String) -> Int {
    let own = Set(
      (0..<4096).compactMap { fd -> UInt64? in
        var status = stat()
        return fstat(CInt(fd), &status) == 0 && status.st_mode & S_IFMT == S_IFSOCK ? UInt64(status.st_ino) : nil
      })
    return (contentsOfFile("/proc/net/unix") ?? "").split(separator: "\n").count { line in
      let words = line.split(separator: " ")
      return words.count == 8 && words[7] == path && UInt64(words[6]).map { own.contains($0) } == true
    }
  }

  @Test func endsWhenItsReaderIsCancelled() async throws {
    let directory = try TemporaryDirectory()
    let server = JSONRPCServer(path: directory.file("s")) { _, _ in }
    try server.start()
    defer { server.stop() }
    let stream = try JSONStream.connect(path: server.path)
    let reading = Task { try await stream.next() }
    reading.cancel()
    await #expect(throws: CancellationError.self) { try await reading.value }
  }
}
