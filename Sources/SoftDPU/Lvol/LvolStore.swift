import CLinux
import Dispatch
import Glibc
import JSON
import Synchronization

/// Volumes in a folder of a file system that can share extents (SPDK's lvolstore, without its blobs).
///
///     <folder>/lvstore.json        what the store is and has
///     <folder>/lvols/<uuid>.img    a volume's content, sparse
///
/// A volume's file is complete and durable before the description names it, and is removed after the description has
/// forgotten it. So a process that dies at any instruction leaves a store that opens, and at worst files that nobody
/// names, which the next opening removes.
///
/// SAFETY, for every `unsafe` here: paths live for the length of the call, and descriptors are closed where they were
/// opened.
final class LvolStore: Sendable {
  let folder: String
  /// The device that stands for the folder.
  let base: BlockDevice
  private let manifestState: Mutex<LvolManifest>
  /// Volumes that are being copied.
  private let copying = Mutex<Set<String>>([])

  /// Copying, which may take minutes, one after the other.
  static let slowWork = DispatchQueue(label: "LvolStore.slowWork")

  var manifest: LvolManifest { manifestState.withLock { $0 } }

  private init(folder: String, base: BlockDevice, manifest: LvolManifest) {
    self.folder = folder
    self.base = base
    manifestState = Mutex(manifest)
  }

  // MARK: Life

  /// Makes an empty store in the folder. EEXIST where it has one.
  static func create(
    folder: String, base: BlockDevice, name: String, clusterSize: UInt64
  ) throws(SoftDPUError) -> LvolStore {
    let operation = "create lvstore \(name)"
    guard LvolManifest.isClusterSize(clusterSize) else {
      throw SoftDPUError(
        code: .invalid, operation: operation,
        message: "cluster_sz is a power of two from 4096 to 1073741824, not \(clusterSize)")
    }
    guard unsafe access("\(folder)/lvstore.json", F_OK) != 0 else { throw .system(EEXIST, operation) }
    guard unsafe mkdir("\(folder)/lvols", 0o700) == 0 || errno == EEXIST else { throw .system(errno, operation) }
    do throws(SoftDPUError) {
      try checkReflink(folder, operation)
    } catch {
      unsafe rmdir("\(folder)/lvols")
      throw error
    }
    let store = LvolStore(
      folder: folder, base: base,
      manifest: LvolManifest(uuid: UniqueID.random(), name: name, clusterSize: clusterSize))
    try store.save(store.manifest)
    return store
  }

  /// Opens the store that the folder has; nil where it has none. Files that the description does not name are removed,
  /// sizes are set to what it says.
  static func open(folder: String, base: BlockDevice) throws(SoftDPUError) -> LvolStore? {
    let path = "\(folder)/lvstore.json"
    guard let value = try DurableFile.read(path) else { return nil }
    guard let manifest = LvolManifest(value) else {
      throw SoftDPUError(
        code: .state, operation: "open \(path)",
        message: "not the description of a store of this version; restore it from a backup")
    }
    let store = LvolStore(folder: folder, base: base, manifest: manifest)
    store.removeUnnamed()
    return store
  }

