import Glibc
import JSON
import JSONRPC

extension Methods {
  static let crypto: [String: Method] = [
    "accel_crypto_key_create": { try $0.createKey($1, $2) },
    "accel_crypto_key_destroy": { try $0.destroyKey($1, $2) },
    "accel_crypto_keys_get": { try $0.getKeys($1, $2) },
    "bdev_crypto_create": { try $0.createCrypto($1, $2) },
    "bdev_crypto_delete": { try $0.delete($1, CryptoDevice.self, madeBy: "bdev_crypto_create", $2) },
  ]

  private func createKey(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(request, allowed: ["name", "cipher", "key", "key2", "tweak_mode"])
    let name = try parameters.string("name")
    let key = try parameters.string("key")
    let tweak = try parameters.optionalString("key2")
    let mode = try parameters.optionalString("tweak_mode") ?? "SIMPLE_LBA"
    // No error names a key: what is wrong with it is in the documentation.
    guard try parameters.string("cipher").uppercased() == "AES_XTS", mode == "SIMPLE_LBA", !name.isEmpty,
      let bytes = UniqueID.hexadecimal(key), let second = tweak.flatMap(UniqueID.hexadecimal),
      let made = CryptoKey(name: name, key: bytes, tweak: second)
    else { throw Methods.systemError(EINVAL) }
    try inventory.addKey(made)
    reply(.success(true))
  }

  private func destroyKey(_ request: Request, _ reply: Reply) throws {
    try inventory.removeKey(try Parameters(request, allowed: ["key_name"]).string("key_name"))
    reply(.success(true))
  }

  /// SPDK shows the keys; nothing here does.
  private func getKeys(_ request: Request, _ reply: Reply) throws {
    let name = try Parameters(request, allowed: ["key_name"]).optionalString("key_name")
    let keys = inventory.keys.filter { name == nil || $0.name == name }
    guard name == nil || !keys.isEmpty else { throw Methods.systemError(ENODEV) }
    reply(
      .success(
        .array(keys.map { ["name": .string($0.name), "cipher": "AES_XTS", "tweak_mode": "SIMPLE_LBA"] })))
  }

  private func createCrypto(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(request, allowed: ["base_bdev_name", "name", "key_name", "module"])
    let name = try parameters.string("name")
    let below = try inventory.requireDevice(try parameters.string("base_bdev_name"), "encrypt")
    let keyName = try parameters.string("key_name")
    guard let key = inventory.keys.first(where: { $0.name == keyName }) else { throw Methods.systemError(ENOENT) }
    let uuid = UniqueID.derived(from: below.uuid, "crypto \(name)")
    try inventory.checkFree([name, uuid], "create bdev \(name)")
    try addLayer(CryptoDevice(name: name, uuid: uuid, below: below, key: key))
    reply(.success(.string(name)))
  }
}
