import Glibc
import JSON
import Logging

extension Inventory {
  /// In the order of their names.
  var keys: [CryptoKey] { change { state in state.keys.values.sorted { $0.name < $1.name } } }

  /// EEXIST where the name is taken.
  func addKey(_ key: CryptoKey) throws(SoftDPUError) {
    guard !keys.contains(where: { $0.name == key.name }) else { throw .system(EEXIST, "create key \(key.name)") }
    change { $0.keys[key.name] = key }
    do throws(SoftDPUError) {
      try saveKeys()
    } catch {
      change { $0.keys[key.name] = nil }
      throw error
    }
    logger.info("key added", metadata: ["key": "\(key.name)"])
  }

  /// ENODEV where there is none, EBUSY where a device is encrypted with it.
  func removeKey(_ name: String) throws(SoftDPUError) {
    let operation = "destroy key \(name)"
    guard let key = keys.first(where: { $0.name == name }) else { throw .system(ENODEV, operation) }
    if let user = devices.compactMap({ $0 as? CryptoDevice }).first(where: { $0.keyName == name }) {
      throw SoftDPUError(
        code: .system(EBUSY), operation: operation, message: "bdev \(user.name) is encrypted with it")
    }
    change { $0.keys[name] = nil }
    do throws(SoftDPUError) {
      try saveKeys()
    } catch {
      change { $0.keys[name] = key }
      throw error
    }
    logger.info("key removed", metadata: ["key": "\(name)"])
  }

  /// A file of their own, so that the configuration can be shown and copied without them.
  private func saveKeys() throws(SoftDPUError) {
    guard let keyFile else { return }
    // A key goes after the devices that were encrypted with it, on the disk as well.
    try store?.sync()
    try DurableFile.write(["keys": .array(keys.map(\.stored))], to: keyFile)
  }

  /// Reads the keys of the last process, before the configuration that names them.
  func restoreKeys() throws(SoftDPUError) {
    guard let keyFile, let saved = try DurableFile.read(keyFile) else { return }
    guard let entries = saved["keys"]?.arrayValue else {
      throw SoftDPUError(code: .state, operation: "read \(keyFile)", message: "not a file of keys; restore it")
    }
    for key in entries.compactMap(CryptoKey.init(stored:)) { change { $0.keys[key.name] = key } }
  }
}
