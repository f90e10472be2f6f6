import IaaS
import Kubernetes

extension ClaimView {
  /// Nil for an object that did not come from an API server.
  init?(_ claim: PersistentVolumeClaim) {
    guard let name = claim.metadata.name, let namespace = claim.metadata.namespace, let uid = claim.metadata.uid else {
      return nil
    }
    self.init(key: ClaimKey(namespace: namespace, name: name), uid: uid)
    resourceVersion = claim.metadata.resourceVersion
    isBeingDeleted = claim.metadata.isBeingDeleted
    annotations = claim.metadata.annotations ?? [:]
    isOfMachine = claim.metadata.labels?[Names.machineUIDLabel] != nil
    isBound = claim.status?.phase == "Bound"
    finalizers = claim.metadata.finalizers ?? []
    capacityBytes = claim.status?.capacity?["storage"]?.bytes
    for condition in claim.status?.conditions ?? [] where condition.status == "True" {
      if let type = GrowthCondition(rawValue: condition.type) { growth[type] = condition.message ?? "" }
    }
    guard let spec = claim.spec else { return }
    className = spec.storageClassName ?? annotations["volume.beta.kubernetes.io/storage-class"]
    volumeName = spec.volumeName.flatMap { $0.isEmpty ? nil : $0 }
    accessModes = spec.accessModes ?? []
    volumeMode = spec.volumeMode
    requestBytes = spec.resources?.requests?["storage"]?.bytes
    hasSelector = spec.selector != nil
    dataSource =
      spec.dataSourceRef.map {
        DataSource(apiGroup: $0.apiGroup, kind: $0.kind, name: $0.name, namespace: $0.namespace)
      } ?? spec.dataSource.map { DataSource(apiGroup: $0.apiGroup, kind: $0.kind, name: $0.name) }
  }
}

extension PersistentVolumeView {
  /// Nil for volumes of other drivers.
  init?(_ volume: PersistentVolume) {
    guard let name = volume.metadata.name, let uid = volume.metadata.uid, let spec = volume.spec,
      let source = spec.csi, source.driver == StorageNames.driver
    else { return nil }
    self.init(
      name: name, uid: uid, handle: source.volumeHandle, phase: volume.status?.phase ?? "Pending",
      reclaimPolicy: spec.persistentVolumeReclaimPolicy ?? "Retain")
    isBeingDeleted = volume.metadata.isBeingDeleted
    hasFinalizer = volume.metadata.hasFinalizer(StorageNames.finalizer)
    capacityBytes = spec.capacity?["storage"]?.bytes
    isProvisionedByUs = volume.metadata.annotations?[StorageNames.provisionedBy] == StorageNames.driver
    claimUID = spec.claimRef?.uid
    if let namespace = spec.claimRef?.namespace, let claimName = spec.claimRef?.name {
      claimKey = ClaimKey(namespace: namespace, name: claimName)
    }
  }
}

extension AttachmentView {
  init?(_ attachment: VolumeAttachment) {
    guard let name = attachment.metadata.name else { return nil }
    self.init(name: name, node: attachment.spec.nodeName)
    isBeingDeleted = attachment.metadata.isBeingDeleted
    wantedBytes = attachment.metadata.annotations?[Names.capacityAnnotation].flatMap { Int64($0) }
    shownBytes = attachment.status?.attachmentMetadata?[Names.shownCapacity].flatMap { Int64($0) }
  }
}

extension ClassView {
  init?(_ storageClass: StorageClass) {
    guard let name = storageClass.metadata.name else { return nil }
    self.init(
      name: name, provisioner: storageClass.provisioner, reclaimPolicy: storageClass.reclaimPolicy ?? "Delete",
      waitsForConsumer: storageClass.volumeBindingMode == "WaitForFirstConsumer")
  }
}

extension PersistentVolumeDraft {
  /// The object to be made.
  var object: PersistentVolume {
    var metadata = ObjectMeta(name: name)
    metadata.annotations = [StorageNames.provisionedBy: StorageNames.driver]
    metadata.finalizers = [StorageNames.finalizer]
    var claimReference = ObjectReference(
      apiVersion: "v1", kind: "PersistentVolumeClaim", namespace: claim.namespace, name: claim.name, uid: claimUID)
    claimReference.resourceVersion = claimResourceVersion
    return PersistentVolume(
      metadata: metadata,
      spec: .init(
        capacity: ["storage": Quantity(bytes: sizeBytes)], accessModes: accessModes,
        csi: .init(driver: StorageNames.driver, volumeHandle: handle.name), claimRef: claimReference,
        persistentVolumeReclaimPolicy: reclaimPolicy, storageClassName: className, volumeMode: "Block"))
  }
}
