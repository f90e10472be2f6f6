/// What the controller needs of a cluster: a narrow seam, so that its work can be tested without one.
///
/// The first group answers from a cache that may lag behind. The second asks the cluster itself: whatever destroys
/// data is decided by these. The third writes, and every write may be repeated.
package protocol VolumeCluster: Sendable {
  func claim(uid: String) -> ClaimView?
  func claim(_ key: ClaimKey) -> ClaimView?
  func storageClass(_ name: String) -> ClassView?
  func persistentVolumes(handle: String) -> [PersistentVolumeView]
  func persistentVolume(boundTo claimUID: String, named name: String) -> PersistentVolumeView?
  /// The names of the attachments of these PersistentVolumes to servers.
  func attachments(persistentVolumes: [String]) -> [String]
  /// What keeps servers away from a volume for an upload, where something does.
  func uploadHold(_ handle: VolumeHandle) -> UploadHold?
  /// The attachments of a PersistentVolume, with what they show.
  func attached(persistentVolume: String) -> [AttachmentView]
  func snapshot(_ key: SnapshotKey) -> SnapshotView?
  func snapshotContent(_ name: String) -> ContentView?

  /// What tells this cluster from others, for as long as it exists.
  func currentIdentity() async throws -> String
  func currentClaim(_ key: ClaimKey) async throws -> ClaimView?
  func currentClaimUIDs() async throws -> Set<String>
  func currentPersistentVolume(_ name: String) async throws -> PersistentVolumeView?
  func currentPersistentVolumes() async throws -> [PersistentVolumeView]
  func currentAttachments(persistentVolumes: [String]) async throws -> [String]
  func isCurrent(_ hold: UploadHold) async throws -> Bool
  func currentAttached(persistentVolume: String) async throws -> [AttachmentView]

  /// Makes the PersistentVolume with the finalizer; one for the same claim and volume may be there already.
  func publish(_ draft: PersistentVolumeDraft) async throws
  func addFinalizer(_ volume: PersistentVolumeView) async throws
  /// Deletes the PersistentVolume and removes the finalizer; one that is gone is no error.
  func withdraw(_ volume: PersistentVolumeView) async throws
  /// Keeps servers away from a volume while its content is replaced: takes the one attachment that it can have, also
  /// from an upload that has died. Nil where a server has it.
  func hold(_ handle: VolumeHandle, persistentVolume: String, for claim: ClaimKey) async throws -> UploadHold?
  /// Gives the attachment back; one that is gone is no error.
  func release(_ hold: UploadHold) async throws
  /// Sets (or, with nil, removes) annotations of the claim with this UID; a claim that is gone is no error.
  ///
  /// - Parameter unchanged: write only if the claim is still as it was seen.
  func annotate(_ claim: ClaimView, _ annotations: [String: String?], unchanged: Bool) async throws
  func raiseCapacity(of volume: PersistentVolumeView, toBytes: Int64) async throws
  /// Asks the handler to show the volume with its new size; an attachment that is gone is no error.
  func askForRescan(_ attachment: AttachmentView, bytes: Int64) async throws
  /// Sets the conditions of growth that are true, and the capacity where it is given; a claim that is gone is no error.
  func setGrowth(_ claim: ClaimView, _ conditions: [GrowthCondition: String], capacityBytes: Int64?) async throws
  func record(_ claim: ClaimView, isWarning: Bool, reason: String, message: String)
  func record(_ volume: PersistentVolumeView, isWarning: Bool, reason: String, message: String)
}
