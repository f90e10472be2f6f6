import Glibc
import JSON
import JSONRPC

extension Methods {
  static let application: [String: Method] = [
    "spdk_get_version": { try $0.getVersion($1, $2) },
    "rpc_get_methods": { try $0.getMethods($1, $2) },
    "framework_get_reactors": { try $0.getReactors($1, $2) },
    "framework_get_subsystems": { try $0.getSubsystems($1, $2) },
    "framework_get_config": { try $0.getConfiguration($1, $2) },
    "notify_get_types": { try $0.getNotificationTypes($1, $2) },
    "notify_get_notifications": { try $0.getNotifications($1, $2) },
  ]

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

  private func getReactors(_ request: Request, _ reply: Reply) throws {
    guard request.params == nil else {
      throw ResponseError.invalidParams("framework_get_reactors requires no parameters")
    }
    let reactors = inventory.reactors.map { reactor -> JSONValue in
      [
        "lcore": .integer(Int64(reactor.number)), "tid": 0, "busy": 0, "idle": 0, "in_interrupt": true, "irq": 0,
        "sys": 0, "lw_threads": [],
      ]
    }
    reply(.success(["tick_rate": 1_000_000_000, "pid": .integer(Int64(getpid())), "reactors": .array(reactors)]))
  }

  private func getSubsystems(_ request: Request, _ reply: Reply) throws {
    _ = try Parameters(request, allowed: [])
    reply(
      .success(
        .array(
          SavedConfiguration.subsystems.map {
            ["subsystem": .string($0.name), "depends_on": .array($0.dependsOn.map { .string($0) })]
          })))
  }

  private func getConfiguration(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(request, allowed: ["name", "with_batches"])
    let name = try parameters.string("name")
    _ = try parameters.bool("with_batches")
    guard let calls = inventory.configuration(of: name) else {
      throw ResponseError.invalidParams("Subsystem '\(name)' not found")
    }
    reply(.success(.array(calls.map(\.json))))
  }

  private func getNotificationTypes(_ request: Request, _ reply: Reply) throws {
    guard request.params == nil else { throw ResponseError.invalidParams("No parameters required") }
    reply(.success(.array(Notifications.types.map { .string($0) })))
  }

  private func getNotifications(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(request, allowed: ["id", "max"])
    let id = try parameters.optionalUInt64("id") ?? 0
    let maximum = try parameters.optionalUInt64("max") ?? UInt64(Int32.max)
    reply(.success(inventory.notifications.list(from: id, maximum: Int(clamping: maximum))))
  }
}
