import Glibc
import JSON
import JSONRPC

extension Methods {
  static let memory: [String: Method] = [
    "bdev_malloc_create": { try $0.createMemory($1, $2) },
    "bdev_malloc_delete": { try $0.delete($1, MemoryDevice.self, madeBy: "bdev_malloc_create", $2) },
    "bdev_null_create": { try $0.createNull($1, $2) },
    "bdev_null_delete": { try $0.delete($1, NullDevice.self, madeBy: "bdev_null_create", $2) },
    "bdev_null_resize": { try $0.resizeNull($1, $2) },
  ]

  /// Members of SPDK's calls that ask for metadata beside the blocks, which nothing here keeps.
  private static let metadata: Set<String> = [
    "md_size", "md_interleave", "dif_type", "dif_is_head_of_md", "dif_pi_format", "optimal_io_boundary",
    "physical_block_size", "numa_id", "preferred_write_alignment", "preferred_write_granularity",
    "optimal_write_size", "preferred_unmap_alignment", "preferred_unmap_granularity",
  ]

  private struct Shape {
    var name: String
    var blockSize: UInt32
    var blocks: UInt64
    var uuid: String
  }

  private func shape(_ request: Request, prefix: String) throws -> Shape {
    let parameters = try Parameters(
      request, allowed: Methods.metadata.union(["name", "block_size", "num_blocks", "uuid"]))
    let blocks = try parameters.uint64("num_blocks")
    let blockSize = try parameters.uint32("block_size")
    guard try (parameters.optionalUInt32("md_size") ?? 0) == 0, try (parameters.optionalUInt32("dif_type") ?? 0) == 0
    else { throw Methods.systemError(EINVAL) }
    guard blocks > 0, blockSize >= 512, blockSize <= 65536, blockSize & (blockSize - 1) == 0 else {
      throw Methods.systemError(EINVAL)
    }
    let name = try parameters.optionalString("name") ?? freeName(prefix)
    guard !name.isEmpty else { throw Methods.systemError(EINVAL) }
    let shape = Shape(name: name, blockSize: blockSize, blocks: blocks, uuid: try uuid(parameters))
    try inventory.checkFree([name, shape.uuid], "create bdev \(name)")
    return shape
  }

  private func freeName(_ prefix: String) -> String {
    var number = 0
    while inventory.device("\(prefix)\(number)") != nil { number += 1 }
    return "\(prefix)\(number)"
  }

  private func createMemory(_ request: Request, _ reply: Reply) throws {
    let shape = try shape(request, prefix: "Malloc")
    try inventory.add(
      MemoryDevice(
        name: shape.name, uuid: shape.uuid, blockSize: shape.blockSize, blocks: shape.blocks,
        reactor: inventory.idlestReactor))
    reply(.success(.string(shape.name)))
  }

  private func createNull(_ request: Request, _ reply: Reply) throws {
    let shape = try shape(request, prefix: "Null")
    try inventory.add(
      NullDevice(
        name: shape.name, uuid: shape.uuid, blockSize: shape.blockSize, blocks: shape.blocks,
        reactor: inventory.idlestReactor))
    reply(.success(.string(shape.name)))
  }

  /// Deletes a device of one kind.
  ///
  /// - Parameter creation: the call that makes such a device.
  func delete<Kind: BlockDevice>(
    _ request: Request, _ kind: Kind.Type, madeBy creation: String, _ reply: Reply
  ) throws {
    let name = try Parameters(request, allowed: ["name"]).string("name")
    // A device of errors has a name of its own, and is made by that of the device below.
    inventory.dropUnrestored(device: name.dropPrefix("EE_").map(String.init) ?? name, madeBy: creation)
    guard let device = try inventory.requireDevice(name, "delete bdev") as? Kind else {
      throw Methods.systemError(ENODEV)
    }
    try inventory.remove(device)
    reply(.success(true))
  }

  private func resizeNull(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(request, allowed: ["name", "new_size"])
    let megabytes = try parameters.uint64("new_size")
    guard let device = try inventory.requireDevice(try parameters.string("name"), "resize bdev") as? NullDevice else {
      throw Methods.systemError(ENODEV)
    }
    let (size, isTooLarge) = megabytes.multipliedReportingOverflow(by: 1 << 20)
    guard !isTooLarge, size >= device.size, size <= UInt64(Int64.max) else { throw Methods.systemError(EINVAL) }
    device.resize(size)
    try inventory.recordCreation(device)
    reply(.success(true))
  }
}
