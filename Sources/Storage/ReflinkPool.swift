import Glibc
import NIOPosix
import Synchronization

/// Volumes as sparse files in a folder of a file system that can share extents (XFS with reflink, btrfs).
///
///     <pool>/volumes/<handle>.img    a volume
///     <pool>/staging/                volumes being made, uploads on their way in
///     <pool>/trash/                  volumes being removed, orphans before they are removed
///     <pool>/retained/<handle>.img   volumes whose PersistentVolume was deleted under the policy Retain
///     <pool>/snapshots/<handle>.img  snapshots, which nobody may write to
///     <pool>/groups/<group>/         snapshots that the data plane took together, before they are in `snapshots`
///
/// A volume is completed in `staging`, made durable, and only then given its name in `volumes`; it leaves by a rename
/// into `trash`. So a process that dies at any instruction leaves whole volumes and rubbish in two known folders.
/// A lock on `<pool>/.lock` keeps a second process out, and goes with the process that holds it.
public final class ReflinkPool: VolumeBackend {
  /// How much may be promised.
  public struct Policy: Sendable, Hashable {
    /// The sum of all volumes' sizes may be this many times the pool's total.
    public var overcommitRatio: Double
    /// With less than this share of the total free, nothing new is made.
    public var reserveFraction: Double

    public init(overcommitRatio: Double = 10, reserveFraction: Double = 0.05) {
      self.overcommitRatio = overcommitRatio
      self.reserveFraction = reserveFraction
    }
  }

  /// What opening the pool found and removed.
  public struct Recovery: Sendable, Hashable {
    public let volumes: Int
    public let removedFromStaging: Int
    public let removedFromTrash: Int
  }

  struct State {
    /// The size of every volume, kept in step with the folder: nobody else writes to it.
    var sizes: [VolumeHandle: Int64] = [:]
    /// The size of every snapshot: so much of what its volume had may have to be kept beside what is written now.
    var snapshots: [SnapshotHandle: Int64] = [:]
    /// Promised to volumes and snapshots that are being made, or grow.
    var reservedBytes: Int64 = 0
    /// Volumes being made, by which two requests for one do not share a staging file.
    var making: Set<VolumeHandle> = []
    var taking: Set<SnapshotHandle> = []
    /// Uploads in progress, each with a number of its own: a volume that is deleted loses its entry.
    var uploads: [VolumeHandle: UInt64] = [:]
    var nextUpload: UInt64 = 1
  }

  public let path: String
  /// What tells this pool from others: random, and made with the pool.
  public let identity: String
  public let policy: Policy
  public let recovery: Recovery

  let root: PoolDirectory
  let volumesFolder: PoolDirectory
  let staging: PoolDirectory
  let trash: PoolDirectory
  let retained: PoolDirectory
  let snapshotsFolder: PoolDirectory
  let groups: PoolDirectory
  let state: Mutex<State>
  private let lock: OpenFile

  /// Opens the pool, refuses one that cannot do its work, and removes what a dead process left half done.
  ///
  /// - Throws: ``StorageError`` with ``StorageError/Code/poolUnusable`` or ``StorageError/Code/poolInUse``, and in its
  ///   message what to do about it.
  public init(path: String, policy: Policy = Policy()) throws(StorageError) {
    let operation = "open pool"
    guard policy.overcommitRatio >= 1, policy.overcommitRatio.isFinite, (0..<1).contains(policy.reserveFraction) else {
      throw StorageError(
        .poolUnusable, operation: operation,
        message: "the overcommit ratio must be at least 1 and the reserve a share of at least 0 and below 1")
    }
    do throws(StorageError) {
      root = try PoolDirectory(path: path, operation: operation)
    } catch {
      throw StorageError(
        .poolUnusable, operation: operation,
        message: "\(error.message); make the folder, or mount the pool's file system there",
        errorNumber: error.errorNumber)
    }
    lock = try ReflinkPool.takeLock(in: root, operation: operation)
    identity = try ReflinkPool.readOrMakeIdentity(lock, operation: operation)
    volumesFolder = try PoolDirectory("volumes", in: root, operation: operation)
    staging = try PoolDirectory("staging", in: root, operation: operation)
    trash = try PoolDirectory("trash", in: root, operation: operation)
    retained = try PoolDirectory("retained", in: root, operation: operation)
    snapshotsFolder = try PoolDirectory("snapshots", in: root, operation: operation)
    groups = try PoolDirectory("groups", in: root, operation: operation)
    self.path = path
    self.policy = policy

    let removedFromStaging = try ReflinkPool.empty(staging, operation: operation)
    let removedFromTrash = try ReflinkPool.empty(trash, operation: operation)
    try ReflinkPool.probeReflink(in: staging, operation: operation)
    var state = State()
    for volume in try ReflinkPool.scan(volumesFolder, operation: operation) {
      state.sizes[volume.handle] = volume.sizeBytes
    }
    state.snapshots = try ReflinkPool.scanSnapshots(snapshotsFolder, operation: operation)
    recovery = Recovery(
      volumes: state.sizes.count, removedFromStaging: removedFromStaging, removedFromTrash: removedFromTrash)
    self.state = Mutex(state)
  }

