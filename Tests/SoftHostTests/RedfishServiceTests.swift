import JSON
import Logging
import SoftHost
import Synchronization
import Telemetry
import Testing
import TestSupport

/// A chassis without a machine.
private actor PaperChassis: ChassisControl {
  var state = ChassisSnapshot(name: "paper-1", uuid: "4c4c4544-0000-4000-8000-000000000001", power: .off)
  func snapshot() -> ChassisSnapshot { state }
  func reset(_ type: Chassis.ResetType) throws {
    guard type == .on || state.power == .on else {
      throw SoftHostError(.conflict, operation: type.rawValue, message: "the server is off")
    }
    state.power = type == .on ? .on : .off
  }
  func setBoot(_ boot: BootSetting) { state.boot = boot }

  private var pictures: [Result<[UInt8], SoftHostError>] = []

  func give(_ pictures: [Result<[UInt8], SoftHostError>]) {
    self.pictures = pictures
    state.hasScreen = true
  }

  func screenshot() throws -> [UInt8] { try pictures.removeFirst().get() }
}

@Suite struct RedfishServiceTests {
  private let system = "/redfish/v1/Systems/1"
  private let basic = "Basic YWRtaW46c2VjcmV0"  // admin:secret

  private func withService(
    of chassis: PaperChassis = PaperChassis(), sessionTimeout: Duration = .seconds(60),
    _ body: (RedfishService, TemporaryDirectory) async throws -> Void
  ) async throws {
    try await withTemporaryDirectory { directory in
      let file = try directory.write("accounts", "# accounts\nadmin:secret\nother:pa:ss\n", mode: 0o600)
      var logger = Logger(label: "test")
      logger.logLevel = .critical
      let service = RedfishService(
        chassis: chassis, accounts: Accounts(path: file), sessionTimeout: sessionTimeout,
        metrics: SoftHostMetrics(MetricsRegistry()), logger: logger)
      try await body(service, directory)
    }
  }

  private func request(
    _ method: String, _ path: String, _ body: JSONValue? = nil, _ headers: [String: String] = [:]
  ) -> RedfishRequest {
    var all = ["authorization": basic]
    all.merge(headers) { $1 }
    return RedfishRequest(method: method, path: path, headers: all, body: body?.serialize() ?? [])
  }

