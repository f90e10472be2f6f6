public import Kubernetes
public import Logging
import Synchronization
public import Telemetry
import WebServer

/// A part of a process that ended although it should run as long as the process.
public struct UnexpectedEnd: Error, CustomStringConvertible {
  public let part: String
  public let cause: (any Error)?

  public var description: String { cause.map { "\(part) failed: \($0)" } ?? "\(part) ended" }
}

/// Runs the parts of a controller process together: caches, controllers, events, leader election, and the endpoints
/// for operators.
///
/// Everything that needs leadership starts when this process leads and all caches are filled. When the process is
/// asked to end, controllers finish what they have at hand, the lease is given away, and the rest stops.
public final class Manager: Sendable {
  public struct Configuration: Sendable {
    /// nil where only one process of the kind can exist anyway.
    public var leaderElection: LeaderElection?
    /// `HOST:PORT` for /metrics, /healthz and /readyz; empty for none.
    public var metricsAddress = ""
    /// How long work at hand may take when the process is asked to end.
    public var gracePeriod: Duration = .seconds(15)
    /// Whether SIGTERM and SIGINT end `run()`.
    public var handlesSignals = true

    public init(leaderElection: LeaderElection? = nil, metricsAddress: String = "") {
      self.leaderElection = leaderElection
      self.metricsAddress = metricsAddress
    }
  }

  /// Where a part runs.
  public enum Scope: Sendable {
    /// On every process.
    case always
    /// On the leader only.
    case leader
  }

  private typealias Body = @Sendable () async throws -> Void

  private struct Parts {
    var always: [(name: String, body: Body)] = []
    var leading: [(name: String, body: Body)] = []
    var controllers:
      [(name: String, queue: WorkQueue, body: @Sendable (@escaping @Sendable () -> Bool) async throws -> Void)] = []
    var caches: [(isSynced: @Sendable () -> Bool, wait: Body)] = []
    var beforeLeading: [@Sendable () -> Void] = []
  }

  public let client: KubernetesClient
  public let registry: MetricsRegistry
  private let configuration: Configuration
  private let logger: Logger
  private let parts = Mutex(Parts())
  private let isStopping = Mutex(false)
  /// Whether controllers are at work: then they get time to finish.
  private let isWorking = Mutex(false)

  public init(
    client: KubernetesClient, configuration: Configuration, registry: MetricsRegistry, logger: Logger
  ) {
    self.client = client
    self.configuration = configuration
    self.registry = registry
    self.logger = logger
  }

  /// Keeps a cache up to date on every process; controllers start when it is filled.
  public func add<T>(_ cache: ObjectCache<T>) {
    parts.withLock {
      $0.always.append(("cache of \(cache.definition.plural)", { try await cache.run() }))
      $0.caches.append(({ cache.isSynced }, { try await cache.waitUntilSynced() }))
    }
  }

  /// Runs a controller on the leader.
  public func add<R>(_ controller: Controller<R>) {
    parts.withLock {
      $0.controllers.append(
        (controller.name, controller.queue, { isAllowed in try await controller.run(whileAllowed: isAllowed) }))
    }
  }

  /// Writes the recorder's events, on every process.
  public func add(_ recorder: EventRecorder) {
    parts.withLock { $0.always.append(("events", { await recorder.run() })) }
  }

  /// Runs `body`, which is to last until it is cancelled.
  public func add(name: String, scope: Scope, _ body: @escaping @Sendable () async throws -> Void) {
    parts.withLock { parts in
      switch scope {
      case .always: parts.always.append((name, body))
      case .leader: parts.leading.append((name, body))
      }
    }
  }

  /// Calls `body` each time this process begins to lead, before its controllers start; once where nobody is elected.
  ///
  /// It is for what a process remembers of its own deeds: while it did not lead, somebody else may have done others.
  public func beforeLeading(_ body: @escaping @Sendable () -> Void) {
    parts.withLock { $0.beforeLeading.append(body) }
  }

  /// Whether all caches are filled and the process is not about to end.
  public var isReady: Bool {
    guard !isStopping.withLock({ $0 }) else { return false }
    return parts.withLock { $0.caches }.allSatisfy { $0.isSynced() }
  }

  private enum Outcome: Sendable {
    case asked
    case ledToEnd
    case graceIsOver
    case ended(UnexpectedEnd)
  }

