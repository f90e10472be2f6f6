import AsyncHTTPClient
import Deadlines
import JSON
import Logging
import NIOHTTP1
import Synchronization

/// A `BMC` over Redfish (DSP0266), for one system behind one service.
///
/// Each request waits its turn among all of this BMC, signs in where it has to, and is answered or fails in bounded
/// time. What was learnt (session, path of the system) is kept for the next.
final class RedfishClient: BMC {
  enum SignIn: Sendable {
    case unknown
    /// Sessions are not offered or not available: every request carries the password.
    case basic
    case session(token: String, path: String?)
  }

  private struct State {
    var signIn = SignIn.unknown
    /// Where the service lists its systems. The rest of its root is not kept: there may be thousands of these clients.
    var systemsPath: String?
    var systemPath: String?
  }

  let address: BMCAddress
  let limits: BMCLimits
  private let credentials: BMCCredentials
  private let endpoint: BMCEndpoint
  private let transport: RedfishTransport
  private let logger: Logger
  private let state = Mutex(State())

  init(
    address: BMCAddress, credentials: BMCCredentials, trust: BMCTrust, endpoint: BMCEndpoint, http: HTTPClient,
    limits: BMCLimits, logger: Logger
  ) throws {
    self.address = address
    self.credentials = credentials
    self.endpoint = endpoint
    self.limits = limits
    self.logger = logger
    transport = try RedfishTransport(address: address, trust: trust, http: http, limits: limits)
  }

  /// Bounds a call made of several requests and names it in errors.
  func call<R: Sendable>(
    _ verb: String, limit: Duration? = nil, _ body: @escaping @Sendable (_ operation: String) async throws -> R
  ) async throws -> R {
    let operation = "\(verb) of \(address)"
    do {
      return try await withTimeLimit(limit ?? limits.call) { try await body(operation) }
    } catch let error as TimeLimitExceeded {
      throw BMCError(.timeout, operation: operation, message: "the BMC took longer than \(error.limit)", cause: error)
    }
  }

  // MARK: - Requests

  /// Sends one request, signed in. Gives the answer whatever its status, except for those that mean the same everywhere.
  func send(
    _ method: HTTPMethod, _ path: String, body: JSONValue? = nil, headers: HTTPHeaders = [:], answerBytes: Int? = nil,
    operation: String
  ) async throws -> RedfishAnswer {
    try await inTurn(operation) {
      try await self.sendInTurn(
        method, path, body: body, headers: headers, answerBytes: answerBytes, operation: operation)
    }
  }

  private func inTurn<R: Sendable>(_ operation: String, _ body: @Sendable () async throws -> R) async throws -> R {
    do {
      return try await endpoint.turnstile.withTurn(body)
    } catch Turnstile.Refusal.full {
      throw BMCError(
        .busy, operation: operation, message: "more than \(limits.waiting) requests wait for this BMC already",
        retryAfter: .seconds(5))
    }
  }

  private func sendInTurn(
    _ method: HTTPMethod, _ path: String, body: JSONValue?, headers: HTTPHeaders, answerBytes: Int?, operation: String
  ) async throws -> RedfishAnswer {
    try endpoint.check(credentials, operation: operation)
    var renewed = false
    while true {
      let (authorization, isFresh) = try await authorization(operation: operation)
      let answer = try await transport.send(
        method, path, body: body, headers: headers, authorization: authorization, answerBytes: answerBytes,
        operation: operation)
      guard answer.status == 401 else { return try checked(answer, operation: operation) }
      switch authorization {
      case .token where !isFresh && !renewed:
        // The session ran out or the BMC restarted: sign in again, once.
        renewed = true
        state.withLock { $0.signIn = .unknown }
      case .token:
        state.withLock { $0.signIn = .unknown }
        throw BMCError(
          .protocolError, operation: operation, message: "the BMC refuses the session it has just given")
      case .basic, .none:
        throw refusal(answer, operation: operation)
      }
    }
  }

