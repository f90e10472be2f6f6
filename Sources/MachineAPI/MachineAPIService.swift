import BMC
import IaaS
import JSON
import Kubernetes
import Logging
import Telemetry

/// What a request is answered with.
enum APIAnswer: Sendable {
  case document(status: Int, body: JSONValue, retryAfterSeconds: Int? = nil)
  case text(status: Int, String)
  /// A PNG; its place among the pictures on their way is kept until the last byte has left.
  case picture([UInt8], ScreenshotPermit)
  /// The connection becomes a console.
  case console(ConsoleTicket)
  /// The connection becomes one to a machine's port.
  case forward(ForwardTicket)
}

/// Answers requests: finds out who calls and whether they may, and does what they ask for at the API server.
final class MachineAPIService: Sendable {
  let authenticator: Authenticator
  private let authorizer: Authorizer
  private let store: MachineStore
  private let client: KubernetesClient
  /// The folder below which consoles' sockets are; nil where this process serves no consoles.
  private let consoleFolder: String?
  private let addresses: AddressRule
  /// Nil where this process takes no pictures of screens.
  private let screens: ScreenshotDesk?
  private let requests: CounterFamily
  private let screenSeconds: HistogramFamily
  private let logger: Logger

  init(
    client: KubernetesClient, consoleFolder: String?, addresses: AddressRule, screens: ScreenshotDesk?,
    registry: MetricsRegistry, logger: Logger
  ) {
    self.client = client
    self.consoleFolder = consoleFolder
    self.addresses = addresses
    self.screens = screens
    self.logger = logger
    authenticator = Authenticator(client: client)
    authorizer = Authorizer(client: client, registry: registry)
    store = MachineStore(client: client)
    requests = registry.counter(
      "bm_api_requests_total", help: "Requests that were answered.", labels: ["verb", "code"])
    screenSeconds = registry.histogram(
      "bm_api_screenshot_seconds", help: "Time that a BMC took for a picture of a screen, or to fail.",
      labels: ["outcome"], buckets: [0.1, 0.2, 0.5, 1, 2, 5, 10, 25])
  }

  var isReady: Bool { authenticator.settings != nil }

  /// - Returns: the answer, and who called; nil for those whom nobody knows.
  func answer(_ request: APIRequest) async -> (answer: APIAnswer, caller: Caller?) {
    var caller: Caller?
    var label = "other"
    do {
      let answer = try await self.answer(request, caller: &caller, label: &label)
      if case .document(let status, _, _) = answer { requests.increment(label, "\(status)") }
      if case .console = answer { requests.increment(label, "101") }
      if case .picture = answer { requests.increment(label, "200") }
      return (answer, caller)
    } catch let failure as APIFailure {
      requests.increment(label, "\(failure.code)")
      return (
        .document(status: failure.code, body: failure.body, retryAfterSeconds: failure.retryAfterSeconds), caller
      )
    } catch {
      logger.error("a request failed in a way that nobody thought of", metadata: ["error": "\(error)"])
      let failure = APIFailure(500, "InternalError", "bm-api could not answer; its log tells why")
      requests.increment(label, "500")
      return (.document(status: failure.code, body: failure.body), caller)
    }
  }

  /// Counts a connection to a machine's port, whose answer is known only when the machine has accepted it or not.
  func countForward(status: Int) { requests.increment(MachineVerb.portforward.rawValue, "\(status)") }

  private func answer(
    _ request: APIRequest, caller: inout Caller?, label: inout String
  ) async throws -> APIAnswer {
    // Whoever is unknown learns nothing, not even which paths there are.
    if case .health(let name)? = try? Route.parse(method: request.method, path: request.path) {
      guard name != "readyz" || isReady else { return .text(status: 503, "not ready\n") }
      return .text(status: 200, "ok\n")
    }
    let known: Caller
    do {
      known = try await authenticator.caller(of: request.proof)
    } catch {
      if (error as? APIFailure)?.code == 401 { authorizer.countUnauthenticated() }
      throw error
    }
    caller = known
    let identity = known.identity
    let route = try Route.parse(method: request.method, path: request.path)
    if case .machine(let verb, _, _) = route { label = verb.rawValue }
    if let access = route.access(path: request.path) { try await authorizer.check(identity, access) }
    switch route {
    case .health: return .text(status: 200, "ok\n")
    case .groups: return .document(status: 200, body: Discovery.groups)
    case .group: return .document(status: 200, body: Discovery.group)
    case .resources: return .document(status: 200, body: Discovery.resources)
    case .openAPI2: return .document(status: 200, body: Discovery.openAPI2)
    case .openAPI3Index: return .document(status: 200, body: Discovery.openAPI3Index)
    case .openAPI3: return .document(status: 200, body: Discovery.openAPI3)
    case .machine(let verb, let namespace, let name):
      try request.checkParameters(of: verb)
      let key = ObjectKey(namespace: namespace, name: name)
      switch verb {
      case .console: return .console(try await ticket(key, request, identity))
      case .portforward: return .forward(try await forward(key, request, identity))
      case .screenshot: return try await screenshot(key, identity)
      case .timeline: return .document(status: 200, body: TimelineDocument.body(try await store.object(key)))
      case .plan:
        let running = try request.flag("running")
        return .document(
          status: 200, body: try await PlanVerb(client: client).answer(try await store.machine(key), running: running))
      default: return try await change(verb, key, request, identity)
      }
    }
  }