  /// Finds out before the first snapshot whether the file system shares extents.
  private static func checkReflink(_ folder: String, _ operation: String) throws(SoftDPUError) {
    let (a, b) = ("\(folder)/lvols/.probe-a", "\(folder)/lvols/.probe-b")
    defer {
      unsafe unlink(a)
      unsafe unlink(b)
    }
    let source = unsafe Glibc.open(a, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
    guard source >= 0 else { throw .system(errno, operation) }
    defer { close(source) }
    guard ftruncate(source, 4096) == 0 else { throw .system(errno, operation) }
    let copy = unsafe Glibc.open(b, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
    guard copy >= 0 else { throw .system(errno, operation) }
    defer { close(copy) }
    guard ioctl(copy, LvolStore.ficlone, source) == 0 else {
      throw SoftDPUError(
        code: .system(errno), operation: operation,
        message: "the file system of \(folder) cannot share extents (reflink); use XFS or btrfs")
    }
  }

  private func removeUnnamed() {
    guard let directory = unsafe opendir("\(folder)/lvols") else { return }
    defer { unsafe closedir(directory) }
    let known = Set(manifest.lvols.keys.map { "\($0).img" })
    while let entry = unsafe readdir(directory) {
      let name = unsafe withUnsafeBytes(of: entry.pointee.d_name) {
        unsafe String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
      }
      guard name != ".", name != "..", !known.contains(name) else { continue }
      unsafe unlink("\(folder)/lvols/\(name)")
    }
    for lvol in manifest.lvols.values { unsafe truncate(file(lvol.uuid), off_t(lvol.size)) }
  }

  /// Removes everything that the store has, and the store.
  func destroy() throws(SoftDPUError) {
    // The description goes first: a store half removed is no store.
    guard unsafe unlink("\(folder)/lvstore.json") == 0 || errno == ENOENT else {
      throw .system(errno, "delete lvstore \(manifest.name)")
    }
    manifestState.withLock { $0.lvols = [:] }
    removeUnnamed()
    unsafe rmdir("\(folder)/lvols")
  }

  // MARK: Space

  /// Clusters in all and free, by the file system.
  var clusters: (total: UInt64, free: UInt64) {
    var status = statvfs()
    guard unsafe statvfs(folder, &status) == 0 else { return (0, 0) }
    let unit = UInt64(status.f_frsize)
    let size = manifest.clusterSize
    return (UInt64(status.f_blocks) * unit / size, UInt64(status.f_bavail) * unit / size)
  }

  /// Clusters that a volume's file takes; extents shared with another count for each.
  func allocatedClusters(_ uuid: String) -> UInt64 {
    var status = stat()
    guard unsafe stat(file(uuid), &status) == 0 else { return 0 }
    let size = manifest.clusterSize
    return (UInt64(status.st_blocks) * 512 + size - 1) / size
  }

  func file(_ uuid: String) -> String { "\(folder)/lvols/\(uuid).img" }

  /// A size in whole clusters; nil where it is none.
  func wholeClusters(_ bytes: UInt64) -> UInt64? {
    let size = manifest.clusterSize
    let (sum, isTooMuch) = bytes.addingReportingOverflow(size - 1)
    let rounded = sum / size * size
    return isTooMuch || rounded == 0 || rounded > 1 << 60 ? nil : rounded
  }

  // MARK: Volumes

  /// A new empty volume. EEXIST where the name is taken, ENOSPC where a thick one does not fit.
  func create(name: String, bytes: UInt64, isThin: Bool) throws(SoftDPUError) -> LvolManifest.Lvol {
    let operation = "create lvol \(manifest.name)/\(name)"
    try checkNew(name, operation)
    guard let size = wholeClusters(bytes) else { throw .system(EINVAL, operation) }
    let lvol = LvolManifest.Lvol(
      uuid: UniqueID.random(), name: name, size: size, isThin: isThin, isReadOnly: false, isSnapshot: false)
    try makeFile(lvol, operation) { fd throws(SoftDPUError) in
      guard ftruncate(fd, off_t(size)) == 0 else { throw .system(errno, operation) }
      guard isThin || clinux_fallocate(fd, 0, 0, size) == 0 else { throw .system(errno, operation) }
    }
    try add([lvol], removingFileOf: lvol)
    return lvol
  }

  /// A snapshot of a volume as it is now: read-only, and the parent of the volume from then on.
  func snapshot(of uuid: String, name: String) throws(SoftDPUError) -> LvolManifest.Lvol {
    let operation = "snapshot lvol \(manifest.name)/\(name)"
    try checkNew(name, operation)
    guard var origin = manifest.lvols[uuid] else { throw .system(ENODEV, operation) }
    guard !origin.isSnapshot else { throw .system(EINVAL, operation) }
    try checkIdle(uuid, operation)
    let snapshot = LvolManifest.Lvol(
      uuid: UniqueID.random(), name: name, size: origin.size, isThin: true, isReadOnly: true, isSnapshot: true,
      parent: origin.parent)
    origin.parent = snapshot.uuid
    origin.isThin = true
    try copy(uuid, to: snapshot, operation)
    try add([snapshot, origin], removingFileOf: snapshot)
    return snapshot
  }

  /// A writable volume that begins as a snapshot is. EINVAL where the origin is none.
  func clone(of uuid: String, name: String) throws(SoftDPUError) -> LvolManifest.Lvol {
    let operation = "clone lvol \(manifest.name)/\(name)"
    guard let origin = manifest.lvols[uuid] else { throw .system(ENODEV, operation) }
    guard origin.isSnapshot || origin.isReadOnly else { throw .system(EINVAL, operation) }
    try checkNew(name, operation)
    let clone = LvolManifest.Lvol(
      uuid: UniqueID.random(), name: name, size: origin.size, isThin: true, isReadOnly: false, isSnapshot: false,
      parent: origin.isSnapshot ? uuid : nil)
    try copy(uuid, to: clone, operation)
    try add([clone], removingFileOf: clone)
    return clone
  }

  /// Another size, in whole clusters; returns it in bytes. The caller has made sure that nobody uses what goes.
  func resize(_ uuid: String, bytes: UInt64) throws(SoftDPUError) -> UInt64 {
    let operation = "resize lvol \(uuid)"
    guard var lvol = manifest.lvols[uuid] else { throw .system(ENODEV, operation) }
    guard !lvol.isReadOnly else { throw .system(EPERM, operation) }
    try checkIdle(uuid, operation)
    guard let size = wholeClusters(bytes) else { throw .system(EINVAL, operation) }
    let path = file(uuid)
    let isGrowing = size > lvol.size
    lvol.size = size
    if isGrowing {
      guard unsafe truncate(path, off_t(size)) == 0 else { throw .system(errno, operation) }
      if !lvol.isThin { try reserve(path, size, mode: 0, operation) }
    }
    try change { $0.lvols[uuid] = lvol }
    if !isGrowing { unsafe truncate(path, off_t(size)) }
    return size
  }

  /// Gives the volume a copy of its own of everything that it shares (`isThick`: and of what was never written), and no
  /// parent. Takes as long as copying does.
  func separate(_ uuid: String, isThick: Bool) throws(SoftDPUError) {
    let operation = "\(isThick ? "inflate" : "decouple") lvol \(uuid)"
    guard copying.withLock({ $0.insert(uuid).inserted }) else { throw .system(EBUSY, operation) }
    defer { _ = copying.withLock { $0.remove(uuid) } }
    guard let lvol = manifest.lvols[uuid] else { throw .system(ENODEV, operation) }
    guard isThick || lvol.parent != nil else { throw .system(EINVAL, operation) }
    if isThick {
      try reserve(file(uuid), lvol.size, mode: CInt(FALLOC_FL_UNSHARE_RANGE), operation)
    }
    // Without a parent in the description nothing keeps the snapshot: shared extents stay as long as one names them.
    let isThin = !isThick && lvol.isThin
    try change { manifest in
      manifest.lvols[uuid]?.parent = nil
      manifest.lvols[uuid]?.isThin = isThin
    }
  }

  func rename(_ uuid: String, to name: String) throws(SoftDPUError) {
    let operation = "rename lvol \(uuid)"
    guard manifest.lvols[uuid] != nil else { throw .system(ENODEV, operation) }
    try checkNew(name, operation)
    try change { $0.lvols[uuid]?.name = name }
  }

  func renameStore(_ name: String) throws(SoftDPUError) { try change { $0.name = name } }

  func setReadOnly(_ uuid: String) throws(SoftDPUError) {
    guard manifest.lvols[uuid] != nil else { throw .system(ENODEV, "set lvol \(uuid) read-only") }
    try change { $0.lvols[uuid]?.isReadOnly = true }
  }

  /// EPERM where more than one clone rests on the snapshot; a single one takes its place.
  func checkDeletable(_ uuid: String) throws(SoftDPUError) {
    let operation = "delete lvol \(uuid)"
    guard manifest.lvols[uuid] != nil else { throw .system(ENODEV, operation) }
    try checkIdle(uuid, operation)
    let clones = manifest.clones(of: uuid)
    guard clones.count <= 1 else {
      throw SoftDPUError(
        code: .system(EPERM), operation: operation,
        message: "clones rest on the snapshot: \(clones.map(\.name).joined(separator: ", "))")
    }
  }

  func delete(_ uuid: String) throws(SoftDPUError) {
    try checkDeletable(uuid)
    try change { manifest in
      let parent = manifest.lvols[uuid]?.parent
      manifest.lvols[uuid] = nil
      for clone in manifest.clones(of: uuid) { manifest.lvols[clone.uuid]?.parent = parent }
    }
    unsafe unlink(file(uuid))
  }

  // MARK: Steps

  private static let ficlone: UInt = 0x4004_9409

  private func checkNew(_ name: String, _ operation: String) throws(SoftDPUError) {
    guard LvolManifest.isName(name) else {
      throw SoftDPUError(
        code: .invalid, operation: operation, message: "a name has 1 to 63 bytes, and neither slashes nor spaces")
    }
    guard manifest.lvol(named: name) == nil else { throw .system(EEXIST, operation) }
  }

  private func copy(_ uuid: String, to new: LvolManifest.Lvol, _ operation: String) throws(SoftDPUError) {
    let source = unsafe Glibc.open(file(uuid), O_RDONLY | O_CLOEXEC)
    guard source >= 0 else { throw .system(errno, operation) }
    defer { close(source) }
    try makeFile(new, operation) { fd throws(SoftDPUError) in
      guard ioctl(fd, LvolStore.ficlone, source) == 0 else { throw .system(errno, operation) }
    }
  }

  /// Makes a volume's file and has it on disk before anything names it.
  private func makeFile(
    _ lvol: LvolManifest.Lvol, _ operation: String, _ fill: (CInt) throws(SoftDPUError) -> Void
  ) throws(SoftDPUError) {
    let path = file(lvol.uuid)
    let fd = unsafe Glibc.open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
    guard fd >= 0 else { throw .system(errno, operation) }
    defer { close(fd) }
    do throws(SoftDPUError) {
      try fill(fd)
      guard fsync(fd) == 0 else { throw .system(errno, operation) }
      try DurableFile.syncDirectory("\(folder)/lvols")
    } catch {
      unsafe unlink(path)
      throw error
    }
  }

  /// EBUSY while the volume is being copied.
  private func checkIdle(_ uuid: String, _ operation: String) throws(SoftDPUError) {
    guard !copying.withLock({ $0.contains(uuid) }) else { throw .system(EBUSY, operation) }
  }

  private func reserve(
    _ path: String, _ size: UInt64, mode: CInt, _ operation: String
  ) throws(SoftDPUError) {
    let fd = unsafe Glibc.open(path, O_RDWR | O_CLOEXEC)
    guard fd >= 0 else { throw .system(errno, operation) }
    defer { close(fd) }
    // In pieces: the file's requests wait while one is copied. Shared extents first, then holes, which unsharing leaves
    // alone.
    let keep = CInt(FALLOC_FL_KEEP_SIZE)
    for offset in stride(from: 0, to: size, by: 16 << 20) {
      let length = min(16 << 20, size - offset)
      guard mode == 0 || clinux_fallocate(fd, mode | keep, offset, length) == 0 else { throw .system(errno, operation) }
      guard clinux_fallocate(fd, keep, offset, length) == 0 else { throw .system(errno, operation) }
    }
  }

  private func add(
    _ lvols: [LvolManifest.Lvol], removingFileOf new: LvolManifest.Lvol
  ) throws(SoftDPUError) {
    do throws(SoftDPUError) {
      try change { manifest in
        for lvol in lvols { manifest.lvols[lvol.uuid] = lvol }
      }
    } catch {
      unsafe unlink(file(new.uuid))
      throw error
    }
  }

  private func change(_ body: (inout LvolManifest) -> Void) throws(SoftDPUError) {
    // Under the lock: two changes at a time would lose one of them.
    let result = manifestState.withLock { manifest -> Result<Void, SoftDPUError> in
      var next = manifest
      body(&next)
      do throws(SoftDPUError) {
        try save(next)
        manifest = next
        return .success(())
      } catch {
        return .failure(error)
      }
    }
    try result.get()
  }

  private func save(_ manifest: LvolManifest) throws(SoftDPUError) {
    try DurableFile.write(manifest.json, to: "\(folder)/lvstore.json")
  }
}
