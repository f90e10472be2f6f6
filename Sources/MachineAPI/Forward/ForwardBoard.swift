import Logging
package import NIOCore
import NIOPosix
import Telemetry

/// Bounds of all connections to machines' ports together and of each.
package struct ForwardLimits: Sendable, Hashable {
  package var sessions = 256
  package var sessionsOfOneUser = 64
  package var sessionsOfOneMachine = 64
  /// How long a machine may take to accept a connection.
  package var connect: TimeAmount = .seconds(5)
  /// How often clients are asked whether they are there, and after how long without a sign they are not.
  package var ping: TimeAmount = .seconds(30)
  package var silence: TimeAmount = .seconds(90)
  /// After how long without a byte in either direction a connection is closed: people leave shells open overnight.
  package var idle: TimeAmount = .hours(24)
  /// How often it is looked whether those who have a connection still may.
  package var recheck: Duration = .seconds(10)

  package init() {}
}

/// Who wants a connection to a port, and where it goes.
struct ForwardTicket: Sendable {
  var holding: Holding
  var address: MachineAddress
  var port: Int
  /// The subprotocol that the client named, and has to be told.
  var subprotocol: String?

  /// The subprotocol that is spoken: binary messages are bytes, `{"type":"end"}` is the end of a direction.
  static let spoken = "portforward.iaas.yusur.io"
}

/// All connections to machines' ports. What is not `async` happens on the event loop.
final class ForwardBoard: Sendable {
  private struct State {
    var sessions: [Int: ForwardSession] = [:]
    var users: [String: Int] = [:]
    var machines: [String: Int] = [:]
    var nextID = 1
    var isClosed = false
  }

  let loop: any EventLoop
  let limits: ForwardLimits
  private let open: GaugeFamily
  private let bytes: CounterFamily
  private let failures: CounterFamily
  private let logger: Logger
  private let state: NIOLoopBoundBox<State>

  init(loop: any EventLoop, limits: ForwardLimits, registry: MetricsRegistry, logger: Logger) {
    self.loop = loop
    self.limits = limits
    self.logger = logger
    open = registry.gauge("bm_api_forward_sessions", help: "Connections to machines' ports that are open.")
    bytes = registry.counter(
      "bm_api_forward_bytes_total", help: "Bytes that were carried to and from machines' ports.", labels: ["direction"])
    failures = registry.counter(
      "bm_api_forward_failures_total",
      help: "Connections to machines' ports that did not come about: refused, no answer, unreachable, too many.",
      labels: ["reason"])
    open.set(0)
    state = NIOLoopBoundBox.makeBoxSendingValue(State(), eventLoop: loop)
  }

  /// Why one more may not come; nil where it may.
  private func obstacle(_ ticket: ForwardTicket) -> APIFailure? {
    let name = ticket.holding.line.name
    func tooMany(_ message: String) -> APIFailure {
      APIFailure(429, "TooManyRequests", message, machine: name, retryAfterSeconds: 1)
    }
    if state.value.isClosed { return .unavailable("bm-api is going away; connect again") }
    if state.value.sessions.count >= limits.sessions {
      return tooMany("too many connections to machines are open here (\(limits.sessions))")
    }
    if state.value.users[ticket.holding.identity.user, default: 0] >= limits.sessionsOfOneUser {
      return tooMany("you have \(limits.sessionsOfOneUser) connections to machines open, which is the limit")
    }
    if state.value.machines[ticket.holding.line.machineUID, default: 0] >= limits.sessionsOfOneMachine {
      return tooMany("\(limits.sessionsOfOneMachine) connections to machine \(name) are open, which is the limit")
    }
    return nil
  }

