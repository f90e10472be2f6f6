import Glibc
import JSON
import JSONRPC
import TestSupport
import Testing

import SoftDPU
import Telemetry

@Suite struct BlockDeviceTests {
  private func bdev(_ target: Target, _ name: String) async throws -> JSONValue? {
    try await target.client.call("bdev_get_bdevs", ["name": .string(name)])[0]
  }

  private func statistics(_ target: Target, _ name: String) async throws -> JSONValue? {
    try await target.client.call("bdev_get_iostat", ["name": .string(name)])["bdevs"]?[0]
  }

  @Test func memoryKeepsWhatIsWrittenAndNullForgets() async throws {
    let target = try Target(.memory)
    let name = try await target.client.call("bdev_malloc_create", ["block_size": 512, "num_blocks": 16384])
    #expect(name == "Malloc0")
    await expectCode(-17) {
      try await target.client.call("bdev_malloc_create", ["name": "Malloc0", "block_size": 512, "num_blocks": 1])
    }
    await expectCode(-12) {
      try await target.client.call("bdev_malloc_create", ["block_size": 65536, "num_blocks": .integer(1 << 50)])
    }
    await expectCode(-22) {
      try await target.client.call("bdev_malloc_create", ["block_size": 500, "num_blocks": 8])
    }
    await expectCode(-32603) { try await target.client.call("bdev_malloc_create", ["block_size": 512]) }
    let uri = try await NBDTests.export(target, "Malloc0")
    _ = try await NBDTests.io(
      uri, "write -P 3 0 8M", "discard 100k 1M", "read -P 0 100k 1M", "read -P 3 0 100k", "read -P 3 2M 6M")

    _ = try await target.client.call("bdev_null_create", ["name": "n", "block_size": 4096, "num_blocks": 1024])
    let null = try await NBDTests.export(target, "n")
    _ = try await NBDTests.io(null, "write -P 3 0 1M", "read -P 0 0 1M")
    _ = try await target.client.call("bdev_null_resize", ["name": "n", "new_size": 8])
    #expect(try await bdev(target, "n")?["num_blocks"]?.intValue == 2048)
    await expectCode(-22) { try await target.client.call("bdev_null_resize", ["name": "n", "new_size": 4]) }
    await expectCode(-19) { try await target.client.call("bdev_malloc_delete", ["name": "n"]) }
    await expectCode(-16) { try await target.client.call("bdev_null_delete", ["name": "n"]) }
  }

  @Test func statisticsAreTrue() async throws {
    let target = try Target(.disk, megabytes: 64)
    try await target.createVolume()
    let uri = try await NBDTests.export(target, "disk")
    _ = try await NBDTests.io(uri, "write 0 4k", "write 4k 8k", "read 0 64k", "discard 1M 4k", "flush")
    let value = try await statistics(target, "disk")
    #expect(value?["num_write_ops"]?.intValue == 2 && value?["bytes_written"]?.intValue == 12288)
    // The client looks at the disk's first block by itself.
    #expect((value?["bytes_read"]?.intValue ?? 0) >= 65536 && (value?["num_read_ops"]?.intValue ?? 0) >= 1)
    #expect(value?["num_unmap_ops"]?.intValue == 1 && value?["bytes_unmapped"]?.intValue == 4096)
    #expect((value?["num_flush_ops"]?.intValue ?? 0) >= 1)
    #expect((value?["write_latency_ticks"]?.intValue ?? 0) >= (value?["max_write_latency_ticks"]?.intValue ?? 1))
    #expect((value?["min_write_latency_ticks"]?.intValue ?? 0) > 0)
    _ = try await target.client.call("bdev_reset_iostat", ["name": "disk"])
    #expect(try await statistics(target, "disk")?["num_write_ops"]?.intValue == 0)
  }

  @Test func aDelayedDeviceAnswersLater() async throws {
    let target = try Target(.memory)
    _ = try await target.client.call("bdev_malloc_create", ["name": "m", "block_size": 512, "num_blocks": 2048])
    _ = try await target.client.call(
      "bdev_delay_create",
      [
        "base_bdev_name": "m", "name": "late", "avg_read_latency": 1000, "p99_read_latency": 1000,
        "avg_write_latency": 50000, "p99_write_latency": 50000,
      ])
    #expect(try await bdev(target, "m")?["claimed"]?.boolValue == true)
    await expectCode(-1) {
      try await target.client.call(
        "nbd_start_disk", ["bdev_name": "m", "nbd_device": .string(target.directory.file("m.sock"))])
    }
    let uri = try await NBDTests.export(target, "late")
    _ = try await NBDTests.io(uri, "write -P 4 0 4k", "read -P 4 0 4k")
    let value = try await statistics(target, "late")
    #expect((value?["min_write_latency_ticks"]?.intValue ?? 0) >= 50_000_000)
    #expect((value?["min_read_latency_ticks"]?.intValue ?? 0) >= 1_000_000)
    // What lies below does not wait.
    #expect((try await statistics(target, "m")?["max_write_latency_ticks"]?.intValue ?? .max) < 50_000_000)
  }

