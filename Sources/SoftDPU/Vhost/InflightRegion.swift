import CLinux
import Glibc

/// The shared memory that records the requests in flight of all queues of a device.
///
/// SAFETY: mapped here, and unmapped when the session that owns it is destroyed, after its queues. Reactor's thread
/// only.
@safe
final class InflightRegion {
  private let mapping: UnsafeMutableRawPointer
  private let length: Int
  private let offset: Int
  private let queueCount: Int
  private let queueSize: UInt16

  /// Bytes that a device with these queues takes.
  static func length(queues: Int, queueSize: UInt16) -> Int { unsafe queues * InflightQueue.length(size: queueSize) }

  /// Makes the memory of a new region, all zeros; the descriptor is the caller's.
  static func create(queues: Int, queueSize: UInt16) throws(SoftDPUError) -> (fd: CInt, length: Int) {
    let length = length(queues: queues, queueSize: queueSize)
    let fd = unsafe clinux_memfd_create("vhost-inflight", 0)
    guard fd >= 0 else { throw .system(errno, "make the in-flight region") }
    guard ftruncate(fd, off_t(length)) == 0 else {
      let error = errno
      close(fd)
      throw .system(error, "make the in-flight region")
    }
    return (fd, length)
  }

  /// Maps a region that the front end kept; the descriptor stays the caller's.
  init(_ description: VhostUserPayload.Inflight, fd: CInt) throws(SoftDPUError) {
    let operation = "map the in-flight region"
    queueCount = description.queues
    queueSize = description.queueSize
    let needed = InflightRegion.length(queues: queueCount, queueSize: queueSize)
    guard description.length >= UInt64(needed), description.length <= 1 << 30, description.offset <= 1 << 30,
      description.offset % 8 == 0
    else { throw SoftDPUError(code: .invalid, operation: operation, message: "its bounds are not sound") }
    offset = Int(description.offset)
    length = offset + Int(description.length)
    var status = stat()
    guard unsafe fstat(fd, &status) == 0 else { throw .system(errno, operation) }
    guard Int(status.st_size) >= offset + needed else {
      throw SoftDPUError(code: .invalid, operation: operation, message: "the region is longer than its file")
    }
    let pageSize = try SharedMemoryGuard.pageSize(fd, operation)
    guard let mapping = unsafe mmap(nil, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0),
      unsafe mapping != MAP_FAILED
    else {
      throw .system(errno, operation)
    }
    guard unsafe SharedMemoryGuard.add(mapping, length, pageSize: pageSize) else {
      unsafe munmap(mapping, length)
      throw .system(ENOMEM, operation)
    }
    unsafe self.mapping = unsafe mapping
  }

  deinit {
    unsafe SharedMemoryGuard.remove(mapping, length)
    unsafe munmap(mapping, length)
  }

  /// The part of one queue, or nil where the region has none for it or another layout.
  func queue(_ index: Int, ringSize: UInt16) -> InflightQueue? {
    guard index < queueCount, ringSize <= queueSize else { return nil }
    return unsafe InflightQueue(
      base: mapping + (offset + index * InflightQueue.length(size: queueSize)), size: queueSize)
  }
}
