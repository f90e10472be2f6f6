import CLinux
import Glibc
import JSON
import JSONRPC

extension Methods {
  static let files: [String: Method] = [
    "bdev_aio_create": { try $0.createFile($1, $2) },
    "bdev_aio_delete": { try $0.deleteFile($1, $2) },
    "bdev_aio_rescan": { try $0.rescanFile($1, $2) },
  ]

  /// The UUID that was asked for, or a new one.
  func uuid(_ parameters: Parameters) throws -> String {
    guard let uuid = try parameters.optionalString("uuid") else { return UniqueID.random() }
    guard UniqueID.isValid(uuid) else { throw Methods.systemError(EINVAL) }
    return uuid.lowercased()
  }

  private func createFile(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(
      request, allowed: ["name", "filename", "block_size", "readonly", "fallocate", "uuid", "nowait", "shared"])
    let name = try parameters.string("name")
    let file = try parameters.string("filename")
    let blockSize = try parameters.optionalUInt32("block_size")
    let ownBlockSize = blockSize == 0 ? nil : blockSize
    _ = try parameters.bool("nowait")
    let uuid = try uuid(parameters)
    guard !name.isEmpty else { throw Methods.systemError(EINVAL) }
    try inventory.checkFree([name, uuid], "create bdev \(name)")
    var status = stat()
    // SAFETY: the path and the structure live for the length of the call.
    if unsafe stat(file, &status) == 0, status.st_mode & S_IFMT == S_IFDIR {
      let folder = try FolderDevice(
        name: name, path: file, uuid: uuid, blockSize: ownBlockSize ?? 512, reactor: inventory.idlestReactor)
      try inventory.add(folder)
      do {
        try inventory.examine(folder)
      } catch {
        try? inventory.remove(folder)
        throw error
      }
    } else {
      try inventory.add(
        FileDevice(
          FileDevice.Parameters(
            name: name, file: file, blockSize: blockSize ?? 0, isReadOnly: try parameters.bool("readonly"),
            isShared: try parameters.bool("shared"), canUnmap: try parameters.bool("fallocate"), uuid: uuid),
          ownBlockSize: ownBlockSize, reactor: inventory.idlestReactor))
    }
    reply(.success(.string(name)))
  }

  private func deleteFile(_ request: Request, _ reply: Reply) throws {
    let name = try Parameters(request, allowed: ["name"]).string("name")
    inventory.dropUnrestored(device: name, madeBy: "bdev_aio_create")
    let device = try inventory.requireDevice(name, "delete bdev")
    if let folder = device as? FolderDevice {
      try inventory.closeStores(on: folder)
    } else {
      guard device is FileDevice, !(device is LvolDevice) else { throw Methods.systemError(EINVAL) }
    }
    try inventory.remove(device)
    reply(.success(true))
  }

  /// Takes notice of a file's size. EBUSY where it shrank under somebody.
  private func rescanFile(_ request: Request, _ reply: Reply) throws {
    let name = try Parameters(request, allowed: ["name"]).string("name")
    guard let device = try inventory.requireDevice(name, "rescan bdev") as? FileDevice, !(device is LvolDevice) else {
      throw Methods.systemError(EINVAL)
    }
    let size = try device.currentSize()
    guard size >= device.size || device.users.isEmpty else { throw Methods.systemError(EBUSY) }
    // Also where nothing changed: a front end that connected after a restart may know the size of before.
    device.resize(size)
    reply(.success(true))
  }
}
