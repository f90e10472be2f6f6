/// The name by which a back end knows a snapshot; the same letters as a ``VolumeHandle``.
public struct SnapshotHandle: Sendable, Hashable, Comparable, CustomStringConvertible {
  public let name: String

  /// - Throws: ``StorageError/Code/invalidHandle``.
  public init(_ name: String) throws(StorageError) {
    guard VolumeHandle.isPlain(name) else {
      throw StorageError(
        .invalidHandle, operation: "handle",
        message: "'\(name.prefix(140))' is not a snapshot handle: it takes 1 to 128 of a-z, 0-9 and '-'")
    }
    self.name = name
  }

  /// The handle of the snapshot that is taken for a VolumeSnapshot.
  public init(snapshotUID: String) throws(StorageError) { try self.init("snapshot-\(snapshotUID)") }

  public static func < (left: SnapshotHandle, right: SnapshotHandle) -> Bool { left.name < right.name }
  public var description: String { name }
}

/// A snapshot as the back end sees it. Its content never changes.
public struct Snapshot: Sendable, Hashable {
  public let handle: SnapshotHandle
  /// What the volume had, in bytes: the least that a volume made from it must have.
  public let sizeBytes: Int64
  /// When it was taken, in nanoseconds since 1970.
  public let creationTime: Int64

  public init(handle: SnapshotHandle, sizeBytes: Int64, creationTime: Int64) {
    self.handle = handle
    self.sizeBytes = sizeBytes
    self.creationTime = creationTime
  }
}
