import Kubernetes
import Reconciler
import Telemetry

/// Decides which VolumeSnapshots and contents have to be looked at when an object of the cluster changes.
struct SnapshotFeed: Sendable {
  let cluster: KubernetesCluster
  let volumes: VolumeFeed
  /// Whether VolumeSnapshots are looked after here.
  let looksAfterSnapshots: Bool
  let snapshotQueue: WorkQueue
  let contentQueue: WorkQueue

  init(cluster: KubernetesCluster, volumes: VolumeFeed, looksAfterSnapshots: Bool, registry: MetricsRegistry?) {
    self.cluster = cluster
    self.volumes = volumes
    self.looksAfterSnapshots = looksAfterSnapshots
    snapshotQueue = WorkQueue(name: "snapshots", registry: registry)
    contentQueue = WorkQueue(name: "snapshot contents", registry: registry)
  }

  func start() {
    let caches = cluster.snapshotCaches
    caches.snapshots.onChange { change in
      switch change {
      case .added(let object), .updated(_, let object), .deleted(let object):
        guard let view = SnapshotView(object) else { return }
        add(view.key)
        if let name = view.status.contentName ?? view.contentName { contentQueue.add(ObjectKey(name: name)) }
        if let claim = view.claimKey { claimChanged(claim, except: view.key) }
        volumes.snapshotChanged(view.key)
      }
    }
    caches.contents.onChange { change in
      switch change {
      case .added(let object), .updated(_, let object), .deleted(let object):
        guard let view = ContentView(object) else { return }
        contentQueue.add(ObjectKey(name: view.name))
        if let key = view.snapshotKey { add(key) }
      }
    }
    caches.classes.onChange { _ in
      for object in caches.snapshots.all() where object.status?.boundVolumeSnapshotContentName == nil {
        if let view = SnapshotView(object) { add(view.key) }
      }
    }
    cluster.claims.onChange { change in
      switch change {
      case .added(let object), .updated(_, let object), .deleted(let object):
        guard let view = ClaimView(object) else { return }
        claimChanged(view.key)
        if let key = view.snapshotKey { add(key) }
      }
    }
    cluster.persistentVolumes.onChange { change in
      switch change {
      case .added(let object), .updated(_, let object), .deleted(let object):
        if let key = PersistentVolumeView(object)?.claimKey { claimChanged(key) }
      }
    }
    snapshotQueue.addSource {
      caches.snapshots.all().compactMap { SnapshotView($0)?.key }.map {
        ObjectKey(namespace: $0.namespace, name: $0.name)
      }
    }
    contentQueue.addSource { caches.contents.keys() }
  }

  /// Snapshots of this claim that are not there yet, or that keep it.
  func claimChanged(_ claim: ClaimKey, except: SnapshotKey? = nil) {
    for view in cluster.snapshots(ofClaim: claim)
    where view.key != except && (view.status.isReady != true || view.isBeingDeleted) { add(view.key) }
  }

  private func add(_ key: SnapshotKey) {
    if looksAfterSnapshots { snapshotQueue.add(ObjectKey(namespace: key.namespace, name: key.name)) }
  }
}
