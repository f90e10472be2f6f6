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
