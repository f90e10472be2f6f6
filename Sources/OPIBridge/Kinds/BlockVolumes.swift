import SwiftProtobuf
package import GRPCCore
import JSON
package import OPI

/// What the volumes of the target's own have in common: they are block devices under their identifier.
enum BlockVolumes {
  static func checkBlockSize(_ size: Int64) throws(RPCError) {
    guard [512, 1024, 2048, 4096].contains(size) else {
      throw .invalid("block_size", "\(size)", "is no size of a block; use 512, 1024, 2048 or 4096")
    }
  }

  static func checkCount(_ count: Int64, blockSize: Int64) throws(RPCError) {
    guard count > 0, !count.multipliedReportingOverflow(by: blockSize).overflow else {
      throw .invalid("blocks_count", "\(count)", "is not the size of a volume; give a number above 0")
    }
  }

  /// The UUID in the form that the target shows; empty stays empty.
  static func canonical(uuid: String, field: String = "uuid") throws(RPCError) -> String {
    guard !uuid.isEmpty else { return "" }
    let groups = uuid.split(separator: "-", omittingEmptySubsequences: false)
    guard groups.map(\.utf8.count) == [8, 4, 4, 4, 12], groups.allSatisfy({ $0.allSatisfy(\.isHexDigit) }) else {
      throw .invalid(field, uuid, "is no UUID; write it as 8-4-4-4-12 hexadecimal digits")
    }
    return uuid.lowercased()
  }

  /// An absolute path without detours.
  static func check(path: String, field: String) throws(RPCError) {
    guard !path.isEmpty else { throw .missing(field) }
    let parts = path.split(separator: "/", omittingEmptySubsequences: false)
    guard path.hasPrefix("/"), path.utf8.count < 4096, !path.utf8.contains(0), !parts.contains(".."),
      !parts.contains(".")
    else {
      throw .invalid(field, path, "is no absolute path without '.' and '..'")
    }
  }

  /// Deletes a block device; one that is gone counts as deleted.
  static func delete(_ name: String, with method: String, _ scope: Scope) async throws {
    do {
      try await scope.call(method, ["name": .string(name)], for: "delete the block device \(name)")
    } catch let error as TargetError where error.isAbsent {}
  }

  /// Refuses a block device of another kind or with other parameters.
  static func conflict(_ name: String, _ bdev: Bdev, _ what: String) -> RPCError {
    .exists(name, "as the target's '\(bdev.product)' \(bdev.name) \(what); use another id, or delete that")
  }
}

/// A file behind a block device.
struct FileBacking: Sendable {
  var name: String
  var file: String
  var blockSize: Int64
  var uuid: String
  var isReadOnly: Bool
  /// Whether others may have the file for writing too.
  var isShared = false

  /// - Parameter resource: the resource's name, for errors.
  func make(_ scope: Scope, resource: String) async throws {
    if let present = try await scope.view.bdev(name) { return try check(present, resource) }
    var parameters: JSONValue = [
      "name": .string(name), "filename": .string(file), "block_size": .integer(blockSize),
      "readonly": .bool(isReadOnly), "fallocate": true,
    ]
    if !uuid.isEmpty { parameters["uuid"] = .string(uuid) }
    if isShared { parameters["shared"] = true }
    let operation = "open \(file) as \(name)"
    // SPDK refuses members that it does not know: "shared", as it locks no files, and before "fallocate" that too.
    for unknown in isShared ? ["shared", "fallocate"] : ["fallocate"] {
      do {
        return try await scope.call("bdev_aio_create", parameters, for: operation)
      } catch let error as TargetError where error.isUndecoded {
        parameters[unknown] = nil
      }
    }
    try await scope.call("bdev_aio_create", parameters, for: operation)
  }

  func check(_ bdev: Bdev, _ resource: String) throws(RPCError) {
    guard let aio = bdev.specifics("aio") else { throw BlockVolumes.conflict(resource, bdev, "already") }
    guard aio["filename"]?.stringValue == file, bdev.blockSize == blockSize, bdev.canWrite == !isReadOnly,
      uuid.isEmpty || bdev.uuid.lowercased() == uuid
    else {
      throw BlockVolumes.conflict(
        resource, bdev,
        "with the file \(aio["filename"]?.stringValue ?? "unknown"), \(bdev.blockSize)-byte blocks"
          + (bdev.canWrite ? "" : ", read-only"))
    }
  }
}