  @Test func aBrokenDeviceBreaksAsAsked() async throws {
    let target = try Target(.memory)
    _ = try await target.client.call("bdev_malloc_create", ["name": "m", "block_size": 512, "num_blocks": 2048])
    _ = try await target.client.call("bdev_error_create", ["base_name": "m"])
    let uri = try await NBDTests.export(target, "EE_m")
    func inject(_ type: String, _ error: String, _ more: JSONValue = [:]) async throws {
      var parameters: JSONValue = ["name": "EE_m", "io_type": .string(type), "error_type": .string(error)]
      for (key, value) in more.objectValue ?? [:] { parameters[key] = value }
      _ = try await target.client.call("bdev_error_inject_error", parameters)
    }
    _ = try await NBDTests.io(uri, "write -P 1 0 64k")
    try await inject("write", "failure")
    let output = try await NBDTests.failingIO(uri, "write -P 2 0 4k", "write -P 3 4k 4k")
    #expect(output.contains("Input/output error") && output.contains("wrote 4096/4096"))
    _ = try await NBDTests.io(uri, "read -P 1 0 4k", "read -P 3 4k 4k")
    try await inject("read", "corrupt_data", ["num": 1000, "corrupt_offset": 7, "corrupt_value": 128])
    let wrong = try await NBDTests.failingIO(uri, "read -P 1 0 4k")
    #expect(wrong.contains("Pattern verification failed"))
    await expectCode(-22) {
      try await inject("read", "corrupt_data", ["corrupt_value": 0])
      return true
    }
    try await inject("clear", "failure")
    _ = try await NBDTests.io(uri, "read -P 1 0 4k")
  }