  private func checked(_ answer: RedfishAnswer, operation: String) throws -> RedfishAnswer {
    switch answer.status {
    case 403:
      throw error(.forbidden, answer, operation: operation, "the account '\(credentials.username)' may not do this")
    case 429, 503:
      throw BMCError(
        .busy, operation: operation, message: text("the BMC is busy (\(answer.status))", answer),
        retryAfter: answer.retryAfter ?? .seconds(10))
    default: return answer
    }
  }

  private func refusal(_ answer: RedfishAnswer, operation: String) -> BMCError {
    let locked = answer.hasMessage("locked") || answer.status == 423
    return endpoint.refused(
      credentials, locked: locked, for: locked ? answer.retryAfter ?? limits.lockedAccount : limits.refusedCredentials,
      operation: operation)
  }

  private func text(_ message: String, _ answer: RedfishAnswer) -> String {
    let reason = answer.reason(hiding: [credentials.password])
    return reason.isEmpty ? message : "\(message): \(reason)"
  }

  func error(
    _ code: BMCError.Code, _ answer: RedfishAnswer, operation: String, isStateRefusal: Bool = false, _ message: String
  ) -> BMCError {
    BMCError(
      code, operation: operation, message: text(message, answer), retryAfter: answer.retryAfter,
      isStateRefusal: isStateRefusal)
  }

  /// The error for an answer that is no success.
  func failure(_ answer: RedfishAnswer, operation: String, asking what: String) -> BMCError {
    let code: BMCError.Code = answer.status >= 500 ? .failed : .rejected
    return error(code, answer, operation: operation, "the BMC answered \(answer.status) to \(what)")
  }

  /// Reads a resource that must be there.
  func get(_ path: String, operation: String) async throws -> (document: JSONValue, etag: String?) {
    let answer = try await send(.GET, path, operation: operation)
    guard answer.isSuccess else { throw failure(answer, operation: operation, asking: "GET \(path)") }
    guard let document = answer.body, document.objectValue != nil else {
      throw BMCError(.protocolError, operation: operation, message: "GET \(path) gave no JSON object")
    }
    return (document, answer.etag)
  }

  // MARK: - Signing in

  private func authorization(operation: String) async throws -> (RedfishTransport.Authorization, isFresh: Bool) {
    switch state.withLock({ $0.signIn }) {
    case .basic: return (.basic(credentials), false)
    case .session(let token, _): return (.token(token), false)
    case .unknown: break
    }
    guard let path = try await sessionsPath(operation: operation) else {
      state.withLock { $0.signIn = .basic }
      return (.basic(credentials), true)
    }
    let answer = try await transport.send(
      .POST, path, body: ["UserName": .string(credentials.username), "Password": .string(credentials.password)],
      authorization: .none, operation: operation)
    if answer.isSuccess, let token = answer.headers.first(name: "X-Auth-Token") {
      var location = answer.headers.first(name: "Location") ?? answer.body?["@odata.id"]?.stringValue
      // Some services give the whole URL.
      if let text = location, let scheme = text.firstRange(of: "://") {
        location = text[scheme.upperBound...].firstIndex(of: "/").map { String(text[$0...]) }
      }
      let session = location.flatMap { $0.isRedfishPath ? $0 : nil }
      state.withLock { $0.signIn = .session(token: token, path: session) }
      return (.token(token), true)
    }
    switch answer.status {
    case _ where answer.hasMessage("SessionLimitExceeded"): break
    case 401, 403, 423: throw refusal(answer, operation: operation)
    case 429, 503: _ = try checked(answer, operation: operation)
    default: break
    }
    // Advertised, but missing, full or broken: the password with each request works on every service.
    logger.debug("no Redfish session, using Basic", metadata: ["bmc": "\(address)", "status": "\(answer.status)"])
    state.withLock { $0.signIn = .basic }
    return (.basic(credentials), true)
  }

