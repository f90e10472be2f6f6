import GRPCCore
import Glibc
import JSON
import JSONRPC
import OPI
import OPIBridge
import Synchronization
import SwiftProtobuf
import Telemetry
import TestSupport
import Testing

@Suite struct RepairTests {
  private func fill(_ bridge: Bridge, _ fixture: Fixture) async throws {
    let port = try TestEnvironment.freePort()
    _ = try await bridge.createVolume(.with { $0.file = fixture.file("disk") }, id: "v", parent: "")
    let _: OPIMallocVolume = try await bridge.create("m0") {
      $0.blockSize = 512
      $0.blocksCount = 2048
    }
    let _: OPIEncryptedVolume = try await bridge.create("e") {
      $0.volumeNameRef = "mallocVolumes/m0"
      $0.cipher = .aesXts128
      $0.key = .init((0..<32).map { UInt8($0) })
    }
    let _: OPIQosVolume = try await bridge.create("q") {
      $0.volumeNameRef = "encryptedVolumes/e"
      $0.limits.max.rwIopsKiops = 4
    }
    let subsystem: OPINvmeSubsystem = try await bridge.create("sub") { $0.spec.nqn = "nqn.2024-01.org.example:sub" }
    let _: OPINvmeNamespace = try await bridge.create("ns", in: subsystem.name) {
      $0.spec.volumeNameRef = "encryptedVolumes/e"
      $0.spec.hostNsid = 5
    }
    let _: OPINvmeController = try await bridge.create("ctl", in: subsystem.name) {
      $0.spec.trtype = .tcp
      $0.spec.fabricsID.traddr = "127.0.0.1"
      $0.spec.fabricsID.trsvcid = "\(port)"
    }
    let _: OPIVirtioBlk = try await bridge.create("disk") {
      $0.volumeNameRef = "volumes/v"
      $0.pcieID.virtualFunction = 1
    }
  }

  private func picture(_ fixture: Fixture) async throws -> [JSONValue] {
    var all: [JSONValue] = []
    for method in ["bdev_get_bdevs", "nvmf_get_subsystems", "vhost_get_controllers"] {
      all.append(try await fixture.client.call(method))
    }
    // What a device is made with anew each time.
    return all.map { Self.without(["uuid", "aliases", "nguid", "eui64"], $0) }
  }

  private static func without(_ members: Set<String>, _ value: JSONValue) -> JSONValue {
    if let object = value.objectValue {
      return .object(object.filter { !members.contains($0.key) }.mapValues { without(members, $0) })
    }
    // The order is that of their making.
    return value.arrayValue.map { .array($0.map { without(members, $0) }.sorted { $0.text < $1.text }) } ?? value
  }

  @Test func aTargetThatForgotEverythingIsFilledAgain() async throws {
    let fixture = try Fixture()
    let bridge = try fixture.bridge()
    try await fill(bridge, fixture)
    let before = try await picture(fixture)
    fixture.stopDataPlane()
    #expect(await code { _ = try await bridge.get(OPIMallocVolume.self, "mallocVolumes/m0") } == .unavailable)
    #expect(try await bridge.repair().isEmpty == false)
    try fixture.startDataPlane()
    #expect(await code { _ = try await bridge.get(OPIMallocVolume.self, "mallocVolumes/m0") } == .unavailable)
    #expect(try await bridge.repair().isEmpty)
    #expect(try await picture(fixture) == before)
    // With everything in its place nothing is done.
    #expect(try await bridge.repair().isEmpty)
    #expect(try await picture(fixture) == before)
  }

  @Test func aBridgeThatForgotEverythingReadsItFromDisk() async throws {
    let fixture = try Fixture()
    try await fill(try fixture.bridge(), fixture)
    fixture.stopDataPlane()
    try fixture.startDataPlane()
    let second = try fixture.bridge()
    #expect(try await second.repair().isEmpty)
    #expect(try await second.get(OPINvmeNamespace.self, "nvmeSubsystems/sub/nvmeNamespaces/ns").spec.hostNsid == 5)
    #expect(try await second.get(OPIEncryptedVolume.self, "encryptedVolumes/e").cipher == .aesXts128)
    #expect(try await fixture.bdevs == ["e", "m0", "v"])
  }

