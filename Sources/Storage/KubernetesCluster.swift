import IaaS
import JSON
package import Kubernetes
package import Logging
package import Reconciler
package import Telemetry

/// The cluster behind an API server: caches for looking, the server itself for what matters.
package final class KubernetesCluster: VolumeCluster {
  package let claims: ObjectCache<PersistentVolumeClaim>
  package let persistentVolumes: ObjectCache<PersistentVolume>
  package let storageClasses: ObjectCache<StorageClass>
  package let attachments: ObjectCache<VolumeAttachment>
  package let snapshotCaches: SnapshotCaches
  let client: KubernetesClient
  let recorder: EventRecorder

  package init(client: KubernetesClient, recorder: EventRecorder, logger: Logger, registry: MetricsRegistry?) {
    self.client = client
    self.recorder = recorder
    snapshotCaches = SnapshotCaches(client: client, logger: logger, registry: registry)
    claims = ObjectCache(
      client: client,
      indexers: [
        "uid": { $0.metadata.uid.map { [$0] } ?? [] },
        "class": { ClaimView($0)?.className.map { [$0] } ?? [] },
        // Claims that want to be a clone of the one named.
        "source": { ClaimView($0)?.sourceKeys.map(\.description) ?? [] },
        // Claims that want to be made from the VolumeSnapshot named.
        "snapshot": { ClaimView($0)?.snapshotKey.map { [$0.description] } ?? [] },
        "protected": { $0.metadata.hasFinalizer(SnapshotNames.claimFinalizer) ? ["true"] : [] },
      ], logger: logger, registry: registry)
    persistentVolumes = ObjectCache(
      client: client, indexers: ["handle": { PersistentVolumeView($0).map { [$0.handle] } ?? [] }], logger: logger,
      registry: registry)
    storageClasses = ObjectCache(client: client, logger: logger, registry: registry)
    attachments = ObjectCache(
      client: client, indexers: ["volume": { KubernetesCluster.volumeName(of: $0).map { [$0] } ?? [] }],
      logger: logger, registry: registry)
  }

  static func volumeName(of attachment: VolumeAttachment) -> String? {
    attachment.spec.attacher == StorageNames.driver ? attachment.spec.source.persistentVolumeName : nil
  }

  /// Nil for attachments to servers.
  static func uploadHold(_ attachment: VolumeAttachment) -> UploadHold? {
    guard attachment.spec.attacher == StorageNames.driver,
      attachment.metadata.annotations?[Names.uploadHoldAnnotation] != nil, let name = attachment.metadata.name,
      let uid = attachment.metadata.uid
    else { return nil }
    return UploadHold(name: name, uid: uid)
  }
}

// MARK: from the caches

extension KubernetesCluster {
  package func claim(uid: String) -> ClaimView? { claims.byIndex("uid", uid).first.flatMap(ClaimView.init) }

  package func claim(_ key: ClaimKey) -> ClaimView? {
    claims.get(name: key.name, namespace: key.namespace).flatMap(ClaimView.init)
  }

  package func storageClass(_ name: String) -> ClassView? { storageClasses.get(name: name).flatMap(ClassView.init) }

  package func persistentVolumes(handle: String) -> [PersistentVolumeView] {
    persistentVolumes.byIndex("handle", handle).compactMap(PersistentVolumeView.init)
  }

  package func persistentVolume(boundTo claimUID: String, named name: String) -> PersistentVolumeView? {
    guard let volume = persistentVolumes.get(name: name).flatMap(PersistentVolumeView.init),
      volume.claimUID == claimUID
    else { return nil }
    return volume
  }

  package func attachments(persistentVolumes names: [String]) -> [String] {
    names.flatMap { attachments.byIndex("volume", $0) }.filter { Self.uploadHold($0) == nil }.compactMap(
      \.metadata.name)
  }

  package func uploadHold(_ handle: VolumeHandle) -> UploadHold? {
    attachments.get(name: Names.attachment(volume: handle.name)).flatMap(Self.uploadHold)
  }
}

// MARK: from the API server

extension KubernetesCluster {
  package func currentIdentity() async throws -> String {
    try await client.get(Namespace.self, name: "kube-system").metadata.uid ?? ""
  }

  package func currentClaim(_ key: ClaimKey) async throws -> ClaimView? {
    try await orNil {
      ClaimView(try await self.client.get(PersistentVolumeClaim.self, name: key.name, namespace: key.namespace))
    }
  }

  package func currentClaimUIDs() async throws -> Set<String> {
    Set(try await client.listAll(PersistentVolumeClaim.self).items.compactMap(\.metadata.uid))
  }

  package func currentPersistentVolume(_ name: String) async throws -> PersistentVolumeView? {
    try await orNil { PersistentVolumeView(try await self.client.get(PersistentVolume.self, name: name)) }
  }

  package func currentPersistentVolumes() async throws -> [PersistentVolumeView] {
    try await client.listAll(PersistentVolume.self).items.compactMap(PersistentVolumeView.init)
  }

  package func currentAttachments(persistentVolumes names: [String]) async throws -> [String] {
    guard !names.isEmpty else { return [] }
    let wanted = Set(names)
    return try await client.listAll(VolumeAttachment.self).items.filter { attachment in
      KubernetesCluster.volumeName(of: attachment).map(wanted.contains) ?? false
        && KubernetesCluster.uploadHold(attachment) == nil
    }.compactMap(\.metadata.name)
  }

  package func isCurrent(_ hold: UploadHold) async throws -> Bool {
    let present = try await orNil { try await self.client.get(VolumeAttachment.self, name: hold.name) }
    return present.map { $0.metadata.uid == hold.uid && !$0.metadata.isBeingDeleted } ?? false
  }

