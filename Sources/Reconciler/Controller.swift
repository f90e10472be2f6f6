import Deadlines
import Kubernetes
public import Logging
public import Telemetry

/// Workers that take keys from a queue and reconcile them.
public struct Controller<R: Reconcile>: Sendable {
  public let name: String
  public let queue: WorkQueue
  private let reconciler: R
  private let workers: Int
  private let timeLimit: Duration
  private let logger: Logger
  private let metrics: ControllerMetrics?

  /// - Parameters:
  ///   - workers: How many keys are worked on at the same time.
  ///   - timeLimit: After how long a reconciliation is cancelled and counts as failed.
  public init(
    name: String, reconciler: R, queue: WorkQueue, workers: Int = 4, timeLimit: Duration = .seconds(300),
    logger: Logger, registry: MetricsRegistry? = nil
  ) {
    self.name = name
    self.reconciler = reconciler
    self.queue = queue
    self.workers = max(workers, 1)
    self.timeLimit = timeLimit
    var logger = logger
    logger[metadataKey: "controller"] = "\(name)"
    self.logger = logger
    metrics = registry.map { ControllerMetrics(registry: $0, name: name) }
  }

  /// Works until the queue is shut down, or the task is cancelled.
  public func run() async throws { try await run(whileAllowed: { true }) }

  /// - Parameter isAllowed: Asked before each key; false ends the work, for a leader that cannot be sure any more.
  func run(whileAllowed isAllowed: @escaping @Sendable () -> Bool) async throws {
    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask { await queue.runTimer() }
      for _ in 0..<workers {
        group.addTask { try await work(isAllowed) }
      }
      try await group.waitForAll()
    }
    try Task.checkCancellation()
  }

  private func work(_ isAllowed: @Sendable () -> Bool) async throws {
    while let (key, _) = await queue.next() {
      guard isAllowed() else {
        queue.succeeded(key, requeueAfter: .zero)
        throw LeadershipLost()
      }
      await process(key)
    }
  }

  private func process(_ key: ObjectKey) async {
    let start = ContinuousClock.now
    metrics?.started()
    let outcome: String
    do {
      let reconciler = reconciler
      let result = try await withTimeLimit(timeLimit) { try await reconciler.reconcile(key) }
      switch result {
      case .done:
        queue.succeeded(key, requeueAfter: nil)
        outcome = "success"
      case .requeue(let delay):
        queue.succeeded(key, requeueAfter: delay)
        outcome = "requeue"
      }
    } catch let error as PermanentFailure {
      logger.error("gave up until the object changes", metadata: ["object": "\(key)", "error": "\(error)"])
      queue.succeeded(key, requeueAfter: nil)
      outcome = "permanent"
    } catch {
      outcome = retry(key, after: error)
    }
    metrics?.finished(outcome, since: start)
  }

  private func retry(_ key: ObjectKey, after error: any Error) -> String {
    let kubernetesError = error as? KubernetesError
    let (delay, failures) = queue.failed(key, atLeast: kubernetesError?.retryAfter ?? .zero)
    if Task.isCancelled { return "cancelled" }
    let metadata: Logger.Metadata = [
      "object": "\(key)", "error": "\(error)", "failures": "\(failures)", "retry": "\(delay)",
    ]
    // Somebody was faster, and the cache does not show it yet: everyday life.
    if kubernetesError?.code == .conflict, failures < 5 {
      logger.debug("reconciliation met a conflict", metadata: metadata)
    } else {
      logger.warning("reconciliation failed", metadata: metadata)
    }
    return "error"
  }
}

/// What a controller counts.
struct ControllerMetrics: Sendable {
  private let name: String
  private let results: CounterFamily
  private let duration: HistogramFamily
  private let active: GaugeFamily

  init(registry: MetricsRegistry, name: String) {
    self.name = name
    results = registry.counter(
      "controller_reconcile_total", help: "Reconciliations by their result.", labels: ["controller", "result"])
    duration = registry.histogram(
      "controller_reconcile_duration_seconds", help: "How long reconciliations took.", labels: ["controller"])
    active = registry.gauge(
      "controller_active_workers", help: "Reconciliations under way.", labels: ["controller"])
  }

  func started() { active.add(1, name) }

  func finished(_ result: String, since start: ContinuousClock.Instant) {
    active.add(-1, name)
    results.increment(name, result)
    duration.observe(ContinuousClock.now - start, name)
  }
}
