public import Kubernetes
import Synchronization
public import Telemetry

/// The keys that a controller has to work on.
///
/// Adding is cheap and never waits, so that it can be done from a cache's handlers. Keys are given out in order, each
/// one to one worker at a time; failures come back later and later, with jitter.
public final class WorkQueue: Sendable {
  private typealias State = WorkQueueState<ObjectKey>

  public let name: String
  private let state: Mutex<State>
  private let random: Mutex<any RandomNumberGenerator & Sendable>
  private let work = Signal()
  private let timer = Signal()
  private let sources = Mutex<[@Sendable () -> [ObjectKey]]>([])
  private let metrics: QueueMetrics?

  /// - Parameters:
  ///   - name: For metrics and logs.
  ///   - random: The source of the jitter.
  public init(
    name: String, limits: WorkQueueLimits = WorkQueueLimits(), registry: MetricsRegistry? = nil,
    random: any RandomNumberGenerator & Sendable = SystemRandomNumberGenerator()
  ) {
    self.name = name
    state = Mutex(State(limits: limits, now: .now))
    self.random = Mutex(random)
    metrics = registry.map { QueueMetrics(registry: $0, name: name) }
  }

  /// Adds a key to be worked on as soon as possible.
  /// - Returns: False where the queue is full or shut down. A full queue asks its sources for all keys once there is
  ///   room again, so a refused key is late but not lost.
  @discardableResult
  public func add(_ key: ObjectKey) -> Bool {
    let (accepted, depth) = state.withLock { ($0.add(key, now: .now), $0.depth) }
    metrics?.added(depth: depth, accepted: accepted)
    if accepted { work.signal() }
    return accepted
  }

  /// Adds a key to be worked on after a while; of several such wishes the earliest counts.
  @discardableResult
  public func add(_ key: ObjectKey, after delay: Duration) -> Bool {
    guard delay > .zero else { return add(key) }
    let accepted = state.withLock { $0.add(key, after: delay, now: .now) }
    if accepted { timer.signal() }
    return accepted
  }

  /// Names a source of all keys, which is asked after the queue was full.
  public func addSource(_ keys: @escaping @Sendable () -> [ObjectKey]) { sources.withLock { $0.append(keys) } }

  /// Gives out nothing more; workers end when they have finished what they have.
  public func shutDown() {
    state.withLock { $0.close() }
    work.broadcast()
    timer.broadcast()
  }

  /// Keys that wait to be worked on now.
  public var depth: Int { state.withLock { $0.depth } }

  /// Whether nothing waits to be worked on now and nothing is worked on.
  public var isIdle: Bool { state.withLock { $0.isIdle } }

  /// Makes delayed keys ready when their time comes, until the task is cancelled or the queue is shut down.
  /// A `Controller` runs this for its queue.
  package func runTimer() async {
    while !Task.isCancelled {
      let (due, promoted, isClosed) = state.withLock { state in
        let promoted = state.promote(now: .now)
        return (state.nextDue(), promoted, state.isClosed)
      }
      if isClosed { return }
      for _ in 0..<promoted { work.signal() }
      await timer.wait(until: due)
    }
  }

  /// The next key; nil after `shutDown` or where the task is cancelled.
  package func next() async -> (key: ObjectKey, waited: Duration)? {
    while !Task.isCancelled {
      let (next, depth, heldBack) = state.withLock { state in
        let before = state.hotRuns
        return (state.take(now: .now), state.depth, state.hotRuns - before)
      }
      if heldBack > 0 {
        // Keys went from ready to delayed just now.
        timer.signal()
        metrics?.heldBack(heldBack)
      }
      switch next {
      case .work(let key, let waited):
        metrics?.taken(depth: depth, waited: waited)
        // A signal that is kept wakes one only; pass it on while there is more.
        if depth > 0 { work.signal() }
        return (key, waited)
      case .closed:
        work.signal()
        return nil
      case .wait:
        refillAfterOverflow()
        await work.wait()
      }
    }
    // This worker may have eaten a signal that was meant for another one.
    work.signal()
    return nil
  }

  package func succeeded(_ key: ObjectKey, requeueAfter delay: Duration?) {
    state.withLock { $0.succeeded(key, requeueAfter: delay, now: .now) }
    wakeAfterFinish(delayed: delay != nil)
  }

  /// Returns after how long the key will be tried again, and how often it has failed.
  package func failed(_ key: ObjectKey, atLeast: Duration) -> (delay: Duration, failures: Int) {
    let result = state.withLock { state in
      random.withLock { random in
        let delay = Self.fail(&state, key, atLeast, &random)
        return (delay, state.failureCount(key))
      }
    }
    metrics?.retried()
    wakeAfterFinish(delayed: true)
    return result
  }

  /// Opens the existential, which a generic inout parameter cannot do at the call itself.
  private static func fail(
    _ state: inout State, _ key: ObjectKey, _ atLeast: Duration, _ random: inout any RandomNumberGenerator & Sendable
  ) -> Duration {
    func open(_ generator: some RandomNumberGenerator & Sendable) -> Duration {
      var copy = generator
      defer { random = copy }
      return state.failed(key, atLeast: atLeast, now: .now, using: &copy)
    }
    return open(random)
  }

  private func wakeAfterFinish(delayed: Bool) {
    if delayed { timer.signal() }
    if depth > 0 { work.signal() }
  }

  private func refillAfterOverflow() {
    guard state.withLock({ $0.takeOverflow() }) else { return }
    // In another order each time: where even this does not fit, everybody gets a turn in the end.
    let keys = sources.withLock { $0 }.flatMap { $0() }.shuffled()
    for key in keys { add(key) }
  }
}

/// What a queue counts.
struct QueueMetrics: Sendable {
  private let name: String
  private let depth: GaugeFamily
  private let adds: CounterFamily
  private let refused: CounterFamily
  private let retries: CounterFamily
  private let waiting: HistogramFamily
  private let hot: CounterFamily

  init(registry: MetricsRegistry, name: String) {
    self.name = name
    depth = registry.gauge("workqueue_depth", help: "Keys that wait to be worked on.", labels: ["name"])
    adds = registry.counter("workqueue_adds_total", help: "Keys added.", labels: ["name"])
    refused = registry.counter(
      "workqueue_refused_total", help: "Keys that found the queue full or shut down.", labels: ["name"])
    retries = registry.counter("workqueue_retries_total", help: "Keys that failed and come back.", labels: ["name"])
    waiting = registry.histogram(
      "workqueue_queue_duration_seconds", help: "How long keys waited for a worker.", labels: ["name"])
    hot = registry.counter(
      "workqueue_hot_loop_slowdowns_total", help: "Times that a key was held back because it ran too often.",
      labels: ["name"])
  }

  func added(depth depthNow: Int, accepted: Bool) {
    depth.set(Double(depthNow), name)
    if accepted { adds.increment(name) } else { refused.increment(name) }
  }

  func taken(depth depthNow: Int, waited: Duration) {
    depth.set(Double(depthNow), name)
    waiting.observe(waited, name)
  }

  func heldBack(_ keys: Int) { hot.increment(by: Double(keys), name) }

  func retried() { retries.increment(name) }
}
