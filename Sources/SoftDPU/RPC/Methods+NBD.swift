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
    let parameters = try Parameters(request, allowed: ["bdev_name", "nbd_device"])
    let disk = try inventory.startNBD(
      device: try parameters.string("bdev_name"), at: try parameters.string("nbd_device"))
    reply(.success(.string(disk.address)))
  }

  private func stopDisk(_ request: Request, _ reply: @escaping Reply) throws {
    let address = try Parameters(request, allowed: ["nbd_device"]).string("nbd_device")
    inventory.dropUnrestored(address)
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
          disks.map { ["nbd_device": .string($0.address), "bdev_name": .string($0.device.name)] })))
  }
}
