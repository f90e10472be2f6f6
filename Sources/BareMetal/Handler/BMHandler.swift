public import DPU
import IaaS
public import Kubernetes
public import Logging
import Reconciler
public import Telemetry

/// bm-handler: the disks, seed disk and interfaces of one server, on its DPU.
///
/// Restarting it disturbs no guest: what it makes lives in the data plane and in the kernel, and it lists that first.
public struct BMHandler: Sendable {
  public struct Configuration: Sendable {
    /// The host's name.
    public var host: String
    /// The directory of the server's bus, where interfaces are plugged.
    public var busDirectory: String
    /// The storage pool; volumes are in its folder `volumes`.
    public var pool: String
    /// Where seed disks are kept.
    public var stateDirectory: String
    /// The bridge that interfaces are put into.
    public var bridge: String
    /// Where dnsmasq looks for reservations.
    public var dhcpHostsDirectory: String
    /// dnsmasq's lease file.
    public var dhcpLeaseFile: String
    /// dnsmasq's pid file, to tell it about reservations that change or go; nil where that is somebody else's task.
    public var dhcpPidFile: String?
    /// `HOST:PORT` for metrics and health; empty for none.
    public var metricsAddress = ""
    /// Whether SIGTERM and SIGINT end `run()`.
    public var handlesSignals = true

    public init(
      host: String, busDirectory: String, pool: String, stateDirectory: String, bridge: String,
      dhcpHostsDirectory: String, dhcpLeaseFile: String
    ) {
      self.host = host
      self.busDirectory = busDirectory
      self.pool = pool
      self.stateDirectory = stateDirectory
      self.bridge = bridge
      self.dhcpHostsDirectory = dhcpHostsDirectory
      self.dhcpLeaseFile = dhcpLeaseFile
    }
  }

  private let client: KubernetesClient
  private let dpu: any DPU
  private let network: any NetworkPlugger
  private let configuration: Configuration
  private let registry: MetricsRegistry
  private let logger: Logger

  /// A handler whose interfaces are taps in a Linux bridge.
  public init(
    client: KubernetesClient, dpu: any DPU, configuration: Configuration, registry: MetricsRegistry, logger: Logger
  ) {
    self.init(
      client: client, dpu: dpu,
      network: BridgePlugger(
        host: configuration.host, bridge: configuration.bridge, busDirectory: configuration.busDirectory,
        dhcpHostsDirectory: configuration.dhcpHostsDirectory,
        dhcp: DHCPServer(
          bridge: configuration.bridge, leaseFile: configuration.dhcpLeaseFile, pidFile: configuration.dhcpPidFile)),
      configuration: configuration, registry: registry, logger: logger)
  }

  package init(
    client: KubernetesClient, dpu: any DPU, network: any NetworkPlugger, configuration: Configuration,
    registry: MetricsRegistry, logger: Logger
  ) {
    self.client = client
    self.dpu = dpu
    self.network = network
    self.configuration = configuration
    self.registry = registry
    self.logger = logger
  }

  /// Runs until it is told to stop, or the task is cancelled.
  public func run() async throws {
    var settings = Manager.Configuration(metricsAddress: configuration.metricsAddress)
    settings.handlesSignals = configuration.handlesSignals
    let manager = Manager(client: client, configuration: settings, registry: registry, logger: logger)
    let host = configuration.host
    let caches = HandlerCaches(client: client, host: host, logger: logger, registry: registry)
    manager.add(caches.hosts)
    manager.add(caches.bootData)
    manager.add(caches.attachments)
    let queue = WorkQueue(name: "dpu", registry: registry)
    let key = ObjectKey(name: host)
    caches.hosts.feed(queue) { _ in [key] }
    caches.bootData.feed(queue) { _ in [key] }
    caches.attachments.feed(queue) { _ in [key] }
    // Also with nothing to do: the host's status says that the DPU is ready.
    queue.add(key)

    try Files.makeDirectory(configuration.stateDirectory, mode: 0o700)
    let guest = GuestWatcher(
      bridge: configuration.bridge, leaseFile: configuration.dhcpLeaseFile, logger: logger,
      changed: { queue.add(key) })
    manager.add(name: "guest watcher", scope: .always) { try await guest.run() }
    let heartbeat = Heartbeat(client: client, host: host, logger: logger)
    manager.add(name: "heartbeat", scope: .always) { try await heartbeat.run() }
    manager.add(
      Controller(
        name: "dpu",
        reconciler: HandlerReconciler(
          hostName: host, caches: caches, cluster: KubernetesHandlerCluster(client: client, caches: caches), dpu: dpu,
          network: network, seeds: SeedDisk(directory: configuration.stateDirectory), guest: guest,
          volumesDirectory: "\(configuration.pool)/volumes", groupsDirectory: "\(configuration.pool)/groups",
          logger: logger),
        queue: queue, workers: 1, logger: logger, registry: registry))
    try await manager.run()
  }
}
