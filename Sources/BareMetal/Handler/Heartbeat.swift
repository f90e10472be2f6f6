import IaaS
import JSON
package import Kubernetes
package import Logging

/// A handler's sign of life: a lease that it renews, so that bm-controller can tell a silent DPU from a quiet one.
package struct Heartbeat: Sendable {
  let client: KubernetesClient
  let host: String
  let logger: Logger

  package init(client: KubernetesClient, host: String, logger: Logger) {
    self.client = client
    self.host = host
    self.logger = logger
  }

  package func run() async throws {
    var hasComplained = false
    while true {
      do {
        try await renew()
        hasComplained = false
      } catch let error as KubernetesError {
        if !hasComplained { logger.warning("cannot renew the lease", metadata: ["error": "\(error)"]) }
        hasComplained = true
      }
      try await Task.sleep(for: hasComplained ? .seconds(5) : HandlerLiveness.renewEvery)
    }
  }

  package func renew() async throws {
    let name = HandlerLiveness.leaseName(host: host)
    let now = MicroTimestamp.now()
    do {
      _ = try await client.mergePatch(
        Lease.self, name: name, namespace: Names.systemNamespace,
        patch: ["spec": ["holderIdentity": .string(host), "renewTime": .string(now.description)]])
    } catch let error as KubernetesError where error.code == .notFound {
      var metadata = ObjectMeta(name: name, namespace: Names.systemNamespace)
      metadata.labels = [Names.hostLabel: host]
      _ = try await client.create(
        Lease(
          metadata: metadata,
          spec: .init(
            holderIdentity: host,
            leaseDurationSeconds: Int(HandlerLiveness.silentAfter.components.seconds), acquireTime: now,
            renewTime: now)))
    }
  }
}
