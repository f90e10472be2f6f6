import CLinux
import Dispatch
import Glibc
import JSON
import JSONRPC

extension Methods {
  static let devices: [String: Method] = [
    "bdev_get_bdevs": { try $0.getBdevs($1, $2) },
    "bdev_get_iostat": { try $0.getStatistics($1, $2) },
    "bdev_reset_iostat": { try $0.resetStatistics($1, $2) },
    "bdev_set_qos_limit": { try $0.setLimits($1, $2) },
    "bdev_wait_for_examine": { _, _, reply in reply(.success(true)) },
  ]

  private func getBdevs(_ request: Request, _ reply: @escaping Reply) throws {
    let parameters = try Parameters(request, allowed: ["name", "timeout"])
    let timeout = try parameters.optionalUInt32("timeout")
    guard let name = try parameters.optionalString("name") else {
      return reply(.success(.array(inventory.devices.map(Methods.describe))))
    }
    if let device = inventory.device(name) { return reply(.success([Methods.describe(device)])) }
    guard let timeout, timeout > 0 else { throw Methods.systemError(ENODEV) }
    waitForDevice(name, until: .now() + .milliseconds(Int(timeout)), reply)
  }

  /// Looks again until the device is there.
  private func waitForDevice(_ name: String, until deadline: DispatchTime, _ reply: @escaping Reply) {
    DispatchQueue.global().asyncAfter(deadline: min(deadline, .now() + .milliseconds(20))) {
      if let device = inventory.device(name) {
        reply(.success([Methods.describe(device)]))
      } else if DispatchTime.now() >= deadline {
        reply(.failure(Methods.systemError(ETIMEDOUT)))
      } else {
        waitForDevice(name, until: deadline, reply)
      }
    }
  }

  static func describe(_ device: BlockDevice) -> JSONValue {
    // SAFETY: these members do not change after the device was made, but for `isReadOnly`, a single byte.
    let shape = unsafe device.target.pointee
    let canWrite = unsafe !shape.isReadOnly
    return [
      "name": .string(device.name),
      "aliases": .array((device.aliases + (device.name == device.uuid ? [] : [device.uuid])).map { .string($0) }),
      "product_name": .string(device.productName),
      "block_size": .integer(Int64(device.blockSize)),
      "num_blocks": .integer(Int64(device.size / UInt64(device.blockSize))),
      "uuid": .string(device.uuid),
      "assigned_rate_limits": device.limits.json,
      "claimed": .bool(device.isClaimed),
      "zoned": false,
      "supported_io_types": [
        "read": true, "write": .bool(canWrite), "unmap": .bool(unsafe canWrite && shape.canUnmap), "flush": true,
        "reset": false, "nvme_admin": false, "nvme_io": false, "nvme_io_md": false,
        "write_zeroes": .bool(unsafe canWrite && shape.canWriteZeroes), "zcopy": false, "get_zone_info": false,
        "zone_management": false, "zone_append": false, "compare": false, "compare_and_write": false, "abort": false,
        "seek_hole": false, "seek_data": false, "copy": false, "nvme_iov_md": false,
      ],
      "driver_specific": device.specifics,
    ]
  }

  // MARK: Statistics

  private func getStatistics(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(request, allowed: ["name", "names", "per_channel", "reset_mode"])
    let names: [String]?
    if let name = try parameters.optionalString("name") {
      names = [name]
    } else {
      names = try parameters.optionalStrings("names")
    }
    guard try !parameters.bool("per_channel") else {
      throw ResponseError.invalidParams("per_channel is not offered: a device has one reactor")
    }
    let mode = try resetMode(parameters.optionalString("reset_mode"))
    var devices = inventory.devices
    if let names {
      devices = []
      for name in names { devices.append(try inventory.requireDevice(name, "read statistics of")) }
    }
    let now = clinux_monotonic_nanoseconds()
    let counters = BlockDevice.counters(of: devices)
    let entries = devices.indices.map { index -> JSONValue in
      let device = devices[index]
      var value = Methods.describe(counters[index])
      value["name"] = .string(device.name)
      if mode == "all" { device.resetCounters() }
      return value
    }
    reply(
      .success([
        "tick_rate": 1_000_000_000, "ticks": .integer(Int64(clamping: now)), "bdevs": .array(entries),
      ]))
  }

