import CLinux
import Dispatch
import Glibc
import JSON
import Logging
import Synchronization

/// Volumes in a folder of a file system that can share extents (SPDK's lvolstore, without its blobs).
///
///     <folder>/lvstore.json        what the store is and has
///     <folder>/lvols/<uuid>.img    a volume's content, sparse
///
///     <folder>/lvols/<uuid>.new    the same, while it is being made
///     <folder>/lvols/lost/         files of volumes that the description does not know
///
/// A volume's file is complete and durable before the description names it; then it gets its name. It is removed after
/// the description says that it was deleted. So a process that dies at any instruction leaves a store that opens: files
/// that were being made are removed or get their names, files of deleted volumes are removed. A whole file that the
/// description has never heard of is somebody's data: the description may be an older one, from a backup. It is put
/// aside, and never removed.
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
  /// Deleted volumes whose files stay until the description that has forgotten them is durable. Under the description's
  /// lock.
  private let doomed = Mutex<Set<String>>([])

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
    finishDestruction(folder)
    guard unsafe mkdir("\(folder)/lvols", 0o700) == 0 || errno == EEXIST else { throw .system(errno, operation) }
    if let image = LvolStore.files(in: folder).first(where: { $0.hasSuffix(".img") }) {
      throw SoftDPUError(
        code: .system(EEXIST), operation: operation,
        message:
          "\(folder)/lvols has volumes (\(image)) whose description, lvstore.json, is missing: put it back, or move "
          + "lvols away")
    }
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

  /// Opens the store that the folder has; nil where it has none. What was cut short is finished: see above; sizes are
  /// set to what the description says.
  static func open(folder: String, base: BlockDevice, logger: Logger) throws(SoftDPUError) -> LvolStore? {
    let path = "\(folder)/lvstore.json"
    guard let value = try DurableFile.read(path) else {
      finishDestruction(folder)
      return nil
    }
    guard let manifest = LvolManifest(value) else {
      throw SoftDPUError(
        code: .state, operation: "open \(path)",
        message: "not the description of a store of this version; restore it from a backup")
    }
    // The process before may have died between the new description's name and its way to the disk. What is shown from
    // now on stays, also where the power goes.
    try DurableFile.syncDirectory(folder)
    let store = LvolStore(folder: folder, base: base, manifest: manifest)
    let lost = store.tidy()
    if !lost.isEmpty {
      logger.error(
        "volumes that the store's description does not know were put aside",
        metadata: [
          "store": "\(manifest.name)", "folder": "\(folder)/lvols/lost", "files": "\(lost.joined(separator: ", "))",
        ])
    }
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

  /// Names in the folder of volumes.
  private static func files(in folder: String) -> [String] {
    guard let directory = unsafe opendir("\(folder)/lvols") else { return [] }
    defer { unsafe closedir(directory) }
    var names: [String] = []
    while let entry = unsafe readdir(directory) {
      names.append(
        unsafe withUnsafeBytes(of: entry.pointee.d_name) {
          unsafe String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
        })
    }
    return names.filter { $0 != "." && $0 != ".." }.sorted()
  }

  /// What is to be done with a file of a store that is opened.
  package enum Finding: Sendable, Hashable {
    case keep, remove
    /// It was being made, and the description names it already.
    case name
    /// Nobody knows it: it is put aside.
    case putAside

    /// - Parameters:
    ///   - known: the volumes that the description names.
    ///   - removed: those that it says were deleted.
    package init(file: String, known: Set<String>, removed: Set<String>) {
      let uuid = String(file.dropLast(4))
      switch file.suffix(4) {
      case ".img" where known.contains(uuid): self = .keep
      case ".img" where removed.contains(uuid): self = .remove
      case ".img": self = .putAside
      case ".new": self = known.contains(uuid) ? .name : .remove
      default: self = file.hasPrefix(".probe-") ? .remove : .keep
      }
    }
  }

  /// Finishes what was cut short; the names of files that were put aside.
  private func tidy() -> [String] {
    let manifest = self.manifest
    let known = Set(manifest.lvols.keys)
    var lost: [String] = []
    for name in LvolStore.files(in: folder) {
      let path = "\(folder)/lvols/\(name)"
      switch Finding(file: name, known: known, removed: manifest.removed) {
      case .keep: break
      case .remove: unsafe unlink(path)
      case .name: unsafe Glibc.rename(path, "\(path.dropLast(4)).img")
      case .putAside:
        unsafe mkdir("\(folder)/lvols/lost", 0o700)
        if unsafe Glibc.rename(path, "\(folder)/lvols/lost/\(name)") == 0 { lost.append(name) }
      }
    }
    for lvol in manifest.lvols.values { unsafe truncate(file(lvol.uuid), off_t(lvol.size)) }
    return lost
  }

  /// Removes everything that the store has, and the store.
  func destroy() throws(SoftDPUError) {
    // The description goes first: a store half removed is no store. Under another name, which says that it is removed.
    let path = "\(folder)/lvstore.json"
    guard unsafe Glibc.rename(path, "\(path).removed") == 0 || errno == ENOENT else {
      throw .system(errno, "delete lvstore \(manifest.name)")
    }
    manifestState.withLock { $0.lvols = [:] }
    LvolStore.finishDestruction(folder)
  }

  /// Removes what is left of a store that was being destroyed.
  private static func finishDestruction(_ folder: String) {
    let mark = "\(folder)/lvstore.json.removed"
    guard unsafe access(mark, F_OK) == 0, unsafe access("\(folder)/lvstore.json", F_OK) != 0 else { return }
    for name in files(in: folder) { unsafe unlink("\(folder)/lvols/\(name)") }
    unsafe rmdir("\(folder)/lvols")
    unsafe unlink(mark)
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
    let before = lvol.size
    let isGrowing = size > before
    lvol.size = size
    if isGrowing {
      do throws(SoftDPUError) {
        guard unsafe truncate(path, off_t(size)) == 0 else { throw .system(errno, operation) }
        if !lvol.isThin { try reserve(path, size, isUnsharing: false, operation) }
      } catch {
        // Nobody sees what is behind the old end: it goes back to the others.
        unsafe truncate(path, off_t(before))
        throw error
      }
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
      try reserve(file(uuid), lvol.size, isUnsharing: true, operation)
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
      manifest.removed.insert(uuid)
      for clone in manifest.clones(of: uuid) { manifest.lvols[clone.uuid]?.parent = parent }
    }
  }

  // MARK: Steps

  private static let ficlone: UInt = 0x4004_9409
  /// O_TMPFILE, which the C library's module does not have.
  private static let withoutName: CInt = 0o20000000 | O_DIRECTORY

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
    let path = unfinished(lvol.uuid)
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

  private func unfinished(_ uuid: String) -> String { "\(folder)/lvols/\(uuid).new" }

  /// EBUSY while the volume is being copied.
  private func checkIdle(_ uuid: String, _ operation: String) throws(SoftDPUError) {
    guard !copying.withLock({ $0.contains(uuid) }) else { throw .system(EBUSY, operation) }
  }

  /// Gives all of a file space of its own. All of that is had before the first of it goes into the file: where it does
  /// not fit, nothing is filled, and nothing has to be taken back from where a guest may have written in the meantime.
  private func reserve(
    _ path: String, _ size: UInt64, isUnsharing: Bool, _ operation: String
  ) throws(SoftDPUError) {
    let fd = unsafe Glibc.open(path, O_RDWR | O_CLOEXEC)
    guard fd >= 0 else { throw .system(errno, operation) }
    defer { close(fd) }
    // A file without a name, which goes with its descriptor, also in a crash.
    let room = unsafe Glibc.open("\(folder)/lvols", LvolStore.withoutName | O_RDWR | O_CLOEXEC, 0o600)
    guard room >= 0 else { throw .system(errno, operation) }
    defer { close(room) }
    // In pieces: the file's requests wait while one is copied. Shared extents first, then holes, which unsharing leaves
    // alone.
    let keep = CInt(FALLOC_FL_KEEP_SIZE)
    let unshare = CInt(FALLOC_FL_UNSHARE_RANGE) | keep
    let piece: UInt64 = 16 << 20
    var held: UInt64 = 0
    for offset in stride(from: 0, to: size, by: Int(piece)) {
      let length = min(piece, size - offset)
      // Now and then: pieces that had all or a part of their space have let go of more than they needed.
      if offset % (64 * piece) == 0 {
        let missing = try missingBytes(fd, size, isUnsharing: isUnsharing, beside: held, operation)
        guard ftruncate(room, off_t(missing)) == 0, missing == 0 || clinux_fallocate(room, 0, 0, missing) == 0 else {
          throw .system(errno, operation)
        }
        held = missing
      }
      held -= min(held, length)
      guard ftruncate(room, off_t(held)) == 0 else { throw .system(errno, operation) }
      guard !isUnsharing || clinux_fallocate(fd, unshare, offset, length) == 0 else { throw .system(errno, operation) }
      guard clinux_fallocate(fd, keep, offset, length) == 0 else { throw .system(errno, operation) }
    }
  }

  /// What a file still needs to have all of its space for itself; ENOSPC where the file system has not that much.
  /// - Parameter held: what is set aside for it already.
  private func missingBytes(
    _ fd: CInt, _ size: UInt64, isUnsharing: Bool, beside held: UInt64, _ operation: String
  ) throws(SoftDPUError) -> UInt64 {
    var allocated: UInt64 = 0
    var shared: UInt64 = 0
    guard unsafe clinux_file_extents(fd, size, &allocated, &shared) == 0 else { throw .system(errno, operation) }
    let missing = size - min(size, allocated) + (isUnsharing ? shared : 0)
    var status = statvfs()
    guard unsafe fstatvfs(fd, &status) == 0 else { throw .system(errno, operation) }
    let free = UInt64(status.f_bavail) * UInt64(status.f_frsize) + held
    guard missing <= free else {
      throw SoftDPUError(
        code: .system(ENOSPC), operation: operation, message: "it needs \(missing) bytes more, and \(free) are free")
    }
    return missing
  }

  /// Has the description name a volume whose file is complete, and gives the file its name.
  private func add(
    _ lvols: [LvolManifest.Lvol], removingFileOf new: LvolManifest.Lvol
  ) throws(SoftDPUError) {
    do throws(SoftDPUError) {
      try change { manifest in
        for lvol in lvols { manifest.lvols[lvol.uuid] = lvol }
      }
    } catch {
      // Where the description on disk names it, it has to stay.
      if manifest.lvols[new.uuid] == nil {
        unsafe unlink(unfinished(new.uuid))
      } else {
        unsafe Glibc.rename(unfinished(new.uuid), file(new.uuid))
      }
      throw error
    }
    // A crash before the name is durable does no harm: the next opening gives it again.
    guard unsafe Glibc.rename(unfinished(new.uuid), file(new.uuid)) == 0 else {
      throw .system(errno, "name lvol \(new.name)")
    }
  }

  /// Writes another description. Where that fails before readers find it, nothing is changed; where only its way to the
  /// disk failed, it counts as changed, and the error is told: the next change writes all of it once more.
  private func change(_ body: (inout LvolManifest) -> Void) throws(SoftDPUError) {
    // Under the lock: two changes at a time would lose one of them.
    let result = manifestState.withLock { manifest -> Result<Void, SoftDPUError> in
      var next = manifest
      // Those whose files are gone need not be told of any more.
      next.removed = doomed.withLock { $0 }
      body(&next)
      var isNew = false
      do throws(SoftDPUError) {
        try save(next) { isNew = true }
      } catch {
        if isNew {
          manifest = next
          doomed.withLock { $0 = next.removed }
        }
        return .failure(error)
      }
      manifest = next
      // What is gone from the durable description goes from the disk.
      doomed.withLock { $0 = [] }
      for uuid in next.removed where next.lvols[uuid] == nil { unsafe unlink(file(uuid)) }
      return .success(())
    }
    try result.get()
  }

  private func save(_ manifest: LvolManifest, onNew: () -> Void = {}) throws(SoftDPUError) {
    try DurableFile.write(manifest.json.serialize() + [0x0A], to: "\(folder)/lvstore.json", onNew: onNew)
  }
}
