import IaaS
import JSON
import Kubernetes
import Reconciler

extension KubernetesCluster {
  package func attached(persistentVolume name: String) -> [AttachmentView] {
    attachments.byIndex("volume", name).compactMap(AttachmentView.init)
  }

  package func currentAttached(persistentVolume name: String) async throws -> [AttachmentView] {
    try await client.listAll(VolumeAttachment.self).items.filter { KubernetesCluster.volumeName(of: $0) == name }
      .compactMap(AttachmentView.init)
  }

  package func raiseCapacity(of volume: PersistentVolumeView, toBytes bytes: Int64) async throws {
    let patch: JSONValue = [
      "metadata": ["uid": .string(volume.uid)],
      "spec": ["capacity": ["storage": .string(Quantity(bytes: bytes).description)]],
    ]
    let updated = try await orNil {
      try await self.client.mergePatch(PersistentVolume.self, name: volume.name, patch: patch)
    }
    if let updated { persistentVolumes.store(updated) }
  }

  package func askForRescan(_ attachment: AttachmentView, bytes: Int64) async throws {
    let patch: JSONValue = ["metadata": ["annotations": [Names.capacityAnnotation: .string("\(bytes)")]]]
    let updated = try await orNil {
      try await self.client.mergePatch(VolumeAttachment.self, name: attachment.name, patch: patch)
    }
    if let updated { attachments.store(updated) }
  }

  package func setGrowth(
    _ claim: ClaimView, _ conditions: [GrowthCondition: String], capacityBytes: Int64?
  ) async throws {
    guard
      let current = try await orNil({
        try await self.client.get(PersistentVolumeClaim.self, name: claim.key.name, namespace: claim.key.namespace)
      }), current.metadata.uid == claim.uid
    else { return }
    // A merge patch replaces the list as a whole, so it holds only for the version that it was read from.
    var metadata: JSONValue = ["uid": .string(claim.uid)]
    metadata["resourceVersion"] = current.metadata.resourceVersion.map { .string($0) }
    let list = merged(current.status?.conditions ?? [], conditions)
    var status: JSONValue = ["conditions": .array(list.map(\.json))]
    if let capacityBytes { status["capacity"] = ["storage": .string(Quantity(bytes: capacityBytes).description)] }
    let updated = try await orNil {
      try await self.client.mergePatch(
        PersistentVolumeClaim.self, name: claim.key.name, namespace: claim.key.namespace,
        patch: ["metadata": metadata, "status": status], subresource: "status")
    }
    if let updated { claims.store(updated) }
  }

  /// Conditions of others stay as they are; a condition of growth that is not true is not there.
  private func merged(
    _ present: [PersistentVolumeClaim.ClaimCondition], _ wanted: [GrowthCondition: String]
  ) -> [PersistentVolumeClaim.ClaimCondition] {
    var list = present.filter { GrowthCondition(rawValue: $0.type) == nil }
    for type in GrowthCondition.allCases {
      guard let message = wanted[type] else { continue }
      let before = present.first { $0.type == type.rawValue && $0.status == "True" }
      list.append(
        PersistentVolumeClaim.ClaimCondition(
          type: type.rawValue, status: "True", message: message,
          lastTransitionTime: before?.lastTransitionTime ?? .now()))
    }
    return list
  }
}

extension PersistentVolumeClaim.ClaimCondition {
  fileprivate var json: JSONValue {
    var object: JSONValue = ["type": .string(type), "status": .string(status)]
    object["reason"] = reason.map { .string($0) }
    object["message"] = message.map { .string($0) }
    object["lastTransitionTime"] = lastTransitionTime.map { .string($0.description) }
    object["lastProbeTime"] = lastProbeTime.map { .string($0.description) }
    return object
  }
}
