import Glibc
import JSON
import JSONRPC

extension Methods {
  static let nbd: [String: Method] = [
    "nbd_start_disk": { try $0.startDisk($1, $2) },
    "nbd_stop_disk": { try $0.stopDisk($1, $2) },
    "nbd_get_disks": { try $0.getDisks($1, $2) },
  ]

  private func startDisk(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(
      request,
      allowed: ["bdev_name", "nbd_device", "tls_mode", "tls_certificate", "tls_key", "tls_ca", "tls_psk"])
    let device = try parameters.string("bdev_name")
    let address = try parameters.string("nbd_device")
    let encryption = try encryption(parameters)
    do {
      let disk = try inventory.startNBD(device: device, at: address, encryption: encryption)
      reply(.success(.string(disk.address)))
    } catch {
      guard error.code == .invalid else { throw error }
      // What is wrong with an address or a file is more than a number can say.
      throw ResponseError(code: -Int(EINVAL), message: error.message)
    }
  }

  /// Nil where the export has no TLS.
  private func encryption(_ parameters: Parameters) throws -> NBDEncryption? {
    let files = TLSFiles(
      certificate: try parameters.optionalString("tls_certificate"), key: try parameters.optionalString("tls_key"),
      ca: try parameters.optionalString("tls_ca"), sharedKeys: try parameters.optionalString("tls_psk"))
    let name = try parameters.optionalString("tls_mode") ?? (files == TLSFiles() ? "none" : "required")
    guard name != "none" || files != TLSFiles() else { return nil }
    guard let mode = NBDEncryption.Mode(rawValue: name) else {
      throw ResponseError(
        code: -Int(EINVAL),
        message: name == "none"
          ? "tls_mode none takes no TLS files: leave them out, or give allowed or required"
          : "tls_mode \(name): give none, allowed or required")
    }
    return NBDEncryption(mode: mode, files: files)
  }

  private func stopDisk(_ request: Request, _ reply: @escaping Reply) throws {
    let address = try Parameters(request, allowed: ["nbd_device"]).string("nbd_device")
    inventory.dropUnrestored(key: ConfigurationCall.key("nbd_start_disk", address))
    inventory.stopNBD(address) { result in
      reply(result.map { JSONValue.bool(true) }.mapError { Methods.systemError($0.errorNumber) })
    }
  }

  private func getDisks(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(request, allowed: ["nbd_device"])
    var disks = inventory.nbdDisks
    if let address = try parameters.optionalString("nbd_device") {
      guard let disk = inventory.nbdDisk(address) else { throw Methods.systemError(ENODEV) }
      disks = [disk]
    }
    reply(
      .success(
        .array(
          disks.map { disk in
            var entry: JSONValue = ["nbd_device": .string(disk.address), "bdev_name": .string(disk.device.name)]
            // SPDK has none, and shows none.
            if let encryption = disk.encryption { entry["tls_mode"] = .string(encryption.mode.rawValue) }
            return entry
          })))
  }
}
