import IaaS
import Kubernetes
import Logging
import Reconciler
import Telemetry

/// The work on snapshots, restores and clones of machines, which begins when the cluster serves them: a cluster may get
/// their definitions later than those of machines.
struct LifeService: Sendable {
  let cluster: KubernetesLifeCluster
  let client: KubernetesClient
  let events: EventRecorder?
  let snapshots: WorkQueue
  let restores: WorkQueue
  let clones: WorkQueue
  let registry: MetricsRegistry
  let logger: Logger

  init(
    caches: ControllerCaches, client: KubernetesClient, events: EventRecorder?, registry: MetricsRegistry,
    logger: Logger
  ) {
    let life = LifeCaches(client: client, logger: logger, registry: registry)
    cluster = KubernetesLifeCluster(client: client, caches: caches, life: life)
    self.client = client
    self.events = events
    snapshots = WorkQueue(name: "machine snapshots", registry: registry)
    restores = WorkQueue(name: "machine restores", registry: registry)
    clones = WorkQueue(name: "machine clones", registry: registry)
    self.registry = registry
    self.logger = logger
  }

  /// Keeps the caches up to date until the task is cancelled. Once for each process.
  func watch() async throws {
    try await waitUntilServed()
    feed()
    try await cluster.life.run()
  }

  /// Works until the task is cancelled. On the leader.
  func work() async throws {
    try await cluster.life.waitUntilSynced()
    let taking = Controller(
      name: "machine snapshots",
      reconciler: MachineSnapshotReconciler(cluster: cluster, events: events, logger: logger),
      queue: snapshots, workers: 8, logger: logger, registry: registry)
    let restoring = Controller(
      name: "machine restores", reconciler: MachineRestoreReconciler(cluster: cluster, events: events, logger: logger),
      queue: restores, workers: 4, logger: logger, registry: registry)
    let cloning = Controller(
      name: "machine clones", reconciler: MachineCloneReconciler(cluster: cluster, events: events, logger: logger),
      queue: clones, workers: 4, logger: logger, registry: registry)
    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask { try await taking.run() }
      group.addTask { try await restoring.run() }
      group.addTask { try await cloning.run() }
      try await group.waitForAll()
    }
  }

  private func waitUntilServed() async throws {
    var told = false
    while true {
      do {
        _ = try await client.list(BareMetalMachineSnapshot.self, limit: 1)
        _ = try await client.list(BareMetalMachineRestore.self, limit: 1)
        _ = try await client.list(BareMetalMachineClone.self, limit: 1)
        return
      } catch {
        try Task.checkCancellation()
        logger.log(
          level: told ? .debug : .notice,
          "no snapshots of machines yet: the cluster does not serve them to this account; apply deploy/crds and deploy/rbac",
          metadata: ["error": "\(error)"])
        told = true
      }
      try await Task.sleep(for: .seconds(10))
    }
  }

  /// Who has to look when what changes. Few of these objects are at work at a time.
  private func feed() {
    let life = cluster.life
    let caches = cluster.caches
    let (snapshots, restores, clones) = (snapshots, restores, clones)
    life.snapshots.feed(snapshots)
    life.restores.feed(restores)
    life.clones.feed(clones)
    life.snapshots.feed(restores) { snapshot in
      life.restores.all().filter {
        $0.key.namespace == snapshot.key.namespace
          && ($0.spec.snapshotName == snapshot.key.name || $0.status?.previousSnapshot == snapshot.key.name)
      }.map(\.key)
    }
    life.snapshots.feed(clones) { snapshot in
      life.clones.all().filter {
        $0.key.namespace == snapshot.key.namespace && $0.status?.snapshotName == snapshot.key.name
      }.map(\.key)
    }
    life.restores.feed(restores) { restore in
      life.restores.all().filter {
        $0.key.namespace == restore.key.namespace && $0.spec.machineName == restore.spec.machineName
      }.map(\.key)
    }
    caches.hosts.feed(
      snapshots,
      isRelevant: { old, new in
        old.status?.dpu?.snapshot != new.status?.dpu?.snapshot || old.status?.snapshot != new.status?.snapshot
      }
    ) { host in
      life.snapshots.all().filter { $0.status?.host == host.key.name && $0.status?.phase == .capturing }.map(\.key)
    }
    caches.machines.feed(snapshots) { machine in
      life.snapshots.all().filter {
        $0.key.namespace == machine.key.namespace && $0.spec.machineName == machine.key.name
          && $0.status?.phase != .ready
      }.map(\.key)
    }
    caches.machines.feed(restores) { machine in
      life.restores.all().filter {
        $0.key.namespace == machine.key.namespace && $0.spec.machineName == machine.key.name
      }.map(\.key)
    }
    caches.machines.feed(clones) { machine in
      guard let uid = machine.metadata.labels?[Names.makerUIDLabel] else { return [] }
      return life.clones.all().filter { $0.metadata.uid == uid }.map(\.key)
    }
    caches.claims.feed(restores) { claim in
      guard let uid = claim.metadata.labels?[Names.makerUIDLabel] else { return [] }
      return life.restores.all().filter { $0.metadata.uid == uid }.map(\.key)
    }
    caches.claims.feed(clones) { claim in
      guard claim.metadata.annotations?[Names.provisioningMessageAnnotation] != nil,
        let uid = claim.metadata.labels?[Names.machineUIDLabel],
        let maker = caches.machine(uid: uid)?.metadata.labels?[Names.makerUIDLabel]
      else { return [] }
      return life.clones.all().filter { $0.metadata.uid == maker }.map(\.key)
    }
    caches.attachments.feed(restores) { attachment in
      guard let machine = attachment.machineKey else { return [] }
      return life.restores.all().filter {
        $0.key.namespace == machine.namespace && $0.spec.machineName == machine.name
      }.map(\.key)
    }
  }
}