  /// A creation that is asked for again while the target is away must not cost what was there.
  @Test func askingAgainWhileTheTargetIsAwayTakesNothingAway() async throws {
    let fixture = try Fixture()
    let bridge = try fixture.bridge()
    try await fill(bridge, fixture)
    fixture.stopDataPlane()
    #expect(
      await code {
        let _: OPIMallocVolume = try await bridge.create("m0") {
          $0.blockSize = 512
          $0.blocksCount = 2048
        }
      } == .unavailable)
    #expect(
      await code {
        let _: OPIMallocVolume = try await bridge.create("m1") {
          $0.blockSize = 512
          $0.blocksCount = 2048
        }
      } == .unavailable)
    try fixture.startDataPlane()
    #expect(try await bridge.repair().isEmpty)
    #expect(try await fixture.bdevs == ["e", "m0", "v"])
  }

  @Test func onlyWhatIsMissingOrOtherwiseIsMadeGood() async throws {
    let fixture = try Fixture()
    let bridge = try fixture.bridge()
    try await fill(bridge, fixture)
    let before = try await picture(fixture)
    _ = try await fixture.client.call("vhost_delete_controller", ["ctrlr": "disk"])
    _ = try await fixture.client.call("bdev_set_qos_limit", ["name": "e", "rw_ios_per_sec": 9000])
    _ = try await fixture.client.call(
      "nvmf_subsystem_remove_ns", ["nqn": "nqn.2024-01.org.example:sub", "nsid": 5])
    #expect(try await bridge.repair().isEmpty)
    #expect(try await picture(fixture) == before)
  }

  /// What cannot be made good is named, and holds up nothing else.
  @Test func whatIsInTheWayIsNamed() async throws {
    let fixture = try Fixture()
    let bridge = try fixture.bridge()
    try await fill(bridge, fixture)
    fixture.stopDataPlane()
    unlink(fixture.directory.file("disk"))
    try fixture.startDataPlane()
    let failures = try await bridge.repair()
    #expect(Set(failures.keys) == ["volumes/v", "virtioBlks/disk"])
    #expect(failures["volumes/v"]?.message.contains(fixture.directory.file("disk")) == true)
    _ = fixture.file("disk")
    #expect(try await bridge.repair().isEmpty)
  }

  @Test(arguments: ["{", "{\"name\": \"aioVolumes/a\"}", "[]", "{\"name\":\"x/y\",\"phase\":\"present\",\"spec\":{}}"])
  func aDamagedRecordStopsTheBridgeWithAWord(_ text: String) async throws {
    let fixture = try Fixture()
    _ = try fixture.bridge()
    try fixture.directory.write("records/aioVolumes%a.json", text)
    let error = #expect(throws: RPCError.self) { _ = try fixture.bridge() }
    #expect(error?.code == .dataLoss)
    #expect(error?.message.contains("aioVolumes%a.json") == true)
  }

  @Test func aWriteThatWasCutOffIsForgotten() async throws {
    let fixture = try Fixture()
    _ = try fixture.bridge()
    try fixture.directory.write("records/aioVolumes%a.json.new", "{")
    _ = try fixture.bridge()
    #expect(try fixture.names("records") == [])
  }

  // MARK: Calls whose outcome is not known

  /// A target that carries a call out and does not answer.
  private final class Unreliable: Sendable {
    let bdevs = Mutex<[String]>([])
    let isMute = Atomic(false)

    func answer(_ request: Request, _ reply: @Sendable (Result<JSONValue, ResponseError>) -> Void) {
      let name = request.params?["name"]?.stringValue
      switch request.method {
      case "bdev_get_bdevs":
        let found = bdevs.withLock { $0 }.filter { name == nil || $0 == name }
        if name != nil, found.isEmpty { return reply(.failure(ResponseError(code: -19, message: "No such device"))) }
        reply(.success(.array(found.map(Self.describe))))
      case "bdev_null_create":
        bdevs.withLock { $0.append(name ?? "") }
        if !isMute.load(ordering: .relaxed) { reply(.success("n")) }
      case "bdev_null_delete":
        bdevs.withLock { bdevs in bdevs.removeAll { $0 == name } }
        if !isMute.load(ordering: .relaxed) { reply(.success(true)) }
      case "nvmf_get_subsystems", "vhost_get_controllers": reply(.success([]))
      default: reply(.failure(.methodNotFound))
      }
    }

    private static func describe(_ name: String) -> JSONValue {
      ["name": .string(name), "product_name": "Null disk", "block_size": 512, "num_blocks": 8, "uuid": "u"]
    }
  }

  @Test func aCreationInDoubtIsUndoneOrDoneAgain() async throws {
    let directory = try TemporaryDirectory()
    let target = Unreliable()
    let server = JSONRPCServer(path: directory.file("rpc")) { target.answer($0, $1) }
    try server.start()
    defer { server.stop() }
    let doubts = Counter()
    let bridge = try Bridge(
      in: directory, timeout: .milliseconds(200), wantsRepair: { doubts.value.add(1, ordering: .relaxed) })
    func create() async throws -> OPINullVolume {
      try await bridge.create("n") {
        $0.blockSize = 512
        $0.blocksCount = 8
      }
    }
    target.isMute.store(true, ordering: .relaxed)
    #expect(await code { _ = try await create() } == .deadlineExceeded)
    #expect(doubts.value.load(ordering: .relaxed) == 1)
    #expect(target.bdevs.withLock { $0 } == ["n"])
    // The client was told that it failed, so it must not be there in the end.
    target.isMute.store(false, ordering: .relaxed)
    #expect(try await bridge.repair().isEmpty)
    #expect(target.bdevs.withLock { $0 } == [])
    // And asked again it is made.
    target.isMute.store(true, ordering: .relaxed)
    #expect(await code { _ = try await create() } == .deadlineExceeded)
    target.isMute.store(false, ordering: .relaxed)
    #expect(try await create().name == "nullVolumes/n")
    #expect(target.bdevs.withLock { $0 } == ["n"])

    target.isMute.store(true, ordering: .relaxed)
    #expect(
      await code { try await bridge.delete(OPINullVolume.self, "nullVolumes/n", allowMissing: false) }
        == .deadlineExceeded)
    target.isMute.store(false, ordering: .relaxed)
    #expect(try await bridge.repair().isEmpty)
    #expect(await code { _ = try await bridge.get(OPINullVolume.self, "nullVolumes/n") } == .notFound)
  }

  final class Counter: Sendable {
    let value = Atomic(0)
  }

  // MARK: Other releases of SPDK

  /// OPI's counters have 32 bits, SPDK's 64.
  @Test func statisticsStayAtTheirLargestValue() async throws {
    let directory = try TemporaryDirectory()
    let server = JSONRPCServer(path: directory.file("rpc")) { request, reply in
      switch request.method {
      case "bdev_get_bdevs":
        reply(.success([["name": "n", "product_name": "Null disk", "block_size": 512, "num_blocks": 8]]))
      case "bdev_get_iostat":
        reply(
          .success([
            "tick_rate": 1,
            "bdevs": [["name": "n", "bytes_read": 5_000_000_000, "num_read_ops": 7, "bytes_written": 2_147_483_647]],
          ]))
      default: reply(.failure(.methodNotFound))
      }
    }
    try server.start()
    defer { server.stop() }
    let bridge = try Bridge(in: directory)
    let stats = try await bridge.statistics(OPINullVolume.self, "nullVolumes/n")
    #expect(stats.readBytesCount == .max)
    #expect(stats.readOpsCount == 7)
    #expect(stats.writeBytesCount == .max)
    #expect(stats.unmapOpsCount == 0)
  }

  /// A release without a part (vhost, NVMe-oF) answers -32601 for its methods.
  @Test func aTargetWithoutAPartHasNothingOfIt() async throws {
    let directory = try TemporaryDirectory()
    let calls = Mutex<[JSONValue]>([])
    let server = JSONRPCServer(path: directory.file("rpc")) { request, reply in
      switch request.method {
      case "bdev_get_bdevs" where request.params?["name"] != nil && calls.withLock({ $0.isEmpty }):
        reply(.failure(ResponseError(code: -19, message: "No such device")))
      case "bdev_get_bdevs":
        reply(
          .success([
            [
              "name": "a", "product_name": "AIO disk", "block_size": 512, "num_blocks": 8,
              "driver_specific": ["aio": ["filename": "/dev/sdx", "readonly": false]],
            ]
          ]))
      // Before "fallocate" was known.
      case "bdev_aio_create" where request.params?["fallocate"] != nil:
        reply(.failure(.internalError("spdk_json_decode_object failed")))
      case "bdev_aio_create":
        calls.withLock { $0.append(request.params ?? .null) }
        reply(.success("a"))
      case "bdev_aio_delete": reply(.success(true))
      default: reply(.failure(.methodNotFound))
      }
    }
    try server.start()
    defer { server.stop() }
    let bridge = try Bridge(in: directory)
    let made: OPIAioVolume = try await bridge.create("a") { $0.filename = "/dev/sdx" }
    #expect(made.blocksCount == 8)
    #expect(calls.withLock { $0.count } == 1)
    #expect(try await bridge.list(OPIVirtioBlk.self, size: 0, token: "").resources == [])
    try await bridge.delete(OPIAioVolume.self, made.name, allowMissing: false)
    #expect(
      await code {
        let _: OPINvmeSubsystem = try await bridge.create("s") { $0.spec.nqn = "nqn.2024-01.org.example:s" }
      } == .unimplemented)
  }
}
