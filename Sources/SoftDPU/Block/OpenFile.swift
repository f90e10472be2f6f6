import CLinux
import Glibc

/// A file or block device that was opened, looked at, and locked against other data planes.
///
/// SAFETY: each buffer and path is passed with its own length, and lives for the length of the call.
struct OpenFile {
  static let page: UInt32 = 4096

  /// Opened without O_DIRECT, and with it (-1 where the file has none). The caller closes both.
  let buffered: CInt
  let direct: CInt
  let isBlockDevice: Bool
  /// The file lives in memory.
  let isMemory: Bool
  let blockSize: UInt32
  let memoryAlignment: UInt32
  let offsetAlignment: UInt32
  /// In bytes, rounded down to whole blocks; never 0.
  let size: UInt64

  init(_ parameters: FileDevice.Parameters, ownBlockSize: UInt32?) throws(SoftDPUError) {
    let operation = "open \(parameters.file) as \(parameters.name)"
    let access = parameters.isReadOnly ? O_RDONLY : O_RDWR
    let buffered = unsafe open(parameters.file, access | O_CLOEXEC)
    guard buffered >= 0 else { throw .system(errno, operation) }
    do throws(SoftDPUError) {
      var status = stat()
      guard unsafe fstat(buffered, &status) == 0 else { throw .system(errno, operation) }
      isBlockDevice = status.st_mode & S_IFMT == S_IFBLK
      guard isBlockDevice || status.st_mode & S_IFMT == S_IFREG else {
        throw SoftDPUError(code: .invalid, operation: operation, message: "neither a file nor a block device")
      }
      let logical = isBlockDevice ? UInt32(max(512, clinux_block_device_block_size(buffered))) : 0
      blockSize = ownBlockSize ?? logical
      guard blockSize >= 512, blockSize >= logical, blockSize <= 65536, blockSize & (blockSize - 1) == 0 else {
        throw SoftDPUError(
          code: .invalid, operation: operation,
          message: "a block size is a power of two from \(max(512, logical)) to 65536, not \(blockSize)")
      }
      // Two data planes on one pool never have the same volume for writing, unless all of them say that it is shared. The
      // kernel drops the lock with the process.
      let mayShare = parameters.isReadOnly || parameters.isShared
      guard flock(buffered, (mayShare ? LOCK_SH : LOCK_EX) | LOCK_NB) == 0 else {
        throw SoftDPUError(
          code: .system(EBUSY), operation: operation, message: "another volume or process has the file open")
      }
      size = try OpenFile.size(buffered, isBlockDevice: isBlockDevice, blockSize: blockSize, path: parameters.file)
      guard size > 0 else {
        throw SoftDPUError(code: .invalid, operation: operation, message: "smaller than one block")
      }
      isMemory = !isBlockDevice && clinux_is_memory_file(buffered) != 0
      var memory: UInt32 = 512
      var offset: UInt32 = logical
      if !isBlockDevice { unsafe clinux_direct_io_alignment(buffered, &memory, &offset) }
      memoryAlignment = memory
      offsetAlignment = offset
    } catch {
      close(buffered)
      throw error
    }
    self.buffered = buffered
    // Only where every request of whole blocks can be direct: the two ways never meet on one file.
    let hasDirectIO = !isMemory && memoryAlignment > 0 && offsetAlignment > 0 && offsetAlignment <= blockSize
    direct = hasDirectIO ? unsafe clinux_open_direct(parameters.file, access) : -1
  }

  /// The size of a file or block device in bytes, rounded down to whole blocks.
  static func size(
    _ fd: CInt, isBlockDevice: Bool, blockSize: UInt32, path: String
  ) throws(SoftDPUError) -> UInt64 {
    let size: Int64
    if isBlockDevice {
      size = clinux_block_device_size(fd)
    } else {
      var status = stat()
      size = unsafe fstat(fd, &status) == 0 ? Int64(status.st_size) : -1
    }
    guard size >= 0 else { throw .system(errno, "read the size of \(path)") }
    return UInt64(size) / UInt64(blockSize) * UInt64(blockSize)
  }
}
