import Glibc
import IaaS
import JSON
import Kubernetes
import Logging
import MachineAPI
import NIOCore
import Synchronization
import TestSupport
import Testing

/// A value that several tasks see.
private final class Shared<Value: Sendable>: Sendable {
  private let value: Mutex<Value>

  init(_ value: Value) { self.value = Mutex(value) }

  func withLock<Result>(_ body: (inout Value) -> Result) -> Result { value.withLock { body(&$0) } }
}

/// Consoles, with Python's `websockets` as somebody else's client and with our own.
@Suite(.timeLimit(.minutes(5)), .serialized) struct ConsoleServerTests {
  private func python(_ installation: Installation, _ scenario: String) async throws -> JSONValue {
    try await installation.python(scenario, path: installation.path("console"))
  }

  @Test func manyReadAndOneTypes() async throws {
    let installation = try await Installation.start()
    let result = try await python(installation, "share")
    #expect(result["history"]?.stringValue == "login: \n")
    #expect(result["echo"]?.stringValue?.contains("you typed ls") == true)
    #expect(result["bobSees"]?.stringValue?.contains("you typed ls") == true)
    #expect(result["refused"]?.stringValue?.contains("alice has the line") == true)
    #expect(result["taken"]?.stringValue?.contains("you typed id") == true)
    #expect(result["told"]?.stringValue == "carol")
    #expect(result["resumed"]?.boolValue == true)
    #expect(result["missed"]?.stringValue?.contains("you typed while away") == true)
    #expect(result["missed"]?.stringValue?.contains("login") == false)
    #expect(result["channels"]?.stringValue?.contains("you typed channel") == true)
    // Who only looks at machines, and who looks at others', has no console.
    #expect(result["view"]?.intValue == 403)
    #expect(result["other"]?.intValue == 403)
    #expect(result["unspoken"]?.intValue == 400)
  }

  @Test func abuseEndsTheAbusersSessionAlone() async throws {
    let installation = try await Installation.start { configuration in
      configuration.consoles.ping = .milliseconds(200)
      configuration.consoles.silence = .seconds(2)
      configuration.consoles.sessionsOfOneUser = 8
      configuration.strangersMax = 20
    }
    let result = try await python(installation, "abuse")
    #expect(result["giant"]?.intValue == 1009)
    #expect(result["unmasked"]?.intValue == 1002)
    #expect(result["fragments"]?.intValue == 1002)
    #expect(result["garbage"]?.boolValue == true)
    #expect(result["silent"]?.boolValue == true)
    #expect(result["crowd"]?.intValue == 8)
    #expect(result["strangers"]?.boolValue == true)
    #expect(result["witness"]?.stringValue?.contains("you typed still here") == true)
  }

  /// A reader that takes nothing misses bytes, and holds up nobody.
  @Test func aSlowReaderHoldsUpNobody() async throws {
    let installation = try await Installation.start()
    let taken = Shared(0)
    let opened = Shared(0)
    let skipped = Shared(0)
    let alice = try installation.client(as: "alice")
    func open(reads: Bool) -> (CInt, Task<Void, any Error>) {
      var ends: [CInt] = [-1, -1]
      socketpair(AF_UNIX, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_NONBLOCK.rawValue), 0, &ends)
      let far = ends[1]
      let path = installation.path("console")
      let task = Task {
        try await alice.carry(path: path, subprotocol: "console.iaas.yusur.io", over: far) { event in
          switch event {
          case .opened: opened.withLock { $0 += 1 }
          case .delivered(let count): if reads { taken.withLock { $0 += count } }
          case .text(let text):
            if !reads, String(decoding: text, as: UTF8.self).contains("skipped") { skipped.withLock { $0 += 1 } }
          case .closed: break
          }
        }
      }
      return (ends[0], task)
    }
    let (slow, slowTask) = open(reads: false)
    let (quick, quickTask) = open(reads: true)
    try await eventually(within: .seconds(20), "both are open") { opened.withLock { $0 } == 2 }
    let stop = Shared(false)
    let reader = Task.detached {
      var buffer = [UInt8](repeating: 0, count: 1 << 20)
      while stop.withLock({ !$0 }) {
        if read(quick, &buffer, buffer.count) <= 0 { try await Task.sleep(for: .milliseconds(1)) }
      }
    }
    // 64 MiB, of which the tape keeps one.
    let piece = [UInt8](repeating: UInt8(ascii: "x"), count: (1 << 20) - 1) + [0x0A]
    for number in 1...64 {
      try await installation.line.write(piece)
      // As fast as the quick one takes it: it must get everything.
      try await eventually(within: .seconds(20), every: .milliseconds(1), "the quick one keeps up") {
        taken.withLock { $0 } >= number << 20
      }
    }
    // Now the slow one reads: it is told what it missed.
    let catcher = Task.detached {
      var buffer = [UInt8](repeating: 0, count: 1 << 20)
      while stop.withLock({ !$0 }) {
        if read(slow, &buffer, buffer.count) <= 0 { try await Task.sleep(for: .milliseconds(1)) }
      }
    }
    try await eventually(within: .seconds(20), "the slow one is told") { skipped.withLock { $0 } > 0 }
    stop.withLock { $0 = true }
    _ = await reader.result
    _ = await catcher.result
    for task in [slowTask, quickTask] { task.cancel() }
    for task in [slowTask, quickTask] { _ = await task.result }
    close(slow)
    close(quick)
  }

  /// Its machine is gone, or its right: the console is closed without anybody asking.
  @Test func aConsoleEndsWithTheRightToIt() async throws {
    let installation = try await Installation.start { $0.consoles.recheck = .milliseconds(200) }
    let alice = try installation.client(as: "alice")
    let path = installation.path("console")
    let ended = Shared<WebSocketEvent?>(nil)
    let opened = Shared(false)
    var ends: [CInt] = [-1, -1]
    socketpair(AF_UNIX, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_NONBLOCK.rawValue), 0, &ends)
    let near = ends[0]
    defer { close(near) }
    let far = ends[1]
    let task = Task {
      try await alice.carry(path: path, subprotocol: "console.iaas.yusur.io", over: far) { event in
        if event == .opened { opened.withLock { $0 = true } }
        if case .closed = event { ended.withLock { $0 = event } }
      }
    }
    defer { task.cancel() }
    try await eventually(within: .seconds(20), "it is open") { opened.withLock { $0 } }
    try await installation.plane.kubectl("delete", "rolebinding", "alice-edit", "-n", installation.namespace)
    try await eventually(within: .seconds(30), "it is closed") { ended.withLock { $0 } != nil }
    #expect(
      ended.withLock { $0 } == .closed(code: 1008, reason: "you are not allowed to use this console any more"))
  }

  @Test func bmctlGoesOnAfterBmApiWasKilled() async throws {
    let installation = try await Installation.start()
    let directory = installation.plane.directory
    let log = directory.file("bmctl.log")
    // A person's session without a terminal: the input stays open.
    let fifo = directory.file("keys")
    mkfifo(fifo, 0o600)
    let bmctl = try TestEnvironment.builtProduct("bmctl")
    let session = try ChildProcess(
      "sh",
      [
        "-c",
        "exec '\(bmctl)' console \(Installation.machine) -n \(installation.namespace) --kubeconfig "
          + "'\(installation.plane.kubeconfig)' <'\(fifo)'",
      ], output: log)
    defer { session.kill() }
    let keys = open(fifo, O_WRONLY)
    defer { close(keys) }
    func type(_ text: String) {
      _ = text.utf8.withContiguousStorageIfAvailable { write(keys, $0.baseAddress, $0.count) }
    }
    try await eventually(within: .seconds(20), "the greeting is shown") {
      contentsOfFile(log)?.contains("login") == true
    }
    type("one\n")
    try await eventually(within: .seconds(20), "what was typed comes back") {
      contentsOfFile(log)?.contains("you typed one") == true
    }
    await installation.stopServer()
    try await eventually(within: .seconds(20), "the loss is told") {
      contentsOfFile(log)?.contains("the console is away") == true
    }
    installation.startServer()
    try await eventually(within: .seconds(30), "it is back") {
      contentsOfFile(log)?.contains("connected again") == true
    }
    type("two\n")
    try await eventually(within: .seconds(20), "what was typed comes back") {
      contentsOfFile(log)?.contains("you typed two") == true
    }
  }
}
