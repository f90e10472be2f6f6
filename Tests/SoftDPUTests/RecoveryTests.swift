import Glibc
import JSON
import JSONRPC
import SoftDPU
import TestSupport
import Testing

/// Remote disks that refuse for a moment, go away, or are not there when this side starts.
@Suite(.serialized) struct RecoveryTests {
  private static func attachment(_ port: Int, _ more: JSONValue = [:]) -> JSONValue {
    var parameters: JSONValue = [
      "name": "r", "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": .string("\(port)"),
      "subnqn": .string(NVMeHost.nqn),
    ]
    for (key, value) in more.objectValue ?? [:] { parameters[key] = value }
    return parameters
  }

  /// Status fields without the phase bit: the type in bits 8 to 10, "do not retry" in bit 14.
  @Test(
    arguments: [
      (0x006, .forNow), (0x4006, .final), (0x022, .forNow), (0x082, .forNow), (0x008, .ofPath), (0x4008, .final),
      (0x302, .ofPath), (0x303, .ofPath), (0x370, .ofPath), (0x001, .final), (0x081, .final), (0x281, .final),
      (0x180, .final),
    ] as [(UInt16, NVMeRefusal)])
  func aStatusSaysWhetherToTryAgain(_ status: UInt16, _ expected: NVMeRefusal) {
    #expect(NVMeRefusal(status: status) == expected)
  }

  @Test func aRefusalForNowIsNoErrorToTheGuest() async throws {
    let far = try Target(.memory)
    _ = try await far.client.call("bdev_malloc_create", ["name": "m", "block_size": 512, "num_blocks": 8192])
    _ = try await far.client.call("bdev_error_create", ["base_name": "m"])
    let port = try await NVMeHost.show("EE_m", far)
    let near = try Target(.memory)
    _ = try await near.client.call("bdev_nvme_attach_controller", Self.attachment(port))
    _ = try await NBDTests.export(near, "rn1")
    let client = try NBDClient(near.directory.file("rn1.sock"))
    let content = [UInt8](repeating: 5, count: 8192)
    // Internal error, which may go away; a medium that fails stays as it is.
    for (fault, count, expected) in [("nomem", 2, 0), ("failure", 1, 5), ("nomem", 200, 5)] {
      for type in ["write", "read"] {
        _ = try await far.client.call(
          "bdev_error_inject_error",
          [
            "name": "EE_m", "io_type": .string(type), "error_type": .string(fault), "num": .integer(Int64(count)),
          ])
        let answer = try client.perform(type == "write" ? .write : .read, at: 0, length: content.count, content)
        #expect(answer.error == UInt32(expected), "\(type) \(fault)")
        _ = try await far.client.call(
          "bdev_error_inject_error", ["name": "EE_m", "io_type": "clear", "error_type": "failure"])
      }
    }
    #expect(try client.perform(.read, at: 0, length: content.count).data == content)
  }

