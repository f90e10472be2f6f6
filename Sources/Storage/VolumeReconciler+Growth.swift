import Logging

extension VolumeReconciler {
  func executeGrowth(_ step: VolumeStep, _ handle: VolumeHandle) async throws {
    switch step {
    case .grow(_, let bytes):
      let volume = try await backend.grow(handle, toBytes: bytes)
      logger.info("volume grown", metadata: ["volume": "\(handle)", "bytes": "\(volume.sizeBytes)"])
    case .raiseCapacity(let volume, let bytes):
      try await cluster.raiseCapacity(of: volume, toBytes: bytes)
    case .askForRescan(let attachment, let bytes):
      try await cluster.askForRescan(attachment, bytes: bytes)
    case .setGrowth(let claim, let conditions):
      try await cluster.setGrowth(claim, conditions, capacityBytes: nil)
      if let message = conditions[.resizing] {
        cluster.record(claim, isWarning: false, reason: "Resizing", message: message)
      }
      if let message = conditions[.fileSystemResizePending] {
        cluster.record(claim, isWarning: false, reason: "FileSystemResizeRequired", message: message)
      }
    case .finishGrowth(let claim, let volume, let bytes):
      try await finishGrowth(claim, volume, bytes)
    default: break
    }
  }

  /// The owner may count on the room only when no server has the volume with its old size. An attachment that is made
  /// after this look shows the new one: the volume has it already.
  private func finishGrowth(_ claim: ClaimView, _ volume: PersistentVolumeView, _ bytes: Int64) async throws {
    let attached = try await cluster.currentAttached(persistentVolume: volume.name)
    guard attached.allSatisfy({ $0.isBeingDeleted || ($0.shownBytes ?? 0) >= bytes }) else {
      throw StorageError(
        .busy, operation: "grow volume \(volume.handle)", message: "it has been attached in the meantime")
    }
    try await cluster.setGrowth(claim, [:], capacityBytes: bytes)
    cluster.record(
      claim, isWarning: false, reason: "VolumeResizeSuccessful", message: "the volume has \(formatBytes(bytes))")
    logger.info("growth complete", metadata: ["claim": "\(claim.key)", "bytes": "\(bytes)"])
  }

  /// Says why a volume does not grow: in a condition, which stays, and in an event. Once per reason.
  func growthFailed(_ error: StorageError, _ claim: ClaimView, toBytes bytes: Int64) async throws -> Outcome {
    let text = "\(error.code.reason): \(error.message)"
    let conditions: [GrowthCondition: String] = [
      .resizing: growthMessage(bytes), .controllerResizeError: text,
    ]
    if claim.growth[.controllerResizeError] != text {
      try await cluster.setGrowth(claim, conditions, capacityBytes: nil)
      cluster.record(claim, isWarning: true, reason: "VolumeResizeFailed", message: text)
      logger.warning("volume not grown", metadata: ["claim": "\(claim.key)", "reason": "\(text)"])
    }
    switch error.code {
    case .overcommitted, .poolFull, .busy, .conflict: return .retry(after: retryDelay)
    case .exceedsPool, .invalidSize, .invalidHandle: return .settled
    default: throw error
    }
  }
}