  private func change(
    _ verb: MachineVerb, _ key: ObjectKey, _ request: APIRequest, _ identity: Identity
  ) async throws -> APIAnswer {
    let options = try VerbOptions(verb, request: request)
    let outcome: MachineStore.Outcome
    if verb == .migrate {
      outcome = try await store.migrate(key, options)
    } else {
      outcome = try await store.change(key, options) { machine throws(APIFailure) in
        switch verb {
        case .adddisk, .removedisk: try DiskVerbs.decide(verb, machine, options)
        default: try PowerVerbs.decide(verb, machine, options, now: .now())
        }
      }
    }
    if outcome.isChanged {
      logger.info(
        "done for a user", metadata: ["verb": "\(verb.rawValue)", "machine": "\(key)", "user": "\(identity.user)"])
    }
    return .document(
      status: 200,
      body: [
        "kind": "Status", "apiVersion": "v1", "metadata": [:], "status": "Success", "message": .string(outcome.message),
        "details": [
          "name": .string(key.name), "group": .string(APIGroup.name), "kind": .string(APIGroup.plural),
          "uid": .string(outcome.uid ?? ""),
        ],
        "code": 200,
      ])
  }

  // MARK: Consoles

  private func ticket(_ key: ObjectKey, _ request: APIRequest, _ identity: Identity) async throws -> ConsoleTicket {
    try WebSocketHandshake.check(request, opens: "a console")
    let (spoken, isNamed) = try ConsoleProtocol.choose(WebSocketHandshake.offered(request))
    var since: ConsolePlace?
    if let text = try request.parameter("since") {
      guard let place = ConsolePlace(text) else {
        throw APIFailure.badRequest("since is no place of a console; take one that a session told", field: "since")
      }
      since = place
    }
    let takesOver = try request.flag("takeover") ?? false
    let isReadOnly = try request.flag("readOnly") ?? false
    guard !(takesOver && isReadOnly) else {
      throw APIFailure.badRequest("takeover and readOnly exclude each other", field: "takeover")
    }
    let machine = try await store.machine(key)
    let (hostName, uid) = try Self.place(of: machine)
    // Before, the line may still show what the host's last machine wrote.
    guard machine.status?.bootedAt != nil else {
      throw APIFailure.conflict(
        key.name, "machine \(key) is not on (\(machine.status?.message ?? "stopped")); it has a console when it is")
    }
    let socketPath = try await socket(of: hostName, machine: key, uid: uid)
    return ConsoleTicket(
      machine: key.description,
      holding: holding(.console, key, uid: uid, host: hostName, identity), socketPath: socketPath, spoken: spoken,
      namesProtocol: isNamed, since: since, takesOver: takesOver, isReadOnly: isReadOnly)
  }

  private func holding(
    _ verb: MachineVerb, _ key: ObjectKey, uid: String, host: String, _ identity: Identity
  ) -> Holding {
    Holding(
      line: ConsoleLineKey(host: host, machineUID: uid, namespace: key.namespace ?? "", name: key.name),
      identity: identity,
      access: .machine(
        verb: verb.access, subresource: verb.rawValue, namespace: key.namespace ?? "", name: key.name))
  }

  /// Where a connection to a machine's port goes.
  private func forward(
    _ key: ObjectKey, _ request: APIRequest, _ identity: Identity
  ) async throws -> ForwardTicket {
    try WebSocketHandshake.check(request, opens: "a connection to a port")
    let spoken = try WebSocketHandshake.choose(WebSocketHandshake.offered(request), known: [ForwardTicket.spoken])
    let port = try ForwardTarget.port(try request.parameter("port"))
    let machine = try await store.machine(key)
    let (hostName, uid) = try Self.place(of: machine)
    let address = try ForwardTarget.decide(machine, on: try await host(hostName, of: key), rule: addresses)
    return ForwardTicket(
      holding: holding(.portforward, key, uid: uid, host: hostName, identity), address: address, port: port,
      subprotocol: spoken)
  }

  /// The host that a machine has, and the machine's UID.
  private static func place(of machine: BareMetalMachine) throws(APIFailure) -> (host: String, uid: String) {
    guard let host = machine.status?.host, !host.isEmpty, let uid = machine.metadata.uid else {
      throw .conflict(
        machine.key.name,
        "machine \(machine.key) has no host yet (\(machine.status?.message ?? "pending")); wait until it starts")
    }
    return (host, uid)
  }

  // MARK: Screens

