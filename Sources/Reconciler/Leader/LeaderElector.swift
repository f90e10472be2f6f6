import Deadlines
public import Kubernetes
public import Logging
import Synchronization
public import Telemetry

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// The lease could not be renewed in time, or somebody else holds it: whatever needs leadership must not go on.
public struct LeadershipLost: Error, CustomStringConvertible {
  public init() {}
  public var description: String { "leadership was lost" }
}

extension LeaderElection {
  /// Host name and a random part: never the same twice.
  public static func uniqueIdentity() -> String {
    var buffer = [CChar](repeating: 0, count: 256)
    let host = gethostname(&buffer, buffer.count - 1) == 0 ? String(nulTerminated: buffer) : "unknown"
    let random = String(UInt64.random(in: .min ... .max), radix: 36)
    return "\(host)_\(random)"
  }
}

extension String {
  fileprivate init(nulTerminated characters: [CChar]) {
    self = String(decoding: characters.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }
}

/// Runs work on one candidate at a time, by a lease.
public final class LeaderElector: Sendable {
  private let client: KubernetesClient
  private let settings: LeaderElection
  private let logger: Logger
  private let leading: GaugeFamily?
  private let state: Mutex<LeaderElectionState>

  public init(client: KubernetesClient, settings: LeaderElection, logger: Logger, registry: MetricsRegistry? = nil) {
    self.client = client
    self.settings = settings
    var logger = logger
    logger[metadataKey: "lease"] = "\(settings.namespace)/\(settings.name)"
    self.logger = logger
    leading = registry?.gauge("leader_election_leading", help: "1 while this process leads.", labels: ["name"])
    leading?.set(0, settings.name)
    state = Mutex(LeaderElectionState(settings: settings))
  }

  /// Whether nobody else can lead at this moment, by the local clock.
  public var isLeader: Bool { state.withLock { $0.isLeader(now: .now) } }

  /// Waits for leadership, runs `body`, and gives the lease away when it ends.
  ///
  /// - Throws: `LeadershipLost` where a renewal did not succeed in time; `body` was cancelled then. And what `body`
  ///   throws, and `CancellationError`.
  public func run<R: Sendable>(_ body: @escaping @Sendable () async throws -> R) async throws -> R {
    try await acquire()
    leading?.set(1, settings.name)
    logger.info("leading", metadata: ["identity": "\(settings.identity)"])
    let outcome: Result<R, any Error>
    do {
      outcome = .success(try await lead(body))
    } catch {
      outcome = .failure(error)
    }
    leading?.set(0, settings.name)
    await release()
    return try outcome.get()
  }

  private enum Part<R: Sendable>: Sendable {
    case finished(R)
    case lost
  }

  private func lead<R: Sendable>(_ body: @escaping @Sendable () async throws -> R) async throws -> R {
    try await withThrowingTaskGroup(of: Part<R>.self) { group in
      group.addTask { .finished(try await body()) }
      group.addTask {
        try await self.renewUntilLost()
        return .lost
      }
      defer { group.cancelAll() }
      switch try await group.next() {
      case .finished(let result): return result
      case .lost:
        logger.error("the lease could not be renewed in time: the work is cancelled")
        throw LeadershipLost()
      case nil: throw CancellationError()
      }
    }
  }

  private func acquire() async throws {
    var backoff = Backoff(initial: settings.retryPeriod / 4, maximum: settings.retryPeriod * 2)
    var announced: String?
    while true {
      do {
        if try await step(timeLimit: settings.renewDeadline) { return }
        backoff.reset()
        let holder = state.withLock { $0.holder }
        if let holder, holder != announced {
          logger.info("waiting for the leader to end", metadata: ["holder": "\(holder)"])
          announced = holder
        }
      } catch {
        try Task.checkCancellation()
        logger.warning("cannot take part in the election; will retry", metadata: ["error": "\(error)"])
        try await Task.sleep(for: backoff.next())
      }
    }
  }

