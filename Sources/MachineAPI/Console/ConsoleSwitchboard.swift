import Logging
package import NIOCore
import Telemetry

/// Bounds of all consoles together and of each.
package struct ConsoleLimits: Sendable, Hashable {
  package var sessions = 512
  package var sessionsOfOneUser = 64
  package var sessionsOfOneLine = 64
  /// What is kept of each console for slow readers and for those who come back.
  package var tapeBytes = 1 << 20
  /// What a reader who comes anew gets to see.
  package var historyBytes = 64 << 10
  /// What may wait for a server that does not read its line.
  package var inputBytes = 64 << 10
  /// How often clients are asked whether they are there, and after how long without a sign they are not.
  package var ping: TimeAmount = .seconds(30)
  package var silence: TimeAmount = .seconds(90)
  package var reconnect: TimeAmount = .seconds(1)
  /// How long a console is kept that nobody has open, for those who come back.
  package var linger: TimeAmount = .seconds(60)
  /// How often it is looked whether those who have a console open still may.
  package var recheck: Duration = .seconds(10)

  package init() {}
}

struct ConsoleMetrics: Sendable {
  let sessions: GaugeFamily
  let bytes: CounterFamily
  let skipped: CounterFamily

  init(registry: MetricsRegistry) {
    sessions = registry.gauge("bm_api_console_sessions", help: "Consoles that are open.")
    bytes = registry.counter("bm_api_console_bytes_total", help: "Bytes that servers wrote on consoles that are open.")
    skipped = registry.counter(
      "bm_api_console_skipped_bytes_total", help: "Bytes that readers missed because they did not keep up.")
    sessions.set(0)
  }
}

/// Why a console, or a connection to a port, must not stay open.
struct ConsoleObjection: Sendable, Hashable {
  /// A status of RFC 6455, section 7.4: 1008 where it is of no use to connect again.
  var code: Int
  var reason: String
}

/// All consoles that are open. What is not `async` happens on the event loop.
final class ConsoleSwitchboard: Sendable {
  private struct State {
    var lines: [ConsoleLineKey: ConsoleLine] = [:]
    var users: [String: Int] = [:]
    var sessions = 0
    var nextID = 1
    var isClosed = false
  }

  let loop: any EventLoop
  let limits: ConsoleLimits
  private let metrics: ConsoleMetrics
  private let logger: Logger
  private let state: NIOLoopBoundBox<State>

  init(loop: any EventLoop, limits: ConsoleLimits, registry: MetricsRegistry, logger: Logger) {
    self.loop = loop
    self.limits = limits
    self.logger = logger
    metrics = ConsoleMetrics(registry: registry)
    state = NIOLoopBoundBox.makeBoxSendingValue(State(), eventLoop: loop)
  }

  /// Whether one more may come; nil where it may.
  private func obstacle(_ ticket: ConsoleTicket) -> String? {
    if state.value.isClosed { return "bm-api is going away; connect again" }
    if state.value.sessions >= limits.sessions { return "too many consoles are open here (\(limits.sessions))" }
    if state.value.users[ticket.identity.user, default: 0] >= limits.sessionsOfOneUser {
      return "you have \(limits.sessionsOfOneUser) consoles open, which is the limit"
    }
    if let line = state.value.lines[ticket.line], line.sessions.count >= limits.sessionsOfOneLine {
      return "this console is open \(limits.sessionsOfOneLine) times, which is the limit"
    }
    return nil
  }

  /// Brings a client that has spoken its WebSocket handshake to its console.
  func join(_ ticket: ConsoleTicket, channel: any Channel) -> (ConsoleSession, ConsoleLine)? {
    let id = state.value.nextID
    state.value.nextID += 1
    let session = ConsoleSession(id: id, ticket: ticket, channel: channel)
    if let obstacle = obstacle(ticket) {
      session.end(1013, obstacle)
      return nil
    }
    var line = state.value.lines[ticket.line]
    if let present = line, present.socketPath != ticket.socketPath {
      close(present, 1012, "the console is served elsewhere now; connect again")
      line = nil
    }
    let chosen = line ?? ConsoleLine(ticket, loop: loop, limits: limits, metrics: metrics)
    state.value.lines[ticket.line] = chosen
    state.value.sessions += 1
    state.value.users[ticket.identity.user, default: 0] += 1
    metrics.sessions.set(Double(state.value.sessions))
    logger.info(
      "console opened",
      metadata: ["machine": "\(ticket.machine)", "user": "\(ticket.identity.user)", "session": "\(id)"])
    chosen.join(session)
    return (session, chosen)
  }

  func leave(_ session: ConsoleSession, _ line: ConsoleLine) {
    line.leave(session.id)
    state.value.sessions -= 1
    let user = session.ticket.identity.user
    let left = state.value.users[user, default: 1] - 1
    state.value.users[user] = left > 0 ? left : nil
    metrics.sessions.set(Double(state.value.sessions))
    logger.info("console closed", metadata: ["machine": "\(session.ticket.machine)", "session": "\(session.id)"])
  }

  private func close(_ line: ConsoleLine, _ code: Int, _ reason: String) {
    line.close(code, reason)
    if state.value.lines[line.key] === line { state.value.lines[line.key] = nil }
  }

  /// Asks silent clients whether they are there, ends those that are not, and forgets consoles that nobody wants.
  private func sweep() {
    let now = NIODeadline.now()
    for line in state.value.lines.values {
      for session in line.sessions.values {
        if now - session.heardAt > limits.silence {
          session.end(1001, "no sign of the client")
          session.channel.close(promise: nil)
        } else {
          session.ping()
        }
      }
      if let idle = line.idleSince, now - idle > limits.linger { close(line, 1000, "") }
    }
  }

  // MARK: From outside of the loop

  /// Keeps watch until cancelled: clients that are gone, machines that are not on their host any more, rights that were
  /// taken away. At the end all consoles are closed.
  func run(objections: @escaping @Sendable ([Holding]) async -> [ConsoleObjection?]) async throws {
    let sweeping = loop.scheduleRepeatedTask(initialDelay: limits.ping, delay: limits.ping) { [self] _ in sweep() }
    do {
      try await RightsWatch(every: limits.recheck, loop: loop).run(objections: objections) { [self] in
        state.value.lines.values.flatMap { line in
          line.sessions.values.map { (holding: $0.ticket.holding, id: $0.id) }
        }
      } end: { [self] holding, id, objection in
        state.value.lines[holding.line]?.sessions[id]?.end(objection.code, objection.reason)
      }
    } catch {
      sweeping.cancel()
      try? await loop.submit { [self] in
        state.value.isClosed = true
        for line in state.value.lines.values { close(line, 1012, "bm-api is going away; connect again") }
      }.get()
      throw error
    }
  }
}
