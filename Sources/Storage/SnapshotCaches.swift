package import Kubernetes
package import Logging
package import Telemetry

/// Local copies of the objects of `snapshot.storage.k8s.io`. They stay empty where the cluster does not have that.
package struct SnapshotCaches: Sendable {
  package let snapshots: ObjectCache<VolumeSnapshot>
  package let contents: ObjectCache<VolumeSnapshotContent>
  package let classes: ObjectCache<VolumeSnapshotClass>

  package init(client: KubernetesClient, logger: Logger, registry: MetricsRegistry?) {
    snapshots = ObjectCache(
      client: client, indexers: ["claim": { SnapshotView($0)?.claimKey.map { [$0.description] } ?? [] }],
      logger: logger, registry: registry)
    contents = ObjectCache(
      client: client,
      indexers: [
        "handle": { object in
          guard let view = ContentView(object), view.driver == StorageNames.driver else { return [] }
          return view.handle.map { [$0] } ?? []
        },
        "snapshot": { object in
          guard let view = ContentView(object), view.driver == StorageNames.driver, view.snapshotUID != nil else {
            return []
          }
          return view.snapshotKey.map { [$0.description] } ?? []
        },
      ], logger: logger, registry: registry)
    classes = ObjectCache(client: client, logger: logger, registry: registry)
  }

  /// Keeps them up to date until the task is cancelled.
  func run() async throws {
    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask { try await snapshots.run() }
      group.addTask { try await contents.run() }
      group.addTask { try await classes.run() }
      try await group.waitForAll()
    }
  }

  func waitUntilSynced() async throws {
    try await snapshots.waitUntilSynced()
    try await contents.waitUntilSynced()
    try await classes.waitUntilSynced()
  }
}
