import JSON
import Kubernetes
import Reconciler

// MARK: from the caches

extension KubernetesCluster: SnapshotCluster {
  package func snapshot(_ key: SnapshotKey) -> SnapshotView? {
    snapshotCaches.snapshots.get(name: key.name, namespace: key.namespace).flatMap(SnapshotView.init)
  }

  package func snapshotContent(_ name: String) -> ContentView? {
    snapshotCaches.contents.get(name: name).flatMap(ContentView.init)
  }

  package func snapshotContents(handle: String) -> [ContentView] {
    snapshotCaches.contents.byIndex("handle", handle).compactMap(ContentView.init)
  }

  package func snapshotContents(for key: SnapshotKey) -> [ContentView] {
    snapshotCaches.contents.byIndex("snapshot", key.description).compactMap(ContentView.init)
  }

  package func snapshotClasses() -> [SnapshotClassView] {
    snapshotCaches.classes.all().compactMap(SnapshotClassView.init)
  }

  package func snapshots(ofClaim key: ClaimKey) -> [SnapshotView] {
    snapshotCaches.snapshots.byIndex("claim", key.description).compactMap(SnapshotView.init)
  }

  package func claims(from key: SnapshotKey) -> [ClaimView] {
    claims.byIndex("snapshot", key.description).compactMap(ClaimView.init).filter {
      $0.volumeName == nil && !$0.isBeingDeleted
    }
  }

  package func protectedClaims() -> [ClaimView] { claims.byIndex("protected", "true").compactMap(ClaimView.init) }
}

// MARK: from the API server

extension KubernetesCluster {
  package func volume(of claim: ClaimView) async throws -> (volume: PersistentVolumeView?, driver: String?) {
    guard let name = claim.volumeName else { return (nil, nil) }
    var object = persistentVolumes.get(name: name)
    if object?.spec?.claimRef?.uid != claim.uid {
      object = try await orNil { try await self.client.get(PersistentVolume.self, name: name) }
    }
    guard let object, object.spec?.claimRef?.uid == claim.uid else { return (nil, nil) }
    return (PersistentVolumeView(object), object.spec?.csi?.driver)
  }

  package func currentSnapshot(_ key: SnapshotKey) async throws -> SnapshotView? {
    try await orNil {
      SnapshotView(try await self.client.get(VolumeSnapshot.self, name: key.name, namespace: key.namespace))
    }
  }

  package func currentSnapshotContent(_ name: String) async throws -> ContentView? {
    try await orNil { ContentView(try await self.client.get(VolumeSnapshotContent.self, name: name)) }
  }

  package func currentSnapshotContents() async throws -> [ContentView] {
    try await client.listAll(VolumeSnapshotContent.self).items.compactMap(ContentView.init)
  }
}

// MARK: writes

extension KubernetesCluster {
  package func setClass(of snapshot: SnapshotView, _ name: String) async throws {
    try await patch(snapshot, ["spec": ["volumeSnapshotClassName": .string(name)]])
  }

  package func setFinalizers(of snapshot: SnapshotView, present: Bool) async throws {
    let key = snapshot.key
    let updated = try await changeFinalizers(
      VolumeSnapshot.self, key.name, key.namespace, uid: snapshot.uid,
      [SnapshotNames.sourceFinalizer, SnapshotNames.boundFinalizer], present: present)
    if let updated { return snapshotCaches.snapshots.store(updated) }
    guard present, try await currentSnapshot(key)?.uid != snapshot.uid else { return }
    throw StorageError(.busy, operation: "take a snapshot for \(key)", message: "the VolumeSnapshot is gone")
  }

  package func setProtection(of claim: ClaimView, present: Bool) async throws {
    let updated = try await changeFinalizers(
      PersistentVolumeClaim.self, claim.key.name, claim.key.namespace, uid: claim.uid, [SnapshotNames.claimFinalizer],
      present: present)
    if let updated { claims.store(updated) }
  }

  package func setFinalizer(of content: ContentView, present: Bool) async throws {
    let updated = try await changeFinalizers(
      VolumeSnapshotContent.self, content.name, nil, uid: content.uid, [SnapshotNames.contentFinalizer],
      present: present)
    if let updated { snapshotCaches.contents.store(updated) }
  }

  package func create(_ draft: ContentDraft) async throws {
    do {
      snapshotCaches.contents.store(try await client.create(draft.object))
    } catch let error as KubernetesError where error.code == .alreadyExists {
      let present = try await client.get(VolumeSnapshotContent.self, name: draft.name)
      guard let view = ContentView(present), view.snapshotUID == draft.snapshotUID else {
        throw StorageError(
          .conflict, operation: "take a snapshot for \(draft.snapshot)",
          message: "there is a VolumeSnapshotContent '\(draft.name)' that is not for this VolumeSnapshot; delete it")
      }
      snapshotCaches.contents.store(present)
    }
  }