  /// Nil where the object is gone.
  func orNil<Value>(_ body: () async throws -> Value?) async throws -> Value? {
    do { return try await body() } catch let error as KubernetesError where error.code == .notFound { return nil }
  }
}

// MARK: writes

extension KubernetesCluster {
  package func publish(_ draft: PersistentVolumeDraft) async throws {
    do {
      persistentVolumes.store(try await client.create(draft.object))
    } catch let error as KubernetesError where error.code == .alreadyExists {
      let present = try await client.get(PersistentVolume.self, name: draft.name)
      guard let view = PersistentVolumeView(present), view.handle == draft.handle.name, view.claimUID == draft.claimUID
      else {
        throw StorageError(
          .conflict, operation: "publish volume \(draft.handle)",
          message: "there is a PersistentVolume '\(draft.name)' that is not for this claim; rename or delete it")
      }
      persistentVolumes.store(present)
    }
  }

  package func addFinalizer(_ volume: PersistentVolumeView) async throws {
    _ = try await changeFinalizers(
      PersistentVolume.self, volume.name, nil, uid: volume.uid, [StorageNames.finalizer], present: true)
  }

  package func withdraw(_ volume: PersistentVolumeView) async throws {
    if !volume.isBeingDeleted {
      do {
        try await client.delete(PersistentVolume.self, name: volume.name, uid: volume.uid)
      } catch let error as KubernetesError where error.code == .notFound || error.code == .conflict {
        // Gone, or another one of that name by now.
      }
    }
    _ = try await changeFinalizers(
      PersistentVolume.self, volume.name, nil, uid: volume.uid, [StorageNames.finalizer], present: false)
  }

  /// Adds or removes finalizers of the object with this UID.
  ///
  /// - Returns: the object as it is then; nil where it is gone, or where nothing had to be written.
  func changeFinalizers<Object: KubernetesObject>(
    _ type: Object.Type, _ name: String, _ namespace: String?, uid: String, _ finalizers: [String], present: Bool
  ) async throws -> Object? {
    guard let current = try await orNil({ try await self.client.get(Object.self, name: name, namespace: namespace) })
    else { return nil }
    let old = current.metadata.finalizers ?? []
    let new = old.filter { !finalizers.contains($0) } + (present ? finalizers : [])
    guard current.metadata.uid == uid, Set(new) != Set(old) else { return nil }
    var metadata: JSONValue = ["finalizers": .array(new.map { .string($0) })]
    metadata["resourceVersion"] = current.metadata.resourceVersion.map { .string($0) }
    // The last finalizer may go by another hand.
    return try await orNil {
      try await self.client.mergePatch(Object.self, name: name, namespace: namespace, patch: ["metadata": metadata])
    }
  }

  package func hold(
    _ handle: VolumeHandle, persistentVolume: String, for claim: ClaimKey
  ) async throws -> UploadHold? {
    var metadata = ObjectMeta(name: Names.attachment(volume: handle.name))
    metadata.annotations = [Names.uploadHoldAnnotation: claim.description]
    let wanted = VolumeAttachment(
      metadata: metadata,
      spec: .init(
        attacher: StorageNames.driver, nodeName: KubernetesCluster.uploadNode,
        source: .init(persistentVolumeName: persistentVolume)))
    for _ in 0..<3 {
      do {
        return KubernetesCluster.uploadHold(try await client.create(wanted))
      } catch let error as KubernetesError where error.code == .alreadyExists {
        let present = try await orNil { try await self.client.get(VolumeAttachment.self, name: wanted.key.name) }
        guard let present else { continue }
        // Nobody but the holder of the pool uploads, and it has no other upload into this volume: that one is dead.
        guard let leftover = KubernetesCluster.uploadHold(present) else { return nil }
        try await release(leftover)
      }
    }
    return nil
  }

  /// An attachment names a node; this one is none.
  private static let uploadNode = "csi-controller"

  package func release(_ hold: UploadHold) async throws {
    do {
      try await client.delete(VolumeAttachment.self, name: hold.name, uid: hold.uid)
    } catch let error as KubernetesError where error.code == .notFound || error.code == .conflict {
      // Gone, or another one of that name by now.
    }
  }

  package func annotate(_ claim: ClaimView, _ annotations: [String: String?], unchanged: Bool) async throws {
    var metadata: JSONValue = [
      "uid": .string(claim.uid), "annotations": .object(annotations.mapValues { $0.map { .string($0) } ?? .null }),
    ]
    if unchanged { metadata["resourceVersion"] = claim.resourceVersion.map { .string($0) } }
    do {
      let updated = try await client.mergePatch(
        PersistentVolumeClaim.self, name: claim.key.name, namespace: claim.key.namespace,
        patch: ["metadata": metadata])
      claims.store(updated)
    } catch let error as KubernetesError where error.code == .notFound {
      // Nobody is left to read it.
    } catch let error as KubernetesError where error.code == .conflict && !unchanged {
      // Without a version in the patch, the only conflict is that of the UID: another claim of that name by now.
    }
  }

  package func record(_ claim: ClaimView, isWarning: Bool, reason: String, message: String) {
    var metadata = ObjectMeta(name: claim.key.name, namespace: claim.key.namespace)
    metadata.uid = claim.uid
    metadata.resourceVersion = claim.resourceVersion
    recorder.event(
      regarding: PersistentVolumeClaim(metadata: metadata), type: isWarning ? .warning : .normal, reason: reason,
      message: message, action: "Provision")
  }

  package func record(_ volume: PersistentVolumeView, isWarning: Bool, reason: String, message: String) {
    var metadata = ObjectMeta(name: volume.name)
    metadata.uid = volume.uid
    recorder.event(
      regarding: PersistentVolume(metadata: metadata), type: isWarning ? .warning : .normal, reason: reason,
      message: message, action: "Delete")
  }
}
