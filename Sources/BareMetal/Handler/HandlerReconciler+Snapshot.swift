import DPU
package import IaaS
import Kubernetes
import Logging

extension HandlerReconciler {
  /// What became of the snapshot that bm-controller asks for. One that was answered is not taken again, however often it
  /// is looked at; one whose answer was lost is answered with that, and asked for anew under another name.
  func snapshotAnswer(_ view: HandlerView, isAvailable: Bool) async -> BareMetalHost.SnapshotAnswer? {
    let old = view.host?.status?.dpu?.snapshot
    guard let request = view.host?.status?.snapshot else { return nil }
    if let old, old.token == request.token { return old }
    // While the data plane is away nothing is known; it is asked when it is back.
    guard isAvailable else { return old }
    var answer = BareMetalHost.SnapshotAnswer(token: request.token)
    switch HandlerPlan.snapshotFiles(request, view) {
    case .failure(let refusal): answer.error = refusal.message
    case .success(let files):
      do {
        let times = try await dpu.snapshot(into: "\(groupsDirectory)/\(request.token)", files: files)
        answer.takenAt = MicroTimestamp(microseconds: times.takenAt)
        answer.pauseMicroseconds = times.pause
        logger.info(
          "snapshot taken", metadata: ["group": "\(request.token)", "pause_us": "\(times.pause)"])
      } catch let error as DPUError {
        answer.error = error.code == .conflict ? "it was taken, but its answer was lost" : "\(error)"
        answer.unsupported = error.code == .unsupported ? true : nil
      } catch {
        answer.error = "\(error)"
      }
    }
    return answer
  }
}

/// Why a snapshot cannot be taken.
package struct SnapshotRefusal: Error, Sendable, Hashable {
  package var message: String
}

extension HandlerPlan {
  /// The file of each volume in the snapshot, or why there is none. A request that does not fit to the machine that holds
  /// the host, or to what the DPU shows, has no effect.
  package static func snapshotFiles(
    _ request: BareMetalHost.SnapshotRequest, _ view: HandlerView
  ) -> Result<[String: String], SnapshotRefusal> {
    guard view.host?.status?.claim?.uid == request.machineUID else {
      return .failure(SnapshotRefusal(message: "the machine does not hold the host"))
    }
    guard Names.isVolumeHandle(request.token) else {
      return .failure(SnapshotRefusal(message: "the snapshot's name cannot be a folder's"))
    }
    var files: [String: String] = [:]
    for volume in request.volumes {
      guard let attachment = view.attachments.first(where: { $0.volume == volume }),
        !attachment.metadata.isBeingDeleted
      else { return .failure(SnapshotRefusal(message: "the volume \(volume) has no attachment here")) }
      if let objection = objection(to: attachment, host: view.host) {
        return .failure(SnapshotRefusal(message: "the volume \(volume): \(objection)"))
      }
      guard VolumeSharing(handle: attachment.volumeHandle) != .writers else {
        return .failure(SnapshotRefusal(message: "the volume \(volume) is shared: other servers may write to it"))
      }
      guard isShown(attachment, functions: view.functions) else {
        return .failure(SnapshotRefusal(message: "the DPU does not show the volume \(volume)"))
      }
      files[volume] = "\(attachment.volumeHandle).img"
    }
    guard !files.isEmpty else { return .failure(SnapshotRefusal(message: "no volume is named")) }
    return .success(files)
  }
}
