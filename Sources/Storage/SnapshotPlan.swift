/// Something to be done about a VolumeSnapshot. Every step may be repeated.
package enum SnapshotStep: Sendable, Hashable {
  /// Write the class that counts where none is named into the VolumeSnapshot.
  case chooseClass(String)
  case addFinalizers
  case removeFinalizers
  /// Keep the claim while its snapshot is being taken.
  case protectClaim(ClaimView)
  case unprotectClaim(ClaimView)
  /// Make the VolumeSnapshotContent; the snapshot is taken for that.
  case createContent(ContentDraft)
  /// Bind a VolumeSnapshotContent that an administrator made.
  case adopt(ContentView)
  /// Write down that the VolumeSnapshot is going, so that the content may go.
  case markContent(ContentView)
  case deleteContent(ContentView)
  case setStatus(SnapshotView.Status)
  /// Tell the owner why there is no snapshot, in the status and in an event.
  case fail(Refusal)
  /// Tell the owner about what waits, in an event.
  case tell(Refusal)
}

/// Decides what is to be done about one VolumeSnapshot. No I/O, no clock, no randomness.
///
/// It binds VolumeSnapshots and VolumeSnapshotContents, as the snapshot-controller of the CSI project does; the content
/// itself is the business of ``plan(_:)-(ContentSituation)``.
package func plan(_ view: SnapshotSituation) -> [SnapshotStep] {
  guard !isForeign(view) else { return [] }
  if view.snapshot.isBeingDeleted { return planDeletion(view) }
  return view.content.map { planBinding($0, view) } ?? planContent(view)
}

/// Whether it is the business of another driver.
private func isForeign(_ view: SnapshotSituation) -> Bool {
  if let content = view.content { return content.driver != StorageNames.driver }
  if view.volumeDriver == StorageNames.driver { return false }
  if let name = view.snapshot.className {
    return view.classes.first { $0.name == name }.map { $0.driver != StorageNames.driver } ?? false
  }
  return view.volumeDriver != nil
}

private func planDeletion(_ view: SnapshotSituation) -> [SnapshotStep] {
  let snapshot = view.snapshot
  guard snapshot.missingFinalizers.count < 2 else { return [] }
  guard view.restoring.isEmpty else {
    let names = view.restoring.map(\.description).sorted().joined(separator: ", ")
    return [.tell(Refusal("SnapshotDeletePending", "volumes are being made from it for the claims \(names)"))]
  }
  var steps: [SnapshotStep] = []
  if let claim = view.claim, claim.isProtected, !view.hasSiblings { steps.append(.unprotectClaim(claim)) }
  if let content = view.content, content.isBound(to: snapshot) {
    if !content.isMarked { steps.append(.markContent(content)) }
    if content.deletionPolicy == "Delete" {
      if !content.isBeingDeleted { steps.append(.deleteContent(content)) }
      // Until it is gone, and the snapshot in the pool with it.
      return steps
    }
  }
  return steps + [.removeFinalizers]
}

/// There is a content: bind it, and show in the VolumeSnapshot how far it is.
private func planBinding(_ content: ContentView, _ view: SnapshotSituation) -> [SnapshotStep] {
  let snapshot = view.snapshot
  let isAdoptable =
    snapshot.contentName == content.name && content.snapshotKey == snapshot.key && content.snapshotUID ?? "" == ""
  guard content.isBound(to: snapshot) || isAdoptable else {
    return [
      .fail(
        Refusal(
          "SnapshotContentMisbound",
          "VolumeSnapshotContent \(content.name) is for another VolumeSnapshot: its spec.volumeSnapshotRef must name "
            + "\(snapshot.key)"))
    ]
  }
  var steps: [SnapshotStep] = []
  if !snapshot.missingFinalizers.isEmpty { steps.append(.addFinalizers) }
  if isAdoptable { steps.append(.adopt(content)) }
  if let claim = view.claim {
    // A claim that has the name of one that is gone has another volume.
    let isInProgress = !content.isTaken && content.volumeHandle != nil && content.volumeHandle == view.volume?.handle
    if isInProgress {
      if !claim.isProtected, !claim.isBeingDeleted { steps.append(.protectClaim(claim)) }
    } else if claim.isProtected, !view.hasSiblings {
      steps.append(.unprotectClaim(claim))
    }
  }
  var status = SnapshotView.Status()
  status.contentName = content.name
  status.isReady = content.status.isReady ?? false
  status.creationSeconds = content.status.creationTime.map { $0 / 1_000_000_000 }
  status.restoreBytes = content.status.restoreBytes
  status.error = content.status.error
  if status != snapshot.status { steps.append(.setStatus(status)) }
  return steps
}

/// There is no content yet: make it, or say why not.
private func planContent(_ view: SnapshotSituation) -> [SnapshotStep] {
  let snapshot = view.snapshot
  if let name = snapshot.status.contentName ?? snapshot.contentName {
    let isGone = snapshot.status.contentName != nil
    return [
      .fail(
        Refusal(
          "SnapshotContentMissing",
          isGone
            ? "VolumeSnapshotContent \(name) is gone, and the snapshot with it; delete this VolumeSnapshot"
            : "there is no VolumeSnapshotContent \(name); make it, or check the name"))
    ]
  }
  switch chooseClass(view) {
  case .failure(let failure): return [.fail(failure.refusal)]
  case .success(let chosen):
    switch checkSnapshotSource(view, chosen) {
    case .failure(let failure): return [.fail(failure.refusal)]
    case .success((let claim, let volume)):
      var steps: [SnapshotStep] = snapshot.className == nil ? [.chooseClass(chosen.name)] : []
      if !snapshot.missingFinalizers.isEmpty { steps.append(.addFinalizers) }
      if !claim.isProtected { steps.append(.protectClaim(claim)) }
      steps.append(
        .createContent(
          ContentDraft(
            snapshot: snapshot.key, snapshotUID: snapshot.uid, volumeHandle: volume.handle, className: chosen.name,
            deletionPolicy: chosen.deletionPolicy)))
      return steps
    }
  }
}

