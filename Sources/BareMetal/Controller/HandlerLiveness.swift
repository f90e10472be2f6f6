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

  /// Nil for a host whose handler never made a lease.
  package func isAlive(_ host: String) -> Bool? { alive.withLock { $0[host] } }

  /// Looks every now and then, and tells hosts about which something changed.
  package func run(changed: @Sendable (String) -> Void) async throws {
    var hasComplained = false
    while true {
      do {
        let leases = try await client.listAll(
          Lease.self, namespace: Names.systemNamespace, labelSelector: Names.hostLabel
        ).items
        let now = MicroTimestamp.now()
        let limit = Self.silentAfter.components.seconds * 1_000_000
        var present: [String: Bool] = [:]
        for lease in leases {
          guard let host = lease.metadata.labels?[Names.hostLabel], let renewed = lease.spec?.renewTime else {
            continue
          }
          present[host] = now.microseconds - renewed.microseconds < limit
        }
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