  private func screenshot(_ key: ObjectKey, _ identity: Identity) async throws -> APIAnswer {
    guard let screens else {
      throw APIFailure(
        501, "NotImplemented",
        "this bm-api takes no pictures of screens; its operator starts it with --screenshots. The console of machine "
          + "\(key): bmctl console \(key.name)", machine: key.name)
    }
    func look() async throws -> (ScreenshotVerb.Subject, BareMetalHost) {
      let machine = try await store.machine(key)
      let host = try await self.host(try Self.place(of: machine).host, of: key)
      return (try ScreenshotVerb.subject(machine, on: host), host)
    }
    let (subject, host) = try await look()
    let permit = try screens.enter(user: identity.user, host: subject.host, machine: key.description)
    let picture = try await self.picture(of: host, key, screens)
    guard try await look().0 == subject else {
      throw APIFailure.conflict(
        key.name, "machine \(key) was restarted or moved while the picture was taken; take another one")
    }
    logger.info("a screen was looked at", metadata: ["machine": "\(key)", "user": "\(identity.user)"])
    return .picture(picture, permit)
  }

  private func picture(of host: BareMetalHost, _ key: ObjectKey, _ screens: ScreenshotDesk) async throws -> [UInt8] {
    let start = ContinuousClock.now
    do {
      let picture = try await screens.picture(of: host)
      screenSeconds.observe(start.duration(to: .now), "taken")
      return picture.png
    } catch {
      let problem = error as? BMCError
      screenSeconds.observe(start.duration(to: .now), problem?.code.rawValue ?? "failed")
      // What nobody has to see to fills no log.
      let isUsual = problem.map { $0.isStateRefusal || [.unsupported, .busy].contains($0.code) } ?? false
      logger.log(
        level: isUsual ? .debug : .warning, "no picture of a screen",
        metadata: ["machine": "\(key)", "host": "\(host.key.name)", "reason": "\(error)"])
      throw ScreenshotVerb.failure(error, machine: key, host: host.key.name)
    }
  }

  private func host(_ name: String, of machine: ObjectKey) async throws -> BareMetalHost {
    try await store.attempt(machine) { try await client.get(BareMetalHost.self, name: name) }
  }

  /// Where a host's line is served. What is told of it to a tenant says nothing of where that is.
  private func socket(of hostName: String, machine: ObjectKey, uid: String) async throws -> String {
    let host = try await host(hostName, of: machine)
    guard host.status?.claim?.uid == uid else {
      throw APIFailure.conflict(machine.name, "machine \(machine) does not hold its host any more")
    }
    guard let consoleFolder else {
      throw APIFailure(
        501, "NotImplemented", "this bm-api serves no consoles; its operator starts it with --console-sockets")
    }
    guard let address = host.metadata.annotations?[ConsoleAddress.annotation].flatMap({ ConsoleAddress($0) }) else {
      throw APIFailure(
        501, "NotImplemented",
        "the host of machine \(machine) has no console that bm-api knows (annotation \(ConsoleAddress.annotation))",
        machine: machine.name)
    }
    guard ConsoleFolder.contains(consoleFolder, address.path) else {
      logger.warning("a host's console is outside of the folder of consoles", metadata: ["host": "\(hostName)"])
      throw APIFailure(
        501, "NotImplemented", "the console of the host of machine \(machine) is not where this bm-api serves consoles",
        machine: machine.name)
    }
    return address.path
  }

  /// Why the holders of something of a machine must not keep it.
  /// - Parameter what: what they hold, in words.
  func objections(_ holdings: [Holding], _ what: String) async -> [ConsoleObjection?] {
    var lines: [ConsoleLineKey: ConsoleObjection] = [:]
    for key in Set(holdings.map(\.line)) { lines[key] = await objection(to: key) }
    var found: [ConsoleObjection?] = []
    for holding in holdings {
      if let line = lines[holding.line] {
        found.append(line)
      } else if (try? await authorizer.isAllowed(holding.identity, holding.access)) == false {
        found.append(ConsoleObjection(code: 1008, reason: "you are not allowed to use this \(what) any more"))
      } else {
        found.append(nil)
      }
    }
    return found
  }

  private func objection(to line: ConsoleLineKey) async -> ConsoleObjection? {
    let gone = ConsoleObjection(code: 1008, reason: "the machine is gone")
    do {
      let machine = try await client.get(BareMetalMachine.self, name: line.name, namespace: line.namespace)
      if machine.metadata.uid != line.machineUID { return gone }
      if machine.status?.host == line.host { return nil }
      return ConsoleObjection(code: 1012, reason: "the machine is not on this host any more; connect again")
    } catch let error as KubernetesError {
      return error.code == .notFound ? gone : nil
    } catch {
      return nil
    }
  }
}

/// Which sockets are consoles: whoever describes hosts must not choose what else bm-api talks to.
package enum ConsoleFolder {
  /// Whether `path` is below `folder`, as text: without links of its own making.
  package static func contains(_ folder: String, _ path: String) -> Bool {
    let parts = path.split(separator: "/", omittingEmptySubsequences: false).dropFirst()
    guard !parts.contains(where: { $0.isEmpty || $0 == "." || $0 == ".." }) else { return false }
    let prefix = folder.hasSuffix("/") ? folder : folder + "/"
    return path.hasPrefix(prefix) && path.hasSuffix(".sock") && path.utf8.count > prefix.utf8.count
  }
}
