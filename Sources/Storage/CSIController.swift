import Glibc
import JSON
public import Kubernetes
public import Logging
import Reconciler
public import Telemetry
public import WebServer

/// `ycloud csi-controller`: provisions volumes for claims, removes them after use, and receives their content.
public struct CSIController: Sendable {
  /// Where uploads are received.
  public struct UploadSettings: Sendable {
    public var host: String
    /// 0 takes a free one.
    public var port: Int
    /// Under which address clients reach it; nil: the one it listens on.
    public var url: String?
    public var tls: TLSFiles?
    /// The authority of the server's certificate, in PEM, for clients.
    public var certificateAuthority: String?

    public init(
      host: String, port: Int, url: String? = nil, tls: TLSFiles? = nil, certificateAuthority: String? = nil
    ) {
      self.host = host
      self.port = port
      self.url = url
      self.tls = tls
      self.certificateAuthority = certificateAuthority
    }
  }

  public struct Settings: Sendable {
    /// The pool's folder.
    public var pool: String
    public var policy = ReflinkPool.Policy()
    public var upload: UploadSettings?
    /// How long a volume that belongs to nobody is kept, and how often they are looked for.
    public var orphanGrace: Duration = .seconds(60)
    /// How often a claim that waits for room in the pool is tried again.
    public var retryDelay: Duration = .seconds(10)
    public var workers = 8
    public var snapshots = SnapshotRole.all
    /// Where the lease and the address for uploads are kept.
    public var systemNamespace = "ycloud-system"
    public var electsLeader = true
    /// `HOST:PORT` for metrics and health; empty for none.
    public var metricsAddress = ""

    public init(pool: String) { self.pool = pool }
  }

  private let settings: Settings
  private let logger: Logger
  private let registry: MetricsRegistry

  public init(settings: Settings, registry: MetricsRegistry, logger: Logger) {
    self.settings = settings
    self.registry = registry
    self.logger = logger
  }

  /// Runs until the process is asked to end or the task is cancelled.
  ///
  /// - Throws: `StorageError` where the pool cannot be used, and what ends a `Manager`.
  public func run(_ configuration: ClientConfiguration) async throws {
    let pool = try await openPool()
    logger.info(
      "pool opened",
      metadata: [
        "pool": "\(pool.path)", "volumes": "\(pool.recovery.volumes)",
        "removedFromStaging": "\(pool.recovery.removedFromStaging)",
        "removedFromTrash": "\(pool.recovery.removedFromTrash)",
      ])
    let client = try KubernetesClient(configuration: configuration, logger: logger, registry: registry)
    do {
      try await run(pool, client)
    } catch {
      try? await client.shutdown()
      throw error
    }
    try await client.shutdown()
  }

  /// A predecessor that is still ending holds the pool for a moment.
  private func openPool() async throws -> ReflinkPool {
    for _ in 0..<50 {
      do throws(StorageError) {
        return try ReflinkPool(path: settings.pool, policy: settings.policy)
      } catch {
        guard error.code == .poolInUse else { throw error }
      }
      try await Task.sleep(for: .milliseconds(200))
    }
    return try ReflinkPool(path: settings.pool, policy: settings.policy)
  }