extension OPIAioVolume: Resource {
  package static let collection = ResourceCollection("aioVolumes")
  package static let rank = 10
  package var ownBdev: String? { ResourceName.id(of: name) }

  package mutating func normalize() throws(RPCError) {
    try BlockVolumes.check(path: filename, field: "filename")
    if blockSize == 0 { blockSize = 512 }
    try BlockVolumes.checkBlockSize(blockSize)
    guard blocksCount >= 0 else { throw .invalid("blocks_count", "\(blocksCount)", "is negative") }
    uuid = try BlockVolumes.canonical(uuid: uuid)
  }

  private var backing: FileBacking {
    FileBacking(
      name: ResourceName.id(of: name), file: filename, blockSize: blockSize, uuid: uuid, isReadOnly: false)
  }

  package func read(_ scope: Scope) async throws -> OPIAioVolume? {
    guard let bdev = try await scope.view.bdev(backing.name), bdev.specifics("aio") != nil else { return nil }
    return shown(bdev)
  }

  private func shown(_ bdev: Bdev) -> OPIAioVolume {
    OPIAioVolume.with {
      $0.name = name
      $0.filename = bdev.specifics("aio")?["filename"]?.stringValue ?? filename
      $0.blockSize = bdev.blockSize
      $0.blocksCount = bdev.blockCount
      $0.uuid = bdev.uuid
    }
  }

  package func make(_ scope: Scope, secret: [UInt8]) async throws {
    let isNew = try await scope.view.bdev(backing.name) == nil
    try await backing.make(scope, resource: name)
    guard isNew, blocksCount > 0, let bdev = try await scope.view.bdev(backing.name), bdev.blockCount != blocksCount
    else { return }
    // The file says how large it is; a client that counts on another size has to know.
    try await remove(scope)
    throw RPCError.invalid(
      "blocks_count", "\(blocksCount)", "is not what \(filename) has: \(bdev.blockCount); give that, or 0")
  }

  package func remove(_ scope: Scope) async throws {
    try await BlockVolumes.delete(backing.name, with: "bdev_aio_delete", scope)
  }

  package static func strangers(_ scope: Scope) async throws -> [OPIAioVolume] {
    try await scope.view.bdevs().filter { $0.specifics("aio") != nil && ResourceName.isID($0.name) }.map { bdev in
      OPIAioVolume.with { $0.name = "\(collection.segment)/\(bdev.name)" }.shown(bdev)
    }
  }
}

extension OPINullVolume: Resource {
  package static let collection = ResourceCollection("nullVolumes")
  package static let rank = 10
  package var ownBdev: String? { ResourceName.id(of: name) }
  private static let product = "Null disk"

  package mutating func normalize() throws(RPCError) {
    guard blockSize != 0 else { throw .missing("block_size") }
    try BlockVolumes.checkBlockSize(blockSize)
    try BlockVolumes.checkCount(blocksCount, blockSize: blockSize)
    uuid = try BlockVolumes.canonical(uuid: uuid)
  }

  package mutating func takeMutableFields(from old: OPINullVolume) { blocksCount = old.blocksCount }

  package func read(_ scope: Scope) async throws -> OPINullVolume? {
    guard let bdev = try await scope.view.bdev(ResourceName.id(of: name)), bdev.product == Self.product else {
      return nil
    }
    return shown(bdev)
  }

  private func shown(_ bdev: Bdev) -> OPINullVolume {
    OPINullVolume.with {
      $0.name = name
      $0.blockSize = bdev.blockSize
      $0.blocksCount = bdev.blockCount
      $0.uuid = bdev.uuid
    }
  }

