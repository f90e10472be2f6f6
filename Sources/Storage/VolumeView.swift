import IaaS

/// Namespace and name of a claim.
package struct ClaimKey: Sendable, Hashable, CustomStringConvertible {
  package var namespace: String
  package var name: String

  package init(namespace: String, name: String) {
    self.namespace = namespace
    self.name = name
  }

  /// Reads `<namespace>/<name>`.
  package init?(_ text: String) {
    let parts = text.split(separator: "/", omittingEmptySubsequences: false)
    guard parts.count == 2, !parts[0].isEmpty, !parts[1].isEmpty else { return nil }
    self.init(namespace: String(parts[0]), name: String(parts[1]))
  }

  package var description: String { "\(namespace)/\(name)" }
}

/// What the planner looks at in a StorageClass.
package struct ClassView: Sendable, Hashable {
  package var name: String
  package var provisioner: String
  package var reclaimPolicy: String
  package var waitsForConsumer: Bool

  package init(name: String, provisioner: String, reclaimPolicy: String, waitsForConsumer: Bool = false) {
    self.name = name
    self.provisioner = provisioner
    self.reclaimPolicy = reclaimPolicy
    self.waitsForConsumer = waitsForConsumer
  }
}

/// Conditions of a claim whose volume grows, by their names in Kubernetes.
package enum GrowthCondition: String, Sendable, Hashable, CaseIterable {
  /// The volume in the pool is being grown.
  case resizing = "Resizing"
  /// It has its size in the pool; a server has yet to see it.
  case fileSystemResizePending = "FileSystemResizePending"
  /// It could not be grown in the pool.
  case controllerResizeError = "ControllerResizeError"
}

/// What the planner looks at in a VolumeAttachment.
package struct AttachmentView: Sendable, Hashable {
  package var name: String
  package var node: String
  package var isBeingDeleted = false
  /// The size that the server is to see, as asked for in an annotation.
  package var wantedBytes: Int64?
  /// The size that the server sees, as its handler reports it.
  package var shownBytes: Int64?

  package init(name: String, node: String) {
    self.name = name
    self.node = node
  }
}

/// What the planner looks at in a PersistentVolumeClaim.
package struct ClaimView: Sendable, Hashable {
  /// `spec.dataSource`, as far as it matters.
  package struct DataSource: Sendable, Hashable {
    package var apiGroup: String?
    package var kind: String
    package var name: String
    /// Set where it is in another namespace.
    package var namespace: String?

    package init(apiGroup: String?, kind: String, name: String, namespace: String? = nil) {
      self.apiGroup = apiGroup
      self.kind = kind
      self.name = name
      self.namespace = namespace
    }

    package var isClaim: Bool { kind == "PersistentVolumeClaim" && apiGroup ?? "" == "" }
    package var isSnapshot: Bool { kind == "VolumeSnapshot" && apiGroup == SnapshotNames.group }
  }

  package var key: ClaimKey
  package var uid: String
  package var resourceVersion: String?
  package var isBeingDeleted = false
  package var className: String?
  package var volumeName: String?
  package var isBound = false
  package var accessModes: [String] = []
  package var volumeMode: String?
  /// What is asked for, in bytes; nil where it could not be read.
  package var requestBytes: Int64?
  /// What the claim has been given, in bytes: what its owner may count on.
  package var capacityBytes: Int64?
  /// The conditions of growth that are true, with their messages.
  package var growth: [GrowthCondition: String] = [:]
  package var finalizers: [String] = []
  package var hasSelector = false
  package var dataSource: DataSource?
  package var annotations: [String: String] = [:]
  /// Whether it was made for a disk of a machine, which tells itself when the disk is there.
  package var isOfMachine = false

  package init(key: ClaimKey, uid: String) {
    self.key = key
    self.uid = uid
  }

  /// The handle of the volume that is made for this claim; nil where there is none that could be.
  package var ownHandle: VolumeHandle? {
    VolumeSharing(accessModes: accessModes).flatMap { try? VolumeHandle(claimUID: uid, sharing: $0) }
  }

  package var isHandedOver: Bool {
    StorageNames.storageProvisioner.contains { annotations[$0] == StorageNames.driver }
  }
  package var isUploaded: Bool { annotations[StorageNames.upload] == "true" }
  package var uploadPhase: UploadPhase? { annotations[StorageNames.uploadPhase].flatMap(UploadPhase.init) }
  package var isShared: Bool { annotations[StorageNames.shared] == "true" }
  package var provisioningMessage: String? { annotations[StorageNames.provisioningMessage] }

  /// The snapshot that this claim is to be made from.
  package var snapshotKey: SnapshotKey? {
    guard let dataSource, dataSource.isSnapshot else { return nil }
    return SnapshotKey(namespace: key.namespace, name: dataSource.name)
  }

  /// The claims that this one wants to be a clone of: none, one, or two that contradict each other.
  package var sourceKeys: [ClaimKey] {
    var keys: [ClaimKey] = []
    if let dataSource, dataSource.kind == "PersistentVolumeClaim" {
      keys.append(ClaimKey(namespace: key.namespace, name: dataSource.name))
    }
    if let text = annotations[StorageNames.cloneFrom], let other = ClaimKey(text), !keys.contains(other) {
      keys.append(other)
    }
    return keys
  }
}

