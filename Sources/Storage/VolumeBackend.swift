public import NIOCore

/// A volume as the back end sees it.
public struct Volume: Sendable, Hashable {
  public let handle: VolumeHandle
  /// What a guest sees, in bytes.
  public let sizeBytes: Int64
  /// What it takes in the pool, in bytes. Extents shared with a clone count for each.
  public let allocatedBytes: Int64

  public init(handle: VolumeHandle, sizeBytes: Int64, allocatedBytes: Int64) {
    self.handle = handle
    self.sizeBytes = sizeBytes
    self.allocatedBytes = allocatedBytes
  }
}

/// Room in a pool, in bytes.
public struct PoolCapacity: Sendable, Hashable {
  public let totalBytes: Int64
  public let freeBytes: Int64
  /// The sum of the sizes of all volumes: what has been promised.
  public let provisionedBytes: Int64
  /// The most that may be promised.
  public let provisionableBytes: Int64

  public init(totalBytes: Int64, freeBytes: Int64, provisionedBytes: Int64, provisionableBytes: Int64) {
    self.totalBytes = totalBytes
    self.freeBytes = freeBytes
    self.provisionedBytes = provisionedBytes
    self.provisionableBytes = provisionableBytes
  }
}

/// Where volumes are kept.
///
/// Every operation may be repeated: it does what is still missing, so a caller that died in the middle starts over.
/// Each is atomic: a volume is there in full or not at all, also after a crash.
public protocol VolumeBackend: Sendable {
  /// Makes an empty volume of `sizeBytes`; one that is there with this size already is left as it is.
  func create(_ handle: VolumeHandle, sizeBytes: Int64) async throws(StorageError) -> Volume

  /// Makes a volume with the content of `source` at this moment, and zeroes behind it up to `sizeBytes`.
  func clone(
    _ source: VolumeHandle, to handle: VolumeHandle, sizeBytes: Int64
  ) async throws(StorageError) -> Volume

  /// Removes the volume and its content; a volume that is not there is no error.
  func delete(_ handle: VolumeHandle) async throws(StorageError)

  /// Makes a volume larger; one that has `sizeBytes` or more is left as it is. Durable when it returns.
  func grow(_ handle: VolumeHandle, toBytes sizeBytes: Int64) async throws(StorageError) -> Volume

  /// Takes a snapshot: the content of `source` at one moment, also while it is written to. What was written before the
  /// call is in it. One that is there already is left as it is. Durable when it returns.
  func takeSnapshot(of source: VolumeHandle, as handle: SnapshotHandle) async throws(StorageError) -> Snapshot

  /// Makes a snapshot of what the data plane has captured of a volume together with others, under the name of the group.
  /// One that is there already is left as it is. Durable when it returns.
  func adoptSnapshot(
    of source: VolumeHandle, from group: SnapshotHandle, as handle: SnapshotHandle
  ) async throws(StorageError) -> Snapshot

  /// The snapshot, or nil.
  func snapshot(_ handle: SnapshotHandle) async throws(StorageError) -> Snapshot?

  /// Removes a snapshot; one that is not there is no error. Volumes made from it keep what they have.
  func deleteSnapshot(_ handle: SnapshotHandle) async throws(StorageError)

  /// Makes a volume with the content of a snapshot, and zeroes behind it up to `sizeBytes`.
  func clone(
    snapshot source: SnapshotHandle, to handle: VolumeHandle, sizeBytes: Int64
  ) async throws(StorageError) -> Volume

  /// The volume as it is now, or nil.
  func volume(_ handle: VolumeHandle) async throws(StorageError) -> Volume?

  /// All volumes, ordered by handle.
  func volumes() async throws(StorageError) -> [Volume]

  func capacity() async throws(StorageError) -> PoolCapacity

  /// Puts a volume out of the way of orphan collection: it is no longer served, its content is kept.
  func retain(_ handle: VolumeHandle) async throws(StorageError)

  /// Brings a retained volume back; false where none is kept under this handle.
  func restore(_ handle: VolumeHandle) async throws(StorageError) -> Bool

  /// Begins to replace the content of a volume; nothing is seen of it before the upload is committed.
  func beginUpload(_ handle: VolumeHandle) async throws(StorageError) -> any VolumeUpload

  /// Whether an upload into the volume is in progress.
  func isUploading(_ handle: VolumeHandle) async -> Bool
}

/// New content of a volume on its way in. Used by one task at a time, and ended by `commit` or `abort`.
public protocol VolumeUpload: Sendable {
  /// The volume's size: no more than this may be written.
  var sizeBytes: Int64 { get }

  /// Appends bytes; runs of zeroes take no room.
  func append(_ bytes: ByteBuffer) async throws(StorageError)

  /// Appends so many zeros, which take no room.
  func skip(_ bytes: Int64) async throws(StorageError)

  /// Makes durable what was appended so far, so that `commit` has little left to do.
  func sync() async throws(StorageError)

  /// Makes the new content durable and puts it in place of the old, in one step.
  ///
  /// - Returns: what the volume takes now.
  func commit() async throws(StorageError) -> Volume

  /// Forgets what was written. The volume keeps the content it had.
  func abort() async
}
