import Glibc
import JSON

/// Memory as a disk (SPDK's bdev_malloc): gone with the process. Pages that were never written take no memory.
///
/// SAFETY: the mapping lives as long as the device.
@safe
final class MemoryDevice: BlockDevice, @unchecked Sendable {
  /// ENOMEM where the system does not give that much.
  init(name: String, uuid: String, blockSize: UInt32, blocks: UInt64, reactor: Reactor) throws(SoftDPUError) {
    let operation = "create bdev \(name)"
    let (size, isTooLarge) = blocks.multipliedReportingOverflow(by: UInt64(blockSize))
    guard !isTooLarge, size <= UInt64(Int.max),
      let memory = unsafe mmap(
        nil, Int(size), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), unsafe memory != MAP_FAILED
    else { throw .system(ENOMEM, operation) }
    let target = unsafe BlockTarget.make(
      .memory, name: name, reactor: reactor.number, capacity: size, blockSize: blockSize, isReadOnly: false,
      canUnmap: true, canWriteZeroes: true)
    unsafe target.pointee.memory = unsafe memory
    mapped = Int(size)
    unsafe super.init(
      name: name, uuid: uuid, productName: "Malloc disk", blockSize: blockSize, physicalBlockSize: blockSize,
      size: size, reactor: reactor, target: target)
  }

  private let mapped: Int

  deinit { if let memory = unsafe target.pointee.memory { unsafe munmap(memory, mapped) } }

  override var creation: ConfigurationCall? {
    ConfigurationCall(
      method: "bdev_malloc_create",
      parameters: [
        "name": .string(name), "num_blocks": .integer(Int64(size / UInt64(blockSize))),
        "block_size": .integer(Int64(blockSize)), "physical_block_size": .integer(Int64(physicalBlockSize)),
        "uuid": .string(uuid), "optimal_io_boundary": 0, "md_interleave": false, "dif_type": 0,
        "dif_is_head_of_md": false, "dif_pi_format": 0,
      ])
  }
}

/// A disk that forgets (SPDK's bdev_null): reads give zeros.
@safe
final class NullDevice: BlockDevice, @unchecked Sendable {
  init(name: String, uuid: String, blockSize: UInt32, blocks: UInt64, reactor: Reactor) throws(SoftDPUError) {
    let (size, isTooLarge) = blocks.multipliedReportingOverflow(by: UInt64(blockSize))
    guard !isTooLarge, size <= UInt64(Int64.max) else { throw .system(EINVAL, "create bdev \(name)") }
    unsafe super.init(
      name: name, uuid: uuid, productName: "Null disk", blockSize: blockSize, physicalBlockSize: blockSize,
      size: size, reactor: reactor,
      target: BlockTarget.make(
        .null, name: name, reactor: reactor.number, capacity: size, blockSize: blockSize, isReadOnly: false,
        canUnmap: true, canWriteZeroes: true))
  }

  override var creation: ConfigurationCall? {
    ConfigurationCall(
      method: "bdev_null_create",
      parameters: [
        "name": .string(name), "num_blocks": .integer(Int64(size / UInt64(blockSize))),
        "block_size": .integer(Int64(blockSize)), "physical_block_size": .integer(Int64(physicalBlockSize)),
        "md_size": 0, "dif_type": 0, "dif_is_head_of_md": false, "uuid": .string(uuid),
      ])
  }
}
