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

/// What the planner looks at in a PersistentVolumeClaim.
package struct ClaimView: Sendable, Hashable {
  /// `spec.dataSource`, as far as it matters.
  package struct DataSource: Sendable, Hashable {
    package var apiGroup: String?
    package var kind: String
    package var name: String

    package init(apiGroup: String?, kind: String, name: String) {
      self.apiGroup = apiGroup
      self.kind = kind
      self.name = name
    }
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
  package var hasSelector = false
  package var dataSource: DataSource?
  package var annotations: [String: String] = [:]

  package init(key: ClaimKey, uid: String) {
    self.key = key
    self.uid = uid
  }

  package var isHandedOver: Bool {
    StorageNames.storageProvisioner.contains { annotations[$0] == StorageNames.driver }
  }
  package var isUploaded: Bool { annotations[StorageNames.upload] == "true" }
  package var uploadPhase: UploadPhase? { annotations[StorageNames.uploadPhase].flatMap(UploadPhase.init) }
  package var isShared: Bool { annotations[StorageNames.shared] == "true" }
  package var provisioningMessage: String? { annotations[StorageNames.provisioningMessage] }

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

  package var handle: VolumeHandle
  package var claim: ClaimView?
  package var storageClass: ClassView?
  package var persistentVolumes: [PersistentVolumeView] = []
  package var file: Volume?
  /// The servers it is attached to, by the names of the attachments.
  package var attachments: [String] = []
  /// What keeps servers away for an upload.
  package var uploadHold: UploadHold?
  package var isUploading = false
  /// Looked up for claims that want to be a clone of exactly one other.
  package var source: Source?
  /// The claim of this handle has been seen, and seen going.
  package var claimWasDeleted = false

  package init(handle: VolumeHandle) { self.handle = handle }
}
