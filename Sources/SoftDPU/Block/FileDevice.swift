import CLinux
import Glibc
import JSON

/// A file or block device of the system (SPDK's bdev_aio, and the volumes of an lvol store).
///
/// SAFETY: the descriptors are closed with the device, which every way out keeps while it has requests under way.
@safe
class FileDevice: BlockDevice, @unchecked Sendable {
  /// What the device is made from; kept on disk to make it again.
  package struct Parameters: Sendable, Hashable {
    package var name: String
    package var file: String
    package var blockSize: UInt32
    package var isReadOnly: Bool
    /// Others may have the file open for writing too, where they say so as well.
    package var isShared = false
    /// Discard and write-zeroes by punching holes.
    package var canUnmap: Bool
    package var uuid: String
  }

  let parameters: Parameters
  let hasDirectIO: Bool
  private let isBlockDevice: Bool
  /// A file that can be cloned, and no device of the system.
  var isRegularFile: Bool { !isBlockDevice }
  private let hasOwnBlockSize: Bool

  /// Opens the file. Errors carry the error number that SPDK would answer with.
  ///
  /// - Parameters:
  ///   - ownBlockSize: what `parameters.blockSize` was asked to be; nil takes the file's own.
  ///   - reactor: carries out the requests.
  convenience init(
    _ parameters: Parameters, ownBlockSize: UInt32?, reactor: Reactor
  ) throws(SoftDPUError) {
    try self.init(
      parameters, ownBlockSize: ownBlockSize, aliases: [], productName: "AIO disk",
      reactor: reactor)
  }

  init(
    _ parameters: Parameters, ownBlockSize: UInt32?, aliases: [String], productName: String,
    reactor: Reactor
  ) throws(SoftDPUError) {
    let file = try OpenFile(parameters, ownBlockSize: ownBlockSize)
    var fixed = parameters
    fixed.blockSize = file.blockSize
    self.parameters = fixed
    hasDirectIO = file.direct >= 0
    isBlockDevice = file.isBlockDevice
    hasOwnBlockSize = ownBlockSize != nil
    let canUnmap = parameters.canUnmap && !parameters.isReadOnly
    let target = unsafe BlockTarget.make(
      .file, name: parameters.name, reactor: reactor.number, capacity: file.size, blockSize: file.blockSize,
      isReadOnly: parameters.isReadOnly, canUnmap: canUnmap, canWriteZeroes: !parameters.isReadOnly)
    unsafe target.pointee.directFD = file.direct
    unsafe target.pointee.bufferedFD = file.buffered
    unsafe target.pointee.memoryMask = UInt(max(file.memoryAlignment, 512)) - 1
    unsafe target.pointee.isInline = file.isMemory
    unsafe super.init(
      name: parameters.name, aliases: aliases, uuid: parameters.uuid, productName: productName,
      blockSize: file.blockSize,
      physicalBlockSize: max(
        file.blockSize, file.isMemory ? OpenFile.page : max(OpenFile.page, file.offsetAlignment)),
      size: file.size, reactor: reactor, target: target)
  }

  deinit {
    if unsafe target.pointee.directFD >= 0 { _ = unsafe Glibc.close(target.pointee.directFD) }
    _ = unsafe Glibc.close(target.pointee.bufferedFD)
  }

  /// The file's size now, in bytes, rounded down to whole blocks. What a guest sees changes only by `resize`.
  func currentSize() throws(SoftDPUError) -> UInt64 {
    let fd = unsafe target.pointee.bufferedFD
    return try OpenFile.size(fd, isBlockDevice: isBlockDevice, blockSize: blockSize, path: parameters.file)
  }

  override var specifics: JSONValue {
    [
      "aio": [
        "filename": .string(parameters.file),
        "block_size_override": .bool(hasOwnBlockSize),
        "readonly": .bool(parameters.isReadOnly),
        "fallocate": .bool(parameters.canUnmap),
        "shared": .bool(parameters.isShared),
      ]
    ]
  }

  override var creation: ConfigurationCall? {
    var call: JSONValue = [
      "name": .string(name), "filename": .string(parameters.file),
      "block_size": .integer(Int64(parameters.blockSize)), "readonly": .bool(parameters.isReadOnly),
      "fallocate": .bool(parameters.canUnmap), "uuid": .string(uuid),
    ]
    // SPDK does not know the word: a configuration without it is one that SPDK takes.
    if parameters.isShared { call["shared"] = true }
    return ConfigurationCall(method: "bdev_aio_create", parameters: call)
  }
}
