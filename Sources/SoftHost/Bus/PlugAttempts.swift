/// What was tried on the bus and when to try again; also which functions are missing only for a moment. Pure.
package struct PlugAttempts: Sendable {
  private struct Failure {
    var count: Int
    var next: ContinuousClock.Instant
  }

  private var failures: [String: Failure] = [:]
  private var missingSince: [String: ContinuousClock.Instant] = [:]
  private var graceEnd: ContinuousClock.Instant?

  package init() {}

  package var hasFailed: Bool { !failures.isEmpty }

  package func mayTry(_ id: String, now: ContinuousClock.Instant) -> Bool {
    failures[id].map { $0.next <= now } ?? true
  }

  package mutating func succeeded(_ id: String) { failures[id] = nil }

  /// 0.1 s, doubling up to 5 s.
  package mutating func failed(_ id: String, now: ContinuousClock.Instant) {
    let count = (failures[id]?.count ?? 0) + 1
    let wait = Duration.milliseconds(min(5000, 100 << min(count - 1, 6)))
    failures[id] = Failure(count: count, next: now + wait)
  }

  /// Those plugged functions that have just gone missing from the bus. They stay: a data plane that starts again
  /// replaces its sockets.
  package mutating func kept(
    _ seen: [BusFunction], plugged: [BusPlan.Plugged], now: ContinuousClock.Instant, grace: Duration
  ) -> Set<String> {
    let seenIDs = Set(seen.map(\.id))
    let pluggedIDs = Set(plugged.map(\.id))
    let missing = pluggedIDs.subtracting(seenIDs)
    missingSince = missingSince.filter { missing.contains($0.key) }
    failures = failures.filter { seenIDs.contains($0.key) || pluggedIDs.contains($0.key) }
    graceEnd = nil
    var kept = Set<String>()
    for id in missing {
      let since = missingSince[id] ?? now
      missingSince[id] = since
      guard now < since + grace else { continue }
      kept.insert(id)
      graceEnd = min(graceEnd ?? since + grace, since + grace)
    }
    return kept
  }

  /// How long nothing has to be looked at.
  package func nextLook(after now: ContinuousClock.Instant, default rest: Duration) -> Duration {
    var next = now + rest
    for failure in failures.values { next = min(next, failure.next) }
    if let graceEnd { next = min(next, graceEnd) }
    return max(.milliseconds(1), now.duration(to: next))
  }
}