  /// Looks or writes once. Returns whether this candidate leads now.
  private func step(timeLimit: Duration) async throws -> Bool {
    let action = state.withLock { $0.decide(now: .now, wallClock: .now()) }
    switch action {
    case .look(let moment):
      if moment > .now {
        // Candidates that look at the same moment would meet in conflicts.
        try await Task.sleep(until: moment + settings.retryPeriod * Double.random(in: 0...0.1), clock: .continuous)
      }
      try await look(timeLimit: timeLimit)
      return false
    case .create, .replace:
      return try await write(action, timeLimit: timeLimit)
    }
  }

  private func look(timeLimit: Duration) async throws {
    let lease: Lease?
    do {
      lease = try await withTimeLimit(timeLimit) { [client, settings] in
        try await client.get(Lease.self, name: settings.name, namespace: settings.namespace)
      }
    } catch let error as KubernetesError where error.code == .notFound {
      lease = nil
    }
    state.withLock { $0.observe(lease, now: .now) }
  }

  private func write(_ action: LeaderElectionState.Action, timeLimit: Duration) async throws -> Bool {
    let sentAt = ContinuousClock.now
    do {
      let lease = try await withTimeLimit(timeLimit) { [client, settings] in
        var meta = ObjectMeta(name: settings.name, namespace: settings.namespace)
        switch action {
        case .create(let spec):
          return try await client.create(Lease(metadata: meta, spec: spec))
        case .replace(let spec, let resourceVersion):
          meta.resourceVersion = resourceVersion
          return try await client.update(Lease(metadata: meta, spec: spec))
        case .look: throw CancellationError()
        }
      }
      return state.withLock { state in
        state.written(lease, sentAt: sentAt, now: .now)
        return state.isLeader(now: .now)
      }
    } catch let error as KubernetesError where [.conflict, .alreadyExists, .notFound].contains(error.code) {
      // Somebody else was faster: see who.
      state.withLock { $0.invalidate() }
      if error.code == .notFound, error.status?.details?.kind == "namespaces" { throw error }
      // Not at once: where many want the same lease, they would meet again and again.
      try await Task.sleep(for: .milliseconds(Int.random(in: 20...200)))
      try await look(timeLimit: timeLimit)
      return false
    } catch {
      // Whether the write happened is not known. Another one at the old version would meet a conflict with ourselves.
      state.withLock { $0.invalidate() }
      throw error
    }
  }

  /// Renews until that is not possible any more.
  private func renewUntilLost() async throws {
    var backoff = Backoff(initial: settings.retryPeriod / 8, maximum: settings.retryPeriod)
    while true {
      let (next, deadline) = state.withLock { ($0.nextRenewal, $0.renewDeadline) }
      guard let next, let deadline else { return }
      try await Task.sleep(until: next, clock: .continuous)
      while true {
        let left = deadline - ContinuousClock.now
        guard left > .zero else { return }
        do {
          // Not all of the time for one answer: a connection that hangs must leave room for a second one.
          if try await step(timeLimit: min(left, max(settings.renewDeadline / 3, .milliseconds(100)))) {
            backoff.reset()
            break
          }
          guard state.withLock({ $0.holder }) == settings.identity else { return }
        } catch {
          try Task.checkCancellation()
          logger.warning("cannot renew the lease; will retry", metadata: ["error": "\(error)"])
          try await Task.sleep(for: min(backoff.next(), max(left, .zero)))
        }
      }
    }
  }

  /// Gives the lease away, so that the next leader need not wait for its end.
  private func release() async {
    guard let action = state.withLock({ $0.release(wallClock: .now()) }), case .replace(let spec, let version) = action
    else { return }
    let (client, settings) = (client, settings)
    // The task may be cancelled already, and a cancelled task cannot send. This one is waited for right here.
    let sending = Task {
      try await withTimeLimit(.seconds(3)) {
        var meta = ObjectMeta(name: settings.name, namespace: settings.namespace)
        meta.resourceVersion = version
        return try await client.update(Lease(metadata: meta, spec: spec))
      }
    }
    do {
      let lease = try await sending.value
      state.withLock { $0.observe(lease, now: .now) }
      logger.info("gave the lease away")
    } catch {
      state.withLock { $0.observe(nil, now: .now) }
      logger.warning("could not give the lease away; it will expire", metadata: ["error": "\(error)"])
    }
  }
}
