import Glibc
import JSON
import Kubernetes
import MachineAPI
import NIOCore
import TestSupport
import Testing

/// Connections to a machine's ports, through kube-apiserver.
@Suite(.timeLimit(.minutes(5)), .serialized) struct ForwardServerTests {
  @Test func everythingArrivesAndEachDirectionEndsByItself() async throws {
    let (installation, guest) = try await Installation.startWithService()
    let alice = try installation.client(as: "alice")
    // Several at once; none gets another's bytes. The first ones have said everything before the WebSocket is open.
    try await withThrowingTaskGroup(of: Void.self) { group in
      for (number, count) in [0, 1, 1000, 1 << 20, 3 << 20].enumerated() {
        group.addTask {
          let line = Forwarded(alice, installation.path("portforward"), port: guest.port)
          let sent = [UInt8](repeating: UInt8(number), count: count)
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
    #expect(guest.broken == 0)
  }

  @Test func aMachineMayEndItsDirectionFirst() async throws {
    let (installation, guest) = try await Installation.startWithService(.pour(1 << 20))
    let line = Forwarded(
      try installation.client(as: "alice"), installation.path("portforward"), port: guest.port)
    #expect(try await line.read().count == 1 << 20)
    try await line.write([UInt8](repeating: 0x79, count: 1 << 20))
    line.end()
    try await eventually(within: .seconds(20), "the machine has everything") { guest.ended == 1 }
    #expect(guest.received == 1 << 20 && guest.broken == 0)
    // Whose end is the last closes the WebSocket: here that is the client.
    try await line.task.value
  }

  @Test func whoMayNotAndWhatIsNotThereIsRefusedInWords() async throws {
    let (installation, guest) = try await Installation.startWithService()
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
    try await installation.show("127.0.0.1", by: guest.address)
    #expect(try await refusal("alice", port: guest.port).message.contains("no address yet"))
    // Nor is an address that the spec asks for and nobody has seen the guest use.
    try await installation.show(guest.address, by: guest.address, isProven: false)
    #expect(try await refusal("alice", port: guest.port).message.contains("no address yet"))
    try await installation.show("127.0.0.1", by: "127.0.0.1")
    #expect(try await refusal("alice", port: installation.port).message.contains("loopback"))
    #expect(guest.accepted == 0)
    let plain = await #expect(throws: KubernetesError.self) {
      _ = try await installation.client(as: "alice").request(
        method: "GET", path: installation.path("portforward"), query: [("port", "22")])
    }
    #expect(plain?.httpStatus == 400)
  }

  @Test func whatOneSideDoesNotTakeTheOtherDoesNotSend() async throws {
    let (installation, guest) = try await Installation.startWithService()
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
    let (installation, guest) = try await Installation.startWithService { limits in
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
    // The machine sees that they were broken off.
    try await eventually(within: .seconds(20), "only carol's is left") { guest.open == 1 }
    #expect(guest.broken >= 2 && guest.ended == 0)
    other.task.cancel()
  }

  /// Python's client goes the whole way; what breaks the rules ends alone.
  @Test func anotherClientIsServedAndAbuseIsEnded() async throws {
    let (installation, guest) = try await Installation.startWithService()
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

  /// Who does not answer is gone; who has not taken yet what the machine sent may take their time.
  @Test func whoIsSilentIsEndedButNotWhoReadsLater() async throws {
    let (installation, guest) = try await Installation.startWithService(.pour(16 << 20)) { limits in
      limits.ping = .milliseconds(100)
      limits.silence = .seconds(1)
    }
    let line = Forwarded(
      try installation.client(as: "alice"), installation.path("portforward"), port: guest.port)
    try await eventually(within: .seconds(20), "bytes are there") { line.available > 0 }
    let quiet = try await GuestServer.start(on: guest.address)
    let result = try await installation.python(
      "silence", path: "\(installation.path("portforward"))?port=\(quiet.port)")
    #expect(result["status"]?.intValue == 1001)
    line.end()
    #expect(try await line.read().count == 16 << 20)
    #expect(guest.broken == 0)
  }

  @Test func whatNobodyUsesIsClosed() async throws {
    let (installation, guest) = try await Installation.startWithService { limits in
      limits.ping = .milliseconds(100)
      limits.idle = .seconds(1)
    }
    let line = Forwarded(try installation.client(as: "alice"), installation.path("portforward"), port: guest.port)
    try await eventually(within: .seconds(20), "it is closed") { line.closed != nil }
    #expect(line.closed == .closed(code: 1001, reason: "nothing was carried for a long time"))
    try await eventually(within: .seconds(20), "the machine sees it") { guest.open == 0 }
  }
}
