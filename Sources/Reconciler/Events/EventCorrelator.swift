package import Kubernetes

/// How important an event is.
public enum EventType: String, Sendable, Hashable {
  case normal = "Normal"
  case warning = "Warning"
}

/// Decides what becomes of an event: a new record, a higher count on a record, or nothing. Pure.
package struct EventCorrelator: Sendable {
  package typealias Instant = ContinuousClock.Instant

  package struct Occurrence: Sendable, Hashable {
    package var regarding: ObjectReference
    package var type: EventType
    package var reason: String
    package var message: String
    package var action: String?

    package init(
      regarding: ObjectReference, type: EventType, reason: String, message: String, action: String? = nil
    ) {
      self.regarding = regarding
      self.type = type
      self.reason = reason
      self.message = message
      self.action = action
    }
  }

  /// The record of an occurrence as it should be in the API server.
  package struct Record: Sendable, Hashable {
    package var occurrence: Occurrence
    /// Name of the event object: the same for the same occurrence, also after a restart.
    package var name: String
    package var namespace: String
    package var count: Int
    /// How many of `count` came since the record was written last.
    package var new: Int
    package var first: Timestamp
    package var last: Timestamp
  }

  package struct Limits: Sendable {
    /// How many occurrences are remembered.
    package var remembered = 2048
    /// Per object: events at once, and seconds until one more is allowed.
    package var burst = 25
    package var secondsPerEvent = 60.0
    /// So many messages that differ under one reason of one object, within `window`, become one record.
    package var similar = 10
    package var window: Duration = .seconds(600)
    package init() {}
  }

  private struct Similar: Sendable {
    var messages: Set<String>
    var since: Instant
  }

  private let component: String
  private let limits: Limits
  private var records: Bounded<String, Record>
  private var buckets: Bounded<String, TokenBucket>
  private var similar: Bounded<String, Similar>
  package private(set) var dropped = 0

  package init(component: String, limits: Limits = Limits()) {
    self.component = component
    self.limits = limits
    records = Bounded(capacity: limits.remembered)
    buckets = Bounded(capacity: limits.remembered)
    similar = Bounded(capacity: limits.remembered)
  }

  /// What to write for `occurrence`; nil where the object has had too many events.
  package mutating func correlate(_ occurrence: Occurrence, now: Instant, wallClock: Timestamp) -> Record? {
    var occurrence = occurrence
    occurrence.message = String(occurrence.message.prefix(1024))
    let object = occurrence.regarding
    let objectKey = "\(object.kind ?? "")/\(object.namespace ?? "")/\(object.name ?? "")/\(object.uid ?? "")"

    // Many messages that differ in a number or an address are one thing for a person.
    let groupKey = "\(objectKey)/\(occurrence.type.rawValue)/\(occurrence.reason)"
    var group = similar[groupKey] ?? Similar(messages: [], since: now)
    if now - group.since > limits.window { group = Similar(messages: [], since: now) }
    if group.messages.count < limits.similar || group.messages.contains(occurrence.message) {
      group.messages.insert(occurrence.message)
    } else {
      occurrence.message = "(combined from similar events) last: \(occurrence.message)"
    }
    let isCombined = occurrence.message.hasPrefix("(combined")
    similar[groupKey] = group

    var bucket =
      buckets[objectKey] ?? TokenBucket(rate: 1 / limits.secondsPerEvent, burst: limits.burst, now: now)
    let isAllowed = bucket.take(now: now)
    buckets[objectKey] = bucket

    let identity = "\(component)/\(groupKey)/\(isCombined ? "(combined)" : occurrence.message)"
    // A part of a name must not end in a dot or a dash.
    var prefix = (object.name ?? "unknown").prefix(200)
    while let last = prefix.last, last == "." || last == "-" { prefix.removeLast() }
    let name = "\(prefix).\(Self.hash(identity))"
    var record =
      records[name]
      ?? Record(
        occurrence: occurrence, name: name, namespace: object.namespace ?? "default", count: 0, new: 0,
        first: wallClock, last: wallClock)
    // Counted even where it is not written now: the next write carries the true number.
    record.count += 1
    record.new += 1
    record.last = wallClock
    record.occurrence.message = occurrence.message
    record.occurrence.regarding = occurrence.regarding
    records[name] = record
    guard isAllowed else {
      dropped += 1
      return nil
    }
    return record
  }

  /// The record was written with `count`: from here on the server's number counts.
  package mutating func written(_ name: String, count: Int, wrote: Int) {
    guard var record = records[name] else { return }
    record.new = max(0, record.new - wrote)
    record.count = count + record.new
    records[name] = record
  }

  /// FNV-1a, 64 bits: stable over processes and versions, unlike `Hasher`.
  private static func hash(_ text: String) -> String {
    var hash: UInt64 = 0xcbf2_9ce4_8422_2325
    for byte in text.utf8 {
      hash ^= UInt64(byte)
      hash = hash &* 0x100_0000_01b3
    }
    let hex = String(hash, radix: 16)
    return String(repeating: "0", count: 16 - hex.count) + hex
  }
}

/// A dictionary that forgets: with twice its capacity reached, the older half goes.
struct Bounded<Key: Hashable & Sendable, Value: Sendable>: Sendable {
  private let capacity: Int
  private var recent: [Key: Value] = [:]
  private var older: [Key: Value] = [:]

  init(capacity: Int) { self.capacity = max(capacity / 2, 1) }

  subscript(key: Key) -> Value? {
    get { recent[key] ?? older[key] }
    set {
      guard let newValue else {
        recent[key] = nil
        older[key] = nil
        return
      }
      recent[key] = newValue
      if recent.count > capacity {
        older = recent
        recent = [:]
      }
    }
  }
}