  @Test func whatIsPendingGoesOnWhenItIsToldTo() async throws {
    let target = try Target(.memory)
    _ = try await target.client.call("bdev_malloc_create", ["name": "m", "block_size": 512, "num_blocks": 2048])
    _ = try await target.client.call("bdev_error_create", ["base_name": "m"])
    _ = try await NBDTests.export(target, "EE_m")
    let client = try NBDClient(target.directory.file("EE_m.sock"))
    let injection: JSONValue = ["name": "EE_m", "io_type": "write", "error_type": "pending", "num": 5]
    _ = try await target.client.call("bdev_error_inject_error", injection)
    let written = [[UInt8](repeating: 1, count: 4096), [UInt8](repeating: 2, count: 4096)]
    let waiting = try written.map { try client.begin(.write, at: 0, $0) }
    // What came later is answered before them.
    #expect(try client.perform(.read, at: 0, length: 4096).data == [UInt8](repeating: 0, count: 4096))
    await expectCode(-19) { try await target.client.call("bdev_error_resume_pending", ["name": "m"]) }
    await expectCode(-19) { try await target.client.call("bdev_error_resume_pending", ["name": "none"]) }
    #expect(try await target.client.call("bdev_error_resume_pending", ["name": "EE_m"]) == true)
    // In their order, and no other waits.
    for cookie in waiting { #expect(try client.answer(to: cookie).error == 0) }
    #expect(try client.perform(.read, at: 0, length: 4096).data == written[1])
    #expect(try client.perform(.write, at: 0, written[0]).error == 0)
    #expect(try client.perform(.read, at: 0, length: 4096).data == written[0])
  }

  @Test func limitsHoldBackAndLetGo() async throws {
    let target = try Target(.memory)
    _ = try await target.client.call("bdev_malloc_create", ["name": "m", "block_size": 512, "num_blocks": 65536])
    let uri = try await NBDTests.export(target, "m")
    _ = try await target.client.call("bdev_set_qos_limit", ["name": "m", "w_mbytes_per_sec": 16])
    #expect(try await bdev(target, "m")?["assigned_rate_limits"]?["w_mbytes_per_sec"]?.intValue == 16)
    let clock = ContinuousClock()
    // The first request may overdraw the account: only what comes after it waits.
    let limited = try await clock.measure { _ = try await NBDTests.io(uri, "write 0 8M", "write 8M 8M", "write 0 4k") }
    _ = try await target.client.call("bdev_set_qos_limit", ["name": "m", "w_mbytes_per_sec": 0])
    let free = try await clock.measure { _ = try await NBDTests.io(uri, "write 0 8M", "write 8M 8M", "write 0 4k") }
    #expect(limited > free + .milliseconds(700), "16 MiB at 16 MiB/s took \(limited), without a limit \(free)")
    await expectCode(-32602) { try await target.client.call("bdev_set_qos_limit", ["name": "m"]) }
    await expectCode(-19) {
      try await target.client.call("bdev_set_qos_limit", ["name": "x", "rw_ios_per_sec": 1000])
    }
  }

  @Test func accountsLetThroughWhatTheirRateAllows() {
    let second: UInt64 = 1_000_000_000
    for rate in [1, 7, 1000, 33_333, 1 << 30, UInt64(1) << 40] as [UInt64] {
      var account = RateAccount(rate: rate, now: 0)
      var now: UInt64 = 0
      var taken: UInt64 = 0
      let amount = max(1, rate / 50)
      // Ten seconds of someone who takes whenever it is let.
      while now < 10 * second {
        account.fill(now)
        if account.wait == 0 {
          account.take(amount)
          taken += amount
        } else {
          now += account.wait
        }
      }
      let ideal = 10 * rate
      #expect(taken <= ideal + rate / 50 + amount + 1, "rate \(rate): \(taken) of \(ideal)")
      #expect(taken + amount + rate / 20 >= ideal - ideal / 100, "rate \(rate): \(taken) of \(ideal)")
    }
    var unlimited = RateAccount(rate: 0, now: 0)
    unlimited.take(.max)
    #expect(unlimited.wait == 0)
    // Years pass, and amounts are absurd: nothing overflows.
    var account = RateAccount(rate: .max, now: 0)
    account.take(.max)
    account.take(.max)
    account.fill(.max)
    _ = account.wait
  }

  @Test func theConfigurationIsWhatBringsItBack() async throws {
    let target = try Target(.memory)
    try await target.createVolume()
    _ = try await target.client.call("bdev_malloc_create", ["name": "m", "block_size": 512, "num_blocks": 2048])
    _ = try await target.client.call(
      "bdev_delay_create",
      [
        "base_bdev_name": "m", "name": "late", "avg_read_latency": 1, "p99_read_latency": 2, "avg_write_latency": 3,
        "p99_write_latency": 4,
      ])
    _ = try await target.client.call("bdev_set_qos_limit", ["name": "late", "rw_ios_per_sec": 5000])
    _ = try await NBDTests.export(target, "late")
    try await target.createController()
    var before: [JSONValue] = []
    for name in ["bdev", "vhost_blk", "nbd"] {
      before.append(try await target.client.call("framework_get_config", ["name": .string(name)]))
    }
    #expect(before[0].arrayValue?.count == 4)
    // What is there disappears with the process; the next one finds it in the state directory.
    target.dataPlane.stop()
    let next = try Target.start(target.directory)
    defer { next.stop() }
    let client = JSONRPCClient(path: target.directory.file("rpc.sock"))
    for (index, name) in ["bdev", "vhost_blk", "nbd"].enumerated() {
      #expect(try await client.call("framework_get_config", ["name": .string(name)]) == before[index])
    }
  }

  /// A pool that is not mounted yet when the process starts: its disks come back with the next start.
  @Test func whatCannotBeBroughtBackStaysWrittenDown() async throws {
    let target = try Target(.memory)
    try await target.createVolume()
    try await target.createController()
    target.dataPlane.stop()
    rename(target.file, "\(target.file).away")
    do {
      let next = try Target.start(target.directory)
      let client = JSONRPCClient(path: target.directory.file("rpc.sock"))
      #expect(try await client.call("bdev_get_bdevs").arrayValue?.isEmpty == true)
      _ = try await client.call("bdev_malloc_create", ["name": "m", "block_size": 512, "num_blocks": 8])
      next.stop()
    }
    rename("\(target.file).away", target.file)
    let last = try Target.start(target.directory)
    defer { last.stop() }
    let client = JSONRPCClient(path: target.directory.file("rpc.sock"))
    #expect(try await client.call("bdev_get_bdevs").arrayValue?.count == 2)
    #expect(try await client.call("vhost_get_controllers").arrayValue?.count == 1)
  }
}

@Suite struct DeviceActivityTests {
  private func sample(_ ticks: Int64, _ reads: Int64, _ writes: Int64) -> JSONValue {
    [
      "tick_rate": 1000, "ticks": .integer(ticks),
      "bdevs": [
        ["name": "idle", "num_read_ops": 7, "bytes_read": 7],
        [
          "name": "busy", "num_read_ops": .integer(reads), "num_write_ops": .integer(writes),
          "bytes_read": .integer(reads << 20), "bytes_written": .integer(writes << 12),
          "read_latency_ticks": .integer(reads * 2), "write_latency_ticks": .integer(writes * 4),
        ],
      ],
    ]
  }

