import Glibc
import JSON
import JSONRPC

extension Methods {
  static let layers: [String: Method] = [
    "bdev_delay_create": { try $0.createDelay($1, $2) },
    "bdev_delay_update_latency": { try $0.updateDelay($1, $2) },
    "bdev_delay_delete": { try $0.delete($1, DelayDevice.self, madeBy: "bdev_delay_create", $2) },
    "bdev_error_create": { try $0.createError($1, $2) },
    "bdev_error_inject_error": { try $0.injectError($1, $2) },
    "bdev_error_resume_pending": { try $0.resumePending($1, $2) },
    "bdev_error_delete": { try $0.delete($1, ErrorDevice.self, madeBy: "bdev_error_create", $2) },
  ]

  private func createDelay(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(
      request,
      allowed: [
        "base_bdev_name", "name", "uuid", "avg_read_latency", "p99_read_latency", "avg_write_latency",
        "p99_write_latency",
      ])
    let name = try parameters.string("name")
    let below = try inventory.requireDevice(try parameters.string("base_bdev_name"), "delay")
    let latencies = DelayLatencies(
      averageRead: try parameters.uint64("avg_read_latency"), p99Read: try parameters.uint64("p99_read_latency"),
      averageWrite: try parameters.uint64("avg_write_latency"), p99Write: try parameters.uint64("p99_write_latency"))
    guard latencies.isSound else { throw Methods.systemError(EINVAL) }
    let uuid = try uuid(parameters)
    try inventory.checkFree([name, uuid], "create bdev \(name)")
    try addLayer(DelayDevice(name: name, uuid: uuid, below: below, latencies: latencies))
    reply(.success(.string(name)))
  }

  private func updateDelay(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(request, allowed: ["delay_bdev_name", "latency_type", "latency_us"])
    let type = try parameters.string("latency_type")
    let latency = try parameters.uint64("latency_us")
    guard
      let device = try inventory.requireDevice(try parameters.string("delay_bdev_name"), "delay") as? DelayDevice
    else { throw Methods.systemError(ENODEV) }
    let paths: [String: WritableKeyPath<DelayLatencies, UInt64>] = [
      "avg_read": \.averageRead, "p99_read": \.p99Read, "avg_write": \.averageWrite, "p99_write": \.p99Write,
    ]
    guard let path = paths[type], device.update({ $0[keyPath: path] = latency }) else {
      throw Methods.systemError(EINVAL)
    }
    try inventory.recordCreation(device)
    reply(.success(true))
  }

  private func createError(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(request, allowed: ["base_name", "uuid"])
    let below = try inventory.requireDevice(try parameters.string("base_name"), "inject errors into")
    let uuid = try uuid(parameters)
    try inventory.checkFree(["EE_\(below.name)", uuid], "create bdev EE_\(below.name)")
    try addLayer(ErrorDevice(uuid: uuid, below: below))
    reply(.success(true))
  }

  /// Enters a layer, or lets go of the device below where that fails.
  func addLayer(_ device: LayerDevice) throws {
    do {
      try inventory.add(device)
    } catch {
      device.release()
      throw error
    }
  }

  private func injectError(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(
      request,
      allowed: [
        "name", "io_type", "error_type", "num", "queue_depth", "corrupt_offset", "corrupt_value", "nvme_sct", "nvme_sc",
      ])
    let type = try parameters.string("io_type")
    let fault = try parameters.string("error_type")
    guard let device = try inventory.requireDevice(try parameters.string("name"), "inject errors into") as? ErrorDevice
    else { throw Methods.systemError(ENODEV) }
    let all: [BlockIO.Kind] = [.read, .write, .flush, .unmap, .writeZeroes]
    if type == "clear" {
      device.inject(all, nil)
      return reply(.success(true))
    }
    let kinds: [String: [BlockIO.Kind]] = [
      "read": [.read], "write": [.write], "flush": [.flush], "unmap": [.unmap], "write_zeroes": [.writeZeroes],
      "all": all,
    ]
    guard let chosen = kinds[type], let fault = ErrorDevice.Fault(rawValue: fault),
      fault != .corruptData || chosen == [.read],
      let value = UInt8(exactly: try parameters.optionalUInt32("corrupt_value") ?? 0xFF), value > 0
    else { throw Methods.systemError(EINVAL) }
    device.inject(
      chosen,
      ErrorDevice.Injection(
        fault: fault, count: UInt64(try parameters.optionalUInt32("num") ?? 1),
        corruptOffset: try parameters.optionalUInt64("corrupt_offset") ?? 0, corruptValue: value))
    reply(.success(true))
  }

  private func resumePending(_ request: Request, _ reply: Reply) throws {
    let name = try Parameters(request, allowed: ["name"]).string("name")
    guard let device = try inventory.requireDevice(name, "let requests go on of") as? ErrorDevice else {
      throw Methods.systemError(ENODEV)
    }
    device.resumePending()
    reply(.success(true))
  }
}
