import BareMetal
import IaaS
import Kubernetes
import Logging
import Reconciler
import SoftHost
import Synchronization
import Telemetry

/// One simulated host: server, BMC, DPU, and the bm-handler on it.
package final class SimulatedHost: Sendable {
  package let name: String
  package let number: Int
  package let server: SimulatedServer
  package let bmc: SimulatedBMC
  package let dpu: SimulatedDPU
  private let handler: HandlerReconciler
  private let isDead = Mutex(false)

  /// What all hosts of a fleet share.
  struct Surroundings: Sendable {
    var configuration: FleetConfiguration
    var caches: HandlerCaches
    var cluster: any HandlerCluster
    var accounts: Accounts
    var metrics: SoftHostMetrics
    var queue: WorkQueue
    var logger: Logger
  }

  init(number: Int, in surroundings: Surroundings) {
    let settings = surroundings.configuration
    let name = settings.name(of: number)
    let queue = surroundings.queue
    let key = ObjectKey(name: name)
    // One line for each step of each of thousands of hosts is no use to anybody.
    var logger = surroundings.logger
    logger.logLevel = max(logger.logLevel, settings.hostLogLevel)
    logger[metadataKey: "host"] = "\(name)"
    self.name = name
    self.number = number
    let server = SimulatedServer(
      name: name, number: number, seed: settings.seed, pace: settings.pace, changed: { queue.add(key) })
    self.server = server
    bmc = SimulatedBMC(
      server: server, seed: settings.seed, accounts: surroundings.accounts, delay: settings.bmcDelay,
      faults: settings.faults, metrics: surroundings.metrics, logger: logger)
    dpu = SimulatedDPU(host: name, seed: settings.seed, delay: settings.dpuDelay, hasFiles: settings.pool != nil)
    handler = HandlerReconciler(
      hostName: name, caches: surroundings.caches, cluster: surroundings.cluster, dpu: dpu, network: dpu, seeds: dpu,
      guest: SimulatedGuest(number: number, guestAt: { server.guestAt() }, wake: { queue.add(key, after: $0) }),
      volumesDirectory: "\(settings.pool ?? "/simulated/pool")/volumes",
      groupsDirectory: "\(settings.pool ?? "/simulated/pool")/groups", logger: logger)
  }

  /// The whole host goes, at once.
  package func die() {
    isDead.withLock { $0 = true }
    bmc.die()
  }

  package var isAlive: Bool { !isDead.withLock { $0 } }

  /// What bm-handler would do now.
  func reconcile(_ key: ObjectKey) async throws -> ReconcileResult {
    guard isAlive else { return .done }
    return try await handler.reconcile(key)
  }
}

/// Hands a host's key to the host.
struct FleetReconciler: Reconcile {
  let hosts: [String: SimulatedHost]

  func reconcile(_ key: ObjectKey) async throws -> ReconcileResult {
    guard let host = hosts[key.name] else { return .done }
    return try await host.reconcile(key)
  }
}
