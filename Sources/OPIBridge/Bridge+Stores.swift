import GRPCCore
import JSON
package import OPI

/// Volumes of stores, and what only files need. SPDK keeps a store on its disk, so there are no records of it here, and
/// SPDK itself sees to it that each change is whole.
extension Bridge {
  package func stores(size: Int32, token: String) async throws -> (stores: [YCStore], next: String) {
    let page = try Page(size: size, token: token, scope: YCStoreName.segment)
    let view = TargetView(target)
    return try await translated {
      let stores = try await view.stores().compactMap(YCStore.init)
      let (names, next) = page.cut(stores.map(\.name), scope: YCStoreName.segment)
      return (names.compactMap { name in stores.first { $0.name == name } }, next)
    }
  }

  package func volumes(
    store: String, size: Int32, token: String
  ) async throws -> (volumes: [YCVolume], next: String) {
    let id = try Self.storeID(store)
    let page = try Page(size: size, token: token, scope: store)
    let view = TargetView(target)
    return try await translated {
      try await Self.requireStore(id, view)
      let volumes = try await view.bdevs().compactMap { YCVolume(lvol: $0, store: id) }
      let (names, next) = page.cut(volumes.map(\.name), scope: store)
      return (names.compactMap { name in volumes.first { $0.name == name } }, next)
    }
  }

  /// The volume of a store by its full name; nil for a name that is no such volume's.
  private static func lvol(_ name: String) throws(RPCError) -> (store: String, id: String)? {
    let parsed = try ResourceName(name, field: "name")
    guard parsed.segments == [YCStoreName.segment, YCVolume.collection.segment] else { return nil }
    return (parsed.identifiers[0], parsed.identifiers[1])
  }

  private static func storeID(_ name: String) throws(RPCError) -> String {
    let parsed = try ResourceName(name, field: "parent")
    guard parsed.segments == [YCStoreName.segment] else {
      throw .invalid("parent", name, "is not of the form \(YCStoreName.segment)/{id}")
    }
    return parsed.identifiers[0]
  }

  private static func requireStore(_ id: String, _ view: TargetView) async throws {
    guard try await view.stores().contains(where: { $0["name"]?.stringValue == id }) else {
      throw RPCError.notFound("\(YCStoreName.segment)/\(id)")
    }
  }

  private static func read(_ store: String, _ id: String, _ view: TargetView) async throws -> YCVolume? {
    try await view.bdev("\(store)/\(id)").flatMap { YCVolume(lvol: $0, store: store) }
  }

  private static func requireLvol(_ name: String) throws(RPCError) -> (store: String, id: String) {
    guard let lvol = try lvol(name) else {
      throw .invalid(
        "name", name, "is not of the form \(YCStoreName.segment)/{id}/\(YCVolume.collection.segment)/{id}")
    }
    return lvol
  }

  // MARK: The service

  package func createVolume(_ volume: YCVolume, id: String, parent: String) async throws -> YCVolume {
    guard !parent.isEmpty else { return try await create(volume, id: id, idField: "volume_id") }
    let store = try Self.storeID(parent)
    try ResourceName.check(id: id, field: "volume_id")
    guard volume.file.isEmpty else { throw RPCError.invalid("volume.file", volume.file, "does not go with a store") }
    guard !volume.readOnly else { throw RPCError.unsupported("volume.read_only", "take a snapshot instead") }
    guard !volume.shared else { throw RPCError.unsupported("volume.shared", "only files can be shared") }
    let size = try Self.mebibytes(volume.capacityBytes, field: "volume.capacity_bytes")
    return try await changing {
      let view = TargetView(self.target)
      try await Self.requireStore(store, view)
      if let present = try await Self.read(store, id, view) {
        // It may have grown since, and snapshots may have been taken of it; a clone is no empty volume.
        let origin = try await self.origin(of: present, store, view)
        guard !present.snapshot, origin.isEmpty, present.capacityBytes >= volume.capacityBytes else {
          let what = present.snapshot ? ", as a snapshot" : origin.isEmpty ? "" : ", as a clone of \(origin)"
          throw RPCError.exists(present.name, "with \(present.capacityBytes) bytes\(what); use another volume_id")
        }
        return present
      }
      try await self.target.call(
        "bdev_lvol_create",
        [
          "lvs_name": .string(store), "lvol_name": .string(id), "size_in_mib": .integer(size), "thin_provision": true,
        ], for: "create the volume \(id) in \(store)")
      return try await Self.require(store, id, self.target)
    }
  }