/// What the planner looks at in a PersistentVolume of this driver.
package struct PersistentVolumeView: Sendable, Hashable {
  package var name: String
  package var uid: String
  package var handle: String
  package var isBeingDeleted = false
  package var hasFinalizer = true
  /// Whether this driver made it; otherwise an administrator did.
  package var isProvisionedByUs = true
  /// `Pending`, `Available`, `Bound`, `Released` or `Failed`.
  package var phase: String
  package var reclaimPolicy: String
  package var capacityBytes: Int64?
  package var claimUID: String?
  package var claimKey: ClaimKey?

  package init(name: String, uid: String, handle: String, phase: String, reclaimPolicy: String) {
    self.name = name
    self.uid = uid
    self.handle = handle
    self.phase = phase
    self.reclaimPolicy = reclaimPolicy
  }

  /// Whether its volume is to be removed from the pool: nobody claims it, and the policy is to delete what we made.
  package var mayLoseVolume: Bool {
    let isUnclaimed = phase == "Released" || phase == "Failed" || (isBeingDeleted && phase != "Bound")
    return isUnclaimed && reclaimPolicy == "Delete" && isProvisionedByUs
  }
}

/// An attachment that is no server's: an upload has it, so that no server gets the volume meanwhile.
package struct UploadHold: Sendable, Hashable {
  package var name: String
  package var uid: String

  package init(name: String, uid: String) {
    self.name = name
    self.uid = uid
  }
}

/// Everything that is known about one volume.
package struct VolumeView: Sendable, Hashable {
  /// The claim to be cloned, with what the pool has of it.
  package struct Source: Sendable, Hashable {
    package var claim: ClaimView?
    /// The volume of the claim, where it is bound to one of ours.
    package var persistentVolume: PersistentVolumeView?
    package var file: Volume?
    package var isUploading = false

    package init(claim: ClaimView? = nil, persistentVolume: PersistentVolumeView? = nil, file: Volume? = nil) {
      self.claim = claim
      self.persistentVolume = persistentVolume
      self.file = file
    }
  }

  /// The snapshot to be cloned, with what the pool has of it.
  package struct SnapshotSource: Sendable, Hashable {
    package var snapshot: SnapshotView?
    package var content: ContentView?
    package var file: Snapshot?

    package init(snapshot: SnapshotView? = nil, content: ContentView? = nil, file: Snapshot? = nil) {
      self.snapshot = snapshot
      self.content = content
      self.file = file
    }
  }

  package var handle: VolumeHandle
  package var claim: ClaimView?
  package var storageClass: ClassView?
  package var persistentVolumes: [PersistentVolumeView] = []
  package var file: Volume?
  /// The servers it is attached to, by the names of the attachments.
  package var attachments: [String] = []
  /// What keeps servers away for an upload.
  package var uploadHold: UploadHold?
  /// The same with what they show; looked up where the volume is to grow.
  package var attached: [AttachmentView] = []
  package var isUploading = false
  /// Looked up for claims that want to be a clone of exactly one other.
  package var source: Source?
  /// Looked up for claims that want to be made from a snapshot.
  package var snapshotSource: SnapshotSource?
  /// The claim of this handle has been seen, and seen going.
  package var claimWasDeleted = false

  package init(handle: VolumeHandle) { self.handle = handle }
}
