import IaaS
import Kubernetes

extension SnapshotView {
  /// Nil for an object that did not come from an API server.
  init?(_ snapshot: VolumeSnapshot) {
    guard let name = snapshot.metadata.name, let namespace = snapshot.metadata.namespace,
      let uid = snapshot.metadata.uid
    else { return nil }
    self.init(key: SnapshotKey(namespace: namespace, name: name), uid: uid)
    isBeingDeleted = snapshot.metadata.isBeingDeleted
    finalizers = snapshot.metadata.finalizers ?? []
    className = snapshot.spec.volumeSnapshotClassName.flatMap { $0.isEmpty ? nil : $0 }
    claimName = snapshot.spec.source.persistentVolumeClaimName
    contentName = snapshot.spec.source.volumeSnapshotContentName
    group = snapshot.metadata.annotations?[Names.snapshotGroupAnnotation]
    guard let present = snapshot.status else { return }
    status.contentName = present.boundVolumeSnapshotContentName.flatMap { $0.isEmpty ? nil : $0 }
    status.isReady = present.readyToUse
    status.creationSeconds = present.creationTime?.secondsSince1970
    status.restoreBytes = present.restoreSize?.bytes
    status.error = present.error?.message
  }
}

extension ContentView {
  /// Nil for an object that did not come from an API server.
  init?(_ content: VolumeSnapshotContent) {
    guard let name = content.metadata.name, let uid = content.metadata.uid else { return nil }
    let spec = content.spec
    self.init(name: name, uid: uid, driver: spec.driver, deletionPolicy: spec.deletionPolicy)
    isBeingDeleted = content.metadata.isBeingDeleted
    hasFinalizer = content.metadata.hasFinalizer(SnapshotNames.contentFinalizer)
    isMarked = content.metadata.annotations?[SnapshotNames.beingDeleted] != nil
    volumeHandle = spec.source.volumeHandle
    snapshotHandle = spec.source.snapshotHandle
    className = spec.volumeSnapshotClassName
    if let namespace = spec.volumeSnapshotRef.namespace, let name = spec.volumeSnapshotRef.name {
      snapshotKey = SnapshotKey(namespace: namespace, name: name)
    }
    snapshotUID = spec.volumeSnapshotRef.uid.flatMap { $0.isEmpty ? nil : $0 }
    guard let present = content.status else { return }
    status.handle = present.snapshotHandle
    status.creationTime = present.creationTime
    status.restoreBytes = present.restoreSize
    status.isReady = present.readyToUse
    status.error = present.error?.message
  }
}

extension SnapshotClassView {
  init?(_ snapshotClass: VolumeSnapshotClass) {
    guard let name = snapshotClass.metadata.name else { return nil }
    self.init(
      name: name, driver: snapshotClass.driver, deletionPolicy: snapshotClass.deletionPolicy,
      isDefault: snapshotClass.metadata.annotations?[SnapshotNames.defaultClass] == "true")
  }
}

extension ContentDraft {
  /// The object to be made.
  var object: VolumeSnapshotContent {
    var metadata = ObjectMeta(name: name)
    metadata.finalizers = [SnapshotNames.contentFinalizer]
    return VolumeSnapshotContent(
      metadata: metadata,
      spec: .init(
        deletionPolicy: deletionPolicy, driver: StorageNames.driver, source: .init(volumeHandle: volumeHandle),
        sourceVolumeMode: "Block", volumeSnapshotClassName: className,
        volumeSnapshotRef: ObjectReference(
          apiVersion: VolumeSnapshot.definition.apiVersion, kind: VolumeSnapshot.definition.kind,
          namespace: snapshot.namespace, name: snapshot.name, uid: snapshotUID)))
  }
}