  /// Connects to the machine's port, for a client that waits for the answer to its handshake.
  ///
  /// - Parameter done: called on the loop, with an `APIFailure` where there is no place or the machine does not accept.
  func connect(
    _ ticket: ForwardTicket, for client: any Channel, done: @escaping (Result<ForwardSession, APIFailure>) -> Void
  ) {
    if let obstacle = obstacle(ticket) {
      failures.increment("limit")
      return done(.failure(obstacle))
    }
    guard let target = try? SocketAddress(ipAddress: ticket.address.description, port: ticket.port) else {
      return done(.failure(.conflict(ticket.holding.line.name, "the machine's address cannot be connected to")))
    }
    let id = state.value.nextID
    state.value.nextID += 1
    let session = ForwardSession(id: id, ticket: ticket, client: client, bytes: bytes)
    enter(session)
    // The place is given back when both connections are gone, however they end.
    let bound = NIOLoopBound((self, session, done), eventLoop: loop)
    client.closeFuture.whenComplete { _ in
      let (board, session, _) = bound.value
      session.clientGone()
      board.leave(session)
    }
    ClientBootstrap(group: loop)
      .connectTimeout(limits.connect)
      .channelOption(.allowRemoteHalfClosure, value: true)
      .channelOption(.autoRead, value: false)
      .channelOption(.maxMessagesPerRead, value: 4)
      // At the end of a stream what the kernel holds is read at once, whoever takes it.
      .channelOption(.socketOption(.so_rcvbuf), value: 256 << 10)
      // A machine that lost its power says no goodbye.
      .channelOption(.socketOption(.so_keepalive), value: 1)
      .channelOption(.tcpOption(.init(rawValue: TCP_KEEPIDLE)), value: 60)
      .channelOption(.tcpOption(.init(rawValue: TCP_KEEPINTVL)), value: 15)
      .channelOption(.tcpOption(.init(rawValue: TCP_KEEPCNT)), value: 4)
      .channelOption(.writeBufferWaterMark, value: .init(low: 32 << 10, high: ForwardSession.waitingMax))
      .channelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          try channel.pipeline.syncOperations.addHandler(ForwardGuest(session: bound.value.1))
        }
      }
      .connect(to: target)
      .whenComplete { result in
        let (board, session, done) = bound.value
        switch result {
        case .success(let guest):
          guest.closeFuture.whenComplete { _ in
            let (board, session, _) = bound.value
            session.guestClosed()
            board.leave(session)
          }
          session.connected(guest)
          done(.success(session))
        case .failure(let error):
          session.guestClosed()
          board.leave(session)
          done(.failure(board.failure(error, ticket)))
        }
      }
  }

  private func failure(_ error: any Error, _ ticket: ForwardTicket) -> APIFailure {
    let name = ticket.holding.line.name
    if case ChannelError.connectTimeout = error {
      failures.increment("no answer")
      return APIFailure(
        504, "Timeout",
        "machine \(name) does not answer at port \(ticket.port): does it run, and does its firewall let the port through?",
        machine: name)
    }
    if let error = error as? IOError, error.errnoCode == ECONNREFUSED {
      failures.increment("refused")
      return .conflict(
        name,
        "machine \(name) refuses connections at port \(ticket.port): start what should listen there, on all of the "
          + "machine's addresses and not on its loopback address alone")
    }
    failures.increment("unreachable")
    return .conflict(
      name, "machine \(name) cannot be reached at port \(ticket.port); does it run? its console tells (bmctl console)")
  }

  private func enter(_ session: ForwardSession) {
    let holding = session.ticket.holding
    state.value.sessions[session.id] = session
    state.value.users[holding.identity.user, default: 0] += 1
    state.value.machines[holding.line.machineUID, default: 0] += 1
    open.set(Double(state.value.sessions.count))
    logger.info(
      "connection to a machine's port opened",
      metadata: [
        "machine": "\(holding.line.namespace)/\(holding.line.name)", "port": "\(session.ticket.port)",
        "user": "\(holding.identity.user)", "session": "\(session.id)",
      ])
  }

  /// Gives the place of a session back that is over.
  private func leave(_ session: ForwardSession) {
    guard session.isOver, state.value.sessions.removeValue(forKey: session.id) != nil else { return }
    func less(_ counts: inout [String: Int], _ key: String) {
      let left = counts[key, default: 1] - 1
      counts[key] = left > 0 ? left : nil
    }
    less(&state.value.users, session.ticket.holding.identity.user)
    less(&state.value.machines, session.ticket.holding.line.machineUID)
    open.set(Double(state.value.sessions.count))
    logger.info("connection to a machine's port closed", metadata: ["session": "\(session.id)"])
  }

  /// Asks silent clients whether they are there, and ends those that are not, and what nobody uses.
  private func sweep() {
    let now = NIODeadline.now()
    for session in state.value.sessions.values { session.sweep(now, limits) }
  }

  // MARK: From outside of the loop

  /// Keeps watch until cancelled. At the end all connections are closed.
  func run(objections: @escaping @Sendable ([Holding]) async -> [ConsoleObjection?]) async throws {
    let sweeping = loop.scheduleRepeatedTask(initialDelay: limits.ping, delay: limits.ping) { [self] _ in sweep() }
    do {
      try await RightsWatch(every: limits.recheck, loop: loop).run(objections: objections) { [self] in
        state.value.sessions.values.map { (holding: $0.ticket.holding, id: $0.id) }
      } end: { [self] _, id, objection in
        state.value.sessions[id]?.end(objection.code, objection.reason)
      }
    } catch {
      sweeping.cancel()
      try? await loop.submit { [self] in
        state.value.isClosed = true
        for session in state.value.sessions.values { session.end(1012, "bm-api is going away; connect again") }
      }.get()
      throw error
    }
  }
}
