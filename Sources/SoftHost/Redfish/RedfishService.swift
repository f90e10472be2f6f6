import JSON
package import Logging
import Telemetry

/// The BMC's Redfish service (DSP0266): who asks, whether they may, and what they get.
package actor RedfishService {
  private let chassis: any ChassisControl
  private let accounts: Accounts
  private let logger: Logger
  private let metrics: SoftHostMetrics
  private var sessions: Sessions
  private var lockout = Lockout()

  package init(
    chassis: any ChassisControl, accounts: Accounts, sessionTimeout: Duration = .seconds(1800),
    metrics: SoftHostMetrics,
    logger: Logger
  ) {
    self.chassis = chassis
    self.accounts = accounts
    self.sessions = Sessions(timeout: sessionTimeout)
    self.logger = logger
    self.metrics = metrics
  }

  /// Answers one request.
  package func respond(to request: RedfishRequest) async -> RedfishReply {
    var reply = await answer(request)
    reply.headers["OData-Version"] = "4.0"
    reply.headers["Cache-Control"] = "no-cache"
    if request.method == "GET" || request.method == "HEAD", reply.status == 200, let content = reply.content {
      let etag = RedfishDocuments.etag(content.bytes)
      reply.headers["ETag"] = etag
      if let known = request.headers["if-none-match"], RedfishService.matches(known, etag) {
        reply.status = 304
        reply.body = nil
        reply.xml = nil
      }
    }
    metrics.requests.increment(request.method, String(reply.status))
    return reply
  }

  private static func matches(_ header: String, _ etag: String) -> Bool {
    header.split(separator: ",").contains { candidate in
      var text = candidate.drop { $0 == " " }
      while text.last == " " { text.removeLast() }
      if text.hasPrefix("W/") { text = text.dropFirst(2) }
      return text == "*" || text == etag
    }
  }

  private func answer(_ request: RedfishRequest) async -> RedfishReply {
    guard request.path.utf8.count <= RedfishRequest.pathMax else {
      return .failure(414, "InvalidURI", "The address is longer than \(RedfishRequest.pathMax) bytes.")
    }
    if let version = request.headers["odata-version"], version != "4.0" {
      return .failure(412, "PreconditionFailed", "OData-Version must be 4.0.")
    }
    // Public by the specification: the versions, the root, OData's two documents, and signing in. A HEAD may be asked
    // wherever a GET may.
    switch (request.method == "HEAD" ? "GET" : request.method, request.path) {
    case ("GET", "/redfish"): return RedfishReply(status: 200, body: ["v1": "/redfish/v1/"])
    case ("GET", RedfishDocuments.root):
      return RedfishReply(status: 200, body: RedfishDocuments.serviceRoot(await chassis.snapshot()))
    case ("GET", RedfishDocuments.root + "/odata"):
      return RedfishReply(status: 200, body: RedfishDocuments.serviceDocument)
    case ("GET", RedfishMetadata.path):
      var reply = RedfishReply(status: 200)
      reply.xml = RedfishMetadata.document
      return reply
    case ("POST", RedfishDocuments.sessions): return signIn(request)
    default: break
    }
    if let refusal = refusal(request) { return refusal }
    return await authorized(request)
  }

  // MARK: - Who asks

  /// Nil where the request carries a valid token or password.
  private func refusal(_ request: RedfishRequest) -> RedfishReply? {
    if let token = request.headers["x-auth-token"] {
      let gone = RedfishReply.failure(401, "NoValidSession", "The session has ended or never was. Sign in again.")
      guard let session = sessions.use(token, now: .now) else { return gone }
      do {
        // Who may not sign in any more, or not with that password, must not go on by having signed in before.
        if try accounts.has(session.account) { return nil }
      } catch {
        return unreadable(error)
      }
      _ = sessions.remove(session.id)
      logger.notice("a session has ended with its account", metadata: ["user": "\(session.user.prefix(64))"])
      return gone
    }
    guard let header = request.headers["authorization"], let (user, password) = BasicAuthorization.parse(header) else {
      return .failure(
        401, "ResourceAtUriUnauthorized", "Sign in, with a session or with Basic.",
        headers: ["WWW-Authenticate": "Basic realm=\"Redfish\""])
    }
    switch check(user: user, password: password) {
    case .allowed: return nil
    case .refused(let reply): return reply
    }
  }

  private enum Verdict {
    case allowed(AccountDigest)
    case refused(RedfishReply)
  }

  private func check(user: String, password: String) -> Verdict {
    let now = ContinuousClock.now
    guard !lockout.isLocked(user, now: now) else {
      return .refused(
        .failure(401, "AccountLocked", "The account is locked after too many wrong passwords. Wait 30 seconds."))
    }
    do {
      guard let account = try accounts.account(username: user, password: password) else {
        lockout.failed(user, now: now)
        metrics.refusals.increment()
        logger.warning("wrong user name or password", metadata: ["user": "\(user.prefix(64))"])
        return .refused(.failure(401, "ResourceAtUriUnauthorized", "The user name or the password is wrong."))
      }
      lockout.succeeded(user)
      return .allowed(account)
    } catch {
      return .refused(unreadable(error))
    }
  }

  private func unreadable(_ error: any Error) -> RedfishReply {
    logger.error("the credentials cannot be read", metadata: ["error": "\(error)"])
    return .failure(500, "InternalError", "The accounts cannot be read.")
  }

  private func signIn(_ request: RedfishRequest) -> RedfishReply {
    guard let body = try? JSONValue.parse(request.body), let user = body["UserName"]?.stringValue,
      let password = body["Password"]?.stringValue
    else { return .failure(400, "MalformedJSON", "UserName and Password are needed, as JSON.") }
    let account: AccountDigest
    switch check(user: user, password: password) {
    case .allowed(let digest): account = digest
    case .refused(let reply): return reply
    }
    guard let session = sessions.make(user: user, account: account, now: .now) else {
      return .failure(
        503, "SessionLimitExceeded", "There is no room for another session.", headers: ["Retry-After": "30"])
    }
    let document = RedfishDocuments.session(session)
    return RedfishReply(
      status: 201,
      headers: ["X-Auth-Token": session.token, "Location": RedfishDocuments.sessions + "/" + session.id],
      body: document)
  }

  // MARK: - What they get

  private func authorized(_ request: RedfishRequest) async -> RedfishReply {
    let path = request.path
    switch request.method {
    case "GET", "HEAD":
      if let document = await document(path) { return RedfishReply(status: 200, body: document) }
    case "POST" where path == RedfishDocuments.resetTarget:
      return await reset(request)
    case "POST" where path == ScreenshotDocuments.target:
      return await screenshot(request)
    case "PATCH" where path == RedfishDocuments.system:
      return await patchSystem(request)
    case "DELETE" where path.hasPrefix(RedfishDocuments.sessions + "/"):
      let id = String(path.dropFirst(RedfishDocuments.sessions.count + 1))
      return sessions.remove(id) ? RedfishReply(status: 204) : .notFound
    default: break
    }
    let methods = await methods(path)
    guard !methods.isEmpty else { return .notFound }
    return .failure(
      405, "OperationNotAllowed", "\(request.method) is not possible here.",
      headers: ["Allow": methods.joined(separator: ", ")])
  }

  /// The methods that may be used at an address; none where there is nothing.
  private func methods(_ path: String) async -> [String] {
    switch path {
    case RedfishDocuments.resetTarget: return ["POST"]
    case ScreenshotDocuments.target: return await chassis.snapshot().hasScreen ? ["POST"] : []
    case RedfishDocuments.system: return ["GET", "HEAD", "PATCH"]
    case RedfishDocuments.sessions: return ["GET", "HEAD", "POST"]
    case "/redfish", RedfishDocuments.root + "/odata", RedfishMetadata.path: return ["GET", "HEAD"]
    default:
      guard await document(path) != nil else { return [] }
      return path.hasPrefix(RedfishDocuments.sessions + "/") ? ["GET", "HEAD", "DELETE"] : ["GET", "HEAD"]
    }
  }

  private func document(_ path: String) async -> JSONValue? {
    typealias Documents = RedfishDocuments
    let snapshot = await chassis.snapshot()
    switch path {
    case Documents.root: return Documents.serviceRoot(snapshot)
    case Documents.root + "/Systems":
      return Documents.collection(
        path, "ComputerSystemCollection", name: "Systems", members: [Documents.system])
    case Documents.system: return Documents.computerSystem(snapshot)
    case Documents.system + "/ResetActionInfo": return Documents.resetActionInfo
    case Documents.system + "/Processors":
      return Documents.collection(path, "ProcessorCollection", name: "Processors", members: [path + "/1"])
    case Documents.system + "/Processors/1": return Documents.processor(snapshot)
    case Documents.system + "/EthernetInterfaces":
      return Documents.collection(
        path, "EthernetInterfaceCollection", name: "Network cards", members: snapshot.nics.map { path + "/" + $0.id })
    case Documents.root + "/Managers":
      return Documents.collection(path, "ManagerCollection", name: "Managers", members: [Documents.manager])
    case Documents.manager: return Documents.managerDocument(snapshot)
    case ScreenshotDocuments.service: return snapshot.hasScreen ? ScreenshotDocuments.document : nil
    case Documents.root + "/Chassis":
      return Documents.collection(path, "ChassisCollection", name: "Chassis", members: [Documents.chassis])
    case Documents.chassis: return Documents.chassisDocument(snapshot)
    case Documents.chassis + "/Power": return Documents.power
    case Documents.chassis + "/Thermal": return Documents.thermal
    case Documents.root + "/SessionService": return Documents.sessionService(timeout: sessions.timeout)
    case Documents.sessions:
      sessions.expire(.now)
      return Documents.collection(
        path, "SessionCollection", name: "Sessions", members: sessions.all.map { path + "/" + $0.id })
    default:
      if let nic = snapshot.nics.first(where: { path == Documents.system + "/EthernetInterfaces/" + $0.id }) {
        return Documents.ethernetInterface(nic)
      }
      return sessions.all.first { path == Documents.sessions + "/" + $0.id }.map(Documents.session)
    }
  }

  private func reset(_ request: RedfishRequest) async -> RedfishReply {
    guard let body = try? JSONValue.parse(request.body), body.objectValue != nil else {
      return .failure(400, "MalformedJSON", "The body is not a JSON object.")
    }
    guard let value = body["ResetType"] else {
      return .failure(400, "ActionParameterMissing", "ResetType is needed.")
    }
    guard let type = value.stringValue.flatMap(Chassis.ResetType.init) else {
      let allowed = Chassis.ResetType.allCases.map(\.rawValue).joined(separator: ", ")
      return .failure(400, "ActionParameterValueNotInList", "ResetType must be one of \(allowed).")
    }
    do {
      try await chassis.reset(type)
      return RedfishReply(status: 204)
    } catch let error as SoftHostError where error.code == .conflict {
      return .failure(409, "OperationFailed", "\(type.rawValue) is not possible: \(error.message).")
    } catch {
      logger.error("reset failed", metadata: ["error": "\(error)"])
      return .failure(500, "InternalError", "The chassis failed.")
    }
  }

  private func screenshot(_ request: RedfishRequest) async -> RedfishReply {
    let snapshot = await chassis.snapshot()
    guard snapshot.hasScreen else { return .notFound }
    guard let body = try? JSONValue.parse(request.body), body.objectValue != nil else {
      return .failure(400, "MalformedJSON", "The body is not a JSON object.")
    }
    guard let value = body["FileType"] else {
      return .failure(400, "ActionParameterMissing", "FileType is needed.")
    }
    guard value.stringValue == ScreenshotDocuments.fileType else {
      return .failure(
        400, "ActionParameterValueNotInList", "FileType must be \(ScreenshotDocuments.fileType).")
    }
    do {
      let picture = try await chassis.screenshot()
      metrics.screenshots.increment("taken")
      return RedfishReply(status: 200, body: ScreenshotDocuments.answer(picture))
    } catch let error as SoftHostError {
      metrics.screenshots.increment(error.code.rawValue)
      if error.code != .conflict, error.code != .busy {
        logger.warning("no picture of the screen", metadata: ["error": "\(error)"])
      }
      return ScreenshotDocuments.failure(error)
    } catch {
      metrics.screenshots.increment("failed")
      return .failure(500, "InternalError", "The chassis failed.")
    }
  }

  private func patchSystem(_ request: RedfishRequest) async -> RedfishReply {
    let snapshot = await chassis.snapshot()
    if let expected = request.headers["if-match"] {
      let etag = RedfishDocuments.etag(RedfishDocuments.computerSystem(snapshot))
      guard RedfishService.matches(expected, etag) else {
        return .failure(412, "PreconditionFailed", "The resource has changed since it was read.")
      }
    }
    guard let body = try? JSONValue.parse(request.body), let members = body.objectValue else {
      return .failure(400, "MalformedJSON", "The body is not a JSON object.")
    }
    for name in members.keys.sorted() where name != "Boot" && !name.contains("@") {
      return .failure(400, "PropertyNotWritable", "\(name) cannot be changed.")
    }
    guard let wanted = members["Boot"]?.objectValue else {
      return .failure(400, "PropertyMissing", "Boot is needed, as an object.")
    }
    var boot = snapshot.boot
    for (name, value) in wanted.sorted(by: { $0.key < $1.key }) {
      let text = value.stringValue ?? ""
      switch name {
      case "BootSourceOverrideEnabled":
        guard let enabled = BootSetting.Enabled(rawValue: text) else { return RedfishService.notInList(name) }
        boot.enabled = enabled
      case "BootSourceOverrideTarget":
        guard let target = BootSetting.Target(rawValue: text) else { return RedfishService.notInList(name) }
        boot.target = target
      case "BootSourceOverrideMode":
        guard text == RedfishDocuments.bootMode(snapshot) else { return RedfishService.notInList(name) }
      default: return .failure(400, "PropertyUnknown", "Boot.\(name) is not known.")
      }
    }
    if boot.enabled == .disabled { boot.target = .none }
    do {
      try await chassis.setBoot(boot)
    } catch {
      logger.error("the boot setting cannot be saved", metadata: ["error": "\(error)"])
      return .failure(500, "InternalError", "The setting cannot be saved.")
    }
    return RedfishReply(status: 200, body: RedfishDocuments.computerSystem(await chassis.snapshot()))
  }

  private static func notInList(_ name: String) -> RedfishReply {
    .failure(400, "PropertyValueNotInList", "The value of Boot.\(name) is none of the allowed ones.")
  }
}
