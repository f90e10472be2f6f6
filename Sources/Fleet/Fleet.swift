import BareMetal
import IaaS
public import Kubernetes
public import Logging
import NIOCore
import NIOPosix
import NIOSSL
import Reconciler
import SoftHost
public import Telemetry

/// Thousands of hosts in one process: their BMCs over HTTPS, and what the bm-handlers on their DPUs do at the API server.
public struct Fleet: Sendable {
  private let client: KubernetesClient
  private let configuration: FleetConfiguration
  private let registry: MetricsRegistry
  private let logger: Logger

  public init(
    client: KubernetesClient, configuration: FleetConfiguration, registry: MetricsRegistry, logger: Logger
  ) {
    self.client = client
    self.configuration = configuration
    self.registry = registry
    self.logger = logger
  }

  /// Registers the hosts and plays them until `until` returns, then removes them.
  ///
  /// - Parameters:
  ///   - tell: Called with lines for people: how far it is, and what happened.
  ///   - until: Waits for the end.
  /// - Throws: `FleetError`, and what the API server refuses.
  public func run(
    tell: @escaping @Sendable (FleetReport) -> Void = { _ in }, until: @escaping @Sendable () async -> Void
  ) async throws {
    FileLimit.raise()
    let tls = try await FleetCertificate.make()
    let caches = HandlerCaches(
      client: client, hostSelector: FleetRegistry.selector(configuration), logger: logger, registry: registry)
    let machines = ObjectCache<BareMetalMachine>(client: client, logger: logger, registry: registry)
    let queue = WorkQueue(name: "dpus", registry: registry)
    let password = Self.password()
    let surroundings = SimulatedHost.Surroundings(
      configuration: configuration, caches: caches, cluster: KubernetesHandlerCluster(client: client, caches: caches),
      accounts: Accounts(username: Self.username, password: password), metrics: SoftHostMetrics(registry),
      queue: queue, logger: logger)
    let hosts = (0..<configuration.hosts).map { SimulatedHost(number: $0, in: surroundings) }
    stickSome(hosts)

    let group = MultiThreadedEventLoopGroup.singleton
    let listener = try await FleetListener.open(
      hosts: hosts.count, port: configuration.bmcPort, tls: tls, group: group,
      respond: { number, request in try await hosts[number].bmc.respond(to: request) })
    defer { withExtendedLifetime(listener) {} }
    let manager = makeManager(caches: caches, machines: machines, queue: queue, hosts: hosts)
    let tally = FleetTally(hosts: caches.hosts, machines: machines, registry: registry)
    let roll = FleetRegistry(client: client, configuration: configuration, logger: logger)

    do {
      try await withThrowingTaskGroup(of: Bool.self) { group in
        group.addTask {
          try await manager.run()
          return false
        }
        if let interval = configuration.progress {
          group.addTask {
            while true {
              try await Task.sleep(for: interval)
              tell(tally.report())
            }
          }
        }
        group.addTask {
          try await roll.register(port: listener.port, username: Self.username, password: password)
          logger.notice("hosts are registered", metadata: ["hosts": "\(hosts.count)", "port": "\(listener.port)"])
          await until()
          return true
        }
        // The first to end is the wish to end, or a part that failed.
        while let isAsked = try await group.next(), !isAsked {}
        if !configuration.keeps {
          logger.notice("removing the hosts")
          let left = try await roll.remove(isGone: { caches.hosts.get(name: $0) == nil })
          if left > 0 {
            logger.warning(
              "hosts are left: their machines hold them, or bm-controller does not run; they go when that is over",
              metadata: ["hosts": "\(left)"])
          }
        }
        group.cancelAll()
        do { while try await group.next() != nil {} } catch is CancellationError {}
      }
    } catch {
      await listener.close()
      throw error
    }
    await listener.close()
  }

  private static let username = "simulated"

  private static func password() -> String {
    var random = SystemRandomNumberGenerator()
    return (0..<4).map { _ in String(UInt64.random(in: 0...UInt64.max, using: &random), radix: 36) }.joined()
  }

  /// The BMCs that never answer, chosen by the seed.
  private func stickSome(_ hosts: [SimulatedHost]) {
    var random = SeededRandom(seed: configuration.seed, part: "stuck")
    for host in hosts.shuffled(using: &random).prefix(configuration.faults.stuck) { host.bmc.setStuck(true) }
  }

  private func makeManager(
    caches: HandlerCaches, machines: ObjectCache<BareMetalMachine>, queue: WorkQueue, hosts: [SimulatedHost]
  ) -> Manager {
    var settings = Manager.Configuration(metricsAddress: configuration.metricsAddress)
    settings.handlesSignals = false
    let manager = Manager(client: client, configuration: settings, registry: registry, logger: logger)
    manager.add(caches.hosts)
    manager.add(caches.bootData)
    manager.add(caches.attachments)
    manager.add(machines)
    caches.hosts.feed(queue)
    caches.bootData.feed(queue) { secret in Self.host(of: secret.metadata) }
    caches.attachments.feed(queue) { attachment in Self.host(of: attachment.metadata) }
    let named = Dictionary(uniqueKeysWithValues: hosts.map { ($0.name, $0) })
    manager.add(
      Controller(
        name: "dpus", reconciler: FleetReconciler(hosts: named), queue: queue, workers: configuration.workers,
        logger: logger, registry: registry))
    let heartbeats = FleetHeartbeats(client: client, hosts: hosts, logger: logger)
    manager.add(name: "heartbeats", scope: .always) { try await heartbeats.run() }
    let misfortune = FleetMisfortune(configuration: configuration, hosts: hosts, queue: queue, logger: logger)
    manager.add(name: "misfortune", scope: .always) { try await misfortune.run() }
    return manager
  }

  private static func host(of metadata: ObjectMeta) -> [ObjectKey] {
    metadata.labels?[Names.hostLabel].map { [ObjectKey(name: $0)] } ?? []
  }
}
