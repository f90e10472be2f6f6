/// Something to be done about a volume. Every step may be repeated.
package enum VolumeStep: Sendable, Hashable {
  case create(sizeBytes: Int64)
  case clone(from: VolumeHandle, sizeBytes: Int64)
  case cloneSnapshot(from: SnapshotHandle, sizeBytes: Int64)
  /// Make the PersistentVolume; the cluster binds it.
  case publish(PersistentVolumeDraft)
  /// Tell the owner of the claim that the volume is there.
  case announce(ClaimView)
  /// Tell the owner of the claim why the volume is not there.
  case refuse(ClaimView, Refusal)
  case addFinalizer(PersistentVolumeView)
  /// Bring back a volume that was retained.
  case restore(PersistentVolumeView)
  /// Remove the volume of a PersistentVolume.
  case delete(PersistentVolumeView)
  case retain
  /// Remove the PersistentVolume, after its volume.
  case withdraw(PersistentVolumeView)
  /// Tell the administrator about a PersistentVolume.
  case warn(PersistentVolumeView, Refusal)
  /// Remove a volume that was made for a claim which is gone.
  case discardUnclaimed
  case setUploadPhase(ClaimView, UploadPhase, message: String)
  /// Let servers have the volume: the upload that kept them away is no more.
  case release(UploadHold)
  /// Make the volume in the pool larger.
  case grow(ClaimView, toBytes: Int64)
  /// Say the volume's new size in its PersistentVolume.
  case raiseCapacity(PersistentVolumeView, toBytes: Int64)
  /// Have the server see the volume's new size.
  case askForRescan(AttachmentView, bytes: Int64)
  /// Tell the owner of the claim how far the growth is.
  case setGrowth(ClaimView, [GrowthCondition: String])
  /// Tell the owner of the claim that the room is there.
  case finishGrowth(ClaimView, PersistentVolumeView, toBytes: Int64)
}

/// Why something is not done, for people and for programs.
package struct Refusal: Sendable, Hashable {
  /// One word in CamelCase.
  package var reason: String
  /// Object, field, value, and what to do; constant as long as the cause is.
  package var message: String

  package init(_ reason: String, _ message: String) {
    self.reason = reason
    self.message = message
  }

  package var text: String { "\(reason): \(message)" }
}

/// A PersistentVolume to be made.
package struct PersistentVolumeDraft: Sendable, Hashable {
  package var name: String
  package var handle: VolumeHandle
  package var sizeBytes: Int64
  package var accessModes: [String]
  package var className: String
  package var reclaimPolicy: String
  package var claim: ClaimKey
  package var claimUID: String
  package var claimResourceVersion: String?

  package init(
    name: String, handle: VolumeHandle, sizeBytes: Int64, accessModes: [String], className: String,
    reclaimPolicy: String, claim: ClaimKey, claimUID: String, claimResourceVersion: String? = nil
  ) {
    self.name = name
    self.handle = handle
    self.sizeBytes = sizeBytes
    self.accessModes = accessModes
    self.className = className
    self.reclaimPolicy = reclaimPolicy
    self.claim = claim
    self.claimUID = claimUID
    self.claimResourceVersion = claimResourceVersion
  }
}

/// Decides what is to be done about one volume. No I/O, no clock, no randomness.
package func plan(_ view: VolumeView) -> [VolumeStep] {
  let leftover = view.isUploading ? nil : view.uploadHold
  return (leftover.map { [.release($0)] } ?? []) + planVolume(view)
}

private func planVolume(_ view: VolumeView) -> [VolumeStep] {
  if let volume = view.persistentVolumes.first {
    return view.persistentVolumes.flatMap { plan($0, view) } + planUpload(volume, view)
  }
  if let claim = view.claim { return planProvisioning(claim, view) }
  return view.claimWasDeleted && view.file != nil ? [.discardUnclaimed] : []
}

/// The life of a PersistentVolume: keep it, delete it with its volume, or retain the volume.
private func plan(_ volume: PersistentVolumeView, _ view: VolumeView) -> [VolumeStep] {
  var steps: [VolumeStep] = []
  if let claim = view.claim, claim.provisioningMessage != nil { steps.append(.announce(claim)) }
  // With a deletion asked for, the cluster's own protection lifts when the claim is gone: the volume is in use.
  if volume.isBeingDeleted, !volume.hasFinalizer { return steps }
  if volume.isBeingDeleted, volume.phase == "Bound" { return steps + planGrowth(volume, view) }
  if volume.isBeingDeleted || volume.mayLoseVolume { return planRemoval(volume, view) }

  if !volume.hasFinalizer { steps.append(.addFinalizer(volume)) }
  if view.file == nil { steps.append(.restore(volume)) }
  return steps + planGrowth(volume, view)
}

