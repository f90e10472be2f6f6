import Glibc
import JSON
import JSONRPC
import TestSupport
import Testing

/// A thousand disks in one process, each shown over NVMe/TCP and over NBD.
@Suite(.serialized) struct ScaleTests {
  private static func contents(_ process: ChildProcess, _ name: String) -> String {
    contentsOfFile("/proc/\(process.pid)/\(name)") ?? ""
  }

  /// Processor time in ticks of the system.
  private static func ticks(_ process: ChildProcess) -> Int {
    let fields = contents(process, "stat").split(separator: ")").last?.split(separator: " ") ?? []
    return fields.count > 12 ? (Int(fields[11]) ?? 0) + (Int(fields[12]) ?? 0) : 0
  }

  /// In KiB.
  private static func memory(_ process: ChildProcess) -> Int {
    let line = contents(process, "smaps_rollup").split(separator: "\n").first { $0.hasPrefix("Pss:") }
    return line?.split(separator: " ").dropFirst().first.flatMap { Int($0) } ?? 0
  }

  @Test(arguments: [1, 2]) func aThousandDisksCostLittleAndIdleForNothing(_ reactors: Int) async throws {
    let directory = try TemporaryDirectory()
    let port = try TestEnvironment.freePort()
    let process = try ChildProcess(
      TestEnvironment.builtProduct("ycloud"),
      [
        "softdpu", "--rpc-socket", directory.file("rpc.sock"), "--vhost-dir", directory.file("bus"), "--state-dir",
        directory.file("state"), "--log-level", "error", "--reactors", "\(reactors)",
      ])
    let client = JSONRPCClient(path: directory.file("rpc.sock"))
    try await eventually(within: .seconds(20), process.output) {
      _ = try await client.call("spdk_get_version"); return true
    }
    _ = try await client.call("nvmf_create_transport", ["trtype": "TCP"])
    let before = Self.memory(process)
    for number in 0..<1000 {
      let name = JSONValue.string("v\(number)")
      _ = try await client.call("bdev_malloc_create", ["name": name, "block_size": 512, "num_blocks": 2048])
      let nqn = JSONValue.string("nqn.2026-11.io.yusur.test:\(number / 10)")
      if number % 10 == 0 {
        _ = try await client.call("nvmf_create_subsystem", ["nqn": nqn, "allow_any_host": true])
        _ = try await client.call(
          "nvmf_subsystem_add_listener",
          [
            "nqn": nqn, "listen_address": ["trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": .string("\(port)")],
          ])
      }
      _ = try await client.call("nvmf_subsystem_add_ns", ["nqn": nqn, "namespace": ["bdev_name": name]])
      _ = try await client.call(
        "nbd_start_disk",
        [
          "bdev_name": name, "nbd_device": .string("nbd+unix:///v\(number)?socket=\(directory.file("nbd.sock"))"),
        ])
    }
    #expect(Self.memory(process) - before < 64 * 1000)
    // Idle is asleep: not one tick of a hundredth of a second in two seconds.
    let start = Self.ticks(process)
    try await Task.sleep(for: .seconds(2))
    #expect(Self.ticks(process) == start)
    #expect(process.isRunning)
    let export = try await ChildProcess.run(
      "nbdinfo", ["--size", "nbd+unix:///v999?socket=\(directory.file("nbd.sock"))"])
    #expect(export == "1048576\n")
  }
}
