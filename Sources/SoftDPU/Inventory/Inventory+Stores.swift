import Glibc
import Logging

extension Inventory {
  /// By UUID or by name: SPDK's methods take one of the two. ENODEV where there is none.
  func requireStore(uuid: String?, name: String?) throws(SoftDPUError) -> LvolStore {
    let operation = "find lvstore \(uuid ?? name ?? "")"
    guard (uuid == nil) != (name == nil) else { throw .system(EINVAL, operation) }
    guard let store = stores.first(where: { $0.manifest.uuid == uuid || $0.manifest.name == name }) else {
      throw .system(ENODEV, operation)
    }
    return store
  }

  /// By UUID or alias. ENODEV where there is none, or where it is something else.
  func requireLvol(_ name: String) throws(SoftDPUError) -> LvolDevice {
    guard let device = device(name) as? LvolDevice else { throw .system(ENODEV, "find lvol \(name)") }
    return device
  }

  /// Opens the store that a folder has, if any, with all that it has.
  func examine(_ folder: FolderDevice) throws(SoftDPUError) {
    guard let store = try LvolStore.open(folder: folder.path, base: folder, logger: logger) else { return }
    try enter(store, folder)
    for lvol in store.manifest.lvols.values.sorted(by: { $0.name < $1.name }) {
      do throws(SoftDPUError) {
        try add(LvolDevice(lvol, store: store, reactor: idlestReactor))
      } catch {
        // The process before this one may still hold it for a moment: the whole is tried again.
        if error.code == .system(EBUSY) {
          try? closeStores(on: folder)
          throw error
        }
        logger.error(
          "a volume of a store could not be opened",
          metadata: ["lvol": "\(lvol.name)", "store": "\(store.manifest.name)", "error": "\(error)"])
      }
    }
  }

  private func enter(_ store: LvolStore, _ folder: FolderDevice) throws(SoftDPUError) {
    let manifest = store.manifest
    guard !stores.contains(where: { $0.manifest.name == manifest.name || $0.manifest.uuid == manifest.uuid }) else {
      throw .system(EEXIST, "open lvstore \(manifest.name)")
    }
    try folder.open(
      store, BlockDevice.User(description: "lvstore \(manifest.name)", isExclusive: true, onResize: { _ in }))
    change { $0.stores[manifest.uuid] = store }
    logger.info("lvstore opened", metadata: ["store": "\(manifest.name)", "folder": "\(store.folder)"])
  }

  /// EPERM where the folder has a store already, EINVAL where the device is no folder.
  func createStore(on baseName: String, name: String, clusterSize: UInt64) throws(SoftDPUError) -> LvolStore {
    let operation = "create lvstore \(name)"
    guard LvolManifest.isName(name) else { throw .system(EINVAL, operation) }
    guard let base = device(baseName) else { throw .system(ENODEV, operation) }
    guard !stores.contains(where: { $0.manifest.name == name }) else { throw .system(EEXIST, operation) }
    guard base.users.isEmpty else { throw .system(EPERM, operation) }
    guard let folder = base as? FolderDevice else {
      throw SoftDPUError(
        code: .invalid, operation: operation,
        message: "a store is a folder: create \(baseName) with a directory as its filename")
    }
    let store = try LvolStore.create(folder: folder.path, base: folder, name: name, clusterSize: clusterSize)
    try enter(store, folder)
    return store
  }

  /// Lets go of the stores of a folder, which stay on disk. EBUSY where a volume is in use.
  func closeStores(on folder: FolderDevice) throws(SoftDPUError) {
    for store in stores where store.base === folder {
      let lvols = try unused(store, "close lvstore \(store.manifest.name)")
      for lvol in lvols { try remove(lvol) }
      leave(store)
    }
  }

  private func unused(_ store: LvolStore, _ operation: String) throws(SoftDPUError) -> [LvolDevice] {
    let lvols = devices.compactMap { $0 as? LvolDevice }.filter { $0.store === store }
    if let busy = lvols.first(where: { !$0.users.isEmpty }), let user = busy.users.first {
      throw SoftDPUError(
        code: .system(EBUSY), operation: operation, message: "\(user.description) uses \(busy.name)")
    }
    return lvols
  }

  private func leave(_ store: LvolStore) {
    let uuid = store.manifest.uuid
    change { $0.stores[uuid] = nil }
    store.base.close(store)
  }

  func deleteStore(_ store: LvolStore) throws(SoftDPUError) {
    let lvols = try unused(store, "delete lvstore \(store.manifest.name)")
    for lvol in lvols { try remove(lvol) }
    try store.destroy()
    leave(store)
    logger.info("lvstore deleted", metadata: ["store": "\(store.manifest.name)"])
  }

  /// Shows a volume that was made just now; takes it back where that fails.
  func addLvol(_ lvol: LvolManifest.Lvol, _ store: LvolStore) throws(SoftDPUError) -> LvolDevice {
    do throws(SoftDPUError) {
      let device = try LvolDevice(lvol, store: store, reactor: idlestReactor)
      try add(device)
      return device
    } catch {
      do throws(SoftDPUError) {
        try store.delete(lvol.uuid)
      } catch {
        logger.error(
          "a volume that could not be shown stays in its store: delete it by STORE/NAME",
          metadata: ["lvol": "\(lvol.name)", "error": "\(error)"])
      }
      throw error
    }
  }

  /// Deletes a volume of a store that has no device, because it could not be opened: by UUID or STORE/NAME. False where
  /// there is none.
  func deleteHiddenLvol(_ name: String) throws(SoftDPUError) -> Bool {
    for store in stores {
      let manifest = store.manifest
      guard let lvol = manifest.lvols.values.first(where: { $0.uuid == name || "\(manifest.name)/\($0.name)" == name })
      else { continue }
      try store.delete(lvol.uuid)
      logger.info("a volume without a device was deleted", metadata: ["lvol": "\(name)"])
      return true
    }
    return false
  }

  func deleteLvol(_ device: LvolDevice) throws(SoftDPUError) {
    try device.store.checkDeletable(device.uuid)
    try remove(device)
    do throws(SoftDPUError) {
      try device.store.delete(device.uuid)
    } catch {
      // Only where the store still has it.
      if device.store.manifest.lvols[device.uuid] != nil { try? add(device) }
      throw error
    }
  }
}