  package func deleteVolume(_ name: String, allowMissing: Bool) async throws {
    guard let (store, id) = try Self.lvol(name) else {
      return try await delete(YCVolume.self, name, allowMissing: allowMissing)
    }
    let scope = scope()
    try await changing {
      guard try await Self.read(store, id, scope.view) != nil else {
        guard allowMissing else { throw RPCError.notFound(name) }
        return
      }
      if let user = try await scope.user(of: "\(store)/\(id)") {
        throw RPCError.precondition(name, "\(user) uses it; remove that first")
      }
      do {
        try await scope.call("bdev_lvol_delete", ["name": .string("\(store)/\(id)")], for: "delete \(name)")
      } catch let error as TargetError where error.serverCode == -32603 {
        throw RPCError.precondition(name, "it has clones, or is in use; delete those first")
      }
      try await self.store.removeOrigin(of: name)
    }
  }

  package func getVolume(_ name: String) async throws -> YCVolume {
    guard let (store, id) = try Self.lvol(name) else { return try await get(YCVolume.self, name) }
    let view = TargetView(target)
    return try await translated {
      guard let volume = try await Self.read(store, id, view) else { throw RPCError.notFound(name) }
      return volume
    }
  }

  package func growVolume(_ name: String, capacity: Int64) async throws -> YCVolume {
    guard let (store, id) = try Self.lvol(name) else {
      try YCVolume.collection.check(name)
      guard capacity == 0 else {
        throw RPCError.invalid(
          "capacity_bytes", "\(capacity)", "is not for a volume that is a file: grow the file, and give 0")
      }
      _ = try await get(YCVolume.self, name)
      _ = try await changing {
        try await self.target.call(
          "bdev_aio_rescan", ["name": .string(ResourceName.id(of: name))], for: "look at the file of \(name) again")
      }
      return try await get(YCVolume.self, name)
    }
    let size = try Self.mebibytes(capacity, field: "capacity_bytes")
    return try await changing {
      let view = TargetView(self.target)
      guard let volume = try await Self.read(store, id, view) else { throw RPCError.notFound(name) }
      guard capacity >= volume.capacityBytes else {
        throw RPCError.invalid("capacity_bytes", "\(capacity)", "is less than the \(volume.capacityBytes) it has")
      }
      guard capacity > volume.capacityBytes else { return volume }
      guard !volume.snapshot else { throw RPCError.precondition(name, "it is a snapshot; clone it, and grow that") }
      try await self.target.call(
        "bdev_lvol_resize", ["name": .string("\(store)/\(id)"), "size_in_mib": .integer(size)], for: "grow \(name)")
      return try await Self.require(store, id, self.target)
    }
  }

  package func snapshotVolume(_ name: String, id snapshot: String) async throws -> YCVolume {
    let (store, id) = try Self.requireLvol(name)
    try ResourceName.check(id: snapshot, field: "snapshot_id")
    return try await changing {
      let view = TargetView(self.target)
      guard let volume = try await Self.read(store, id, view) else { throw RPCError.notFound(name) }
      if let present = try await Self.read(store, snapshot, view) {
        guard try await self.isTaken(present, of: volume) else {
          throw RPCError.exists(present.name, "and was not taken of \(name) as it is now; use another snapshot_id")
        }
        return present
      }
      // Written down first, so that asking again after a lost answer is told from somebody else's snapshot.
      let snapshotName = YCVolume.name(snapshot, in: store)
      try await self.store.write(SnapshotOrigin(volumeUUID: volume.uuid), of: snapshotName)
      do {
        try await self.target.call(
          "bdev_lvol_snapshot", ["lvol_name": .string("\(store)/\(id)"), "snapshot_name": .string(snapshot)],
          for: "take a snapshot of \(name)")
      } catch let error as TargetError {
        if !error.isOpen { try await self.store.removeOrigin(of: snapshotName) }
        throw error
      }
      let made = try await Self.require(store, snapshot, self.target)
      try await self.store.write(SnapshotOrigin(volumeUUID: volume.uuid, snapshotUUID: made.uuid), of: snapshotName)
      return made
    }
  }

