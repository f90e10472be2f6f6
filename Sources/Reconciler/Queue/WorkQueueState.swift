import Deadlines
import Kubernetes

/// The limits of a work queue.
public struct WorkQueueLimits: Sendable {
  /// How many keys it holds at most.
  public var capacity = 200_000
  /// The wait after the first failure of a key; it doubles with each further one.
  public var backoffInitial: Duration = .milliseconds(100)
  public var backoffMaximum: Duration = .seconds(60)
  /// The share of each wait that is random, 0 to 1.
  public var backoffJitter = 0.5
  /// How often a key may be worked on in a minute before it counts as a hot loop.
  public var hotLoopPerMinute = 240
  /// The least time between two runs of a key that is in a hot loop.
  public var hotLoopSpacing: Duration = .seconds(5)

  public init() {}
}

/// What is to be done, in which order. Pure: the caller brings the time and the randomness.
///
/// A key is in the queue once, however often it is added. While it is worked on it is not given out again; what is
/// added in that time makes it run once more afterwards.
package struct WorkQueueState<Key: Hashable & Sendable>: Sendable {
  package typealias Instant = ContinuousClock.Instant

  package enum Next: Sendable, Equatable {
    case work(Key, waited: Duration)
    /// Nothing before this moment, unless something is added.
    case wait(until: Instant?)
    case closed
  }

  private struct Usage: Sendable {
    var runs = 0
    var last: Instant
    /// Whether it wanted to run sooner than it may.
    var wasHeld = false
  }

  private let limits: WorkQueueLimits
  private var ready: [Key] = []
  private var readyStart = 0
  /// When each key of `ready` got there.
  private var readySince: [Key: Instant] = [:]
  private var processing: Set<Key> = []
  /// Keys of `processing` that were added again.
  private var dirty: Set<Key> = []
  /// Delays that somebody asked for, and those that the last run of the key asked for. The latter are void as soon as
  /// the key runs for another reason: that run decides anew.
  private var requested = DelayHeap<Key>()
  private var ownRequeues = DelayHeap<Key>()
  private var failures: [Key: Int] = [:]
  private var usage: [Key: Usage] = [:]
  private var usageWindowStart: Instant
  package private(set) var isClosed = false

  /// Set where a key was refused because the queue is full; cleared by `takeOverflow`.
  private var didOverflow = false
  package private(set) var refused = 0
  package private(set) var retries = 0
  package private(set) var hotRuns = 0
  package private(set) var adds = 0

  package init(limits: WorkQueueLimits, now: Instant) {
    self.limits = limits
    usageWindowStart = now
  }

  /// Keys that wait to be worked on now.
  package var depth: Int { readySince.count }
  /// Keys that wait for their time.
  package var delayedCount: Int { requested.count + ownRequeues.count }
  package var processingCount: Int { processing.count }
  package var isIdle: Bool { readySince.isEmpty && processing.isEmpty }

  private var size: Int { readySince.count + dirty.count + requested.count + ownRequeues.count }

  /// Adds a key to be worked on as soon as possible. Returns false where the queue is full or closed.
  package mutating func add(_ key: Key, now: Instant) -> Bool {
    guard !isClosed else { return false }
    adds += 1
    return enqueue(key, now: now)
  }

  /// Adds a key to be worked on after a while; of several such wishes the earliest counts.
  package mutating func add(_ key: Key, after delay: Duration, now: Instant) -> Bool {
    guard delay > .zero else { return add(key, now: now) }
    guard !isClosed else { return false }
    guard requested.contains(key) || size < limits.capacity else { return refuse() }
    adds += 1
    let due = now + delay
    if let present = requested.due(key), present <= due { return true }
    requested.set(key, due: due)
    return true
  }

  private mutating func refuse() -> Bool {
    refused += 1
    didOverflow = true
    return false
  }

  private mutating func enqueue(_ key: Key, now: Instant) -> Bool {
    if processing.contains(key) {
      dirty.insert(key)
      return true
    }
    if readySince[key] != nil { return true }
    guard size < limits.capacity else { return refuse() }
    readySince[key] = now
    ready.append(key)
    return true
  }

  /// The next key to work on, in the order in which they became ready.
  package mutating func take(now: Instant) -> Next {
    if isClosed { return .closed }
    promote(now: now)
    while readyStart < ready.count {
      let key = ready[readyStart]
      readyStart += 1
      compact()
      let since = readySince.removeValue(forKey: key) ?? now
      if let until = hotUntil(key, now: now) {
        hotRuns += 1
        requested.set(key, due: until)
        continue
      }
      processing.insert(key)
      ownRequeues.remove(key)
      return .work(key, waited: now > since ? now - since : .zero)
    }
    return .wait(until: nextDue())
  }

  /// The moment at which the next delayed key is due.
  package mutating func nextDue() -> Instant? {
    switch (requested.next(), ownRequeues.next()) {
    case (let one?, let other?): min(one, other)
    case (let one?, nil), (nil, let one?): one
    case (nil, nil): nil
    }
  }

  /// Makes the keys ready whose time has come. Returns how many.
  @discardableResult
  package mutating func promote(now: Instant) -> Int {
    var promoted = 0
    // A key taken off a heap makes room for itself, so nothing can be refused here.
    while let key = requested.pop(now: now) {
      _ = enqueue(key, now: now)
      promoted += 1
    }
    while let key = ownRequeues.pop(now: now) {
      _ = enqueue(key, now: now)
      promoted += 1
    }
    return promoted
  }

  /// The key was worked on with success; its failures are forgotten.
  package mutating func succeeded(_ key: Key, requeueAfter delay: Duration?, now: Instant) {
    failures[key] = nil
    finish(key, delay: delay, now: now)
  }

  /// The key failed. Returns after how long it will be tried again.
  /// - Parameter atLeast: How long the other side asks to wait.
  package mutating func failed(
    _ key: Key, atLeast: Duration = .zero, now: Instant, using random: inout some RandomNumberGenerator
  ) -> Duration {
    let count = failures[key] ?? 0
    failures[key] = min(count + 1, 1000)
    retries += 1
    let delay = max(
      Backoff.delay(
        attempt: count, initial: limits.backoffInitial, maximum: limits.backoffMaximum, jitter: limits.backoffJitter,
        using: &random), atLeast)
    finish(key, delay: delay, now: now)
    return delay
  }

  package func failureCount(_ key: Key) -> Int { failures[key] ?? 0 }

  private mutating func finish(_ key: Key, delay: Duration?, now: Instant) {
    guard processing.remove(key) != nil else { return }
    let again = dirty.remove(key) != nil
    guard !isClosed else { return }
    // Also beside an immediate run: where that one cannot be given out soon, the delay still holds.
    if let delay { ownRequeues.set(key, due: now + max(delay, .milliseconds(1))) }
    if again { _ = enqueue(key, now: now) }
  }

  /// Gives out nothing more. What is worked on may finish.
  package mutating func close() {
    isClosed = true
    ready.removeAll()
    readyStart = 0
    readySince.removeAll()
    dirty.removeAll()
    requested = DelayHeap()
    ownRequeues = DelayHeap()
  }

  /// Whether keys were refused and there is room again: the caller then adds all keys it knows of.
  package mutating func takeOverflow() -> Bool {
    guard didOverflow, size < limits.capacity / 2 else { return false }
    didOverflow = false
    return true
  }

  /// Where the key is in a hot loop and ran a moment ago, when it may run again.
  private mutating func hotUntil(_ key: Key, now: Instant) -> Instant? {
    if now - usageWindowStart >= .seconds(60) {
      // Whoever had to be held back stays slow, so that a new minute does not let it loose.
      usage = usage.filter { $0.value.wasHeld }
        .mapValues { Usage(runs: limits.hotLoopPerMinute, last: $0.last, wasHeld: false) }
      usageWindowStart = now
    }
    var entry = usage[key] ?? Usage(last: now)
    if entry.runs >= limits.hotLoopPerMinute, now - entry.last < limits.hotLoopSpacing {
      entry.wasHeld = true
      usage[key] = entry
      return entry.last + limits.hotLoopSpacing
    }
    entry.runs += 1
    entry.last = now
    usage[key] = entry
    return nil
  }

  private mutating func compact() {
    guard readyStart > 64, readyStart * 2 > ready.count else { return }
    ready.removeFirst(readyStart)
    readyStart = 0
  }
}
