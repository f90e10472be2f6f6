import Dispatch
import Glibc
import JSON
import JSONRPC
import Logging

extension Methods {
  static let lvols: [String: Method] = [
    "bdev_lvol_create_lvstore": { try $0.createStore($1, $2) },
    "bdev_lvol_rename_lvstore": { try $0.renameStore($1, $2) },
    "bdev_lvol_grow_lvstore": { try $0.growStore($1, $2) },
    "bdev_lvol_delete_lvstore": { try $0.deleteStore($1, $2) },
    "bdev_lvol_get_lvstores": { try $0.getStores($1, $2) },
    "bdev_lvol_create": { try $0.createLvol($1, $2) },
    "bdev_lvol_snapshot": { try $0.snapshotLvol($1, $2) },
    "bdev_lvol_clone": { try $0.cloneLvol($1, $2) },
    "bdev_lvol_rename": { try $0.renameLvol($1, $2) },
    "bdev_lvol_resize": { try $0.resizeLvol($1, $2) },
    "bdev_lvol_set_read_only": { try $0.setReadOnly($1, $2) },
    "bdev_lvol_inflate": { try $0.separateLvol($1, isThick: true, $2) },
    "bdev_lvol_decouple_parent": { try $0.separateLvol($1, isThick: false, $2) },
    "bdev_lvol_delete": { try $0.deleteLvol($1, $2) },
    "bdev_lvol_get_lvols": { try $0.getLvols($1, $2) },
  ]

  /// SPDK's default: 4 MiB.
  private static let defaultClusterSize: UInt64 = 4 << 20

  // MARK: Stores

  private func createStore(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(
      request,
      allowed: [
        "bdev_name", "lvs_name", "cluster_sz", "clear_method", "num_md_pages_per_cluster_ratio", "md_page_size",
      ])
    let base = try parameters.string("bdev_name")
    let name = try parameters.string("lvs_name")
    let clusterSize = UInt64(try parameters.optionalUInt32("cluster_sz") ?? 0)
    if let method = try parameters.optionalString("clear_method") {
      guard ["none", "unmap", "write_zeroes"].contains(method) else { throw Methods.systemError(EINVAL) }
    }
    let store = try inventory.createStore(
      on: base, name: name, clusterSize: clusterSize == 0 ? Methods.defaultClusterSize : clusterSize)
    reply(.success(.string(store.manifest.uuid)))
  }

  private func renameStore(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(request, allowed: ["old_name", "new_name"])
    let newName = try parameters.string("new_name")
    let store = try inventory.requireStore(uuid: nil, name: try parameters.string("old_name"))
    guard LvolManifest.isName(newName) else { throw Methods.systemError(EINVAL) }
    guard newName == store.manifest.name || !inventory.stores.contains(where: { $0.manifest.name == newName }) else {
      throw Methods.systemError(EEXIST)
    }
    try store.renameStore(newName)
    for device in inventory.devices.compactMap({ $0 as? LvolDevice }) where device.store === store {
      inventory.rename(device, aliases: device.aliases.map { "\(newName)/\($0.split(separator: "/").last ?? "")" })
    }
    reply(.success(true))
  }

  private func store(_ parameters: Parameters, uuid: String = "uuid") throws -> LvolStore {
    try inventory.requireStore(
      uuid: try parameters.optionalString(uuid), name: try parameters.optionalString("lvs_name"))
  }

  /// The folder's file system is what grows: its size counts at once.
  private func growStore(_ request: Request, _ reply: Reply) throws {
    _ = try store(try Parameters(request, allowed: ["uuid", "lvs_name"]))
    reply(.success(true))
  }

  private func deleteStore(_ request: Request, _ reply: Reply) throws {
    try inventory.deleteStore(try store(try Parameters(request, allowed: ["uuid", "lvs_name"])))
    reply(.success(true))
  }

  private func getStores(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(request, allowed: ["uuid", "lvs_name"])
    let uuid = try parameters.optionalString("uuid")
    let name = try parameters.optionalString("lvs_name")
    let stores = uuid == nil && name == nil ? inventory.stores : [try inventory.requireStore(uuid: uuid, name: name)]
    reply(
      .success(
        .array(
          stores.map { store in
            let manifest = store.manifest
            let clusters = store.clusters
            return [
              "uuid": .string(manifest.uuid), "name": .string(manifest.name), "base_bdev": .string(store.base.name),
              "total_data_clusters": .integer(Int64(clamping: clusters.total)),
              "free_clusters": .integer(Int64(clamping: clusters.free)),
              "block_size": .integer(Int64(store.base.blockSize)),
              "cluster_size": .integer(Int64(clamping: manifest.clusterSize)),
            ]
          })))
  }

  // MARK: Volumes

  /// Calls that make a volume answer with "invalid parameters" where the store refuses, but for what is absent or
  /// taken.
  private func making<Value>(_ method: String, _ body: () throws -> Value) throws -> Value {
    do {
      return try body()
    } catch let error as SoftDPUError where error.errorNumber != ENODEV {
      return try withInvalidParameters(method) { throw error }
    }
  }

  private func createLvol(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(
      request,
      allowed: ["lvol_name", "size_in_mib", "size", "uuid", "lvs_name", "thin_provision", "clear_method"])
    let name = try parameters.string("lvol_name")
    let bytes = try size(parameters)
    let isThin = try parameters.bool("thin_provision")
    if let method = try parameters.optionalString("clear_method") {
      guard ["default", "none", "unmap", "write_zeroes"].contains(method) else { throw Methods.systemError(EINVAL) }
    }
    let store = try store(parameters)
    // A name that is taken is told with its own number here, unlike in the other calls.
    guard store.manifest.lvol(named: name) == nil else { throw Methods.systemError(EEXIST) }
    let lvol = try making(request.method) { try store.create(name: name, bytes: bytes, isThin: isThin) }
    reply(.success(.string(try inventory.addLvol(lvol, store).name)))
  }