  /// A target that takes fewer commands than SPDK's does, and parameters that would have no effect.
  @Test func theTargetsLimitsAndTheClientsWishesCount() async throws {
    let far = try Target(.memory)
    _ = try await far.client.call("bdev_malloc_create", ["name": "m", "block_size": 512, "num_blocks": 8192])
    _ = try await far.client.call("nvmf_create_transport", ["trtype": "TCP", "max_queue_depth": 16])
    let port = try await NVMeHost.show("m", far, isTransportNew: false)
    let near = try Target(.memory)
    await expectCode(-22) {
      try await near.client.call("bdev_nvme_attach_controller", Self.attachment(port, ["prchk_guard": true]))
    }
    await expectCode(-22) {
      try await near.client.call("bdev_nvme_attach_controller", Self.attachment(port, ["dhchap_ctrlr_key": "k"]))
    }
    // An address of nobody's here (RFC 5737).
    await expectCode(-5) {
      try await near.client.call("bdev_nvme_attach_controller", Self.attachment(port, ["hostaddr": "192.0.2.1"]))
    }
    _ = try await near.client.call("bdev_nvme_attach_controller", Self.attachment(port, ["hostaddr": "127.0.0.9"]))
    let uri = try await NBDTests.export(near, "rn1")
    _ = try await ChildProcess.run(
      "qemu-img", ["bench", "-f", "raw", "-w", "-c", "1000", "-d", "64", "-s", "4096", "-t", "none", uri],
      within: .seconds(60))
    #expect(
      try await near.client.call("bdev_nvme_get_controllers")[0]?["ctrlrs"]?[0]?["host"]?["addr"] == "127.0.0.9")
  }

  /// One path of two carries all, until it is lost.
  @Test func failoverUsesOnePath() async throws {
    let targets = [try Target(.memory), try Target(.memory)]
    var ports: [Int] = []
    for target in targets {
      _ = try await target.client.call(
        "bdev_malloc_create",
        ["name": "m", "block_size": 512, "num_blocks": 8192, "uuid": "11111111-2222-4333-8444-555555555555"])
      ports.append(try await NVMeHost.show("m", target))
    }
    let near = try Target(.memory)
    for port in ports {
      _ = try await near.client.call(
        "bdev_nvme_attach_controller",
        Self.attachment(
          port, ["multipath": "failover", "ctrlr_loss_timeout_sec": 30, "reconnect_delay_sec": 1]))
    }
    let specifics = try await near.client.call("bdev_get_bdevs", ["name": "rn1"])[0]?["driver_specific"]
    #expect(specifics?["mp_policy"] == "active_passive")
    let uri = try await NBDTests.export(near, "rn1")
    _ = try await NBDTests.io(uri, "write 0 64k", "write 64k 64k", "write 128k 64k", "write 192k 64k")
    var written: [Int] = []
    for target in targets {
      written.append(
        try await target.client.call("bdev_get_iostat", ["name": "m"])["bdevs"]?[0]?["bytes_written"]?.intValue ?? 0)
    }
    #expect(written.sorted() == [0, 256 << 10])
    targets[written[0] > 0 ? 0 : 1].dataPlane.stop()
    _ = try await NBDTests.io(uri, "write 0 64k")
    let other = targets[written[0] > 0 ? 1 : 0]
    #expect(
      try await other.client.call("bdev_get_iostat", ["name": "m"])["bdevs"]?[0]?["bytes_written"]?.intValue == 65536)
  }

  /// Without times to try again, a path that was lost is given up; asking for it once more brings it back below its
  /// users.
  @Test func aPathThatWasGivenUpCanBeAttachedAnew() async throws {
    var far = try await SoftDPUProcess(try TemporaryDirectory())
    let port = try TestEnvironment.freePort()
    try await Self.configure(far.client, port)
    let near = try Target(.memory)
    _ = try await near.client.call("bdev_nvme_attach_controller", Self.attachment(port))
    _ = try await NBDTests.export(near, "rn1")
    let client = try NBDClient(near.directory.file("rn1.sock"))
    let content = [UInt8](repeating: 5, count: 4096)
    #expect(try client.perform(.write, content).error == 0)
    far.process.kill()
    _ = try await far.process.waitForExit()
    let rpc = near.client
    try await eventually(within: .seconds(20), "the path is given up") {
      try await rpc.call("bdev_nvme_get_controllers")[0]?["ctrlrs"]?[0]?["state"] == "failed"
    }
    #expect(try client.perform(.write, content).error == 5)
    await expectCode(-5) { try await rpc.call("bdev_nvme_attach_controller", Self.attachment(port)) }
    far = try await SoftDPUProcess(far.directory)
    defer { far.process.kill() }
    let times: JSONValue = ["ctrlr_loss_timeout_sec": -1, "reconnect_delay_sec": 1]
    #expect(try await rpc.call("bdev_nvme_attach_controller", Self.attachment(port, times)) == ["rn1"])
    #expect(try client.perform(.write, content).error == 0)
    await expectCode(-114) { try await rpc.call("bdev_nvme_attach_controller", Self.attachment(port)) }
    // With the times of the last call.
    far.process.kill()
    _ = try await far.process.waitForExit()
    far = try await SoftDPUProcess(far.directory)
    try await eventually(within: .seconds(20), "the path is back") {
      try await rpc.call("bdev_nvme_get_controllers")[0]?["ctrlrs"]?[0]?["state"] == "enabled"
    }
    #expect(try client.perform(.write, content).error == 0)
  }

  private static func configure(_ client: JSONRPCClient, _ port: Int) async throws {
    _ = try await client.call(
      "bdev_malloc_create",
      ["name": "m", "block_size": 512, "num_blocks": 8192, "uuid": "11111111-2222-4333-8444-555555555555"])
    _ = try await client.call("nvmf_create_transport", ["trtype": "TCP"])
    _ = try await client.call("nvmf_create_subsystem", ["nqn": .string(NVMeHost.nqn), "allow_any_host": true])
    _ = try await client.call(
      "nvmf_subsystem_add_ns", ["nqn": .string(NVMeHost.nqn), "namespace": ["bdev_name": "m"]])
    _ = try await client.call(
      "nvmf_subsystem_add_listener",
      [
        "nqn": .string(NVMeHost.nqn),
        "listen_address": [
          "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": .string("\(port)"),
        ],
      ])
  }

  /// After a power cut this side may be up before its remote disk.
  @Test func aRemoteDiskThatWasAwayAtTheStartComesByItself() async throws {
    var far = try await SoftDPUProcess(try TemporaryDirectory())
    let port = try TestEnvironment.freePort()
    try await Self.configure(far.client, port)
    var near = try await SoftDPUProcess(try TemporaryDirectory())
    let times: JSONValue = ["ctrlr_loss_timeout_sec": -1, "reconnect_delay_sec": 1]
    _ = try await near.client.call("bdev_nvme_attach_controller", Self.attachment(port, times))
    _ = try await near.client.call(
      "nbd_start_disk", ["bdev_name": "rn1", "nbd_device": .string(near.directory.file("r.sock"))])
    _ = try await near.client.call("vhost_create_blk_controller", ["ctrlr": "v", "dev_name": "rn1"])
    for process in [near.process, far.process] {
      process.kill()
      _ = try await process.waitForExit()
    }
    near = try await SoftDPUProcess(near.directory)
    defer { near.process.kill() }
    let client = near.client
    #expect(try await client.call("bdev_get_bdevs").arrayValue?.isEmpty == true)
    // What is missing is still what is wanted, and is not forgotten under another kind's name.
    await expectCode(-19) { try await client.call("bdev_aio_delete", ["name": "r"]) }
    await expectCode(-19) { try await client.call("bdev_aio_delete", ["name": "v"]) }
    far = try await SoftDPUProcess(far.directory)
    defer { far.process.kill() }
    try await eventually(within: .seconds(45), "the disk and its ways out are back") {
      let controllers = try await client.call("vhost_get_controllers").arrayValue?.count
      return try await client.call("nbd_get_disks").arrayValue?.count == 1 && controllers == 1
    }
    let nbd = try NBDClient(near.directory.file("r.sock"))
    #expect(try nbd.perform(.write, [UInt8](repeating: 1, count: 4096)).error == 0)
  }

  /// Zeros that are as slow as a write are not called fast.
  @Test func fastZeroesAreFastOrRefused() async throws {
    for (fallocate, expected) in [(true, UInt32(0)), (false, 95)] {
      let target = try Target(.memory)
      try await target.createVolume(fallocate: fallocate)
      _ = try await NBDTests.export(target, "disk")
      let client = try NBDClient(target.directory.file("disk.sock"))
      #expect(try client.perform(.writeZeroes, length: 65536, flags: 1 << 4).error == expected)
      #expect(try client.perform(.writeZeroes, length: 65536).error == 0)
    }
  }
}
