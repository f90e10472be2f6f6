import IaaS

/// The names under which this driver is known in a cluster.
public enum StorageNames {
  /// The CSI driver: the provisioner of storage classes, the driver of volumes, the attacher of attachments.
  public static let driver = "csi.ycloud.yusur.io"
  /// The finalizer on PersistentVolumes: the volume in the pool goes first.
  public static let finalizer = "csi.ycloud.yusur.io/volume"

  /// On a PersistentVolume: who made it. Only the maker deletes the volume.
  public static let provisionedBy = "pv.kubernetes.io/provisioned-by"
  /// On a claim, by the cluster's volume binder or who made it: it is this provisioner's turn.
  public static let storageProvisioner = Names.storageProvisionerAnnotations
  /// On a claim with a `WaitForFirstConsumer` class: the consumer has been placed.
  public static let selectedNode = "volume.kubernetes.io/selected-node"

  /// On a claim: `<namespace>/<name>` of the claim to clone.
  public static let cloneFrom = "csi.ycloud.yusur.io/clone-from"
  /// On a claim: `"true"` lets other namespaces clone it.
  public static let shared = "csi.ycloud.yusur.io/shared"
  /// On a claim, by this controller: why it is not provisioned, `<Reason>: <message>`; absent otherwise.
  public static let provisioningMessage = Names.provisioningMessageAnnotation

  /// On a claim: `"true"` says that its content is uploaded.
  public static let upload = Names.uploadAnnotation
  /// On a claim: SHA-256 of the token that an upload must show, in hexadecimal.
  public static let uploadTokenDigest = "csi.ycloud.yusur.io/upload-token-sha256"
  /// On a claim: `sha256:<hex>` of the content to come.
  public static let uploadChecksum = "csi.ycloud.yusur.io/upload-checksum"
  /// On a claim, by this controller: see ``UploadPhase``.
  public static let uploadPhase = Names.uploadPhaseAnnotation
  /// On a claim, by this controller: what a person should know about the phase.
  public static let uploadMessage = "csi.ycloud.yusur.io/upload-message"
}

/// How far the content of an uploaded claim is.
public enum UploadPhase: String, Sendable, Hashable, CaseIterable {
  /// The volume is there and empty; an upload may begin.
  case pending = "Pending"
  case uploading = "Uploading"
  /// The content is complete; clones may be made.
  case succeeded = "Succeeded"
  /// The last upload did not succeed; it may be repeated.
  case failed = "Failed"
}

/// The names of `snapshot.storage.k8s.io`, as users of the API know them.
public enum SnapshotNames {
  public static let group = "snapshot.storage.k8s.io"
  /// On a claim of which a snapshot is being taken.
  public static let claimFinalizer = "snapshot.storage.kubernetes.io/pvc-as-source-protection"
  /// On a VolumeSnapshot that volumes are made from.
  public static let sourceFinalizer = "snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection"
  /// On a VolumeSnapshot that has a content.
  public static let boundFinalizer = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection"
  /// On a VolumeSnapshotContent: the snapshot in the storage goes first.
  public static let contentFinalizer = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"
  /// On a VolumeSnapshotContent: its VolumeSnapshot is being deleted, so it may go.
  public static let beingDeleted = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted"
  /// On a VolumeSnapshotClass: `"true"` makes it its driver's default.
  public static let defaultClass = "snapshot.storage.kubernetes.io/is-default-class"

  /// The VolumeSnapshotContent that is made for a VolumeSnapshot.
  public static func content(snapshotUID: String) -> String { "snapcontent-\(snapshotUID)" }
}