  @Test func isWhatChangedInTheTimeBetween() {
    let activities = DeviceActivity.between(sample(0, 100, 0), sample(2000, 300, 100))
    #expect(activities.map(\.name) == ["busy", "idle"])
    #expect(activities[0].reads == 100 && activities[0].writes == 50)
    #expect(activities[0].readBytes == 100 * 1_048_576)
    #expect(activities[0].latency.map { ($0 - 2666.666).magnitude < 0.01 } == true)
    #expect(activities[1].reads == 0 && activities[1].latency == nil)
    // After a reset the counters begin anew; two looks at one time, or nonsense, tell nothing.
    #expect(DeviceActivity.between(sample(0, 100, 0), sample(1000, 50, 0))[0].reads == 50)
    #expect(DeviceActivity.between(sample(5, 0, 0), sample(5, 0, 0)).isEmpty)
    #expect(DeviceActivity.between(nil, [1]).isEmpty)
    let lines = DeviceActivity.table(activities, rows: 1)
    #expect(lines.count == 2 && Set(lines.map(\.count)).count == 1 && lines[1].hasPrefix("busy"))
  }
}

@Suite struct MetricsTests {
  @Test func tellWhatDevicesDo() async throws {
    let target = try Target(.memory)
    try await target.createVolume()
    let uri = try await NBDTests.export(target, "disk")
    _ = try await NBDTests.io(uri, "write 0 4k", "write 4k 8k", "flush")
    let registry = MetricsRegistry()
    target.dataPlane.addMetrics(to: registry)
    let text = registry.render()
    #expect(text.contains("ycloud_softdpu_bdev_operations_total{bdev=\"disk\",operation=\"write\"} 2\n"))
    #expect(text.contains("ycloud_softdpu_bdev_bytes_total{bdev=\"disk\",operation=\"write\"} 12288\n"))
    #expect(text.contains("ycloud_softdpu_bdev_errors_total{bdev=\"disk\"} 0\n"))
    #expect(text.contains("# TYPE ycloud_softdpu_bdev_latency_seconds histogram\n"))
    // The buckets are cumulative, and the last holds everything.
    let buckets = text.split(separator: "\n").filter {
      $0.hasPrefix("ycloud_softdpu_bdev_latency_seconds_bucket{bdev=\"disk\",kind=\"write\"")
    }.compactMap { $0.split(separator: " ").last.flatMap { Int($0) } }
    #expect(buckets.count == 13 && buckets == buckets.sorted())
    #expect(text.contains("ycloud_softdpu_bdev_latency_seconds_count{bdev=\"disk\",kind=\"write\"} 2\n"))
    #expect(buckets.last == 2)
    // The connection has ended, and what it did is still told.
    let connection = "front_end=\"nbd\",peer=\"unix\",queue=\"0\",kind=\"write\"}"
    #expect(text.contains("ycloud_softdpu_connection_operations_total{\(connection) 2\n"))
    #expect(text.contains("ycloud_softdpu_connection_bytes_total{\(connection) 12288\n"))
    #expect(text.contains("ycloud_softdpu_connection_latency_seconds_count{\(connection) 2\n"))
    #expect(
      !text.contains("ycloud_softdpu_connection_latency_seconds_count{front_end=\"nbd\",peer=\"unix\",queue=\"1\""))
    #expect(text.contains("# TYPE ycloud_softdpu_vhost_queue_latency_seconds histogram\n"))
    // What is gone tells nothing any more.
    _ = try await target.client.call("nbd_stop_disk", ["nbd_device": .string(target.directory.file("disk.sock"))])
    _ = try await target.client.call("bdev_aio_delete", ["name": "disk"])
    #expect(!registry.render().contains("bdev=\"disk\""))
  }
}
