import Glibc
import JSONRPC
import Logging
import SoftHost
import Telemetry
import TestSupport
import Testing

/// A console that nobody uses for hours must be there as if it had been used all the time. Nothing on its way has a time
/// limit; what is looked at here are the connections, over many times the one interval that there is.
@Suite struct ConsoleIdleTests {
  @Test func aSilentConsoleKeepsItsConnections() async throws {
    let folder = try TemporaryDirectory()
    let serial = try UnixSocket.listen(path: folder.file("serial"), mode: 0o600)
    defer { close(serial) }
    let interval = Duration.milliseconds(50)
    let hub = ConsoleHub(
      socketPath: folder.file("console"), serialPath: folder.file("serial"), logPath: "", started: Doorbell(),
      lookAgain: interval, metrics: SoftHostMetrics(MetricsRegistry()), logger: Logger(label: "test"))
    let task = Task { try await hub.run() }
    defer { task.cancel() }
    let guest = try await eventualValue("the line is taken") { accepted(serial) }
    defer { close(guest) }
    let user = try await eventualValue("the console is served") {
      try? UnixSocket.connect(path: folder.file("console"))
    }
    defer { close(user) }
    try await exchange(guest, user)

    // The silence itself is what is tested.
    try await Task.sleep(for: interval * 30)
    #expect(accepted(serial) == nil, "the line was not taken anew")
    try await exchange(guest, user)
  }

  /// A server that is switched on again may be somebody else's by now.
  @Test(arguments: [false, true]) func whatWasBeforeThePowerWentOnIsNotShown(hasLog: Bool) async throws {
    let folder = try TemporaryDirectory()
    let log = hasLog ? try folder.write("log", "of a tenant before\n") : ""
    try ConsoleLog.notePowerOn(path: log)
    let serial = try UnixSocket.listen(path: folder.file("serial"), mode: 0o600)
    defer { close(serial) }
    let hub = ConsoleHub(
      socketPath: folder.file("console"), serialPath: folder.file("serial"), logPath: log, started: Doorbell(),
      lookAgain: .milliseconds(20), metrics: SoftHostMetrics(MetricsRegistry()), logger: Logger(label: "test"))
    let task = Task { try await hub.run() }
    defer { task.cancel() }
    for (number, secret) in ["first secret\n", "second secret\n"].enumerated() {
      let guest = try await eventualValue("the line is taken") { accepted(serial) }
      if number > 0 { try ConsoleLog.notePowerOn(path: log) }
      _ = secret.utf8.withContiguousStorageIfAvailable { send(guest, $0.baseAddress, $0.count, CInt(MSG_NOSIGNAL)) }
      try await eventually("a late reader sees what this server wrote, and nothing else") {
        let user = try UnixSocket.connect(path: folder.file("console"))
        defer { close(user) }
        var bytes = [UInt8](repeating: 0, count: 4096)
        var entry = pollfd(fd: user, events: Int16(POLLIN), revents: 0)
        guard poll(&entry, 1, 200) == 1 else { return false }
        let count = recv(user, &bytes, bytes.count, 0)
        return count > 0 && String(decoding: bytes[..<count], as: UTF8.self) == secret
      }
      close(guest)
    }
  }

  /// A byte in each direction.
  private func exchange(_ guest: CInt, _ user: CInt) async throws {
    for (from, to, byte) in [(guest, user, UInt8(ascii: "g")), (user, guest, UInt8(ascii: "u"))] {
      var sent = byte
      try #require(send(from, &sent, 1, CInt(MSG_NOSIGNAL)) == 1)
      try await eventually("the byte \(byte) arrives") {
        var received: UInt8 = 0
        let count = recv(to, &received, 1, CInt(MSG_DONTWAIT))
        try #require(count != 0, "the connection was closed")
        return count == 1 && received == byte
      }
    }
  }

  private func accepted(_ listener: CInt) -> CInt? {
    var entry = pollfd(fd: listener, events: Int16(POLLIN), revents: 0)
    guard poll(&entry, 1, 0) == 1 else { return nil }
    let connection = accept(listener, nil, nil)
    return connection >= 0 ? connection : nil
  }
}
