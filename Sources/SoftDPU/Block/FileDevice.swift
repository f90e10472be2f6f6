import CLinux
import Glibc

/// A file or block device, opened as a volume (SPDK's bdev_aio).
///
/// SAFETY: what does not change is constant; `target` is written by the reactor's thread only, once the device is in
/// use. The descriptors are closed when the last session that uses them is gone.
@safe
final class FileDevice: @unchecked Sendable {
  /// What the device is made from; kept on disk to make it again.
  package struct Parameters: Sendable, Hashable {
    package var name: String
    package var file: String
    package var blockSize: UInt32
    package var isReadOnly: Bool
    /// Discard and write-zeroes by punching holes.
    package var canUnmap: Bool
    package var uuid: String
  }

  let parameters: Parameters
  let physicalBlockSize: UInt32
  let isBlockDevice: Bool
  let hasDirectIO: Bool
  let target: UnsafeMutablePointer<BlockTarget>

  /// Opens the file. Errors carry the error number that SPDK would answer with.
  init(_ parameters: Parameters, reportedBlockSize: UInt32?) throws(SoftDPUError) {
    let operation = "open \(parameters.file) as \(parameters.name)"
    let access = parameters.isReadOnly ? O_RDONLY : O_RDWR
    let buffered = unsafe open(parameters.file, access | O_CLOEXEC)
    guard buffered >= 0 else { throw .system(errno, operation) }
    var status = stat()
    guard unsafe fstat(buffered, &status) == 0 else {
      let error = errno
      close(buffered)
      throw .system(error, operation)
    }
    let isBlock = status.st_mode & S_IFMT == S_IFBLK
    guard isBlock || status.st_mode & S_IFMT == S_IFREG else {
      close(buffered)
      throw SoftDPUError(code: .invalid, operation: operation, message: "neither a file nor a block device")
    }
    let logical = isBlock ? UInt32(max(512, clinux_block_device_block_size(buffered))) : 0
    let blockSize = reportedBlockSize ?? logical
    guard blockSize >= 512, blockSize >= logical, blockSize <= 65536, blockSize & (blockSize - 1) == 0 else {
      close(buffered)
      throw SoftDPUError(
        code: .invalid, operation: operation,
        message: "a block size is a power of two from \(max(512, logical)) to 65536, not \(blockSize)")
    }
    // Two data planes on one pool never have the same volume for writing. The kernel drops the lock with the process.
    guard flock(buffered, (parameters.isReadOnly ? LOCK_SH : LOCK_EX) | LOCK_NB) == 0 else {
      close(buffered)
      throw SoftDPUError(
        code: .system(EBUSY), operation: operation, message: "another volume or process has the file open")
    }
    let isMemory = !isBlock && clinux_is_memory_file(buffered) != 0
    var memoryAlignment: UInt32 = 512
    var offsetAlignment: UInt32 = logical
    if !isBlock { unsafe clinux_direct_io_alignment(buffered, &memoryAlignment, &offsetAlignment) }
    var direct: CInt = -1
    if !isMemory, memoryAlignment > 0, offsetAlignment > 0 {
      direct = unsafe clinux_open_direct(parameters.file, access)
    }
    var fixed = parameters
    fixed.blockSize = blockSize
    self.parameters = fixed
    isBlockDevice = isBlock
    hasDirectIO = direct >= 0
    // What is smaller than a page goes through the page cache, so that direct and buffered requests never share one.
    let page: UInt32 = 4096
    physicalBlockSize = max(blockSize, isMemory ? page : max(page, offsetAlignment))
    let identity = UnsafeMutableRawPointer.allocate(byteCount: 20, alignment: 8)
    unsafe identity.initializeMemory(as: UInt8.self, repeating: 0, count: 20)
    for (index, byte) in parameters.name.utf8.prefix(20).enumerated() {
      unsafe identity.storeBytes(of: byte, toByteOffset: index, as: UInt8.self)
    }
    unsafe target = UnsafeMutablePointer<BlockTarget>.allocate(capacity: 1)
    unsafe target.initialize(
      to: BlockTarget(
        directFD: direct, bufferedFD: buffered, capacity: 0,
        memoryMask: UInt(max(memoryAlignment, 512)) - 1, offsetMask: UInt64(max(page, offsetAlignment)) - 1,
        isInline: isMemory, isReadOnly: parameters.isReadOnly,
        canUnmap: parameters.canUnmap && !parameters.isReadOnly, identity: identity))
    let size = try currentSize()
    guard size > 0 else {
      throw SoftDPUError(code: .invalid, operation: operation, message: "smaller than one block")
    }
    unsafe target.pointee.capacity = size
  }

  deinit {
    if unsafe target.pointee.directFD >= 0 { unsafe close(target.pointee.directFD) }
    unsafe close(target.pointee.bufferedFD)
    unsafe target.pointee.identity.deallocate()
    unsafe target.deallocate()
  }

  /// The file's size now, in bytes, rounded down to whole blocks. What the guest sees changes only by `resize`.
  func currentSize() throws(SoftDPUError) -> UInt64 {
    let size: Int64
    if isBlockDevice {
      size = unsafe clinux_block_device_size(target.pointee.bufferedFD)
    } else {
      var status = stat()
      size = unsafe fstat(target.pointee.bufferedFD, &status) == 0 ? Int64(status.st_size) : -1
    }
    guard size >= 0 else { throw .system(errno, "read the size of \(parameters.file)") }
    return UInt64(size) / UInt64(parameters.blockSize) * UInt64(parameters.blockSize)
  }

  /// Reactor's thread.
  func resize(_ capacity: UInt64) { unsafe target.pointee.capacity = capacity }

  /// Reactor's thread.
  func configuration(isReadOnly: Bool) -> BlockConfiguration {
    unsafe BlockConfiguration(
      capacity: target.pointee.capacity, blockSize: parameters.blockSize, physicalBlockSize: physicalBlockSize,
      isReadOnly: isReadOnly || parameters.isReadOnly, canUnmap: target.pointee.canUnmap,
      queueCount: UInt16(VhostUser.maximumQueues))
  }
}
