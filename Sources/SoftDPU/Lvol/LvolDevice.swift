import Glibc
import JSON

/// A folder that stands where SPDK has the device below a store: it has a size and no blocks of its own.
///
/// SAFETY: the descriptor holds the folder's lock, and is closed with the device.
@safe
final class FolderDevice: BlockDevice, @unchecked Sendable {
  let path: String
  private let fd: CInt

  /// EBUSY where another data plane has the folder.
  init(name: String, path: String, uuid: String, blockSize: UInt32, reactor: Reactor) throws(SoftDPUError) {
    let operation = "open \(path) as \(name)"
    let fd = unsafe Glibc.open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard fd >= 0 else { throw .system(errno, operation) }
    var status = statvfs()
    guard flock(fd, LOCK_EX | LOCK_NB) == 0, unsafe fstatvfs(fd, &status) == 0 else {
      let error = errno
      _ = Glibc.close(fd)
      throw .system(error == EWOULDBLOCK ? EBUSY : error, operation)
    }
    guard blockSize >= 512, blockSize <= 4096, blockSize & (blockSize - 1) == 0 else {
      _ = Glibc.close(fd)
      throw SoftDPUError(
        code: .invalid, operation: operation, message: "block_size: 512, 1024, 2048 or 4096, not \(blockSize)")
    }
    self.path = path
    self.fd = fd
    let size = UInt64(status.f_blocks) * UInt64(status.f_frsize) / UInt64(blockSize) * UInt64(blockSize)
    unsafe super.init(
      name: name, uuid: uuid, productName: "AIO disk", blockSize: blockSize, physicalBlockSize: 4096, size: size,
      reactor: reactor,
      target: BlockTarget.make(
        .layer, name: name, reactor: reactor.number, capacity: 0, blockSize: blockSize, isReadOnly: true,
        canUnmap: false, canWriteZeroes: false))
  }

  deinit { _ = Glibc.close(fd) }

  override var specifics: JSONValue {
    ["aio": ["filename": .string(path), "block_size_override": true, "readonly": false, "fallocate": true]]
  }

  override var creation: ConfigurationCall? {
    ConfigurationCall(
      method: "bdev_aio_create",
      parameters: [
        "name": .string(name), "filename": .string(path), "block_size": .integer(Int64(blockSize)),
        "readonly": false, "fallocate": true, "uuid": .string(uuid),
      ])
  }
}

/// A volume, snapshot or clone of a store. Its name is its UUID, and `store/name` is another.
@safe
final class LvolDevice: FileDevice, @unchecked Sendable {
  let store: LvolStore

  init(_ lvol: LvolManifest.Lvol, store: LvolStore, reactor: Reactor) throws(SoftDPUError) {
    self.store = store
    try super.init(
      Parameters(
        name: lvol.uuid, file: store.file(lvol.uuid), blockSize: store.base.blockSize,
        isReadOnly: lvol.isReadOnly || lvol.isSnapshot, canUnmap: true, uuid: lvol.uuid),
      ownBlockSize: store.base.blockSize, aliases: ["\(store.manifest.name)/\(lvol.name)"],
      productName: "Logical Volume", reactor: reactor)
  }

  override var base: BlockDevice? { store.base }

  override var specifics: JSONValue {
    let manifest = store.manifest
    guard let lvol = manifest.lvols[uuid] else { return [:] }
    var value: JSONValue = [
      "lvol_store_uuid": .string(manifest.uuid), "base_bdev": .string(store.base.name),
      "thin_provision": .bool(lvol.isThin),
      "num_allocated_clusters": .integer(Int64(clamping: store.allocatedClusters(uuid))),
      "snapshot": .bool(lvol.isSnapshot), "clone": .bool(lvol.parent != nil && !lvol.isSnapshot),
      "esnap_clone": false,
    ]
    if let parent = lvol.parent.flatMap({ manifest.lvols[$0] }) { value["base_snapshot"] = .string(parent.name) }
    let clones = manifest.clones(of: uuid)
    if !clones.isEmpty { value["clones"] = .array(clones.map { .string($0.name) }) }
    return ["lvol": value]
  }

  /// The store describes itself on disk.
  override var creation: ConfigurationCall? { nil }
}
