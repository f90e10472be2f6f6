import JSON
import SwiftProtobuf
package import GRPCCore
package import OPI

enum YCStoreName {
  static let segment = "stores"
}

/// A file as a volume, which may be read-only and may grow: what OPI's AIO volumes lack.
extension YCVolume: Resource {
  package static let collection = ResourceCollection("volumes")
  package static let rank = 10
  package var ownBdev: String? { ResourceName.id(of: name) }

  package mutating func normalize() throws(RPCError) {
    try BlockVolumes.check(path: file, field: "file")
    capacityBytes = 0
    blockSize = 0
    uuid = ""
    snapshot = false
    source = ""
  }

  private var backing: FileBacking {
    FileBacking(
      name: ResourceName.id(of: name), file: file, blockSize: 512, uuid: "", isReadOnly: readOnly, isShared: shared)
  }

  package func read(_ scope: Scope) async throws -> YCVolume? {
    guard let bdev = try await scope.view.bdev(backing.name), bdev.specifics("aio") != nil else { return nil }
    return shown(bdev)
  }

  private func shown(_ bdev: Bdev) -> YCVolume {
    YCVolume.with {
      $0.name = name
      $0.file = bdev.specifics("aio")?["filename"]?.stringValue ?? ""
      $0.readOnly = !bdev.canWrite
      $0.shared = bdev.specifics("aio")?["shared"]?.boolValue ?? false
      $0.capacityBytes = bdev.capacity
      $0.blockSize = Int32(clamping: bdev.blockSize)
      $0.uuid = bdev.uuid
    }
  }

  package func make(_ scope: Scope, secret: [UInt8]) async throws { try await backing.make(scope, resource: name) }

  package func remove(_ scope: Scope) async throws {
    try await BlockVolumes.delete(backing.name, with: "bdev_aio_delete", scope)
  }

  package static func strangers(_ scope: Scope) async throws -> [YCVolume] {
    try await scope.view.bdevs().filter { $0.specifics("aio") != nil && ResourceName.isID($0.name) }.map { bdev in
      YCVolume.with { $0.name = "\(collection.segment)/\(bdev.name)" }.shown(bdev)
    }
  }

  /// A volume of a store. SPDK keeps the store on its disk, so nothing of it is recorded here.
  init?(lvol bdev: Bdev, store: String) {
    guard let lvol = bdev.specifics("lvol"), let alias = bdev.aliases.first(where: { $0.hasPrefix("\(store)/") }) else {
      return nil
    }
    let id = String(alias.dropFirst(store.utf8.count + 1))
    guard ResourceName.isID(id) else { return nil }
    self.init()
    name = Self.name(id, in: store)
    capacityBytes = bdev.capacity
    blockSize = Int32(clamping: bdev.blockSize)
    uuid = bdev.uuid
    snapshot = lvol["snapshot"]?.boolValue ?? false
    readOnly = !bdev.canWrite || snapshot
    source = lvol["base_snapshot"]?.stringValue.map { Self.name($0, in: store) } ?? ""
  }

  static func name(_ id: String, in store: String) -> String {
    "\(YCStoreName.segment)/\(store)/\(collection.segment)/\(id)"
  }
}