  /// Whether a snapshot was taken of a volume, and nothing of it was since: asked again, it is what was asked for.
  private func isTaken(_ snapshot: YCVolume, of volume: YCVolume) async throws -> Bool {
    guard snapshot.snapshot, volume.source == snapshot.name,
      let origin = try await store.origin(of: snapshot.name)
    else { return false }
    return origin.volumeUUID == volume.uuid && (origin.snapshotUUID ?? snapshot.uuid) == snapshot.uuid
  }

  /// The snapshot that a volume was cloned from, below the snapshots that were taken of it; empty where it began empty.
  private func origin(of volume: YCVolume, _ storeID: String, _ view: TargetView) async throws -> String {
    var source = volume.source
    // Each snapshot in the chain stands above another, so there is an end; the limit is for a target that shows a ring.
    for _ in 0..<10_000 where !source.isEmpty {
      guard let id = source.split(separator: "/").last.map(String.init),
        let snapshot = try await Self.read(storeID, id, view), let taken = try await store.origin(of: source),
        taken.volumeUUID == volume.uuid, (taken.snapshotUUID ?? snapshot.uuid) == snapshot.uuid
      else { return source }
      source = snapshot.source
    }
    return source
  }

  package func cloneVolume(_ name: String, id clone: String) async throws -> YCVolume {
    let (store, id) = try Self.requireLvol(name)
    try ResourceName.check(id: clone, field: "clone_id")
    return try await changing {
      let view = TargetView(self.target)
      guard let source = try await Self.read(store, id, view) else { throw RPCError.notFound(name) }
      guard source.snapshot else { throw RPCError.precondition(name, "it is no snapshot; take one and clone that") }
      if let present = try await Self.read(store, clone, view) {
        guard !present.snapshot, try await self.origin(of: present, store, view) == name else {
          throw RPCError.exists(present.name, "and is no clone of \(name); use another clone_id")
        }
        return present
      }
      try await self.target.call(
        "bdev_lvol_clone", ["snapshot_name": .string("\(store)/\(id)"), "clone_name": .string(clone)],
        for: "clone \(name)")
      return try await Self.require(store, clone, self.target)
    }
  }

  private static func require(_ store: String, _ id: String, _ target: Target) async throws -> YCVolume {
    guard let volume = try await read(store, id, TargetView(target)) else {
      throw RPCError(
        code: .internalError, message: "\(YCVolume.name(id, in: store)): the target made it and does not show it")
    }
    return volume
  }

  /// SPDK counts sizes of volumes in MiB.
  private static func mebibytes(_ bytes: Int64, field: String) throws(RPCError) -> Int64 {
    guard bytes > 0, bytes % (1 << 20) == 0 else {
      throw .invalid(field, "\(bytes)", "is not a number of whole MiB above 0")
    }
    return bytes >> 20
  }
}

extension YCStore {
  init?(_ json: JSONValue) {
    guard let id = json["name"]?.stringValue, ResourceName.isID(id) else { return nil }
    self.init()
    name = "\(YCStoreName.segment)/\(id)"
    uuid = json["uuid"]?.stringValue ?? ""
    let cluster = json["cluster_size"]?.int64Value ?? 0
    capacityBytes = (json["total_data_clusters"]?.int64Value ?? 0).multipliedReportingOverflow(by: cluster).partialValue
    freeBytes = (json["free_clusters"]?.int64Value ?? 0).multipliedReportingOverflow(by: cluster).partialValue
  }
}
