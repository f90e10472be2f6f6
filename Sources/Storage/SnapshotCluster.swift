/// What snapshots need of a cluster: a narrow seam like ``VolumeCluster``, in the same three groups.
package protocol SnapshotCluster: Sendable {
  func snapshot(_ key: SnapshotKey) -> SnapshotView?
  func snapshotContent(_ name: String) -> ContentView?
  func snapshotContents(handle: String) -> [ContentView]
  /// Contents that are bound to a VolumeSnapshot of this name, whether it is there or not.
  func snapshotContents(for key: SnapshotKey) -> [ContentView]
  func snapshotClasses() -> [SnapshotClassView]
  func snapshots(ofClaim key: ClaimKey) -> [SnapshotView]
  /// Claims that are to be made from a VolumeSnapshot and are not yet.
  func claims(from key: SnapshotKey) -> [ClaimView]
  /// Claims that are kept because snapshots of them are being taken.
  func protectedClaims() -> [ClaimView]
  func claim(_ key: ClaimKey) -> ClaimView?

  /// The volume of a claim and its driver; asks the cluster where the cache is behind.
  func volume(of claim: ClaimView) async throws -> (volume: PersistentVolumeView?, driver: String?)
  func currentSnapshot(_ key: SnapshotKey) async throws -> SnapshotView?
  func currentSnapshotContent(_ name: String) async throws -> ContentView?
  func currentSnapshotContents() async throws -> [ContentView]

  func setClass(of snapshot: SnapshotView, _ name: String) async throws
  /// Throws where they cannot be set because the VolumeSnapshot is gone: nothing may be made for it then.
  func setFinalizers(of snapshot: SnapshotView, present: Bool) async throws
  func setProtection(of claim: ClaimView, present: Bool) async throws
  /// Makes the content with its finalizer; one for the same VolumeSnapshot may be there already.
  func create(_ draft: ContentDraft) async throws
  func adopt(_ content: ContentView, for snapshot: SnapshotView) async throws
  func mark(_ content: ContentView) async throws
  func delete(_ content: ContentView) async throws
  func setFinalizer(of content: ContentView, present: Bool) async throws
  func setStatus(of snapshot: SnapshotView, _ status: SnapshotView.Status) async throws
  func setStatus(of content: ContentView, _ status: ContentView.Status) async throws
  /// Sets the error alone, and that it is not ready.
  func fail(_ snapshot: SnapshotView, message: String) async throws
  func fail(_ content: ContentView, message: String) async throws
  func record(_ snapshot: SnapshotView, isWarning: Bool, reason: String, message: String)
  func record(_ content: ContentView, isWarning: Bool, reason: String, message: String)
}
