import BMC
import JSON
import SoftHost
import TestBMC
import TestSupport
import Testing

/// A PNG of one black point and of a size that its head says.
private func png(width: UInt32 = 1, height: UInt32 = 1, behind: [UInt8] = []) -> [UInt8] {
  func bytes(_ number: UInt32) -> [UInt8] { (0..<4).map { UInt8(truncatingIfNeeded: number >> (24 - 8 * $0)) } }
  func chunk(_ name: String, _ content: [UInt8]) -> [UInt8] {
    bytes(UInt32(content.count)) + Array(name.utf8) + content + [0, 0, 0, 0]
  }
  return ScreenPicture.signature + chunk("IHDR", bytes(width) + bytes(height) + [8, 2, 0, 0, 0])
    + chunk("IDAT", [0x78, 0x9C, 0x63, 0x60, 0x60, 0x60, 0x00, 0x00, 0x00, 0x04, 0x00, 0x01]) + chunk("IEND", [])
    + behind
}

@Suite struct ScreenPictureTests {
  @Test func aPictureHasItsSize() throws {
    let picture = try ScreenPicture(png: png(width: 1024, height: 768))
    #expect(picture.width == 1024 && picture.height == 768)
    // What follows behind the end is not handed on.
    #expect(try ScreenPicture(png: png(behind: Array("<script>".utf8))).png == png())
  }

  @Test func whatIsNoPictureIsRefused() {
    let good = png()
    var cases: [(String, [UInt8])] = [
      ("nothing", []), ("the signature alone", ScreenPicture.signature), ("a JPEG", [0xFF, 0xD8, 0xFF] + good),
      ("no points", png(width: 0)), ("too high", png(height: 16_385)), ("far too wide", png(width: .max)),
      ("too long", png() + [UInt8](repeating: 0, count: ScreenPicture.bytesMax)),
    ]
    for count in 1..<good.count { cases.append(("cut off at \(count)", Array(good[..<count]))) }
    var other = good
    other[12] = UInt8(ascii: "X")
    cases.append(("another first chunk", other))
    other = good
    other[33] = 0xFF
    cases.append(("a chunk of four thousand millions", other))
    for (name, bytes) in cases {
      #expect(throws: ScreenPicture.Problem.self, "\(name)") { try ScreenPicture(png: bytes) }
    }
  }

  @Test func anyBytesAreAPictureOrNone() {
    var random = SeededGenerator(seed: 7)
    for _ in 0..<5_000 {
      var bytes = png()
      for _ in 0..<Int.random(in: 1...6, using: &random) {
        bytes[Int.random(in: 0..<bytes.count, using: &random)] = UInt8.random(in: .min ... .max, using: &random)
      }
      if let picture = try? ScreenPicture(png: bytes) {
        #expect((1...ScreenPicture.sideMax).contains(picture.width) && picture.png.count <= bytes.count)
      }
    }
  }

  @Test func theActionIsTakenAsItIsAnnounced() {
    func service(_ target: JSONValue, _ allowed: JSONValue? = nil) -> JSONValue {
      var action: JSONValue = ["target": target]
      action["FileType@Redfish.AllowableValues"] = allowed
      return ["Actions": ["#DellLCService.ExportServerScreenShot": action]]
    }
    #expect(RedfishScreen.target(service("/a/b")) == "/a/b")
    #expect(RedfishScreen.target(service("/a/b", ["Preview", "ServerScreenShot"])) == "/a/b")
    #expect(RedfishScreen.target(service("/a/b", ["Preview"])) == nil)
    for target: JSONValue in ["https://elsewhere/a", "//elsewhere/a", "a", "/a\r\nX: y", nil, 7] {
      #expect(RedfishScreen.target(service(target)) == nil, "\(target)")
    }
    #expect(RedfishScreen.target([:]) == nil)
    #expect(RedfishScreen.target(["Actions": []]) == nil)
  }
}

/// Pictures through a Redfish service.
@Suite struct ScreenshotTests {
  private static let service = "/redfish/v1/Managers/1/Oem/Dell/DellLCService"

  /// Runs `body` with a BMC of a server that is on and shows a picture.
  private func withScreen(
    shows picture: [UInt8]? = png(width: 720, height: 400),
    _ body: @escaping @Sendable (any BMC, Meddler, PaperChassis) async throws -> Void
  ) async throws {
    try await withTestBMC { address, meddler, chassis in
      if let picture { await chassis.show(picture) }
      try await chassis.reset(.on)
      try await withPool { pool in
        try await body(try pool.client(for: address, credentials: rightCredentials), meddler, chassis)
      }
    }
  }

