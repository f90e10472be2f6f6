import Dispatch
import Glibc
import JSON
import JSONRPC
import Logging

/// SPDK's JSON-RPC methods, as far as this data plane has them, with SPDK's parameters, results and errors.
struct Methods: Sendable {
  typealias Reply = @Sendable (Result<JSONValue, ResponseError>) -> Void
  typealias Method = @Sendable (_ methods: Methods, _ request: Request, _ reply: @escaping Reply) throws -> Void

  let inventory: Inventory
  /// What `spdk_get_version` calls this program.
  let version: String

  static let table: [String: Method] = [
    "spdk_get_version": { try $0.getVersion($1, $2) },
    "rpc_get_methods": { try $0.getMethods($1, $2) },
    "bdev_get_bdevs": { try $0.getBdevs($1, $2) },
    "bdev_aio_create": { try $0.createAIO($1, $2) },
    "bdev_aio_delete": { try $0.deleteAIO($1, $2) },
    "bdev_aio_rescan": { try $0.rescanAIO($1, $2) },
    "vhost_create_blk_controller": { try $0.createController($1, $2) },
    "vhost_delete_controller": { try $0.deleteController($1, $2) },
    "vhost_get_controllers": { try $0.getControllers($1, $2) },
  ]

  /// Answers one request.
  func handle(_ request: Request, _ reply: @escaping Reply) {
    guard let method = Methods.table[request.method] else { return reply(.failure(.methodNotFound)) }
    do {
      try method(self, request, reply)
    } catch let error as ResponseError {
      reply(.failure(error))
    } catch is Parameters.Failure {
      reply(.failure(Methods.undecodable))
    } catch let error as SoftDPUError {
      inventory.logger.warning("a call failed", metadata: ["method": "\(request.method)", "error": "\(error)"])
      reply(.failure(Methods.systemError(error.errorNumber)))
    } catch {
      reply(.failure(.internalError("\(error)")))
    }
  }

  /// What SPDK answers where parameters do not decode.
  private static let undecodable = ResponseError.internalError("spdk_json_decode_object failed")

  /// SPDK's bdev methods answer with the negative error number and its text.
  private static func systemError(_ number: CInt) -> ResponseError {
    ResponseError(code: -Int(number), message: systemText(number))
  }

  /// SPDK's vhost methods answer with "invalid parameters" and the text of the error number.
  private static func vhostError(_ number: CInt) -> ResponseError { .invalidParams(systemText(number)) }

  // MARK: Application

  private func getVersion(_ request: Request, _ reply: Reply) throws {
    guard request.params == nil else {
      throw ResponseError.invalidParams("spdk_get_version method requires no parameters")
    }
    // The fields tell clients which release's methods these are.
    reply(
      .success([
        "version": .string(version),
        "fields": ["major": 26, "minor": 9, "patch": 0, "suffix": ""],
      ]))
  }

  private func getMethods(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(request, allowed: ["current", "include_aliases"])
    _ = (try parameters.bool("current"), try parameters.bool("include_aliases"))
    reply(.success(.array(Methods.table.keys.sorted().map { .string($0) })))
  }

  // MARK: Volumes

  private func getBdevs(_ request: Request, _ reply: @escaping Reply) throws {
    let parameters = try Parameters(request, allowed: ["name", "timeout"])
    let timeout = try parameters.optionalUInt32("timeout")
    guard let name = try parameters.optionalString("name") else {
      return reply(.success(.array(inventory.volumes.map(Methods.describe))))
    }
    if let volume = inventory.volume(name) { return reply(.success([Methods.describe(volume)])) }
    guard let timeout, timeout > 0 else { throw Methods.systemError(ENODEV) }
    waitForVolume(name, until: .now() + .milliseconds(Int(timeout)), reply)
  }

  /// Looks again until the volume is there.
  private func waitForVolume(_ name: String, until deadline: DispatchTime, _ reply: @escaping Reply) {
    DispatchQueue.global().asyncAfter(deadline: min(deadline, .now() + .milliseconds(20))) {
      if let volume = inventory.volume(name) {
        reply(.success([Methods.describe(volume)]))
      } else if DispatchTime.now() >= deadline {
        reply(.failure(Methods.systemError(ETIMEDOUT)))
      } else {
        waitForVolume(name, until: deadline, reply)
      }
    }
  }

  private func createAIO(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(
      request, allowed: ["name", "filename", "block_size", "readonly", "fallocate", "uuid", "nowait"])
    let name = try parameters.string("name")
    let file = try parameters.string("filename")
    let blockSize = try parameters.optionalUInt32("block_size")
    _ = try parameters.bool("nowait")
    let uuid = try parameters.optionalString("uuid")
    if let uuid, !UniqueID.isValid(uuid) { throw Methods.systemError(EINVAL) }
    guard !name.isEmpty else { throw Methods.systemError(EINVAL) }
    try inventory.createVolume(
      FileDevice.Parameters(
        name: name, file: file, blockSize: blockSize ?? 0, isReadOnly: try parameters.bool("readonly"),
        canUnmap: try parameters.bool("fallocate"), uuid: uuid?.lowercased() ?? UniqueID.random()),
      blockSize: blockSize == 0 ? nil : blockSize)
    reply(.success(.string(name)))
  }