  private func resetMode(_ mode: String?) throws -> String {
    let mode = mode ?? "none"
    guard ["all", "maxmin", "error", "none"].contains(mode) else { throw Parameters.Failure() }
    return mode
  }

  private func resetStatistics(_ request: Request, _ reply: Reply) throws {
    let parameters = try Parameters(request, allowed: ["name", "mode"])
    let name = try parameters.optionalString("name")
    _ = try resetMode(parameters.optionalString("mode"))
    var devices = inventory.devices
    if let name { devices = [try inventory.requireDevice(name, "reset statistics of")] }
    for device in devices { device.resetCounters() }
    reply(.success(true))
  }

  static func describe(_ counters: IOCounters) -> JSONValue {
    let errors: JSONValue = counters.errors == 0 ? [:] : ["failed": number(counters.errors)]
    var value: JSONValue = [
      "num_flush_ops": number(counters.flush.operations), "flush_latency_ticks": number(counters.flush.sum),
      "num_write_zeroes_ops": number(counters.writeZeroes.operations),
      "bytes_write_zeroes": number(counters.writeZeroes.bytes),
      "write_zeroes_latency_ticks": number(counters.writeZeroes.sum), "bytes_copied": 0, "num_copy_ops": 0,
      "copy_latency_ticks": 0, "max_copy_latency_ticks": 0, "min_copy_latency_ticks": 0, "io_error": errors,
    ]
    for (of, bytes, operations, latency) in [
      (counters.read, "bytes_read", "num_read_ops", "read"),
      (counters.write, "bytes_written", "num_write_ops", "write"),
      (counters.unmap, "bytes_unmapped", "num_unmap_ops", "unmap"),
    ] {
      value[bytes] = number(of.bytes)
      value[operations] = number(of.operations)
      value["\(latency)_latency_ticks"] = number(of.sum)
      value["max_\(latency)_latency_ticks"] = number(of.greatest)
      value["min_\(latency)_latency_ticks"] = number(of.least)
    }
    return value
  }

  private static func number(_ value: UInt64) -> JSONValue { .integer(Int64(clamping: value)) }

  // MARK: Limits

  private func setLimits(_ request: Request, _ reply: Reply) throws {
    let names = ["rw_ios_per_sec", "rw_mbytes_per_sec", "r_mbytes_per_sec", "w_mbytes_per_sec"]
    let parameters = try Parameters(request, allowed: Set(names + ["name"]))
    let device = try inventory.requireDevice(try parameters.string("name"), "limit")
    var limits = device.limits
    let values = try names.map { try parameters.optionalUInt64($0) }
    guard values.contains(where: { $0 != nil }) else {
      throw ResponseError.invalidParams("No rate limits specified")
    }
    guard values.allSatisfy({ $0 ?? 0 <= UInt64(UInt32.max) }) else { throw Methods.systemError(EINVAL) }
    // SPDK rounds up to what it can keep in a slice of time; the least that it takes is 1000 requests a second.
    if let operations = values[0] { limits.operations = operations == 0 ? 0 : (operations + 999) / 1000 * 1000 }
    if let bytes = values[1] { limits.bytes = bytes << 20 }
    if let bytes = values[2] { limits.readBytes = bytes << 20 }
    if let bytes = values[3] { limits.writeBytes = bytes << 20 }
    let before = device.limits
    device.setLimits(limits)
    do throws(SoftDPUError) {
      try inventory.recordLimits(device)
    } catch {
      device.setLimits(before)
      throw error
    }
    reply(.success(true))
  }
}