private func planRemoval(_ volume: PersistentVolumeView, _ view: VolumeView) -> [VolumeStep] {
  guard view.attachments.isEmpty else {
    return [
      .warn(
        volume,
        Refusal(
          "VolumeInUse",
          "PersistentVolume \(volume.name) is not removed before it is detached: "
            + "VolumeAttachment \(view.attachments.sorted().joined(separator: ", ")) exists; "
            + "stop or delete the machine that uses it"))
    ]
  }
  // Another PersistentVolume has the same volume, or the claim never got this one and will be given another: the
  // volume stays.
  let isShared = view.persistentVolumes.contains { $0.name != volume.name }
  let isStillWanted =
    view.claim.map { $0.uid == volume.claimUID && $0.volumeName == nil && !$0.isBeingDeleted } ?? false
  if isShared || isStillWanted { return [.withdraw(volume)] }
  return [volume.mayLoseVolume ? .delete(volume) : .retain, .withdraw(volume)]
}

private func planUpload(_ volume: PersistentVolumeView, _ view: VolumeView) -> [VolumeStep] {
  guard let claim = view.claim, claim.isUploaded, !claim.isBeingDeleted, volume.claimUID == claim.uid,
    !volume.isBeingDeleted, !view.isUploading
  else { return [] }
  switch claim.uploadPhase {
  case nil:
    return [.setUploadPhase(claim, .pending, message: "waiting for the content")]
  case .uploading:
    return [.setUploadPhase(claim, .pending, message: "the upload was interrupted; repeat it")]
  case .pending, .succeeded, .failed:
    return []
  }
}

private func planProvisioning(_ claim: ClaimView, _ view: VolumeView) -> [VolumeStep] {
  guard !claim.isBeingDeleted, claim.volumeName == nil, let storageClass = view.storageClass,
    storageClass.provisioner == StorageNames.driver, claim.isHandedOver,
    !storageClass.waitsForConsumer || claim.annotations[StorageNames.selectedNode] != nil
  else { return [] }
  if let refusal = checkClaim(claim) { return [.refuse(claim, refusal)] }
  guard let request = claim.requestBytes, let sizeBytes = roundedVolumeSize(request) else {
    return [
      .refuse(
        claim,
        Refusal(
          "InvalidSize",
          "claim \(claim.key): spec.resources.requests.storage must be a positive number of bytes below 8Ei"))
    ]
  }

  var steps: [VolumeStep] = []
  var size = sizeBytes
  if let file = view.file {
    size = file.sizeBytes
  } else if claim.snapshotKey != nil {
    switch checkSnapshotSource(claim, view.snapshotSource, sizeBytes: size) {
    case .failure(let refusal): return [.refuse(claim, refusal.refusal)]
    case .success(let source): steps.append(.cloneSnapshot(from: source, sizeBytes: size))
    }
  } else if claim.sourceKeys.isEmpty {
    steps.append(.create(sizeBytes: size))
  } else {
    switch checkSource(claim, view.source, sizeBytes: size) {
    case .failure(let refusal): return [.refuse(claim, refusal.refusal)]
    case .success(let source): steps.append(.clone(from: source, sizeBytes: size))
    }
  }
  steps.append(
    .publish(
      PersistentVolumeDraft(
        name: view.handle.name, handle: view.handle, sizeBytes: size, accessModes: claim.accessModes,
        className: storageClass.name, reclaimPolicy: storageClass.reclaimPolicy, claim: claim.key,
        claimUID: claim.uid, claimResourceVersion: claim.resourceVersion)))
  // In a fleet that starts this would be an event for each disk of each machine, which says what the claim says.
  if !claim.isOfMachine || claim.provisioningMessage != nil { steps.append(.announce(claim)) }
  return steps
}

/// Whole MiB, at least one; nil for sizes that no file can have.
package func roundedVolumeSize(_ bytes: Int64) -> Int64? {
  let unit: Int64 = 1 << 20
  guard bytes > 0, bytes <= Int64.max - unit else { return nil }
  return (bytes + unit - 1) / unit * unit
}
