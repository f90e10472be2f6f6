import Glibc
import JSON
import JSONRPC
import SoftDPU
import TestSupport
import Testing

/// Remote subsystems as block devices: against our own target in another process, and against Linux's in a guest.
@Suite(.serialized) struct InitiatorTests {
  private static let nqn = "nqn.2026-11.io.yusur.test:remote"

  /// A target in a process of its own, which can be killed and started again with what it had.
  private final class Remote: Sendable {
    let directory: TemporaryDirectory
    let port: Int
    var client: JSONRPCClient { JSONRPCClient(path: directory.file("rpc.sock")) }

    init() async throws {
      port = try TestEnvironment.freePort()
      directory = try TemporaryDirectory()
      let file = directory.file("disk")
      close(open(file, O_RDWR | O_CREAT, 0o600))
      truncate(file, 64 << 20)
    }

    func start() async throws -> ChildProcess {
      let process = try ChildProcess(
        TestEnvironment.builtProduct("ycloud"),
        [
          "softdpu", "--rpc-socket", directory.file("rpc.sock"), "--vhost-dir", directory.file("bus"), "--state-dir",
          directory.file("state"),
        ])
      let client = self.client
      try await eventually {
        _ = try await client.call("spdk_get_version"); return true
      }
      return process
    }

    func configure(ports: [Int]) async throws {
      _ = try await client.call(
        "bdev_aio_create",
        ["name": "disk", "filename": .string(directory.file("disk")), "block_size": 512, "fallocate": true])
      _ = try await client.call("nvmf_create_transport", ["trtype": "TCP"])
      _ = try await client.call("nvmf_create_subsystem", ["nqn": .string(nqn), "allow_any_host": true])
      _ = try await client.call("nvmf_subsystem_add_ns", ["nqn": .string(nqn), "namespace": ["bdev_name": "disk"]])
      for port in ports {
        _ = try await client.call(
          "nvmf_subsystem_add_listener", ["nqn": .string(nqn), "listen_address": InitiatorTests.address(port)])
      }
    }
  }

  private static func address(_ port: Int) -> JSONValue {
    ["trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": .string("\(port)")]
  }

  private static func attachment(_ port: Int, _ more: JSONValue = [:]) -> JSONValue {
    var parameters = address(port)
    parameters["name"] = "r"
    parameters["subnqn"] = .string(nqn)
    for (key, value) in more.objectValue ?? [:] { parameters[key] = value }
    return parameters
  }

  @Test(
    arguments: [
      [:], ["hdgst": true, "ddgst": true, "num_io_queues": 3],
    ] as [JSONValue])
  func movesEverythingThatAPeerAsksFor(_ options: JSONValue) async throws {
    let remote = try await Remote()
    let process = try await remote.start()
    try await remote.configure(ports: [remote.port])
    let target = try Target(.memory)
    let names = try await target.client.call("bdev_nvme_attach_controller", Self.attachment(remote.port, options))
    #expect(names == ["rn1"])
    let uuid = try await remote.client.call("bdev_get_bdevs", ["name": "disk"])[0]?["uuid"]
    let bdev = try await target.client.call("bdev_get_bdevs", ["name": "rn1"])[0]
    #expect(bdev?["uuid"] == uuid && bdev?["num_blocks"]?.intValue == 131072 && bdev?["product_name"] == "NVMe disk")

    let uri = try await NBDTests.export(target, "rn1")
    // Within a capsule, asked for, in several commands; odd pieces; forced to disk.
    _ = try await NBDTests.io(
      uri, "write -P 1 0 4k", "write -P 2 4k 64k", "write -P 3 1M 9M", "write -f -P 4 513k 1536", "flush",
      "read -P 1 0 4k", "read -P 2 4k 64k", "read -P 3 1M 9M", "read -P 4 513k 1536", "discard 2M 1M",
      "read -P 0 2M 1M", "write -z 4M 1M", "read -P 0 4M 1M", "read -P 3 3M 1M")
    _ = try await ChildProcess.run(
      "qemu-img", ["bench", "-f", "raw", "-w", "-c", "3000", "-d", "64", "-s", "8192", "-t", "none", uri],
      within: .seconds(60))
    truncate(remote.directory.file("disk"), 96 << 20)
    _ = try await remote.client.call("bdev_aio_rescan", ["name": "disk"])
    let client = target.client
    try await eventually(within: .seconds(10), "the remote disk's new size") {
      try await client.call("bdev_get_bdevs", ["name": "rn1"])[0]?["num_blocks"]?.intValue == 196_608
    }
    await expectCode(-16) { try await client.call("bdev_nvme_detach_controller", ["name": "r"]) }
    _ = try await client.call("nbd_stop_disk", ["nbd_device": .string(target.directory.file("rn1.sock"))])
    _ = try await client.call("bdev_nvme_detach_controller", ["name": "r"])
    #expect(try await client.call("bdev_get_bdevs").arrayValue?.isEmpty == true)
    try await eventually {
      try await remote.client.call("nvmf_subsystem_get_controllers", ["nqn": .string(Self.nqn)]).arrayValue?.isEmpty
        == true
    }
    process.kill()
  }