  package func adopt(_ content: ContentView, for snapshot: SnapshotView) async throws {
    var spec: JSONValue = [
      "volumeSnapshotRef": [
        "apiVersion": .string(VolumeSnapshot.definition.apiVersion), "kind": .string(VolumeSnapshot.definition.kind),
        "namespace": .string(snapshot.key.namespace), "name": .string(snapshot.key.name), "uid": .string(snapshot.uid),
      ]
    ]
    if content.className == nil, let name = snapshot.className { spec["volumeSnapshotClassName"] = .string(name) }
    try await patch(content, ["spec": spec])
  }

  package func mark(_ content: ContentView) async throws {
    try await patch(content, ["metadata": ["annotations": [SnapshotNames.beingDeleted: "yes"]]])
  }

  package func delete(_ content: ContentView) async throws {
    do {
      try await client.delete(VolumeSnapshotContent.self, name: content.name, uid: content.uid)
    } catch let error as KubernetesError where error.code == .notFound || error.code == .conflict {
      // Gone, or another one of that name by now.
    }
  }

  package func setStatus(of snapshot: SnapshotView, _ status: SnapshotView.Status) async throws {
    let object: JSONValue = [
      "boundVolumeSnapshotContentName": status.contentName.map { .string($0) } ?? .null,
      "readyToUse": status.isReady.map { .bool($0) } ?? .null,
      "creationTime": status.creationSeconds.map { .string(Timestamp(secondsSince1970: $0).description) } ?? .null,
      "restoreSize": status.restoreBytes.map { .string(Quantity(bytes: $0).description) } ?? .null,
      "error": status.error.map(errorObject) ?? .null,
    ]
    try await patch(snapshot, ["status": object], subresource: "status")
  }

  package func setStatus(of content: ContentView, _ status: ContentView.Status) async throws {
    let object: JSONValue = [
      "snapshotHandle": status.handle.map { .string($0) } ?? .null,
      "creationTime": status.creationTime.map { .integer($0) } ?? .null,
      "restoreSize": status.restoreBytes.map { .integer($0) } ?? .null,
      "readyToUse": status.isReady.map { .bool($0) } ?? .null,
      "error": status.error.map(errorObject) ?? .null,
    ]
    try await patch(content, ["status": object], subresource: "status")
  }

  package func fail(_ snapshot: SnapshotView, message: String) async throws {
    let status: JSONValue = ["readyToUse": false, "error": errorObject(message)]
    try await patch(snapshot, ["status": status], subresource: "status")
  }

  package func fail(_ content: ContentView, message: String) async throws {
    let status: JSONValue = ["readyToUse": false, "error": errorObject(message)]
    try await patch(content, ["status": status], subresource: "status")
  }

  private func errorObject(_ message: String) -> JSONValue {
    ["message": .string(message), "time": .string(Timestamp.now().description)]
  }

  /// Changes a VolumeSnapshot; one that is gone, or another one of that name by now, is no error.
  private func patch(_ snapshot: SnapshotView, _ patch: JSONValue, subresource: String? = nil) async throws {
    let updated = try await orNil {
      try await self.client.mergePatch(
        VolumeSnapshot.self, name: snapshot.key.name, namespace: snapshot.key.namespace,
        patch: withUID(snapshot.uid, patch), subresource: subresource)
    }
    if let updated { snapshotCaches.snapshots.store(updated) }
  }

  /// Changes a VolumeSnapshotContent; one that is gone, or another one of that name by now, is no error.
  private func patch(_ content: ContentView, _ patch: JSONValue, subresource: String? = nil) async throws {
    let updated = try await orNil {
      try await self.client.mergePatch(
        VolumeSnapshotContent.self, name: content.name, patch: withUID(content.uid, patch), subresource: subresource)
    }
    if let updated { snapshotCaches.contents.store(updated) }
  }

  package func record(_ snapshot: SnapshotView, isWarning: Bool, reason: String, message: String) {
    recorder.event(
      regarding: VolumeSnapshot(
        metadata: ObjectMeta(name: snapshot.key.name, namespace: snapshot.key.namespace, uid: snapshot.uid),
        spec: .init(source: .init())),
      type: isWarning ? .warning : .normal, reason: reason, message: message, action: "Snapshot")
  }

  package func record(_ content: ContentView, isWarning: Bool, reason: String, message: String) {
    recorder.event(
      regarding: ObjectReference(
        apiVersion: VolumeSnapshotContent.definition.apiVersion, kind: VolumeSnapshotContent.definition.kind,
        name: content.name, uid: content.uid),
      type: isWarning ? .warning : .normal, reason: reason, message: message, action: "Snapshot")
  }
}

/// The patch with the UID of the object that is meant: the API server refuses it for another one of that name.
private func withUID(_ uid: String, _ patch: JSONValue) -> JSONValue {
  var patch = patch
  var metadata = patch["metadata"] ?? [:]
  metadata["uid"] = .string(uid)
  patch["metadata"] = metadata
  return patch
}