  @Test func onlyTheRootAndSigningInArePublic() async throws {
    try await withService { service, _ in
      for path in ["/redfish", "/redfish/v1", "/redfish/v1/", "/redfish/v1/odata", "/redfish/v1/$metadata"] {
        for method in ["GET", "HEAD"] {
          let reply = await service.respond(to: RedfishRequest(method: method, path: path))
          #expect(reply.status == 200, "\(method) \(path)")
          #expect(reply.headers["ETag"] != nil)
        }
      }
      for path in [
        system, "/redfish/v1/Systems", "/redfish/v1/Managers/1", "/redfish/v1/SessionService/Sessions", "/x",
      ] {
        #expect(await service.respond(to: RedfishRequest(method: "HEAD", path: path)).status == 401, "\(path)")
        let reply = await service.respond(to: RedfishRequest(method: "GET", path: path))
        #expect(reply.status == 401, "\(path)")
        #expect(reply.headers["WWW-Authenticate"] != nil)
        #expect(
          reply.body?["error"]?["@Message.ExtendedInfo"]?[0]?["MessageId"]?.stringValue?.hasPrefix("Base.1") == true)
      }
    }
  }

  /// Strangers choose the path, so what is done with it takes time in proportion to its length, and that has a limit.
  @Test func longPathsAreRefused() async throws {
    try await withService { service, _ in
      let slashes = String(repeating: "/", count: 1 << 16)
      for path in ["/redfish/v1" + slashes, slashes, "/redfish/v1/" + String(repeating: "a", count: 1 << 16)] {
        #expect(await service.respond(to: RedfishRequest(method: "GET", path: path)).status == 414)
      }
      #expect(RedfishRequest(method: "GET", path: "/redfish/v1//").path == "/redfish/v1")
      #expect(RedfishRequest(method: "GET", path: "///").path == "/")
      #expect(RedfishRequest(method: "GET", path: "").path == "")
    }
  }

  @Test func aRefusedMethodTellsThoseThatAreAllowed() async throws {
    try await withService { service, _ in
      let sessionsPath = "/redfish/v1/SessionService/Sessions"
      let body: JSONValue = ["UserName": "admin", "Password": "secret"]
      let made = await service.respond(to: RedfishRequest(method: "POST", path: sessionsPath, body: body.serialize()))
      let session = try #require(made.headers["Location"])
      for (method, path, allowed) in [
        ("DELETE", system, "GET, HEAD, PATCH"), ("PUT", sessionsPath, "GET, HEAD, POST"),
        ("PATCH", session, "GET, HEAD, DELETE"), ("GET", system + "/Actions/ComputerSystem.Reset", "POST"),
        ("POST", "/redfish/v1/Chassis/1", "GET, HEAD"), ("PUT", "/redfish/v1", "GET, HEAD"),
        ("DELETE", "/redfish", "GET, HEAD"), ("DELETE", "/redfish/v1/$metadata", "GET, HEAD"),
      ] {
        let reply = await service.respond(to: request(method, path))
        #expect(reply.status == 405 && reply.headers["Allow"] == allowed, "\(method) \(path)")
      }
      for method in ["GET", "PUT", "DELETE"] {
        #expect(await service.respond(to: request(method, "/redfish/v1/Nothing")).status == 404)
      }
    }
  }

  @Test func theMetadataIsWhereTheContextSays() async throws {
    try await withService { service, _ in
      let odata = await service.respond(to: RedfishRequest(method: "GET", path: "/redfish/v1/odata"))
      let context = try #require(odata.body?["@odata.context"]?.stringValue)
      let reply = await service.respond(to: RedfishRequest(method: "GET", path: context))
      let content = try #require(reply.content)
      #expect(content.type.hasPrefix("application/xml"))
      let text = String(decoding: content.bytes, as: UTF8.self)
      #expect(text.contains(#"<EntityContainer Name="Service" Extends="ServiceRoot.v1_0_0.ServiceContainer"/>"#))
      let etag = try #require(reply.headers["ETag"])
      let known = RedfishRequest(method: "GET", path: context, headers: ["if-none-match": etag])
      let unchanged = await service.respond(to: known)
      #expect(unchanged.status == 304 && unchanged.content == nil)
    }
  }

  @Test(arguments: [false, true]) func everyLinkLeadsSomewhere(hasScreen: Bool) async throws {
    let chassis = PaperChassis()
    if hasScreen { await chassis.give([]) }
    try await withService(of: chassis) { service, _ in
      let metadata = await service.respond(to: request("GET", "/redfish/v1/$metadata")).xml ?? ""
      var todo = ["/redfish/v1"]
      var seen = Set<String>()
      while let path = todo.popLast() {
        guard seen.insert(path).inserted else { continue }
        let reply = await service.respond(to: request("GET", path))
        #expect(reply.status == 200, "\(path)")
        #expect(reply.headers["OData-Version"] == "4.0")
        #expect(reply.headers["ETag"] != nil)
        let body = try #require(reply.body)
        #expect(body["@odata.id"] != nil && body["@odata.type"] != nil && body["Name"] != nil, "\(path)")
        // "#ComputerSystem.v1_20_0.ComputerSystem" is in the namespace "ComputerSystem.v1_20_0".
        let namespace = body["@odata.type"]?.stringValue?.dropFirst().split(separator: ".").dropLast() ?? []
        #expect(metadata.contains("Namespace=\"\(namespace.joined(separator: "."))\""), "\(path)")
        func collect(_ value: JSONValue) {
          if let link = value["@odata.id"]?.stringValue {
            todo.append(RedfishRequest(method: "GET", path: link).path)
          }
          for member in value.objectValue?.values.map({ $0 }) ?? value.arrayValue ?? [] { collect(member) }
        }
        collect(body)
      }
      #expect(seen.count >= 13)
      #expect(seen.contains("/redfish/v1/Managers/1/Oem/Dell/DellLCService") == hasScreen)
    }
  }

  @Test func sessions() async throws {
    try await withService(sessionTimeout: .milliseconds(300)) { service, _ in
      let wrong = await service.respond(
        to: RedfishRequest(
          method: "POST", path: "/redfish/v1/SessionService/Sessions",
          body: JSONValue.object(["UserName": "admin", "Password": "no"]).serialize()))
      #expect(wrong.status == 401)
      let reply = await service.respond(
        to: RedfishRequest(
          method: "POST", path: "/redfish/v1/SessionService/Sessions",
          body: JSONValue.object(["UserName": "other", "Password": "pa:ss"]).serialize()))
      #expect(reply.status == 201)
      let token = try #require(reply.headers["X-Auth-Token"])
      let location = try #require(reply.headers["Location"])
      func status(_ method: String, _ path: String) async -> Int {
        await service.respond(to: RedfishRequest(method: method, path: path, headers: ["x-auth-token": token])).status
      }
      #expect(await status("GET", system) == 200)
      #expect(await status("GET", location) == 200)
      #expect(await status("DELETE", location) == 204)
      #expect(await status("GET", system) == 401)
    }
  }

  private let account = AccountDigest(username: "admin", password: "secret")

  @Test func aSessionEndsWhenItIsNotUsed() {
    var sessions = Sessions(timeout: .seconds(10))
    let start = ContinuousClock.now
    let made = sessions.make(user: "admin", account: account, now: start)
    guard let made else { return #expect(Bool(false)) }
    let early = sessions.use(made.token, now: start + .seconds(9))
    let renewed = sessions.use(made.token, now: start + .seconds(18))
    let late = sessions.use(made.token, now: start + .seconds(29))
    #expect(early != nil && renewed != nil && late == nil)
    #expect(made.token.count == 64)
  }

  @Test func sessionsAreFew() {
    var sessions = Sessions(timeout: .seconds(10))
    let now = ContinuousClock.now
    for _ in 0..<Sessions.sessionsMax {
      let session = sessions.make(user: "a", account: account, now: now)
      #expect(session != nil)
    }
    let refused = sessions.make(user: "a", account: account, now: now)
    let later = sessions.make(user: "a", account: account, now: now + .seconds(11))
    #expect(refused == nil && later != nil)
  }

  @Test func wrongPasswordsLockForAWhile() {
    var lockout = Lockout()
    let start = ContinuousClock.now
    for _ in 0..<Lockout.threshold { lockout.failed("admin", now: start) }
    #expect(lockout.isLocked("admin", now: start + .seconds(29)))
    #expect(!lockout.isLocked("admin", now: start + .seconds(31)))
    #expect(!lockout.isLocked("other", now: start))
    // Strangers' names do not fill the memory.
    for number in 0..<10_000 { lockout.failed("user\(number)", now: start) }
  }

  @Test func aLockedAccountKeepsItsSessions() async throws {
    try await withService { service, _ in
      let sessionsPath = "/redfish/v1/SessionService/Sessions"
      let body: JSONValue = ["UserName": "admin", "Password": "secret"]
      let reply = await service.respond(
        to: RedfishRequest(method: "POST", path: sessionsPath, body: body.serialize()))
      let token = try #require(reply.headers["X-Auth-Token"])
      for _ in 0..<Lockout.threshold {
        _ = await service.respond(to: request("GET", system, nil, ["authorization": "Basic YWRtaW46bm8="]))
      }
      let locked = await service.respond(to: request("GET", system))
      #expect(locked.status == 401)
      #expect(locked.body?["error"]?["code"]?.stringValue?.contains("Locked") == true)
      let known = RedfishRequest(method: "GET", path: system, headers: ["x-auth-token": token])
      #expect(await service.respond(to: known).status == 200)
    }
  }

  /// A session of an account that was removed, or has another password, is over; others are not.
  @Test func aSessionEndsWithItsAccount() async throws {
    try await withService { service, directory in
      func signIn(_ user: String, _ password: String) async throws -> String {
        let body: JSONValue = ["UserName": .string(user), "Password": .string(password)]
        let reply = await service.respond(
          to: RedfishRequest(method: "POST", path: "/redfish/v1/SessionService/Sessions", body: body.serialize()))
        return try #require(reply.headers["X-Auth-Token"])
      }
      func status(_ token: String) async -> Int {
        await service.respond(to: RedfishRequest(method: "GET", path: system, headers: ["x-auth-token": token])).status
      }
      let admin = try await signIn("admin", "secret")
      let other = try await signIn("other", "pa:ss")
      #expect(await status(admin) == 200)
      #expect(await status(other) == 200)
      // The other lines may move.
      try directory.write("accounts", "other:pa:ss\nadmin:new\n")
      #expect(await status(admin) == 401)
      #expect(await status(other) == 200)
      // It stays over when the password comes back: whoever had it signs in again.
      try directory.write("accounts", "admin:secret\n")
      #expect(await status(admin) == 401)
      #expect(await status(other) == 401)
      // A file that cannot be read ends no session.
      let last = try await signIn("admin", "secret")
      try directory.write("accounts", String(repeating: "x", count: 65 << 10))
      #expect(await status(last) == 500)
      try directory.write("accounts", "admin:secret\n")
      #expect(await status(last) == 200)
    }
  }

  @Test func changedAccountsCountAtOnce() async throws {
    try await withService { service, directory in
      #expect(await service.respond(to: request("GET", system)).status == 200)
      try directory.write("accounts", "admin:other\n")
      #expect(await service.respond(to: request("GET", system)).status == 401)
    }
  }

  @Test func reset() async throws {
    try await withService { service, _ in
      let target = system + "/Actions/ComputerSystem.Reset"
      #expect(await service.respond(to: request("POST", target, ["ResetType": "ForceRestart"])).status == 409)
      #expect(await service.respond(to: request("POST", target, ["ResetType": "On"])).status == 204)
      #expect(await service.respond(to: request("POST", target, ["ResetType": "Explode"])).status == 400)
      #expect(await service.respond(to: request("POST", target, [:])).status == 400)
      #expect(await service.respond(to: request("POST", target, [])).status == 400)
      #expect(await service.respond(to: request("GET", target)).status == 405)
      #expect(await service.respond(to: request("DELETE", system)).status == 405)
      #expect(await service.respond(to: request("GET", system)).body?["PowerState"] == "On")
    }
  }

  @Test func picturesOfTheScreen() async throws {
    let chassis = PaperChassis()
    let target = "/redfish/v1/Managers/1/Oem/Dell/DellLCService/Actions/DellLCService.ExportServerScreenShot"
    let wanted: JSONValue = ["FileType": "ServerScreenShot"]
    func problem(_ code: SoftHostError.Code) -> Result<[UInt8], SoftHostError> {
      .failure(SoftHostError(code, operation: "look", message: "why"))
    }
    try await withService(of: chassis) { service, _ in
      // A chassis without a screen has no such address.
      #expect(await service.respond(to: request("POST", target, wanted)).status == 404)
      #expect(await service.respond(to: request("GET", target)).status == 404)
      await chassis.give(
        [.success(Array("pixels".utf8))]
          + [.conflict, .busy, .timeout, .closed, .refused, .file].map { problem($0) })
      #expect(await service.respond(to: RedfishRequest(method: "POST", path: target)).status == 401)
      for bad: JSONValue in [[:], [], ["FileType": "LastCrashScreenShot"], ["FileType": 2]] {
        #expect(await service.respond(to: request("POST", target, bad)).status == 400, "\(bad)")
      }
      let taken = await service.respond(to: request("POST", target, wanted))
      #expect(taken.status == 200 && taken.body?["ServerScreenShotFile"] == "cGl4ZWxz")
      for status in [409, 503, 503, 503, 500, 500] {
        let reply = await service.respond(to: request("POST", target, wanted))
        #expect(reply.status == status && (reply.headers["Retry-After"] != nil) == (status == 503))
        #expect(reply.body?["error"]?["message"]?.stringValue?.contains("why") == true)
      }
    }
  }

  @Test func bootOverrideWithPreconditions() async throws {
    try await withService { service, _ in
      let etag = try #require(await service.respond(to: request("GET", system)).headers["ETag"])
      let once: JSONValue = ["Boot": ["BootSourceOverrideEnabled": "Once", "BootSourceOverrideTarget": "Pxe"]]
      let stale = await service.respond(to: request("PATCH", system, once, ["if-match": "\"x\""]))
      #expect(stale.status == 412)
      let changed = await service.respond(to: request("PATCH", system, once, ["if-match": etag]))
      #expect(changed.status == 200)
      #expect(changed.body?["Boot"]?["BootSourceOverrideTarget"] == "Pxe")
      #expect(await service.respond(to: request("PATCH", system, once, ["if-match": etag])).status == 412)
      let unchanged = await service.respond(to: request("GET", system, nil, ["if-none-match": "*"]))
      #expect(unchanged.status == 304 && unchanged.body == nil)
      for bad: JSONValue in [
        ["PowerState": "On"], [:], ["Boot": "Pxe"], ["Boot": ["BootSourceOverrideTarget": "Moon"]],
        ["Boot": ["BootSourceOverrideEnabled": nil]], ["Boot": ["Unknown": 1]],
      ] {
        #expect(await service.respond(to: request("PATCH", system, bad)).status == 400, "\(bad)")
      }
    }
  }

  @Test func anotherODataVersionIsRefused() async throws {
    try await withService { service, _ in
      #expect(await service.respond(to: request("GET", system, nil, ["odata-version": "4.1"])).status == 412)
    }
  }

  @Test func readsBasicHeaders() throws {
    let parsed = try #require(BasicAuthorization.parse("basic YTpiOmM="))
    #expect(parsed.user == "a" && parsed.password == "b:c")
    for text in ["", "Basic", "Bearer YTpi", "Basic !!!!", "Basic YWI=", "Basic YQ=YQ==", "Basic ====", "Basic /w=="] {
      #expect(BasicAuthorization.parse(text) == nil, "\(text)")
    }
  }

  @Test func comparesWithoutEarlyEnd() {
    #expect(Accounts.equal("", "") && Accounts.equal("abc", "abc"))
    #expect(!Accounts.equal("abc", "abd") && !Accounts.equal("abc", "ab") && !Accounts.equal("", "a"))
    #expect(!Accounts.equal("a\u{0}", "a"))
  }

  @Test func survivesRandomRequests() async throws {
    try await withService { service, _ in
      var random = SeededGenerator(seed: 21)
      let paths = [
        system, system + "/Actions/ComputerSystem.Reset", "/redfish/v1/SessionService/Sessions", "/redfish/v1",
      ]
      for _ in 0..<3_000 {
        let bytes = random.bytes(Int.random(in: 0...40, using: &random))
        let text = String(decoding: bytes, as: UTF8.self)
        var request = request(
          ["GET", "POST", "PATCH", "DELETE", "PUT", "HEAD"].randomElement(using: &random) ?? "GET",
          (paths.randomElement(using: &random) ?? "") + (Bool.random(using: &random) ? "" : "/" + text))
        request.body = bytes
        if Bool.random(using: &random) { request.headers["if-match"] = text }
        if Int.random(in: 0..<4, using: &random) == 0 { request.headers["authorization"] = "Basic " + text }
        if Int.random(in: 0..<4, using: &random) == 0 { request.headers["x-auth-token"] = text }
        let reply = await service.respond(to: request)
        #expect((200..<500).contains(reply.status))
      }
    }
  }
}
