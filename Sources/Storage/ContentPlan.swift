import IaaS

/// Something to be done about a VolumeSnapshotContent. Every step may be repeated.
package enum ContentStep: Sendable, Hashable {
  case addFinalizer
  /// Take the snapshot in the pool.
  case take(of: VolumeHandle, as: SnapshotHandle)
  /// Make it from what the data plane has captured in a group.
  case adopt(of: VolumeHandle, from: SnapshotHandle, as: SnapshotHandle)
  case setStatus(ContentView.Status)
  /// Tell the administrator why there is no snapshot, in the status and in an event.
  case fail(Refusal)
  case tell(Refusal)
  /// Remove the snapshot from the pool.
  case remove(SnapshotHandle)
  case removeFinalizer
}

/// Decides what is to be done about one VolumeSnapshotContent: what the CSI project's snapshotter does beside a driver.
package func plan(_ view: ContentSituation) -> [ContentStep] {
  let content = view.content
  guard content.driver == StorageNames.driver else { return [] }
  if content.isBeingDeleted { return planRemoval(view) }
  guard !content.isTaken else { return content.hasFinalizer ? [] : [.addFinalizer] }
  var steps: [ContentStep] = content.hasFinalizer ? [] : [.addFinalizer]
  if content.snapshotHandle != nil { return steps + planExisting(view) }
  guard let uid = content.snapshotUID, !uid.isEmpty, let handle = try? SnapshotHandle(snapshotUID: uid) else {
    return steps + [.fail(Refusal("SnapshotCreationFailed", "spec.volumeSnapshotRef.uid is missing or damaged"))]
  }
  guard let source = content.volumeHandle.flatMap({ try? VolumeHandle($0) }) else {
    return steps + [.fail(Refusal("SnapshotCreationFailed", "spec.source.volumeHandle is no volume of this driver"))]
  }
  guard let name = view.group else { return steps + [.take(of: source, as: handle)] }
  guard let group = try? SnapshotHandle(name) else {
    let text = "the annotation \(Names.snapshotGroupAnnotation) of its VolumeSnapshot is no name of a group"
    return steps + [.fail(Refusal("SnapshotCreationFailed", text))]
  }
  steps.append(.adopt(of: source, from: group, as: handle))
  return steps
}

private func planExisting(_ view: ContentSituation) -> [ContentStep] {
  guard let file = view.file else {
    let refusal = Refusal(
      "SnapshotCheckFailed",
      "the pool has no snapshot '\(view.content.snapshotHandle?.prefix(140) ?? "")'; check spec.source.snapshotHandle")
    return [.fail(refusal)]
  }
  return [.setStatus(ContentView.Status(file))]
}

private func planRemoval(_ view: ContentSituation) -> [ContentStep] {
  let content = view.content
  guard content.hasFinalizer else { return [] }
  let isUnbound = content.snapshotUID ?? "" == ""
  guard content.isMarked || isUnbound || !view.hasSnapshot else {
    let name = content.snapshotKey?.description ?? "?"
    let message = "VolumeSnapshot \(name) is bound to it; it goes when that is deleted"
    return [.tell(Refusal("SnapshotDeletePending", message))]
  }
  guard content.deletionPolicy == "Delete", !view.isShared,
    let handle = content.handle.flatMap({ try? SnapshotHandle($0) })
  else { return [.removeFinalizer] }
  return [.remove(handle), .removeFinalizer]
}