  static func fileName(_ handle: VolumeHandle) -> String { "\(handle.name).img" }
  static func fileName(_ handle: SnapshotHandle) -> String { "\(handle.name).img" }

  /// Threads for content, which may wait for the disk for a long time: a clone never stands behind an upload.
  static let transferThreads = makeThreads(4)
  private static let threads = makeThreads(4)

  private static func makeThreads(_ count: Int) -> NIOThreadPool {
    let pool = NIOThreadPool(numberOfThreads: count)
    pool.start()
    return pool
  }

  /// Runs blocking system calls on a thread that may block.
  func blocking<Value: Sendable>(
    _ operation: String, on threads: NIOThreadPool = ReflinkPool.threads,
    _ work: @escaping @Sendable () throws(StorageError) -> Value
  ) async throws(StorageError) -> Value {
    let result: Result<Value, StorageError>
    do {
      result = try await threads.runIfActive {
        do throws(StorageError) { return .success(try work()) } catch { return .failure(error) }
      }
    } catch {
      throw StorageError(.io, operation: operation, message: "not begun: the process is stopping")
    }
    return try result.get()
  }

  static func scan(_ folder: PoolDirectory, operation: String) throws(StorageError) -> [Volume] {
    var volumes: [Volume] = []
    for name in try folder.names(operation: operation) where name.hasSuffix(".img") {
      guard let handle = try? VolumeHandle(String(name.dropLast(4))),
        let status = try folder.status(name, operation: operation), status.isRegular
      else { continue }
      volumes.append(
        Volume(handle: handle, sizeBytes: status.sizeBytes, allocatedBytes: status.allocatedBytes))
    }
    return volumes.sorted { $0.handle < $1.handle }
  }

  private static func takeLock(in root: PoolDirectory, operation: String) throws(StorageError) -> OpenFile {
    guard let file = try root.openFile(".lock", flags: O_RDWR | O_CREAT, operation: operation) else {
      throw StorageError(.poolUnusable, operation: operation, message: "could not make '\(root.path)/.lock'")
    }
    guard flock(file.descriptor, LOCK_EX | LOCK_NB) == 0 else {
      throw StorageError(
        .poolInUse, operation: operation,
        message: "another process works on the pool '\(root.path)'; a pool has one csi-controller at a time",
        errorNumber: errno)
    }
    return file
  }

  private static func readOrMakeIdentity(_ file: borrowing OpenFile, operation: String) throws(StorageError) -> String {
    let present = try file.readText(limit: 16, operation: operation)
    if present.utf8.count == 16 { return present }
    let random = UInt64.random(in: .min ... .max)
    let digits = String(random, radix: 16)
    let fresh = String(repeating: "0", count: 16 - digits.utf8.count) + digits
    try file.replaceText(fresh, operation: operation)
    return fresh
  }

  /// Whether the pool belongs to this cluster; a pool that belongs to none does so from now on.
  ///
  /// A cluster that was set up anew knows none of the pool's volumes. They are not to be taken for orphans then.
  func belongs(toCluster cluster: String) throws(StorageError) -> Bool {
    let operation = "read the pool's cluster"
    guard let file = try root.openFile(".cluster", flags: O_RDWR | O_CREAT, operation: operation) else { return false }
    let present = try file.readText(limit: 256, operation: operation)
    if present.isEmpty {
      try file.replaceText(cluster, operation: operation)
      return true
    }
    return present == cluster
  }

  static func empty(_ folder: PoolDirectory, operation: String) throws(StorageError) -> Int {
    let names = try folder.names(operation: operation)
    for name in names { try folder.remove(name, operation: operation) }
    return names.count
  }

  /// Clones one block: only trying tells whether a file system can.
  private static func probeReflink(in staging: PoolDirectory, operation: String) throws(StorageError) {
    let source = try staging.makeFile(".probe-source", operation: operation)
    let target = try staging.makeFile(".probe-target", operation: operation)
    defer {
      try? staging.remove(".probe-source", operation: operation)
      try? staging.remove(".probe-target", operation: operation)
    }
    let block = [UInt8](repeating: 1, count: 4096)
    let result = block.withUnsafeBytes { bytes -> Result<Void, StorageError> in
      do throws(StorageError) { return .success(try source.write(bytes, at: 0, operation: operation)) } catch {
        return .failure(error)
      }
    }
    try result.get()
    do throws(StorageError) {
      try target.shareContent(of: source, operation: operation)
    } catch {
      guard let number = error.errorNumber, [EOPNOTSUPP, ENOTTY, EINVAL, ENOSYS, EXDEV].contains(number) else {
        throw error
      }
      throw StorageError(
        .poolUnusable, operation: operation,
        message: """
          the file system of the pool '\(staging.path)' cannot clone files (reflink). Use XFS or btrfs, for example \
          in a sparse file: truncate -s 100G pool.xfs && mkfs.xfs -m reflink=1 pool.xfs && mount -o loop pool.xfs POOL
          """,
        errorNumber: number)
    }
  }
}