  private func deleteAIO(_ request: Request, _ reply: Reply) throws {
    let name = try Parameters(request, allowed: ["name"]).string("name")
    try inventory.deleteVolume(name)
    reply(.success(true))
  }

  private func rescanAIO(_ request: Request, _ reply: Reply) throws {
    let name = try Parameters(request, allowed: ["name"]).string("name")
    try inventory.rescanVolume(name)
    reply(.success(true))
  }

  private static func describe(_ volume: Inventory.Volume) -> JSONValue {
    let parameters = volume.device.parameters
    let canUnmap = parameters.canUnmap && !parameters.isReadOnly
    return [
      "name": .string(parameters.name),
      "aliases": [.string(parameters.uuid)],
      "product_name": "AIO disk",
      "block_size": .integer(Int64(parameters.blockSize)),
      "num_blocks": .integer(Int64(volume.size / UInt64(parameters.blockSize))),
      "uuid": .string(parameters.uuid),
      "assigned_rate_limits": [
        "rw_ios_per_sec": 0, "rw_mbytes_per_sec": 0, "r_mbytes_per_sec": 0, "w_mbytes_per_sec": 0,
      ],
      "claimed": false,
      "zoned": false,
      "supported_io_types": [
        "read": true, "write": .bool(!parameters.isReadOnly), "unmap": .bool(canUnmap), "flush": true, "reset": false,
        "nvme_admin": false, "nvme_io": false, "nvme_io_md": false, "write_zeroes": .bool(canUnmap), "zcopy": false,
        "get_zone_info": false, "zone_management": false, "zone_append": false, "compare": false,
        "compare_and_write": false, "abort": false, "seek_hole": false, "seek_data": false, "copy": false,
        "nvme_iov_md": false,
      ],
      "driver_specific": [
        "aio": [
          "filename": .string(parameters.file),
          "block_size_override": .bool(volume.hasOwnBlockSize),
          "readonly": .bool(parameters.isReadOnly),
          "fallocate": .bool(parameters.canUnmap),
        ]
      ],
    ]
  }

  // MARK: Controllers

  private func vhostParameters(_ request: Request, allowed: Set<String>) throws(ResponseError) -> Parameters {
    do throws(Parameters.Failure) {
      return try Parameters(request, allowed: allowed)
    } catch {
      throw Methods.vhostError(EINVAL)
    }
  }

  private func createController(_ request: Request, _ reply: Reply) throws {
    do {
      let parameters = try Parameters(
        request,
        allowed: ["ctrlr", "dev_name", "cpumask", "readonly", "packed_ring", "packed_ring_recovery", "transport"])
      let name = try parameters.string("ctrlr")
      let volume = try parameters.string("dev_name")
      let isReadOnly = try parameters.bool("readonly")
      // The reactor is the volume's; packed rings are not offered, so that asking for them has to fail.
      _ = try parameters.optionalString("cpumask")
      let transport = try parameters.optionalString("transport") ?? "vhost_user_blk"
      guard transport == "vhost_user_blk", try !parameters.bool("packed_ring"),
        try !parameters.bool("packed_ring_recovery")
      else { throw Methods.vhostError(EINVAL) }
      try inventory.createController(name, volume: volume, isReadOnly: isReadOnly)
    } catch let error as SoftDPUError {
      inventory.logger.warning("a call failed", metadata: ["method": "\(request.method)", "error": "\(error)"])
      throw Methods.vhostError(error.errorNumber)
    } catch is Parameters.Failure {
      throw Methods.vhostError(EINVAL)
    }
    reply(.success(true))
  }

  private func deleteController(_ request: Request, _ reply: @escaping Reply) throws {
    let parameters = try vhostParameters(request, allowed: ["ctrlr"])
    guard let name = try? parameters.string("ctrlr") else { throw Methods.vhostError(EINVAL) }
    inventory.deleteController(name) { result in
      reply(result.map { JSONValue.bool(true) }.mapError { Methods.vhostError($0.errorNumber) })
    }
  }

  private func getControllers(_ request: Request, _ reply: Reply) throws {
    let parameters = try vhostParameters(request, allowed: ["name"])
    guard let name = try parameters.optionalString("name") else {
      return reply(.success(.array(inventory.controllers.map(Methods.describe))))
    }
    guard let controller = inventory.controller(name) else { throw Methods.vhostError(ENODEV) }
    reply(.success([Methods.describe(controller)]))
  }

  private static func describe(_ controller: VhostController) -> JSONValue {
    [
      "ctrlr": .string(controller.name),
      "cpumask": .string("0x" + String(1 << UInt64(min(63, controller.reactor.number)), radix: 16)),
      "delay_base_us": 0,
      "iops_threshold": 60000,
      // Not in SPDK: deleted, but a front end still holds on to it.
      "retiring": .bool(controller.isRetiring),
      "socket": .string(controller.path),
      "sessions": controller.isConnected
        ? [["vid": 0, "id": 0, "name": .string(controller.name), "started": true]] : [],
      "backend_specific": [
        "block": [
          "bdev": .string(controller.device.parameters.name),
          "readonly": .bool(controller.isReadOnly),
          "transport": "vhost_user_blk",
        ]
      ],
    ]
  }
}
