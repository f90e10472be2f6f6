import Logging
import Synchronization

/// A local copy of a collection, kept up to date by a watch.
///
/// It lists once, watches from there, resumes a broken watch where it stopped, and lists again where the server has
/// forgotten that version. What it shows may be behind the server, but never goes backwards.
public final class ObjectCache<T: Decodable & Sendable>: Sendable {
  /// How the cache talks to the server.
  struct Source: Sendable {
    var definition: ResourceDefinition
    var list: @Sendable () async throws -> ObjectList<Item<T>>
    /// The present version of the collection, at little cost.
    var version: @Sendable () async throws -> String
    var watch: @Sendable (_ resourceVersion: String, _ timeout: Duration) -> WatchStream<Item<T>>
    var metadata: @Sendable (T) -> ObjectMeta
  }

  private typealias Handler = @Sendable (ObjectChange<T>) -> Void

  private let source: Source
  private let resync: Duration?
  private let logger: Logger
  private let metrics: CacheMetrics?
  private let store: Mutex<CacheStore<T>>
  /// Held while handlers run, so that each one sees the changes in their order.
  private let handlers = Mutex<[Handler]>([])
  private let synced = Gate()

  init(
    source: Source, indexers: [String: @Sendable (T) -> [String]], resync: Duration?, logger: Logger,
    metrics: CacheMetrics?
  ) {
    self.source = source
    self.resync = resync
    self.metrics = metrics
    var logger = logger
    logger[metadataKey: "resource"] = "\(source.definition.plural)"
    self.logger = logger
    store = Mutex(CacheStore(indexers: indexers, metadata: source.metadata))
  }

  /// What the cache is about.
  public var definition: ResourceDefinition { source.definition }

  /// Whether the first list is in.
  public var isSynced: Bool { synced.isOpen }

  /// Waits until the first list is in. Throws `CancellationError` where the task is cancelled before.
  public func waitUntilSynced() async throws { try await synced.wait() }

  public func get(name: String, namespace: String? = nil) -> T? { get(ObjectKey(namespace: namespace, name: name)) }

  public func get(_ key: ObjectKey) -> T? { store.withLock { $0.entries[key]?.object } }

  /// All objects, in the order of their keys.
  public func all() -> [T] {
    let entries = store.withLock { $0.entries }
    return entries.sorted { $0.key < $1.key }.map { $0.value.object }
  }

  /// All objects in any order, which costs less than `all` where there are many.
  public func unordered() -> [T] { store.withLock { $0.entries.values.map(\.object) } }

  public func keys() -> [ObjectKey] { store.withLock { Array($0.entries.keys) } }

  public var count: Int { store.withLock { $0.entries.count } }

  /// The objects for which the indexer `name` gave `value`, in the order of their keys.
  public func byIndex(_ name: String, _ value: String) -> [T] { store.withLock { $0.byIndex(name, value) } }

  /// The keys of the objects for which the indexer `name` gave `value`: of many objects, for those who need few.
  public func keys(_ name: String, _ value: String) -> Set<ObjectKey> { store.withLock { $0.keys(name, value) } }

  /// Takes the result of an own write in at once, so that the next look does not see the state before it.
  ///
  /// It is ignored where the cache knows a newer version, or may already have seen the object's end.
  public func store(_ object: T) { change { $0.store(object) } }

  /// Calls `handler` for what is there now, as `added`, and for every change from now on.
  ///
  /// Handlers run one after the other and must be quick, such as adding a key to a queue; they may read the cache but
  /// neither change it nor register handlers. An object may be reported twice.
  public func onChange(_ handler: @escaping @Sendable (ObjectChange<T>) -> Void) {
    handlers.withLock { handlers in
      for object in all() { handler(.added(object)) }
      handlers.append(handler)
    }
  }

  /// Changes the content and tells the handlers, as one step: own writes come from other tasks than watch events, and
  /// the handlers shall see both in the order in which they took effect.
  private func change(_ body: (inout CacheStore<T>) -> [ObjectChange<T>]) {
    handlers.withLock { handlers in
      let (changes, count) = store.withLock { store in (body(&store), store.entries.count) }
      guard !changes.isEmpty else { return }
      for change in changes {
        for handler in handlers { handler(change) }
      }
      metrics?.set(count: count)
    }
  }

  /// Fills the cache and keeps it up to date until the task is cancelled.
  ///
  /// Errors of the server are logged and retried with growing pauses; none of them ends this method.
  /// - Throws: `CancellationError`.
  public func run() async throws {
    var backoff = Backoff(initial: .milliseconds(200), maximum: .seconds(30))
    while true {
      do {
        try await list()
        try await watchUntilStale(&backoff)
        metrics?.relisted()
      } catch {
        try Task.checkCancellation()
        logger.warning("cannot list; will retry", metadata: ["error": "\(error)"])
        try await pause(&backoff, after: error)
      }
    }
  }

