import IaaS
import Kubernetes

/// What claims and volumes let machines do with them.
extension MachinePlanner {
  /// Why a claim that is there must not be shown to this machine as its spec asks; nil where it may be.
  ///
  /// Looked at whether it is attached or not: the spec may ask for something else by now.
  func accessProblem(
    _ claim: PersistentVolumeClaim, disk: BareMetalMachine.Disk, field: String
  ) -> SpecProblem? {
    let modes = claim.spec?.accessModes ?? []
    let shown = modes.joined(separator: ", ")
    let volume = claim.spec?.volumeName.flatMap { view.persistentVolumes[$0] }
    let sharing = volume?.spec?.csi.map { VolumeSharing(handle: $0.volumeHandle) } ?? .exclusive
    if !disk.readOnly {
      // A claim that says that it is only read must not be shown to a server that may write.
      if !modes.isEmpty, modes.allSatisfy({ $0 == VolumeSharing.readOnlyMany }) {
        return SpecProblem(
          "ClaimReadOnly",
          "\(field).readOnly is false, but the claim \(claim.key) of disk '\(disk.name)' has the access mode ReadOnlyMany "
            + "only; set readOnly, or use a claim with ReadWriteOnce")
      }
      if sharing == .readers || volume?.spec?.csi?.readOnly == true {
        let reason =
          sharing == .readers
          ? "is one that servers only read (volumeHandle \(volume?.spec?.csi?.volumeHandle ?? ""))"
          : "has spec.csi.readOnly"
        return SpecProblem(
          "VolumeReadOnly",
          "\(field).readOnly is false, but the PersistentVolume \(volume?.metadata.name ?? "") of claim \(claim.key) "
            + "(disk '\(disk.name)') \(reason); set readOnly, or use another claim")
      }
    }
    if modes.contains(VolumeSharing.readWriteMany), claim.spec?.volumeMode == "Filesystem" {
      return SpecProblem(
        "SharedFilesystem",
        "the claim \(claim.key) of disk '\(disk.name)' has spec.accessModes \(shown) and spec.volumeMode Filesystem, but "
          + "servers share block devices only: a file system of the usual kind that two of them have mounted is destroyed; "
          + "make the claim again with volumeMode: Block, and run a cluster file system on it")
    }
    // Nothing but the claim keeps others away from such a volume, so the claim has to say that others may come.
    let needed =
      disk.readOnly ? [VolumeSharing.readWriteMany, VolumeSharing.readOnlyMany] : [VolumeSharing.readWriteMany]
    if sharing != .exclusive, !needed.contains(where: { modes.contains($0) }) {
      return SpecProblem(
        "AccessModeNotAllowed",
        "the claim \(claim.key) of disk '\(disk.name)' has spec.accessModes \(shown), but its volume is one that several "
          + "servers may have; use a claim with \(needed[0])")
    }
    return nil
  }
}