  private func size(_ parameters: Parameters) throws -> UInt64 {
    // "size" in bytes is what releases before 23.05 knew.
    if let bytes = try parameters.optionalUInt64("size") { return bytes }
    let megabytes = try parameters.uint64("size_in_mib")
    guard megabytes <= UInt64(Int64.max) >> 20 else { throw Methods.systemError(EINVAL) }
    return megabytes << 20
  }

  private func snapshotLvol(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(request, allowed: ["lvol_name", "snapshot_name"])
    let name = try parameters.string("snapshot_name")
    let origin = try inventory.requireLvol(try parameters.string("lvol_name"))
    let snapshot = try making(request.method) { try origin.store.snapshot(of: origin.uuid, name: name) }
    reply(.success(.string(try inventory.addLvol(snapshot, origin.store).name)))
  }

  private func cloneLvol(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(request, allowed: ["snapshot_name", "clone_name"])
    let name = try parameters.string("clone_name")
    let origin = try inventory.requireLvol(try parameters.string("snapshot_name"))
    let clone = try making(request.method) { try origin.store.clone(of: origin.uuid, name: name) }
    reply(.success(.string(try inventory.addLvol(clone, origin.store).name)))
  }

  private func renameLvol(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(request, allowed: ["old_name", "new_name"])
    let name = try parameters.string("new_name")
    let device = try inventory.requireLvol(try parameters.string("old_name"))
    try making(request.method) { try device.store.rename(device.uuid, to: name) }
    inventory.rename(device, aliases: ["\(device.store.manifest.name)/\(name)"])
    reply(.success(true))
  }

  private func resizeLvol(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(request, allowed: ["name", "size_in_mib", "size"])
    let bytes = try size(parameters)
    let device = try inventory.requireLvol(try parameters.string("name"))
    let size = try making(request.method) { try resize(device, bytes) }
    device.resize(size)
    reply(.success(true))
  }

  private func resize(_ device: LvolDevice, _ bytes: UInt64) throws(SoftDPUError) -> UInt64 {
    let before = device.size
    guard let wanted = device.store.wholeClusters(bytes) else { throw .system(EINVAL, "resize \(device.name)") }
    if wanted < before, let user = device.users.first {
      throw SoftDPUError(
        code: .system(EBUSY), operation: "shrink \(device.name)", message: "\(user.description) uses it")
    }
    // What goes is out of reach before it goes.
    if wanted < before { device.resize(wanted) }
    do throws(SoftDPUError) {
      return try device.store.resize(device.uuid, bytes: bytes)
    } catch {
      if wanted < before { device.resize(before) }
      throw error
    }
  }

  private func setReadOnly(_ request: Request, _ reply: Reply) throws {
    let device = try inventory.requireLvol(try Parameters(request, allowed: ["name"]).string("name"))
    try making(request.method) { try device.store.setReadOnly(device.uuid) }
    device.makeReadOnly()
    reply(.success(true))
  }

  /// Copying takes its time, and other calls go on meanwhile.
  private func separateLvol(_ request: Request, isThick: Bool, _ reply: @escaping Reply) throws {
    let device = try inventory.requireLvol(try Parameters(request, allowed: ["name"]).string("name"))
    LvolStore.slowWork.async {
      do {
        try making(request.method) { try device.store.separate(device.uuid, isThick: isThick) }
        reply(.success(true))
      } catch {
        reply(.failure(answer(error, request.method)))
      }
    }
  }

  private func deleteLvol(_ request: Request, _ reply: Reply) throws {
    let name = try Parameters(request, allowed: ["name"]).string("name")
    if inventory.device(name) == nil, try inventory.deleteHiddenLvol(name) { return reply(.success(true)) }
    let device = try inventory.requireLvol(name)
    // SPDK answers with "internal error" where clones rest on a snapshot.
    guard device.store.manifest.clones(of: device.uuid).count <= 1 else {
      throw ResponseError.internalError(systemText(EPERM))
    }
    try inventory.deleteLvol(device)
    reply(.success(true))
  }

  private func getLvols(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(request, allowed: ["lvs_uuid", "lvs_name"])
    let uuid = try parameters.optionalString("lvs_uuid")
    let name = try parameters.optionalString("lvs_name")
    let stores = uuid == nil && name == nil ? inventory.stores : [try inventory.requireStore(uuid: uuid, name: name)]
    let entries = stores.flatMap { store -> [JSONValue] in
      let manifest = store.manifest
      return manifest.lvols.values.sorted { $0.name < $1.name }.map { lvol in
        [
          "alias": .string("\(manifest.name)/\(lvol.name)"), "uuid": .string(lvol.uuid), "name": .string(lvol.name),
          "is_thin_provisioned": .bool(lvol.isThin), "is_snapshot": .bool(lvol.isSnapshot),
          "is_clone": .bool(lvol.parent != nil && !lvol.isSnapshot), "is_esnap_clone": false,
          "is_degraded": .bool(inventory.device(lvol.uuid) == nil),
          "lvs": ["name": .string(manifest.name), "uuid": .string(manifest.uuid)],
        ]
      }
    }
    reply(.success(.array(entries)))
  }
}
