/// Makes a bound volume as large as its claim asks for, in the order of the CSI specification: the volume in the pool
/// (ControllerExpandVolume), the PersistentVolume, what servers see of it (NodeExpandVolume), and last the claim's
/// status, by which its owner knows that the room is there.
func planGrowth(_ volume: PersistentVolumeView, _ view: VolumeView) -> [VolumeStep] {
  guard let claim = view.claim, claim.uid == volume.claimUID, claim.volumeName == volume.name, claim.isBound,
    !claim.isBeingDeleted, volume.phase == "Bound", let file = view.file, let request = claim.requestBytes,
    let capacity = claim.capacityBytes
  else { return [] }
  guard request > capacity else {
    // Done, or the wish was taken back: some API servers allow that down to what the claim has.
    return claim.growth.isEmpty ? [] : [.setGrowth(claim, [:])]
  }
  guard let rounded = roundedVolumeSize(request), !view.isUploading else { return [] }
  let target = max(rounded, volume.capacityBytes ?? 0)

  var steps: [VolumeStep] = []
  let mustGrow = file.sizeBytes < target || (volume.capacityBytes ?? 0) < target
  if mustGrow {
    if claim.growth[.resizing] == nil {
      steps.append(.setGrowth(claim, [.resizing: growthMessage(target)]))
    }
    steps.append(.grow(claim, toBytes: target))
    steps.append(.raiseCapacity(volume, toBytes: target))
  }
  let waiting = view.attached.filter { !$0.isBeingDeleted && ($0.shownBytes ?? 0) < target }.sorted {
    $0.name < $1.name
  }
  if waiting.isEmpty { return steps + [.finishGrowth(claim, volume, toBytes: target)] }
  for attachment in waiting where attachment.wantedBytes != target {
    steps.append(.askForRescan(attachment, bytes: target))
  }
  let names = waiting.map { "\($0.name) on \($0.node)" }.joined(separator: ", ")
  let pending: [GrowthCondition: String] = [
    .fileSystemResizePending: "waits until the server sees \(formatBytes(target)): VolumeAttachment \(names)"
  ]
  if claim.growth != pending { steps.append(.setGrowth(claim, pending)) }
  return steps
}

func growthMessage(_ bytes: Int64) -> String { "the volume is being grown to \(formatBytes(bytes))" }