  package func make(_ scope: Scope, secret: [UInt8]) async throws {
    let id = ResourceName.id(of: name)
    guard let bdev = try await scope.view.bdev(id) else {
      var parameters: JSONValue = [
        "name": .string(id), "block_size": .integer(blockSize), "num_blocks": .integer(blocksCount),
      ]
      if !uuid.isEmpty { parameters["uuid"] = .string(uuid) }
      try await scope.call("bdev_null_create", parameters, for: "create the null volume \(id)")
      return
    }
    guard bdev.product == Self.product, bdev.blockSize == blockSize, uuid.isEmpty || bdev.uuid.lowercased() == uuid
    else { throw BlockVolumes.conflict(name, bdev, "with \(bdev.blockSize)-byte blocks") }
    guard bdev.blockCount != blocksCount else { return }
    // SPDK counts the new size in MiB.
    guard blocksCount > bdev.blockCount, blocksCount * blockSize % (1 << 20) == 0 else {
      throw RPCError.invalid(
        "blocks_count", "\(blocksCount)", "is no larger size in whole MiB; now it is \(bdev.blockCount)")
    }
    try await scope.call(
      "bdev_null_resize", ["name": .string(id), "new_size": .integer((blocksCount * blockSize) >> 20)],
      for: "resize the null volume \(id)")
  }

  package func remove(_ scope: Scope) async throws {
    try await BlockVolumes.delete(ResourceName.id(of: name), with: "bdev_null_delete", scope)
  }

  package static func strangers(_ scope: Scope) async throws -> [OPINullVolume] {
    try await scope.view.bdevs().filter { $0.product == product && ResourceName.isID($0.name) }.map { bdev in
      OPINullVolume.with { $0.name = "\(collection.segment)/\(bdev.name)" }.shown(bdev)
    }
  }
}

extension OPIMallocVolume: Resource {
  package static let collection = ResourceCollection("mallocVolumes")
  package static let rank = 10
  package var ownBdev: String? { ResourceName.id(of: name) }
  private static let product = "Malloc disk"

  package mutating func normalize() throws(RPCError) {
    guard blockSize != 0 else { throw .missing("block_size") }
    try BlockVolumes.checkBlockSize(blockSize)
    try BlockVolumes.checkCount(blocksCount, blockSize: blockSize)
    guard [0, 8, 16, 32, 64, 128].contains(metadataSize) else {
      throw .invalid("metadata_size", "\(metadataSize)", "is none of 0, 8, 16, 32, 64 and 128")
    }
    uuid = try BlockVolumes.canonical(uuid: uuid)
  }

  package func read(_ scope: Scope) async throws -> OPIMallocVolume? {
    guard let bdev = try await scope.view.bdev(ResourceName.id(of: name)), bdev.product == Self.product else {
      return nil
    }
    return shown(bdev)
  }

  private func shown(_ bdev: Bdev) -> OPIMallocVolume {
    OPIMallocVolume.with {
      $0.name = name
      $0.blockSize = bdev.blockSize
      $0.blocksCount = bdev.blockCount
      $0.metadataSize = bdev.json["md_size"]?.int64Value ?? 0
      $0.uuid = bdev.uuid
    }
  }

  package func make(_ scope: Scope, secret: [UInt8]) async throws {
    let id = ResourceName.id(of: name)
    if let bdev = try await scope.view.bdev(id) {
      guard bdev.product == Self.product, bdev.blockSize == blockSize, bdev.blockCount == blocksCount,
        uuid.isEmpty || bdev.uuid.lowercased() == uuid
      else {
        throw BlockVolumes.conflict(name, bdev, "with \(bdev.blockCount) blocks of \(bdev.blockSize) bytes")
      }
      return
    }
    var parameters: JSONValue = [
      "name": .string(id), "block_size": .integer(blockSize), "num_blocks": .integer(blocksCount),
    ]
    if !uuid.isEmpty { parameters["uuid"] = .string(uuid) }
    if metadataSize > 0 { parameters["md_size"] = .integer(metadataSize) }
    try await scope.call("bdev_malloc_create", parameters, for: "create the malloc volume \(id)")
  }

  package func remove(_ scope: Scope) async throws {
    try await BlockVolumes.delete(ResourceName.id(of: name), with: "bdev_malloc_delete", scope)
  }

  package static func strangers(_ scope: Scope) async throws -> [OPIMallocVolume] {
    try await scope.view.bdevs().filter { $0.product == product && ResourceName.isID($0.name) }.map { bdev in
      OPIMallocVolume.with { $0.name = "\(collection.segment)/\(bdev.name)" }.shown(bdev)
    }
  }
}
