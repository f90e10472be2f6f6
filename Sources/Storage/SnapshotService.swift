import Kubernetes
import Logging
import Reconciler
import Telemetry

/// What is done of the work on snapshots.
public enum SnapshotRole: String, Sendable, Hashable, CaseIterable {
  /// All of it.
  case all
  /// Taking and removing snapshots; a snapshot-controller in the cluster looks after VolumeSnapshots.
  case contents
  case none
}

/// The work on snapshots, which begins when the cluster serves `snapshot.storage.k8s.io/v1`.
struct SnapshotService: Sendable {
  let role: SnapshotRole
  let backend: any VolumeBackend
  let cluster: KubernetesCluster
  let feed: SnapshotFeed
  let client: KubernetesClient
  let metrics: StorageMetrics
  let workers: Int
  let retryDelay: Duration
  let registry: MetricsRegistry
  let logger: Logger

  /// Keeps the caches up to date until the task is cancelled. Once for each process.
  func watch() async throws {
    try await waitUntilServed()
    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask { try await cluster.snapshotCaches.run() }
      try await cluster.snapshotCaches.waitUntilSynced()
      feed.start()
      try await group.waitForAll()
    }
  }

  /// Works until the task is cancelled. On the leader.
  func work(isUploading: @escaping @Sendable (VolumeHandle) -> Bool) async throws {
    try await cluster.snapshotCaches.waitUntilSynced()
    let contents = Controller(
      name: "snapshot contents",
      reconciler: ContentReconcile(
        reconciler: ContentReconciler(
          backend: backend, cluster: cluster, metrics: metrics, logger: logger, retryDelay: retryDelay)),
      queue: feed.contentQueue, workers: workers, logger: logger, registry: registry)
    let snapshots = Controller(
      name: "snapshots",
      reconciler: SnapshotReconcile(
        reconciler: SnapshotReconciler(cluster: cluster, logger: logger, isUploading: isUploading),
        retryDelay: retryDelay),
      queue: feed.snapshotQueue, workers: workers, logger: logger, registry: registry)
    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask { try await contents.run() }
      if role == .all {
        // A VolumeSnapshot that is not there: claims that nobody needs to keep any more are let go.
        feed.snapshotQueue.add(ObjectKey(namespace: "-", name: "-"))
        group.addTask { try await snapshots.run() }
      }
      try await group.waitForAll()
    }
  }

  /// Waits for the definitions: a cluster may get them later, or never.
  private func waitUntilServed() async throws {
    var told = false
    while true {
      do {
        _ = try await client.list(VolumeSnapshotContent.self, limit: 1)
        return
      } catch {
        try Task.checkCancellation()
        logger.log(
          level: told ? .debug : .notice,
          "no snapshots yet: the cluster does not serve snapshot.storage.k8s.io/v1 to this account",
          metadata: ["error": "\(error)"])
        told = true
      }
      try await Task.sleep(for: .seconds(10))
    }
  }
}

/// The reconcilers as the work queues see them.
private struct SnapshotReconcile: Reconcile {
  let reconciler: SnapshotReconciler
  let retryDelay: Duration

  func reconcile(_ key: ObjectKey) async throws -> ReconcileResult {
    do {
      try await reconciler.reconcile(SnapshotKey(namespace: key.namespace ?? "", name: key.name))
      return .done
    } catch let error as StorageError {
      guard error.code == .busy else { throw error }
      return .requeue(after: retryDelay)
    }
  }
}

private struct ContentReconcile: Reconcile {
  let reconciler: ContentReconciler

  func reconcile(_ key: ObjectKey) async throws -> ReconcileResult {
    try await reconciler.reconcile(key.name).map { .requeue(after: $0) } ?? .done
  }
}