  /// A namespace whose device belongs to another reactor than the connections.
  @Test func reachesDevicesOfOtherReactors() async throws {
    let far = try Target(.memory, reactors: 2)
    let port = Int.random(in: 20000...29999)
    for name in ["a", "b"] {
      _ = try await far.client.call(
        "bdev_malloc_create", ["name": .string(name), "block_size": 512, "num_blocks": 32768])
    }
    _ = try await far.client.call("nvmf_create_transport", ["trtype": "TCP"])
    _ = try await far.client.call("nvmf_create_subsystem", ["nqn": .string(Self.nqn), "allow_any_host": true])
    for name in ["a", "b"] {
      _ = try await far.client.call(
        "nvmf_subsystem_add_ns", ["nqn": .string(Self.nqn), "namespace": ["bdev_name": .string(name)]])
    }
    _ = try await far.client.call(
      "nvmf_subsystem_add_listener", ["nqn": .string(Self.nqn), "listen_address": Self.address(port)])
    let target = try Target(.memory)
    #expect(
      try await target.client.call("bdev_nvme_attach_controller", Self.attachment(port)) == ["rn1", "rn2"])
    for name in ["rn1", "rn2"] {
      let uri = try await NBDTests.export(target, name)
      _ = try await NBDTests.io(
        uri, "write -P 1 0 4M", "read -P 1 0 4k", "read -P 1 0 1M", "write -P 2 4k 512", "read -P 2 4k 512",
        "read -P 1 0 4k", "read -P 1 8k 128k", "discard 1M 64k", "read -P 0 1M 64k", "flush")
    }
  }

  @Test func answersAsSPDKDoes() async throws {
    let remote = try await Remote()
    let process = try await remote.start()
    try await remote.configure(ports: [remote.port])
    let target = try Target(.memory)
    let own = target.client
    await expectCode(-5) { try await own.call("bdev_nvme_attach_controller", Self.attachment(1)) }
    await expectCode(-5) {
      try await own.call(
        "bdev_nvme_attach_controller", Self.attachment(remote.port, ["subnqn": "nqn.2026-11.io.x:absent"]))
    }
    await expectCode(-22) {
      try await own.call("bdev_nvme_attach_controller", Self.attachment(remote.port, ["reconnect_delay_sec": 1]))
    }
    await expectCode(-22) {
      try await own.call("bdev_nvme_attach_controller", Self.attachment(4420, ["trtype": "PCIe"]))
    }
    _ = try await own.call("bdev_nvme_attach_controller", Self.attachment(remote.port))
    await expectCode(-114) { try await own.call("bdev_nvme_attach_controller", Self.attachment(remote.port)) }
    await expectCode(-19) { try await own.call("bdev_nvme_detach_controller", ["name": "none"]) }
    await expectCode(-19) { try await own.call("bdev_nvme_get_controllers", ["name": "none"]) }
    let shown = try await own.call("bdev_nvme_get_controllers", ["name": "r"])
    #expect(shown[0]?["ctrlrs"]?[0]?["state"] == "enabled")
    #expect(shown[0]?["ctrlrs"]?[0]?["trid"]?["trsvcid"]?.stringValue == "\(remote.port)")
    process.kill()
  }

  /// Another disk behind the same names is not taken for the one that was there.
  @Test func anotherDiskIsNotAnotherPath() async throws {
    let targets = [try Target(.memory), try Target(.memory)]
    var ports: [Int] = []
    for target in targets {
      _ = try await target.client.call("bdev_malloc_create", ["name": "m", "block_size": 512, "num_blocks": 8192])
      ports.append(try await NVMeHost.show("m", target))
    }
    let client = try Target(.memory)
    let parameters: JSONValue = ["subnqn": .string(NVMeHost.nqn)]
    _ = try await client.client.call("bdev_nvme_attach_controller", Self.attachment(ports[0], parameters))
    await expectCode(-5) {
      try await client.client.call("bdev_nvme_attach_controller", Self.attachment(ports[1], parameters))
    }
    let uri = try await NBDTests.export(client, "rn1")
    _ = try await NBDTests.io(uri, "write -P 1 0 1M", "read -P 1 0 1M")
    let paths = try await client.client.call("bdev_nvme_get_controllers", ["name": "r"])[0]?["ctrlrs"]
    #expect(paths?.arrayValue?.count == 1)
    withExtendedLifetime(targets) {}
  }

  @Test func waitsForATargetThatComesBack() async throws {
    let remote = try await Remote()
    var process = try await remote.start()
    try await remote.configure(ports: [remote.port])
    let target = try Target(.memory)
    _ = try await target.client.call(
      "bdev_nvme_attach_controller",
      Self.attachment(remote.port, ["ctrlr_loss_timeout_sec": 60, "reconnect_delay_sec": 1]))
    let uri = try await NBDTests.export(target, "rn1")
    _ = try await NBDTests.io(uri, "write -P 1 0 32M")
    // A writer that does not notice.
    let writer = try ChildProcess(
      "qemu-img",
      ["bench", "-f", "raw", "-w", "-c", "20000", "-d", "32", "-s", "4096", "--pattern=9", "-t", "none", uri])
    try await eventually(within: .seconds(20), "it writes") {
      let value = try await remote.client.call("bdev_get_iostat", ["name": "disk"])
      return (value["bdevs"]?[0]?["bytes_written"]?.intValue ?? 0) > 36 << 20
    }
    process.kill()
    let client = target.client
    try await eventually(within: .seconds(20), "the loss is seen") {
      try await client.call("bdev_nvme_get_controllers")[0]?["ctrlrs"]?[0]?["state"] != "enabled"
    }
    process = try await remote.start()
    #expect(try await writer.waitForExit(within: .seconds(60)) == .code(0), "\(writer.output)")
    _ = try await NBDTests.io(uri, "read -P 9 0 64M")
    process.kill()
  }

  @Test func failsWhenTheTimeIsOver() async throws {
    let remote = try await Remote()
    let process = try await remote.start()
    try await remote.configure(ports: [remote.port])
    let target = try Target(.memory)
    _ = try await target.client.call(
      "bdev_nvme_attach_controller",
      Self.attachment(
        remote.port,
        ["ctrlr_loss_timeout_sec": 30, "reconnect_delay_sec": 1, "fast_io_fail_timeout_sec": 2]))
    let uri = try await NBDTests.export(target, "rn1")
    _ = try await NBDTests.io(uri, "write -P 1 0 1M")
    process.kill()
    let clock = ContinuousClock()
    let start = clock.now
    let output = try await NBDTests.failingIO(uri, "write -P 2 0 4k")
    let time = clock.now - start
    #expect(output.contains("Input/output error"))
    #expect(time < .seconds(15))
    // Back again in time: everything goes on.
    let again = try await remote.start()
    let client = target.client
    try await eventually(within: .seconds(20), "the path is back") {
      try await client.call("bdev_nvme_get_controllers")[0]?["ctrlrs"]?[0]?["state"] == "enabled"
    }
    _ = try await NBDTests.io(uri, "read -P 1 4k 512k")
    again.kill()
  }

  /// What each path of `rn1` did, by its port.
  private static func operations(_ client: JSONRPCClient) async throws -> [String: Int] {
    let answer = try await client.call("bdev_nvme_get_path_iostat", ["name": "rn1"])
    var operations: [String: Int] = [:]
    for path in answer["stats"]?.arrayValue ?? [] {
      operations[path["trid"]?["trsvcid"]?.stringValue ?? ""] = path["stat"]?["num_write_ops"]?.intValue
    }
    return operations
  }

  /// Whoever writes notices nothing of a reset, with one path and with two, and without times for a loss.
  @Test func aResetConnectsAnewWithoutAnError() async throws {
    let remote = try await Remote()
    let process = try await remote.start()
    try await remote.configure(ports: [remote.port, remote.port + 1])
    let target = try Target(.memory)
    let client = target.client
    _ = try await client.call("bdev_nvme_attach_controller", Self.attachment(remote.port))
    let uri = try await NBDTests.export(target, "rn1")
    for paths in 1...2 {
      if paths == 2 {
        _ = try await client.call("bdev_nvme_attach_controller", Self.attachment(remote.port + 1))
      }
      func identifiers() async throws -> [Int] {
        try await client.call("bdev_nvme_get_controllers")[0]?["ctrlrs"]?.arrayValue?
          .compactMap { $0["cntlid"]?.intValue } ?? []
      }
      let before = try await identifiers()
      let written = try await Self.operations(client)
      let writer = try ChildProcess(
        "qemu-img",
        ["bench", "-f", "raw", "-w", "-c", "15000", "-d", "32", "-s", "4096", "--pattern=\(paths)", "-t", "none", uri])
      try await eventually(within: .seconds(20), "it writes") {
        try await Self.operations(client) != written
      }
      for _ in 0..<5 { #expect(try await client.call("bdev_nvme_reset_controller", ["name": "r"]) == true) }
      #expect(try await writer.waitForExit(within: .seconds(60)) == .code(0), "\(writer.output)")
      _ = try await NBDTests.io(uri, "read -P \(paths) 0 58M")
      let after = try await identifiers()
      #expect(after.count == paths && Set(after).isDisjoint(with: before), "\(before) \(after)")
      // One of them alone.
      _ = try await client.call("bdev_nvme_reset_controller", ["name": "r", "cntlid": .integer(Int64(after[0]))])
      #expect(try await identifiers().dropFirst() == after.dropFirst())
      #expect(try await identifiers()[0] != after[0])
    }
    // Both paths had their part, and nothing was counted twice.
    let counts = try await Self.operations(client)
    #expect(counts.count == 2 && counts.values.allSatisfy { $0 > 0 }, "\(counts)")
    let all = try await client.call("bdev_get_iostat", ["name": "rn1"])["bdevs"]?[0]?["num_write_ops"]?.intValue
    #expect(counts.values.reduce(0, +) == all)

    await expectCode(-19) { try await client.call("bdev_nvme_reset_controller", ["name": "none"]) }
    await expectCode(-19) { try await client.call("bdev_nvme_reset_controller", ["name": "r", "cntlid": 65000]) }
    await expectCode(-19) { try await client.call("bdev_nvme_get_path_iostat", ["name": "none"]) }
    process.kill()
    // Nobody there: the reset fails in its time, and so do requests.
    await expectCode(-5) { try await client.call("bdev_nvme_reset_controller", ["name": "r"]) }
  }

  @Test func anotherPathTakesOver() async throws {
    let remote = try await Remote()
    let process = try await remote.start()
    try await remote.configure(ports: [remote.port, remote.port + 1])
    let target = try Target(.memory)
    let client = target.client
    for port in [remote.port, remote.port + 1] {
      _ = try await client.call(
        "bdev_nvme_attach_controller",
        Self.attachment(
          port, ["ctrlr_loss_timeout_sec": 30, "reconnect_delay_sec": 1, "multipath": "multipath"]))
    }
    #expect(try await client.call("bdev_get_bdevs").arrayValue?.count == 1)
    let uri = try await NBDTests.export(target, "rn1")
    let writer = try ChildProcess(
      "qemu-img", ["bench", "-f", "raw", "-w", "-c", "20000", "-d", "32", "-s", "4096", "-t", "none", uri])
    try await eventually(within: .seconds(20), "it writes") {
      let value = try await remote.client.call("bdev_get_iostat", ["name": "disk"])
      return (value["bdevs"]?[0]?["bytes_written"]?.intValue ?? 0) > 4 << 20
    }
    _ = try await remote.client.call(
      "nvmf_subsystem_remove_listener",
      ["nqn": .string(Self.nqn), "listen_address": Self.address(remote.port)])
    #expect(try await writer.waitForExit(within: .seconds(60)) == .code(0), "\(writer.output)")
    let states = try await client.call("bdev_nvme_get_controllers")[0]?["ctrlrs"]?.arrayValue?
      .compactMap { $0["state"]?.stringValue }
    #expect(states?.filter { $0 == "enabled" }.count == 1)
    process.kill()
  }
}