  /// Where sessions are made, or nil where the service does not offer any.
  private func sessionsPath(operation: String) async throws -> String? {
    let answer = try await transport.send(.GET, "/redfish/v1/", authorization: .none, operation: operation)
    // The root is public by the specification; a service that protects it wants Basic.
    if answer.status == 401 || answer.status == 403 { return nil }
    let checked = try checked(answer, operation: operation)
    guard checked.isSuccess, let root = checked.body, root.objectValue != nil else {
      if checked.status >= 500 { throw failure(checked, operation: operation, asking: "GET /redfish/v1/") }
      throw BMCError(
        .protocolError, operation: operation,
        message: "no Redfish service at \(address.endpoint) (GET /redfish/v1/ gave \(checked.status))")
    }
    noteSystems(root)
    if let link = root.link("Links", "Sessions") { return link }
    return root.at("SessionService", "@odata.id") == nil ? nil : "/redfish/v1/SessionService/Sessions"
  }

  /// Gives the session back. Sessions are few on a BMC; one that is left runs out by itself.
  func signOut() async {
    let signIn = state.withLock { state in
      defer { state.signIn = .unknown }
      return state.signIn
    }
    guard case .session(let token, let path?) = signIn else { return }
    _ = try? await withTimeLimit(.seconds(2)) {
      try await self.transport.send(
        .DELETE, path, authorization: .token(token), operation: "sign out of \(self.address)")
    }
  }

  // MARK: - The system

  /// Where the service root lists the systems. It is public by the specification, and is read without the password: a
  /// wrong one would count as a further try on some BMCs.
  private func systemsPath(operation: String) async throws -> String {
    if let path = state.withLock({ $0.systemsPath }) { return path }
    // Not even that for credentials that were refused: nothing more would come of it.
    try endpoint.check(credentials, operation: operation)
    _ = try await inTurn(operation) { try await self.sessionsPath(operation: operation) }
    if let path = state.withLock({ $0.systemsPath }) { return path }
    return noteSystems(try await get("/redfish/v1/", operation: operation).document)
  }

  @discardableResult
  private func noteSystems(_ root: JSONValue) -> String {
    let path = root.link("Systems") ?? "/redfish/v1/Systems"
    state.withLock { $0.systemsPath = path }
    return path
  }

  /// The path of the system that the address means.
  func systemPath(operation: String) async throws -> String {
    if let path = address.systemPath { return path }
    if let path = state.withLock({ $0.systemPath }) { return path }
    let collection = try await get(try await systemsPath(operation: operation), operation: operation).document
    let members = (collection["Members"]?.arrayValue ?? []).compactMap { $0.link() }
    guard let path = members.first else {
      throw BMCError(
        .address, operation: operation, message: "the BMC lists no system; is the server's tray powered and seated?")
    }
    guard members.count == 1 else {
      let list = members.prefix(32).joined(separator: ", ")
      throw BMCError(
        .address, operation: operation,
        message: "\(members.count) systems are behind this BMC; choose one in the address: \(list)")
    }
    state.withLock { $0.systemPath = path }
    return path
  }

  /// Reads the system's document.
  func system(operation: String) async throws -> (path: String, document: JSONValue, etag: String?) {
    let path = try await systemPath(operation: operation)
    let answer = try await send(.GET, path, operation: operation)
    if answer.status == 404 {
      state.withLock {
        $0.systemPath = nil
        $0.systemsPath = nil
      }
      throw BMCError(.address, operation: operation, message: "the BMC has no system \(path); check the address")
    }
    guard answer.isSuccess else { throw failure(answer, operation: operation, asking: "GET \(path)") }
    guard let document = answer.body, document.objectValue != nil else {
      throw BMCError(.protocolError, operation: operation, message: "GET \(path) gave no JSON object")
    }
    return (path, document, answer.etag)
  }
}