private func chooseClass(_ view: SnapshotSituation) -> Result<SnapshotClassView, CheckFailure> {
  let reason = "GetSnapshotClassFailed"
  if let name = view.snapshot.className {
    guard let chosen = view.classes.first(where: { $0.name == name }) else {
      return .failure(
        CheckFailure(reason, "there is no VolumeSnapshotClass \(name); check spec.volumeSnapshotClassName"))
    }
    guard chosen.driver == StorageNames.driver else {
      return .failure(
        CheckFailure(
          reason,
          "VolumeSnapshotClass \(name) is for the driver \(chosen.driver), but the volume is one of "
            + "\(StorageNames.driver); name a class of that driver"))
    }
    return .success(chosen)
  }
  let defaults = view.classes.filter { $0.isDefault && $0.driver == StorageNames.driver }.sorted { $0.name < $1.name }
  guard let chosen = defaults.first else {
    return .failure(
      CheckFailure(
        reason,
        "spec.volumeSnapshotClassName is empty, and no VolumeSnapshotClass of \(StorageNames.driver) has the "
          + "annotation \(SnapshotNames.defaultClass): \"true\""))
  }
  guard defaults.count == 1 else {
    let names = defaults.map(\.name).joined(separator: ", ")
    return .failure(
      CheckFailure(reason, "more than one VolumeSnapshotClass is the default of \(StorageNames.driver): \(names)"))
  }
  return .success(chosen)
}

/// The claim and the volume of which a snapshot can be taken, or why not.
private func checkSnapshotSource(
  _ view: SnapshotSituation, _ chosen: SnapshotClassView
) -> Result<(ClaimView, PersistentVolumeView), CheckFailure> {
  let reason = "SnapshotContentCreationFailed"
  guard let key = view.snapshot.claimKey else {
    return .failure(CheckFailure(reason, "spec.source names neither a claim nor a VolumeSnapshotContent"))
  }
  guard let claim = view.claim else {
    return .failure(CheckFailure(reason, "the claim \(key) does not exist; check spec.source, or create it"))
  }
  guard !claim.isBeingDeleted else {
    return .failure(CheckFailure(reason, "the claim \(key) is being deleted"))
  }
  guard claim.isBound else {
    return .failure(CheckFailure(reason, "the claim \(key) is not bound to a volume yet"))
  }
  guard let volume = view.volume else {
    return .failure(
      CheckFailure(
        reason,
        view.volumeDriver.map {
          "the volume of claim \(key) is one of the driver \($0), but VolumeSnapshotClass \(chosen.name) is for "
            + StorageNames.driver
        } ?? "the volume of claim \(key) is not one of \(StorageNames.driver)"))
  }
  guard !view.isUploading, !claim.isUploaded || claim.uploadPhase == .succeeded else {
    return .failure(CheckFailure(reason, "the content of claim \(key) is not uploaded completely yet"))
  }
  return .success((claim, volume))
}

extension ClaimView {
  var isProtected: Bool { finalizers.contains(SnapshotNames.claimFinalizer) }
}

/// The snapshot to make a volume from, or why it cannot be used now. One that is being deleted can: it waits for that.
func checkSnapshotSource(
  _ claim: ClaimView, _ source: VolumeView.SnapshotSource?, sizeBytes: Int64
) -> Result<SnapshotHandle, CheckFailure> {
  let name = claim.snapshotKey?.description ?? "?"
  guard let source, let snapshot = source.snapshot else {
    return .failure(
      CheckFailure(
        "SourceNotFound",
        "claim \(claim.key): the VolumeSnapshot \(name) does not exist; check the name, or create it"))
  }
  // Both must point at each other: people may write into the status of their own VolumeSnapshots.
  guard let content = source.content, content.isBound(to: snapshot), content.isTaken, snapshot.status.isReady == true
  else {
    let error = (snapshot.status.error ?? source.content?.status.error).map { ": \($0)" } ?? ""
    return .failure(
      CheckFailure("SourceNotReady", "claim \(claim.key): the VolumeSnapshot \(name) is not ready to use yet\(error)"))
  }
  guard content.driver == StorageNames.driver, let handle = content.status.handle.flatMap({ try? SnapshotHandle($0) })
  else {
    return .failure(
      CheckFailure(
        "UnsupportedSource",
        "claim \(claim.key): the VolumeSnapshot \(name) is one of the driver \(content.driver), not of "
          + StorageNames.driver))
  }
  guard let file = source.file else {
    return .failure(
      CheckFailure(
        "SourceMissing", "claim \(claim.key): the snapshot \(handle) of VolumeSnapshot \(name) is not in the pool"))
  }
  guard file.sizeBytes <= sizeBytes else {
    return .failure(
      CheckFailure(
        "RequestTooSmall",
        "claim \(claim.key): spec.resources.requests.storage is \(formatBytes(sizeBytes)), but the VolumeSnapshot "
          + "\(name) has \(formatBytes(file.sizeBytes)); ask for at least \(formatBytes(file.sizeBytes))"))
  }
  return .success(handle)
}
