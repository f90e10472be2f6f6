import JSON
import Kubernetes
import Storage
import TestSupport

extension StorageCloud {
  func makeSnapshot(_ name: String, of claim: String, className: String? = nil) async throws {
    _ = try await client.create(
      VolumeSnapshot(
        metadata: ObjectMeta(name: name, namespace: namespace),
        spec: .init(source: .init(persistentVolumeClaimName: claim), volumeSnapshotClassName: className)))
  }

  func snapshot(_ name: String) async throws -> VolumeSnapshot {
    try await client.get(VolumeSnapshot.self, name: name, namespace: namespace)
  }

  /// Waits until the snapshot is ready to use.
  ///
  /// - Returns: its handle in the pool.
  @discardableResult
  func waitUntilReady(_ name: String, _ controller: ChildProcess? = nil) async throws -> String {
    let snapshot = try await eventualValue(
      within: .seconds(20), "\(name) is ready; the controller says: \(controller?.output.suffix(3000) ?? "")"
    ) {
      let snapshot = try await self.snapshot(name)
      return snapshot.status?.readyToUse == true ? snapshot : nil
    }
    return "snapshot-\(snapshot.metadata.uid ?? "")"
  }

  /// Waits until the snapshot has an error with this text, and an event says the same.
  func waitUntilFailed(_ name: String, _ text: String, reason: String? = nil) async throws {
    try await eventually(within: .seconds(20), "\(name) fails with \(text)") {
      let status = try await self.snapshot(name).status
      return status?.error?.message?.contains(text) == true && status?.readyToUse == false
    }
    try await eventually(within: .seconds(10), "an event says so") {
      try await self.client.listAll(Event.self, namespace: self.namespace).items.contains {
        $0.involvedObject.kind == "VolumeSnapshot" && $0.involvedObject.name == name && $0.type == "Warning"
          && $0.message?.contains(text) == true && (reason == nil || $0.reason == reason)
      }
    }
  }

  func deleteSnapshot(_ name: String) async throws {
    try await client.delete(VolumeSnapshot.self, name: name, namespace: namespace)
  }

  func isGone(snapshot name: String) async throws -> Bool {
    do {
      _ = try await snapshot(name)
      return false
    } catch let error as KubernetesError where error.code == .notFound {
      return true
    }
  }

  func contents() async throws -> [VolumeSnapshotContent] { try await client.listAll(VolumeSnapshotContent.self).items }

  func makeClaim(_ name: String, fromSnapshot snapshot: String, size: String = "10Mi") async throws {
    _ = try await client.create(
      PersistentVolumeClaim(
        metadata: ObjectMeta(name: name, namespace: namespace),
        spec: .init(
          accessModes: ["ReadWriteOnce"], resources: .init(requests: ["storage": Quantity(size)!]),
          storageClassName: "delete", volumeMode: "Block",
          dataSource: TypedLocalObjectReference(
            apiGroup: SnapshotNames.group, kind: "VolumeSnapshot", name: snapshot))))
  }

  func grow(_ claim: String, to size: String) async throws {
    _ = try await client.mergePatch(
      PersistentVolumeClaim.self, name: claim, namespace: namespace,
      patch: ["spec": ["resources": ["requests": ["storage": .string(size)]]]])
  }

  /// Snapshots and contents, with force.
  func removeSnapshots() async throws {
    let force: JSONValue = ["metadata": ["finalizers": nil]]
    for snapshot in try await client.listAll(VolumeSnapshot.self).items {
      let (name, namespace) = (snapshot.metadata.name ?? "", snapshot.metadata.namespace)
      try? await client.delete(VolumeSnapshot.self, name: name, namespace: namespace)
      _ = try? await client.mergePatch(VolumeSnapshot.self, name: name, namespace: namespace, patch: force)
    }
    for content in try await contents() {
      try? await client.delete(VolumeSnapshotContent.self, name: content.metadata.name ?? "")
      _ = try? await client.mergePatch(VolumeSnapshotContent.self, name: content.metadata.name ?? "", patch: force)
    }
  }
}
