import IaaS
package import Kubernetes
package import Logging
import Synchronization

/// Which bm-handlers show signs of life: each renews a lease, and all leases are looked at in one request.
package final class HandlerLiveness: Sendable {
  /// The lease of a host's handler, in `Names.systemNamespace`.
  package static func leaseName(host: String) -> String { "bm-handler-\(host)" }
  /// How often a handler renews its lease.
  package static let renewEvery: Duration = .seconds(20)
  /// After how long without a renewal it counts as silent.
  package static let silentAfter: Duration = .seconds(70)

  private let client: KubernetesClient
  private let logger: Logger
  private let alive = Mutex<[String: Bool]>([:])

  package init(client: KubernetesClient, logger: Logger) {
    self.client = client
    self.logger = logger
  }

  /// Nil for a host whose handler never made a lease, or about which nothing can be said yet.
  package func isAlive(_ host: String) -> Bool? { alive.withLock { $0[host] } }

  /// Looks every now and then, and tells hosts about which something changed.
  package func run(changed: @Sendable (String) -> Void) async throws {
    var hasComplained = false
    // Anew for each term as the leader: before it, nobody looked.
    var leases = HandlerLeases()
    alive.withLock { $0 = [:] }
    let start = ContinuousClock.now
    while true {
      do {
        let list = try await client.listAll(
          Lease.self, namespace: Names.systemNamespace, labelSelector: Names.hostLabel
        ).items
        let present = leases.observe(list, at: start.duration(to: .now))
        let before = alive.withLock { alive in
          let before = alive
          alive = present
          return before
        }
        for host in Set(before.keys).union(present.keys) where before[host] != present[host] { changed(host) }
        hasComplained = false
      } catch let error as KubernetesError {
        // Passing trouble heals by itself; a refusal stays until somebody grants the right, and without it no silent
        // handler is ever noticed.
        let level: Logger.Level = error.isTransient || hasComplained ? .debug : .warning
        if !error.isTransient { hasComplained = true }
        logger.log(level: level, "cannot list the handlers' leases", metadata: ["error": "\(error)"])
      }
      try await Task.sleep(for: Self.renewEvery)
    }
  }
}

/// What the handlers' leases tell. Pure; times are monotonic, from any beginning.
///
/// What a lease says about the time is its DPU's clock, which may be wrong: what counts is when it was seen to change.
package struct HandlerLeases: Sendable {
  private struct Seen {
    var spec: Lease.Spec?
    var since: Duration
    /// Whether it was seen to change: one that was always the same may have been left by a handler that is no more.
    var hasChanged = false
  }

  private var seen: [String: Seen] = [:]
  private var lookedAt: Duration?

  package init() {}

  /// Takes in all leases there are, and tells which hosts' handlers are alive. Hosts about which nothing can be said yet
  /// are left out.
  package mutating func observe(_ leases: [Lease], at time: Duration) -> [String: Bool] {
    // Where nobody could look for a while, the handlers could not write either: that time does not count.
    var blind = lookedAt.map { time - $0 } ?? .zero
    if blind <= HandlerLiveness.renewEvery * 2 { blind = .zero }
    lookedAt = time
    var present: [String: Seen] = [:]
    var alive: [String: Bool] = [:]
    for lease in leases {
      guard let host = lease.metadata.labels?[Names.hostLabel] else { continue }
      var entry = seen[host] ?? Seen(spec: lease.spec, since: time)
      if entry.spec != lease.spec {
        entry = Seen(spec: lease.spec, since: time, hasChanged: true)
      } else {
        entry.since = min(entry.since + blind, time)
      }
      present[host] = entry
      if time - entry.since >= HandlerLiveness.silentAfter {
        alive[host] = false
      } else if entry.hasChanged {
        alive[host] = true
      }
    }
    seen = present
    return alive
  }
}
