import Glibc
import JSON

/// What a store has on disk about its volumes: `lvstore.json` in its folder.
struct LvolManifest: Sendable, Equatable {
  /// One volume, snapshot or clone.
  struct Lvol: Sendable, Equatable {
    var uuid: String
    var name: String
    /// In bytes, a multiple of the cluster size.
    var size: UInt64
    var isThin: Bool
    var isReadOnly: Bool
    var isSnapshot: Bool
    /// The snapshot that it began as, or that was taken of it last.
    var parent: String?
  }

  var uuid: String
  var name: String
  var clusterSize: UInt64
  /// By UUID.
  var lvols: [String: Lvol] = [:]
  /// Volumes that were deleted last: what is left of their files goes with the next opening.
  var removed: Set<String> = []

  private static let version: Int64 = 1

  func clones(of uuid: String) -> [Lvol] {
    lvols.values.filter { $0.parent == uuid }.sorted { $0.name < $1.name }
  }

  func lvol(named name: String) -> Lvol? { lvols.values.first { $0.name == name } }

  var json: JSONValue {
    [
      "version": .integer(LvolManifest.version), "uuid": .string(uuid), "name": .string(name),
      "cluster_size": .integer(Int64(clamping: clusterSize)),
      "removed": .array(removed.sorted().map { .string($0) }),
      "lvols": .array(
        lvols.values.sorted { $0.uuid < $1.uuid }.map { lvol in
          var value: JSONValue = [
            "uuid": .string(lvol.uuid), "name": .string(lvol.name), "size": .integer(Int64(clamping: lvol.size)),
            "thin_provision": .bool(lvol.isThin), "read_only": .bool(lvol.isReadOnly),
            "snapshot": .bool(lvol.isSnapshot),
          ]
          if let parent = lvol.parent { value["parent"] = .string(parent) }
          return value
        }),
    ]
  }

  init(uuid: String, name: String, clusterSize: UInt64) {
    self.uuid = uuid
    self.name = name
    self.clusterSize = clusterSize
  }

  /// Nil where the value is not a store's description of this version, or contradicts itself.
  init?(_ value: JSONValue) {
    guard value["version"]?.int64Value == LvolManifest.version,
      let uuid = value["uuid"]?.stringValue, UniqueID.isValid(uuid), let name = value["name"]?.stringValue,
      let clusterSize = value["cluster_size"]?.int64Value, LvolManifest.isClusterSize(UInt64(clamping: clusterSize)),
      let entries = value["lvols"]?.arrayValue
    else { return nil }
    self.init(uuid: uuid, name: name, clusterSize: UInt64(clusterSize))
    removed = Set((value["removed"]?.arrayValue ?? []).compactMap(\.stringValue).filter(UniqueID.isValid))
    for entry in entries {
      guard let uuid = entry["uuid"]?.stringValue, UniqueID.isValid(uuid), lvols[uuid] == nil,
        let name = entry["name"]?.stringValue, lvol(named: name) == nil, LvolManifest.isName(name),
        let size = entry["size"]?.int64Value, size > 0, UInt64(size) % self.clusterSize == 0,
        let isThin = entry["thin_provision"]?.boolValue, let isReadOnly = entry["read_only"]?.boolValue,
        let isSnapshot = entry["snapshot"]?.boolValue
      else { return nil }
      lvols[uuid] = Lvol(
        uuid: uuid, name: name, size: UInt64(size), isThin: isThin, isReadOnly: isReadOnly, isSnapshot: isSnapshot,
        parent: entry["parent"]?.stringValue)
    }
    guard lvols.values.allSatisfy({ $0.parent.map { lvols[$0]?.isSnapshot == true } ?? true }) else { return nil }
  }

  /// A power of two from 4 KiB to 1 GiB.
  static func isClusterSize(_ size: UInt64) -> Bool {
    size >= 4096 && size <= 1 << 30 && size & (size - 1) == 0
  }

  /// SPDK's limit is 63 bytes; a slash would make the alias ambiguous.
  static func isName(_ name: String) -> Bool {
    !name.isEmpty && name.utf8.count <= 63 && !name.utf8.contains { $0 == 0x2F || $0 < 0x21 }
  }
}
