import MachineAPI
import NIOWebSocket
import TestSupport
import Testing

@Suite struct ConsoleTapeTests {
  /// Against everything that was ever written, kept in full.
  @Test(arguments: 0..<200) func aTapeIsTheEndOfAllThatWasWritten(seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    let capacity = Int.random(in: 1...40, using: &random)
    var tape = ConsoleTape(capacity: capacity)
    var all: [UInt8] = []
    for _ in 0..<60 {
      let piece = random.bytes(Int.random(in: 0...(capacity * 2), using: &random))
      tape.append(piece)
      all += piece
      #expect(tape.end == UInt64(all.count))
      #expect(tape.start == UInt64(max(0, all.count - capacity)))
      var place = UInt64.random(in: 0...tape.end, using: &random)
      let from = place
      var got: [UInt8] = []
      var skipped: UInt64 = 0
      while true {
        let (missed, bytes) = tape.read(from: place, atMost: Int.random(in: 1...10, using: &random))
        skipped += missed
        place += missed + UInt64(bytes.count)
        got += bytes
        if bytes.isEmpty { break }
      }
      #expect(place == tape.end)
      #expect(got == Array(all.dropFirst(Int(from + skipped))))
      #expect(skipped == (from < tape.start ? tape.start - from : 0))
    }
  }

  @Test func aReaderWhoComesAnewBeginsAtALine() {
    var tape = ConsoleTape(capacity: 100)
    tape.append(Array("one\ntwo\nthree".utf8))
    #expect(tape.beginning(history: 100) == 0)
    #expect(tape.beginning(history: 8) == 8)
    #expect(tape.beginning(history: 7) == 8)
    // No line in it: better half of one than nothing.
    #expect(tape.beginning(history: 3) == 10)
    #expect(tape.beginning(history: 0) == 13)
  }
}

@Suite struct WriterSeatTests {
  @Test func oneTypesAtATime() {
    var seat = WriterSeat()
    func type(_ session: Int, _ user: String) -> WriterSeat.Answer { seat.type(session: session, user: user) }
    func takeOver(_ session: Int, _ user: String) -> Bool { seat.takeOver(session: session, user: user) }
    func leave(_ session: Int) -> Bool { seat.leave(session: session) }
    #expect(type(1, "alice") == .tookSeat)
    #expect(type(1, "alice") == .mayType)
    #expect(type(2, "bob") == .refused(holder: "alice"))
    #expect(takeOver(2, "bob"))
    #expect(!takeOver(2, "bob"))
    #expect(type(1, "alice") == .refused(holder: "bob"))
    #expect(!leave(1))
    #expect(leave(2))
    #expect(type(1, "alice") == .tookSeat)
  }
}

@Suite struct WebSocketInputTests {
  private func take(
    _ input: inout WebSocketInput, _ opcode: WebSocketOpcode, _ text: String, isFinal: Bool = true,
    isMasked: Bool = true,
    hasReservedBits: Bool = false
  ) -> WebSocketInput.Event {
    input.take(
      opcode: opcode, isFinal: isFinal, isMasked: isMasked, hasReservedBits: hasReservedBits, data: Array(text.utf8))
  }

  private func isViolation(_ event: WebSocketInput.Event, _ code: Int) -> Bool {
    if case .violation(code, _) = event { true } else { false }
  }

  @Test func piecesOfAMessageAreTypedAsTheyCome() {
    var input = WebSocketInput(.plain)
    #expect(take(&input, .binary, "a", isFinal: false) == .typed([0x61]))
    #expect(take(&input, .ping, "p") == .ping([0x70]))
    #expect(take(&input, .continuation, "b") == .typed([0x62]))
    #expect(isViolation(take(&input, .continuation, "c"), 1002))
  }

  @Test func aChannelStandsOnceInAMessage() {
    var input = WebSocketInput(.channels)
    #expect(take(&input, .binary, "\0ls", isFinal: false) == .typed(Array("ls".utf8)))
    #expect(take(&input, .continuation, "\0x") == .typed([0, 0x78]))
    #expect(take(&input, .binary, "\u{4}{\"Width\":80}") == .nothing)
    #expect(isViolation(take(&input, .binary, "\u{1}out"), 1002))
  }

  @Test func whatBreaksTheProtocolEndsTheSession() {
    var input = WebSocketInput(.plain)
    #expect(isViolation(take(&input, .binary, "a", isMasked: false), 1002))
    #expect(isViolation(take(&input, .binary, "a", hasReservedBits: true), 1002))
    #expect(isViolation(take(&input, .ping, "a", isFinal: false), 1002))
    #expect(isViolation(take(&input, .ping, String(repeating: "a", count: 126)), 1002))
    #expect(take(&input, .binary, "a", isFinal: false) == .typed([0x61]))
    #expect(isViolation(take(&input, .binary, "b"), 1002))
    input = WebSocketInput(.plain)
    #expect(isViolation(take(&input, .text, String(repeating: "a", count: 5000)), 1009))
    input = WebSocketInput(.plain)
    let broken = input.take(opcode: .text, isFinal: true, isMasked: true, hasReservedBits: false, data: [0xFF])
    #expect(isViolation(broken, 1007))
  }

  @Test func ofTheOfferedProtocolsTheFirstKnownOneIsSpoken() throws {
    #expect(try ConsoleProtocol.choose([]).0 == .plain)
    #expect(try ConsoleProtocol.choose(["x, v4.channel.k8s.io"]).0 == .channels)
    #expect(try ConsoleProtocol.choose(["base64url.bearer.authorization.k8s.io.abc"]).isNamed == false)
    #expect(throws: APIFailure.self) { try ConsoleProtocol.choose(["v5.channel.k8s.io"]) }
  }

  @Test func aPlaceSurvivesItsText() {
    let place = ConsolePlace(epoch: "a1b2", offset: 77)
    #expect(ConsolePlace(place.description) == place)
    for text in ["", "a", "a.", ".1", "a.-1", "a.1.2", "a.99999999999999999999", "A.1"] {
      #expect(ConsolePlace(text) == nil, "\(text)")
    }
  }

  @Test func onlySocketsBelowTheFolderAreConsoles() {
    #expect(ConsoleFolder.contains("/run/hosts", "/run/hosts/h1/console.sock"))
    for path in [
      "/run/hosts", "/run/hosts/", "/run/hosts2/c.sock", "/run/hosts/../docker.sock", "/run/hosts/./c.sock",
      "/run/hosts//c.sock", "/var/run/docker.sock", "/run/hosts/h1/bmc-credentials",
    ] {
      #expect(!ConsoleFolder.contains("/run/hosts", path), "\(path)")
    }
  }
}