  /// Runs everything until the process is asked to end, or the task is cancelled.
  ///
  /// Where leadership is lost, the work that needs it is cancelled, and starts anew when it is won again.
  /// - Throws: `UnexpectedEnd` where a part failed: the process should end then, and be started again by whoever
  ///   started it.
  public func run() async throws {
    let parts = parts.withLock { $0 }
    registry.addProcessMetrics()
    let signals = configuration.handlesSignals ? Termination.signals() : nil
    let web = try operationsServer()
    try await withThrowingTaskGroup(of: Outcome.self) { group in
      if let signals { group.addTask { try await Self.wait(for: signals, then: .asked) } }
      for part in parts.always + (web.map { [$0] } ?? []) {
        group.addTask { await Self.runPart(part.name, part.body) }
      }
      group.addTask {
        try await self.lead(parts)
        return .ledToEnd
      }
      defer { group.cancelAll() }
      while let outcome = try await group.next() {
        switch outcome {
        case .asked:
          logger.info("asked to end; finishing what is under way")
          isStopping.withLock { $0 = true }
          for controller in parts.controllers { controller.queue.shutDown() }
          let grace = configuration.gracePeriod
          group.addTask {
            try await Task.sleep(for: grace)
            return .graceIsOver
          }
          // Asked twice is asked to hurry.
          if let signals { group.addTask { try await Self.wait(for: signals, then: .graceIsOver) } }
          if parts.controllers.isEmpty || !isWorking.withLock({ $0 }) { return }
        case .graceIsOver:
          logger.warning("what was under way did not finish in time; it is cancelled")
          return
        case .ledToEnd:
          return
        case .ended(let end):
          // Where all is cancelled, parts end too: that is no failure of theirs.
          try Task.checkCancellation()
          if isStopping.withLock({ $0 }) { continue }
          throw end
        }
      }
    }
    logger.info("ended")
  }

  private static func wait(for signals: AsyncStream<Int32>, then outcome: Outcome) async throws -> Outcome {
    for await _ in signals { return outcome }
    throw CancellationError()
  }

  private static func runPart(_ name: String, _ body: Body) async -> Outcome {
    do {
      try await body()
      return .ended(UnexpectedEnd(part: name, cause: nil))
    } catch {
      return .ended(UnexpectedEnd(part: name, cause: error))
    }
  }

  private func lead(_ parts: Parts) async throws {
    guard let settings = configuration.leaderElection else {
      return try await work(parts, isAllowed: { true })
    }
    let elector = LeaderElector(client: client, settings: settings, logger: logger, registry: registry)
    while true {
      do {
        return try await elector.run { try await self.work(parts, isAllowed: { elector.isLeader }) }
      } catch is LeadershipLost {
        // All work has ended by now, and unfinished keys are back in their queues: take part in the election again,
        // with the caches warm. An outage of the API server is no reason for a process to end.
        try Task.checkCancellation()
        if isStopping.withLock({ $0 }) { return }
      }
    }
  }

  /// Runs what only the leader runs, until all controllers have ended.
  private func work(_ parts: Parts, isAllowed: @escaping @Sendable () -> Bool) async throws {
    for cache in parts.caches { try await cache.wait() }
    logger.debug("caches are filled; starting controllers")
    for prepare in parts.beforeLeading { prepare() }
    isWorking.withLock { $0 = true }
    defer { isWorking.withLock { $0 = false } }
    try await withThrowingTaskGroup(of: UnexpectedEnd?.self) { group in
      for part in parts.leading {
        group.addTask {
          if case .ended(let end) = await Self.runPart(part.name, part.body) { return end }
          return nil
        }
      }
      for controller in parts.controllers {
        group.addTask {
          try await controller.body(isAllowed)
          return nil
        }
      }
      defer { group.cancelAll() }
      var running = parts.controllers.count
      while running > 0 || parts.controllers.isEmpty, let end = try await group.next() {
        if let end {
          try Task.checkCancellation()
          if !isStopping.withLock({ $0 }) { throw end }
        } else {
          running -= 1
        }
      }
      if parts.controllers.isEmpty {
        // Nothing to finish: wait to be cancelled.
        try await Gate().wait()
      }
    }
  }

  private func operationsServer() throws -> (name: String, body: Body)? {
    let address = configuration.metricsAddress
    guard !address.isEmpty else { return nil }
    guard let colon = address.lastIndex(of: ":"), let port = Int(address[address.index(after: colon)...]),
      (0...65_535).contains(port)
    else {
      throw KubernetesError(
        code: .configuration, operation: "serve metrics", message: "'\(address)' is not HOST:PORT")
    }
    var host = String(address[..<colon])
    if host.hasPrefix("["), host.hasSuffix("]") { host = String(host.dropFirst().dropLast()) }
    let logger = logger
    let server = WebServer(
      host: host.isEmpty ? "0.0.0.0" : host, port: port, tls: nil,
      router: operationsRouter(registry: registry, isReady: { self.isReady }), logger: logger,
      onRunning: { port in logger.debug("serving metrics", metadata: ["port": "\(port)"]) })
    return ("metrics server", { try await server.run() })
  }
}