  @Test func aPictureIsTakenWhereTheBMCSaysThatItIs() async throws {
    try await withScreen { bmc, meddler, _ in
      let picture = try await bmc.screenshot()
      #expect(picture.png == png(width: 720, height: 400))
      // A BMC that has it elsewhere.
      let elsewhere = "/redfish/v1/Dell/Managers/1/DellLCService"
      meddler.meddle { request, next in
        var inner = request
        inner.path = request.path.replacing(elsewhere, with: Self.service)
        guard !request.path.hasPrefix(Self.service) else { return RedfishReply(status: 404) }
        var reply = await next(inner)
        if let body = reply.body, request.method == "GET" {
          reply.body = try? JSONValue.parse(body.text.replacing(Self.service, with: elsewhere))
        }
        return reply
      }
      let again = try await bmc.screenshot()
      #expect(again.width == 720)
      #expect(meddler.requests.last?.path.hasPrefix(elsewhere) == true)
    }
  }

  @Test func aBMCWithoutTheActionSaysSo() async throws {
    try await withScreen(shows: nil) { bmc, meddler, _ in
      let error = await #expect(throws: BMCError.self) { try await bmc.screenshot() }
      #expect(error?.code == .unsupported && error?.message.contains("console") == true)
      #expect(!meddler.requests.contains { $0.method == "POST" && !$0.path.hasSuffix("Sessions") })
    }
    // Announced, but gone.
    try await withScreen { bmc, meddler, _ in
      meddler.meddle { request, next in
        request.path.hasSuffix("ExportServerScreenShot") ? RedfishReply(status: 405) : await next(request)
      }
      #expect(await code { try await bmc.screenshot() } == .unsupported)
    }
  }

  @Test func aServerThatIsOffHasNoPicture() async throws {
    try await withScreen { bmc, _, chassis in
      try await chassis.reset(.forceOff)
      let error = await #expect(throws: BMCError.self) { try await bmc.screenshot() }
      #expect(error?.code == .rejected && error?.isStateRefusal == true)
    }
  }

  @Test func whatIsNoPictureIsNotHandedOn() async throws {
    try await withScreen { bmc, meddler, _ in
      let answers: [JSONValue?] = [
        nil, [:], [], ["ServerScreenShotFile": nil], ["ServerScreenShotFile": 7], ["ServerScreenShotFile": ""],
        ["ServerScreenShotFile": "no Base64!"], ["ServerScreenShotFile": "R0lGODlhAQABAAAAACw="],
        // Base64 of zeros, and more than a picture may have; and more than is read at all.
        ["ServerScreenShotFile": .string(String(repeating: "A", count: ScreenPicture.bytesMax / 3 * 4 + 8))],
        ["ServerScreenShotFile": .string(String(repeating: "A", count: 2 * ScreenPicture.bytesMax))],
      ]
      for answer in answers {
        meddler.meddle { request, next in
          guard request.path.hasSuffix("ExportServerScreenShot") else { return await next(request) }
          return RedfishReply(status: 200, body: answer)
        }
        #expect(await code { try await bmc.screenshot() } == .protocolError, "\(answer?.text.prefix(60) ?? "no body")")
      }
      // With line breaks, and with 202, as some answer.
      meddler.meddle { request, next in
        var reply = await next(request)
        if request.path.hasSuffix("ExportServerScreenShot"), let text = reply.body?["ServerScreenShotFile"]?.stringValue
        {
          reply = RedfishReply(
            status: 202, body: ["ServerScreenShotFile": .string("\(text.prefix(40))\r\n\(text.dropFirst(40))\n")])
        }
        return reply
      }
      let picture = try await bmc.screenshot()
      #expect(picture.height == 400)
    }
  }

  @Test func aBusyBMCSaysWhenToComeBack() async throws {
    try await withScreen { bmc, meddler, _ in
      meddler.meddle { request, next in
        guard request.path.hasSuffix("ExportServerScreenShot") else { return await next(request) }
        return RedfishReply(status: 503, headers: ["Retry-After": "1"])
      }
      let error = await #expect(throws: BMCError.self) { try await bmc.screenshot() }
      #expect(error?.code == .busy && error?.retryAfter == .seconds(1))
    }
  }

  @Test func ipmiHasNone() async throws {
    try await withPool { pool in
      let bmc = try pool.client(for: BMCAddress("ipmi://127.0.0.1:1"), credentials: rightCredentials)
      #expect(await code { try await bmc.screenshot() } == .unsupported)
    }
  }
}