  private func list() async throws {
    let list = try await source.list()
    var items: [T] = []
    items.reserveCapacity(list.items.count)
    var retained: Set<ObjectKey> = []
    for item in list.items {
      switch item {
      case .decoded(let object): items.append(object)
      case .undecodable(let meta, let reason):
        retained.insert(ObjectKey(namespace: meta.namespace, name: meta.name ?? ""))
        complain(meta, reason)
      }
    }
    change { [items, retained] in
      $0.replace(items: items, retained: retained, resourceVersion: list.resourceVersion)
    }
    if !synced.isOpen {
      logger.debug("synced", metadata: ["objects": "\(items.count)", "version": "\(list.resourceVersion)"])
      synced.open()
    }
  }

  private static var failuresToReport: Int { 3 }

  private enum WatchEnd {
    /// Go on from the last version.
    case resume
    /// The version is of no use any more.
    case relist
    case failed(any Error)
  }

  /// Watches, again and again, until a new list is needed.
  private func watchUntilStale(_ backoff: inout Backoff) async throws {
    let clock = ContinuousClock()
    var failures = 0
    let resyncAt = resync.map { clock.now + $0 * Double.random(in: 0.9...1.1) }
    while true {
      // Spread over minutes, so that watches of many clients do not end together.
      var timeout = Duration.seconds(Int.random(in: 300...600))
      if let resyncAt {
        guard resyncAt > clock.now else { return }
        timeout = min(timeout, max(resyncAt - clock.now, .seconds(1)))
      }
      let start = clock.now
      var events = 0
      let end = await watchOnce(timeout: timeout, afterFailure: failures > 0, events: &events)
      try Task.checkCancellation()
      let lasted = clock.now - start
      // Not for a single event: a server that cuts every watch after its first event must not be asked in a loop.
      if lasted > .seconds(5) { backoff.reset() }
      if lasted > .seconds(5) || events > 0, failures >= Self.failuresToReport {
        logger.info("the watch works again")
      }
      if lasted > .seconds(5) || events > 0 { failures = 0 }
      switch end {
      case .relist:
        logger.debug("the watch is too old; listing again")
        if lasted < .seconds(1) { try await pause(&backoff, after: nil) }
        return
      case .resume:
        // An orderly end long before its time: the server restarts, or the definition of the resource changed and
        // with it what the server keeps of the past. A list tells what may have been missed.
        if lasted < .seconds(10), lasted < timeout - .seconds(1) {
          try await pause(&backoff, after: nil)
          return
        }
      case .failed(let error):
        failures += 1
        // Once for each outage. A single cut is everyday life.
        logger.log(
          level: failures == Self.failuresToReport ? .warning : .debug, "the watch broke off; resuming",
          metadata: ["error": "\(error)"])
        try await pause(&backoff, after: error)
      }
    }
  }

  private func watchOnce(timeout: Duration, afterFailure: Bool, events: inout Int) async -> WatchEnd {
    let version = store.withLock { $0.resourceVersion }
    metrics?.watchStarted()
    do {
      if afterFailure {
        // What comes back after an outage may be a server with an older history. It would not complain about a version
        // from its future, but stay silent until it gets there.
        let present = try await source.version()
        if store.withLock({ $0.isBehind(present) }) { return .relist }
      }
      for try await event in source.watch(version, timeout) {
        switch event {
        case .added(.decoded(let object)), .modified(.decoded(let object)):
          change { $0.observe(object) }
        case .deleted(.decoded(let object)):
          change { $0.observeDeletion(object) }
        case .added(.undecodable(let meta, let reason)), .modified(.undecodable(let meta, let reason)):
          complain(meta, reason)
          store.withLock { $0.advance(to: meta.resourceVersion) }
        case .deleted(.undecodable(let meta, _)):
          change { $0.observeUndecodableDeletion(meta) }
        case .bookmark(let version):
          store.withLock { $0.advance(to: version) }
        case .error(let error):
          return error.code == .gone ? .relist : .failed(error)
        }
        events += 1
      }
      return .resume
    } catch let error as KubernetesError where error.code == .gone {
      return .relist
    } catch {
      return .failed(error)
    }
  }

  private func pause(_ backoff: inout Backoff, after error: (any Error)?) async throws {
    let asked = (error as? KubernetesError)?.retryAfter ?? .zero
    try await Task.sleep(for: max(backoff.next(), min(asked, .seconds(60))))
  }

  private func complain(_ meta: ObjectMeta, _ reason: String) {
    metrics?.undecodable()
    logger.error(
      "an object does not have the shape that its kind should have; its last known state is kept",
      metadata: [
        "object": "\(ObjectKey(namespace: meta.namespace, name: meta.name ?? ""))", "error": "\(reason)",
      ])
  }
}
