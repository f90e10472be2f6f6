import JSON
import JSONRPC
import SoftDPU
import Telemetry
import TestSupport
import Testing

/// The trace of slow requests, with a disk that is slow on demand.
@Suite struct SlowTests {
  /// A disk in memory whose reads take 20 ms and whose writes 1 ms, over NBD.
  private static func lateDisk(_ target: Target) async throws -> String {
    _ = try await target.client.call("bdev_malloc_create", ["name": "m", "block_size": 512, "num_blocks": 65536])
    _ = try await target.client.call(
      "bdev_delay_create",
      [
        "base_bdev_name": "m", "name": "late", "avg_read_latency": 20000, "p99_read_latency": 20000,
        "avg_write_latency": 1000, "p99_write_latency": 1000,
      ])
    return try await NBDTests.export(target, "late")
  }

  private static func slow(_ target: Target, _ parameters: JSONValue? = nil) async throws -> JSONValue {
    try await target.client.call("bdev_get_slow_io", parameters)
  }

  @Test func keepsWhatTookLongerThanTheThreshold() async throws {
    let target = try Target(.memory)
    let uri = try await Self.lateDisk(target)
    #expect(try await Self.slow(target)["threshold_us"] == 1_000_000)
    #expect(try await target.client.call("bdev_set_slow_io", ["threshold_us": 15000]) == true)
    _ = try await NBDTests.io(uri, "write 0 64k", "read 8k 4k")
    let answer = try await Self.slow(target)
    // QEMU reads the first sector of a disk by itself.
    let requests = answer["requests"]?.arrayValue ?? []
    let request = try #require(requests.first { $0["offset"] == 8192 })
    #expect(request["bdev"] == "late" && request["io_type"] == "read" && request["length"] == 4096)
    #expect((request["serving_us"]?.intValue ?? 0) >= 20000 && request["waiting_us"] == 0 && request["error"] == 0)
    #expect(request["asker"] == "NBD late")
    #expect(requests.allSatisfy { $0["io_type"] == "read" && $0["bdev"] == "late" })
    #expect(answer["total"]?.intValue == requests.count)

    let lines = SlowRequest.table(answer)
    #expect(lines.count == requests.count + 2 && lines[1].hasSuffix("NBD late"))
    let registry = MetricsRegistry()
    target.dataPlane.addMetrics(to: registry)
    #expect(registry.render().contains("ycloud_softdpu_bdev_slow_total{bdev=\"late\"} \(requests.count)\n"))

    // The program shows the same, and forgets it where it is asked to.
    let shown = try await ChildProcess.run(
      TestEnvironment.builtProduct("ycloud"),
      ["softdpu", "slow", "--rpc-socket", target.directory.file("rpc.sock"), "--threshold", "0", "--clear"])
    #expect(shown.contains("NBD late") && shown.contains("8192"))
    #expect(try await Self.slow(target)["requests"] == [])
    // Off means off.
    _ = try await NBDTests.io(uri, "read 8k 4k")
    #expect(try await Self.slow(target)["total"] == 0)
    await expectCode(-22) {
      try await target.client.call("bdev_set_slow_io", ["threshold_us": 86_400_000_001])
    }
  }

  @Test func tellsWaitingFromServing() async throws {
    let target = try Target(.memory)
    _ = try await target.client.call("bdev_malloc_create", ["name": "m", "block_size": 512, "num_blocks": 65536])
    let uri = try await NBDTests.export(target, "m")
    _ = try await target.client.call("bdev_set_qos_limit", ["name": "m", "w_mbytes_per_sec": 16])
    _ = try await target.client.call("bdev_set_slow_io", ["threshold_us": 100_000])
    // The first may overdraw the account; the others wait for it.
    _ = try await NBDTests.io(uri, "write 0 8M", "write 8M 4k", "write 9M 4k")
    let request = try #require(
      try await Self.slow(target)["requests"]?.arrayValue?.first { $0["io_type"] == "write" })
    let (waiting, serving) = (request["waiting_us"]?.intValue ?? 0, request["serving_us"]?.intValue ?? .max)
    #expect(waiting >= 100_000 && serving < waiting)
  }

  /// However many there are, the last ones are kept and all are counted.
  @Test func isBounded() async throws {
    let target = try Target(.memory)
    _ = try await target.client.call("bdev_malloc_create", ["name": "m", "block_size": 512, "num_blocks": 65536])
    let uri = try await NBDTests.export(target, "m")
    _ = try await target.client.call("bdev_set_slow_io", ["threshold_us": 1])
    // Single blocks of a write of 16 MiB that is cut into pieces of 64 KiB take longer than a microsecond.
    try await ChildProcess.run(
      "qemu-img", ["bench", "-f", "raw", "-w", "-c", "400", "-d", "8", "-s", "1M", uri], within: .seconds(60))
    let answer = try await Self.slow(target)
    #expect(answer["requests"]?.arrayValue?.count == 256)
    #expect((answer["total"]?.intValue ?? 0) >= 400)
    #expect(try await Self.slow(target, ["max": 3])["requests"]?.arrayValue?.count == 3)
    let ends = (answer["requests"]?.arrayValue ?? []).compactMap { $0["ended_ticks"]?.int64Value }
    #expect(ends == ends.sorted(by: >))
  }

  @Test func aTableSaysWhatIsKnown() {
    let answer: JSONValue = [
      "ticks": 5_000_000_000, "threshold_us": 1000, "total": 3,
      "requests": [
        [
          "ended_ticks": 3_000_000_000, "io_type": "flush", "bdev": "lvs/disk", "offset": 0, "length": 0,
          "waiting_us": 7, "serving_us": 123_456, "error": 5, "asker": "vhost blk-00",
        ]
      ],
    ]
    let lines = SlowRequest.table(answer)
    #expect(
      lines[1].split(separator: " ") == ["2", "lvs/disk", "flush", "0", "0", "7", "123456", "5", "vhost", "blk-00"])
    #expect(lines[2] == "3 requests took 1000 us or longer, the last 1 are shown")
    #expect(SlowRequest.table(["threshold_us": 0]).last?.hasPrefix("off") == true)
    #expect(SlowRequest.table(["requests": [nil, 4, ["io_type": "read"]]]).count == 2)
  }
}
