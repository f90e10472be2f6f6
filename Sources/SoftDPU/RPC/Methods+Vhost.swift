import Glibc
import JSON
import JSONRPC

extension Methods {
  static let vhost: [String: Method] = [
    "vhost_create_blk_controller": { try $0.createController($1, $2) },
    "vhost_delete_controller": { try $0.deleteController($1, $2) },
    "vhost_get_controllers": { try $0.getControllers($1, $2) },
  ]

  /// SPDK's vhost methods answer with "invalid parameters" and the text of the error number.
  private static func vhostError(_ number: CInt) -> ResponseError { .invalidParams(systemText(number)) }

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
      let device = try parameters.string("dev_name")
      let isReadOnly = try parameters.bool("readonly")
      // The reactor is the device's; packed rings are not offered, so that asking for them has to fail.
      _ = try parameters.optionalString("cpumask")
      let transport = try parameters.optionalString("transport") ?? "vhost_user_blk"
      guard transport == "vhost_user_blk", try !parameters.bool("packed_ring"),
        try !parameters.bool("packed_ring_recovery")
      else { throw Methods.vhostError(EINVAL) }
      try withInvalidParameters(request.method) {
        try inventory.createController(name, device: device, isReadOnly: isReadOnly)
      }
    } catch is Parameters.Failure {
      throw Methods.vhostError(EINVAL)
    }
    reply(.success(true))
  }

  private func deleteController(_ request: Request, _ reply: @escaping Reply) throws {
    // Not in SPDK: with "force" the front end is cut off where it does not let go.
    let parameters = try vhostParameters(request, allowed: ["ctrlr", "force"])
    guard let name = try? parameters.string("ctrlr"), let isForced = try? parameters.bool("force") else {
      throw Methods.vhostError(EINVAL)
    }
    inventory.dropUnrestored(key: ConfigurationCall.key("vhost_create_blk_controller", name))
    inventory.deleteController(name, isForced: isForced) { result in
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
          "bdev": .string(controller.device.name),
          "readonly": .bool(controller.isReadOnly),
          "transport": "vhost_user_blk",
        ]
      ],
    ]
  }
}