  private func run(_ pool: ReflinkPool, _ client: KubernetesClient) async throws {
    let metrics = StorageMetrics(registry: registry)
    metrics.observe(pool)
    let recorder = EventRecorder(client: client, component: "csi-controller", logger: logger, registry: registry)
    let cluster = KubernetesCluster(client: client, recorder: recorder, logger: logger, registry: registry)
    let queue = WorkQueue(name: "volumes", registry: registry)
    let feed = VolumeFeed(cluster: cluster, queue: queue)
    let snapshotFeed = SnapshotFeed(
      cluster: cluster, volumes: feed, looksAfterSnapshots: settings.snapshots == .all, registry: registry)
    let uploads = UploadService(
      backend: pool, cluster: cluster, metrics: metrics, logger: logger,
      onEnd: { handle, claim in
        feed.changed(handle, claim: claim)
        snapshotFeed.claimChanged(claim)
      })
    let reconciler = VolumeReconciler(
      backend: pool, cluster: cluster, metrics: metrics, logger: logger, retryDelay: settings.retryDelay,
      isUploading: { uploads.isActive($0) })
    feed.start(claimDeleted: { reconciler.claimDeleted($0, $1) })

    var configuration = Manager.Configuration(metricsAddress: settings.metricsAddress)
    if settings.electsLeader {
      // The pool's lock sees to it that nobody else has this identity, so a process that takes over from one that was
      // killed need not wait for the lease to expire.
      configuration.leaderElection = LeaderElection(
        name: "csi-controller", namespace: settings.systemNamespace, identity: "\(hostName())_\(pool.identity)")
    }
    let manager = Manager(client: client, configuration: configuration, registry: registry, logger: logger)
    manager.add(cluster.claims)
    manager.add(cluster.persistentVolumes)
    manager.add(cluster.storageClasses)
    manager.add(cluster.attachments)
    manager.add(recorder)
    manager.add(
      Controller(
        name: "volumes", reconciler: VolumeReconcile(reconciler: reconciler), queue: queue, workers: settings.workers,
        logger: logger, registry: registry))
    if settings.snapshots != .none {
      let service = SnapshotService(
        role: settings.snapshots, backend: pool, cluster: cluster, feed: snapshotFeed, client: client,
        metrics: metrics, workers: settings.workers, retryDelay: settings.retryDelay, registry: registry,
        logger: logger)
      manager.add(name: "caches of snapshots", scope: .always) { try await service.watch() }
      manager.add(name: "snapshots", scope: .leader) {
        try await service.work(isUploading: { uploads.isActive($0) })
      }
    }
    let grace = max(settings.orphanGrace, .seconds(1))
    manager.add(name: "collection of groups", scope: .leader) { [logger] in
      try await collectGroups(pool, grace: max(grace, .seconds(600)), logger: logger)
    }
    manager.add(name: "orphan collection", scope: .leader) { [logger] in
      try await collectOrphans(pool, cluster, grace: grace, metrics: metrics, logger: logger)
    }
    if let upload = settings.upload {
      let endpoint = UploadEndpoint(
        settings: upload, client: client, namespace: settings.systemNamespace, logger: logger)
      manager.add(name: "uploads", scope: .leader) { try await endpoint.run(router: uploadRouter(uploads)) }
    }
    try await manager.run()
  }
}

/// Looks for orphans at once and then once per grace period, at least every ten minutes.
private func collectOrphans(
  _ pool: ReflinkPool, _ cluster: KubernetesCluster, grace: Duration, metrics: StorageMetrics, logger: Logger
) async throws {
  var collector = OrphanCollector(backend: pool, cluster: cluster, grace: grace, logger: logger)
  var warned = false
  while true {
    do {
      guard try pool.belongs(toCluster: try await cluster.currentIdentity()) else {
        if !warned {
          logger.warning(
            """
            the pool has been used with another cluster: volumes that are unknown here are kept; remove the file \
            .cluster in the pool to have them collected
            """, metadata: ["pool": "\(pool.path)"])
        }
        warned = true
        try await Task.sleep(for: .seconds(600))
        continue
      }
      metrics.removedOrphans(try await collector.sweep(now: .now).count)
    } catch {
      try Task.checkCancellation()
      logger.warning("could not look for orphaned volumes; nothing was removed", metadata: ["error": "\(error)"])
    }
    try await Task.sleep(for: min(grace, .seconds(600)))
  }
}

/// Looks for groups of snapshots that nobody takes.
private func collectGroups(_ pool: ReflinkPool, grace: Duration, logger: Logger) async throws {
  var collector = GroupCollector(pool: pool, grace: grace)
  while true {
    do {
      for name in try await collector.sweep(now: .now) {
        logger.warning("a group of snapshots that nobody took was removed", metadata: ["group": "\(name)"])
      }
    } catch {
      try Task.checkCancellation()
      logger.warning("could not look for groups of snapshots", metadata: ["error": "\(error)"])
    }
    try await Task.sleep(for: .seconds(300))
  }
}

private func hostName() -> String {
  var name = utsname()
  guard uname(&name) == 0 else { return "unknown" }
  return withUnsafeBytes(of: &name.nodename) { bytes in
    String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
  }
}

/// The volume reconciler as the work queue sees it: the key is the handle.
private struct VolumeReconcile: Reconcile {
  let reconciler: VolumeReconciler<ReflinkPool, KubernetesCluster>

  func reconcile(_ key: ObjectKey) async throws -> ReconcileResult {
    guard let handle = try? VolumeHandle(key.name) else { return .done }
    switch try await reconciler.reconcile(handle) {
    case .settled: return .done
    case .retry(let delay): return .requeue(after: delay)
    }
  }
}
