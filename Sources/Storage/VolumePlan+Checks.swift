import IaaS

/// A refusal as the failure of a check.
struct CheckFailure: Error {
  let refusal: Refusal
  init(_ reason: String, _ message: String) { refusal = Refusal(reason, message) }
}

/// What this driver cannot give, whatever is in the pool.
func checkClaim(_ claim: ClaimView) -> Refusal? {
  if claim.volumeMode != "Block" {
    return Refusal(
      "UnsupportedVolumeMode",
      "claim \(claim.key): spec.volumeMode is \(claim.volumeMode ?? "Filesystem"), but volumes are disks of servers; "
        + "make the claim again with volumeMode: Block")
  }
  guard let sharing = VolumeSharing(accessModes: claim.accessModes) else {
    return Refusal(
      "UnsupportedAccessMode",
      "claim \(claim.key): spec.accessModes is \(claim.accessModes.joined(separator: ", ")), but a volume is written by "
        + "one server (ReadWriteOnce), read by many (ReadOnlyMany) or written by many (ReadWriteMany); make the claim "
        + "again with one of them. What one is to fill and many are to read: a ReadOnlyMany claim with the filled one as "
        + "its dataSource")
  }
  if sharing != .exclusive, claim.isUploaded {
    return Refusal(
      "UnsupportedUpload",
      "claim \(claim.key): annotation \(StorageNames.upload) is true, but content is uploaded into ReadWriteOnce claims "
        + "only, and spec.accessModes is \(claim.accessModes.joined(separator: ", ")); upload into another claim, and "
        + "make this one again with that as its dataSource")
  }
  if claim.hasSelector {
    return Refusal(
      "UnsupportedSelector",
      "claim \(claim.key): spec.selector is not supported for new volumes; make the claim again without it")
  }
  if let source = claim.dataSource, !source.isClaim, !source.isSnapshot {
    return Refusal(
      "UnsupportedSource",
      "claim \(claim.key): spec.dataSource is a \(source.kind), but only a PersistentVolumeClaim or a VolumeSnapshot "
        + "can be cloned")
  }
  if let source = claim.dataSource, let namespace = source.namespace, namespace != claim.key.namespace {
    return Refusal(
      "UnsupportedSource",
      "claim \(claim.key): spec.dataSourceRef is in the namespace \(namespace), but it must be in the claim's own")
  }
  if let text = claim.annotations[StorageNames.cloneFrom], ClaimKey(text) == nil {
    return Refusal(
      "InvalidSource",
      "claim \(claim.key): annotation \(StorageNames.cloneFrom) is '\(text.prefix(300))', not <namespace>/<name>")
  }
  if claim.sourceKeys.count + (claim.snapshotKey == nil ? 0 : 1) > 1 {
    return Refusal(
      "InvalidSource",
      "claim \(claim.key): spec.dataSource and annotation \(StorageNames.cloneFrom) name different sources; keep one")
  }
  return nil
}

/// The volume to clone, or why it cannot be cloned now.
///
/// What a claim of another namespace is like is told only to those it is shared with.
func checkSource(
  _ claim: ClaimView, _ source: VolumeView.Source?, sizeBytes: Int64
) -> Result<VolumeHandle, CheckFailure> {
  let name = claim.sourceKeys.first.map(\.description) ?? "?"
  let isForeign = claim.sourceKeys.first?.namespace != claim.key.namespace
  guard let source, let origin = source.claim, !isForeign || origin.isShared else {
    return .failure(
      CheckFailure(
        "SourceNotFound",
        isForeign
          ? "claim \(claim.key): there is no claim \(name) that is shared with other namespaces; "
            + "check the name, or have its owner set annotation \(StorageNames.shared): \"true\""
          : "claim \(claim.key): the source claim \(name) does not exist; check the name, or create it"))
  }
  guard !origin.isBeingDeleted else {
    return .failure(
      CheckFailure("SourceBeingDeleted", "claim \(claim.key): the source claim \(name) is being deleted"))
  }
  guard origin.isBound else {
    return .failure(
      CheckFailure("SourceNotReady", "claim \(claim.key): the source claim \(name) is not bound to a volume yet"))
  }
  guard let volume = source.persistentVolume, let handle = try? VolumeHandle(volume.handle) else {
    return .failure(
      CheckFailure(
        "UnsupportedSource",
        "claim \(claim.key): the source claim \(name) is not a volume of \(StorageNames.driver); "
          + "copy its content by an image import"))
  }
  guard !source.isUploading, !origin.isUploaded || origin.uploadPhase == .succeeded else {
    return .failure(
      CheckFailure(
        "SourceNotReady",
        "claim \(claim.key): the content of the source claim \(name) is not uploaded completely yet"))
  }
  guard let file = source.file else {
    return .failure(
      CheckFailure(
        "SourceMissing",
        "claim \(claim.key): the volume \(handle) of the source claim \(name) is not in the pool"))
  }
  guard file.sizeBytes <= sizeBytes else {
    return .failure(
      CheckFailure(
        "RequestTooSmall",
        "claim \(claim.key): spec.resources.requests.storage is \(formatBytes(sizeBytes)), but the source claim "
          + "\(name) has \(formatBytes(file.sizeBytes)); ask for at least \(formatBytes(file.sizeBytes))"))
  }
  return .success(handle)
}

/// Bytes as Kubernetes writes them, with the largest binary unit that divides them.
package func formatBytes(_ bytes: Int64) -> String {
  for (unit, shift) in [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)] {
    let size = Int64(1) << Int64(shift)
    if bytes >= size, bytes % size == 0 { return "\(bytes / size)\(unit)" }
  }
  return "\(bytes)"
}
