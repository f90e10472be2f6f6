import Dispatch
import FoundationEssentials
import GRPCCore
import Glibc
import JSON
import JSONRPC
import OPI
import OPIBridge
import SoftDPU
import SwiftProtobuf
import Synchronization
import Telemetry
import TestSupport
import Testing

/// What the bridge answers is what happened: an error changed nothing, and a success is what was asked for.
@Suite struct HonestyTests {
  // MARK: Creations that fail

  @Test func aSubsystemWhoseHostIsRefusedLeavesNothing() async throws {
    let fixture = try Fixture()
    let bridge = try fixture.bridge()
    func create(host: String) async throws -> OPINvmeSubsystem {
      try await bridge.create("sub") {
        $0.spec.nqn = "nqn.2024-01.org.example:sub"
        $0.spec.hostnqn = host
      }
    }
    #expect(await code { _ = try await create(host: "nqn.badhostname1") } == .invalidArgument)
    let subsystems = try await fixture.client.call("nvmf_get_subsystems").arrayValue
    #expect(subsystems?.contains { $0["nqn"] == "nqn.2024-01.org.example:sub" } == false)
    #expect(try fixture.names("records") == [])
    #expect(try await create(host: "nqn.2024-01.org.example:host").name == "nvmeSubsystems/sub")
  }

  /// The target makes it, and is away when it is read back; then it comes back and still has it.
  @Test func aCreationWhoseTargetGoesInTheMiddleIsUndoneWhenItIsBack() async throws {
    let directory = try TemporaryDirectory()
    let socket = directory.file("rpc")
    let bdevs = Mutex<[String]>([])
    let goes = Mutex<JSONRPCServer?>(nil)
    func server() -> JSONRPCServer {
      JSONRPCServer(path: socket) { request, reply in
        let name = request.params?["name"]?.stringValue
        switch request.method {
        case "bdev_get_bdevs":
          let found = bdevs.withLock { $0 }.filter { name == nil || $0 == name }
          if name != nil, found.isEmpty { return reply(.failure(ResponseError(code: -19, message: "No such device"))) }
          // It is going, and says nothing any more.
          if goes.withLock({ $0 }) != nil { return }
          reply(
            .success(
              .array(
                found.map { ["name": .string($0), "product_name": "Null disk", "block_size": 512, "num_blocks": 8] })))
        case "bdev_null_create":
          bdevs.withLock { $0.append(name ?? "") }
          reply(.success("n"))
          let server = goes.withLock { $0 }
          DispatchQueue.global().async { server?.stop() }
        case "bdev_null_delete":
          bdevs.withLock { bdevs in bdevs.removeAll { $0 == name } }
          reply(.success(true))
        case "nvmf_get_subsystems", "vhost_get_controllers": reply(.success([]))
        default: reply(.failure(.methodNotFound))
        }
      }
    }
    let first = server()
    goes.withLock { $0 = first }
    try first.start()
    let doubts = Atomic(0)
    let bridge = try Bridge(in: directory, wantsRepair: { _ = doubts.add(1, ordering: .relaxed) })
    #expect(
      await code {
        let _: OPINullVolume = try await bridge.create("n") {
          $0.blockSize = 512
          $0.blocksCount = 8
        }
      } == .unavailable)
    #expect(bdevs.withLock { $0 } == ["n"])
    #expect(doubts.load(ordering: .relaxed) == 1)
    goes.withLock { $0 = nil }
    let second = server()
    try second.start()
    defer { second.stop() }
    #expect(try await bridge.repair().isEmpty)
    #expect(bdevs.withLock { $0 } == [])
    #expect(await code { _ = try await bridge.get(OPINullVolume.self, "nullVolumes/n") } == .notFound)
  }

  @Test func aCreationThatMeetsSomebodyElsesDeviceTakesNothingAway() async throws {
    let fixture = try Fixture()
    let bridge = try fixture.bridge()
    _ = try await fixture.client.call("bdev_malloc_create", ["name": "m0", "num_blocks": 64, "block_size": 512])
    #expect(await code { _ = try await bridge.malloc("m0") } == .alreadyExists)
    #expect(try await fixture.bdevs == ["m0"])
    #expect(try fixture.names("records") == [])
  }

  // MARK: Updates

  @Test func aKeyIsNeverTakenForChanged() async throws {
    let fixture = try Fixture()
    let bridge = try fixture.bridge()
    _ = try await bridge.malloc("m0")
    let key = Data((0..<32).map { UInt8($0) })
    func volume(_ key: Data) -> OPIEncryptedVolume {
      .with {
        $0.name = "encryptedVolumes/e"
        $0.volumeNameRef = "mallocVolumes/m0"
        $0.cipher = .aesXts128
        $0.key = key
      }
    }
    func update(_ key: Data, _ paths: [String]?) async throws {
      _ = try await bridge.update(
        volume(key), mask: paths.map { paths in .with { $0.paths = paths } }, allowMissing: false)
    }
    // Creating by an update takes the key as creating does.
    #expect(try await bridge.update(volume(key), mask: nil, allowMissing: true).key.isEmpty)
    #expect(try fixture.bytes("records/encryptedVolumes%e.json.key") == Array(key))
    let other = Data(key.reversed())
    for paths in [nil, ["*"], ["key"], ["cipher", "key"]] {
      #expect(await code { try await update(other, paths) } == .invalidArgument)
    }
    #expect(await code { try await update(Data(), ["key"]) } == .invalidArgument)
    for paths in [nil, ["*"], ["key"]] { try await update(key, paths) }
    // Who reads it and writes it back has no key to send.
    for paths in [nil, ["*"], ["cipher"]] { try await update(Data(), paths) }
    #expect(try fixture.bytes("records/encryptedVolumes%e.json.key") == Array(key))
  }

  @Test(arguments: [nil, ["limits"], ["limits.max.rw_iops_kiops"]])
  func anUpdateToWhatTheTargetShowsByChanceLasts(_ paths: [String]?) async throws {
    let fixture = try Fixture()
    let bridge = try fixture.bridge()
    _ = try await bridge.malloc("m0")
    var limits: OPIQosVolume = try await bridge.create("q") {
      $0.volumeNameRef = "mallocVolumes/m0"
      $0.limits.max.rwIopsKiops = 4
    }
    _ = try await fixture.client.call("bdev_set_qos_limit", ["name": "m0", "rw_ios_per_sec": 9000])
    limits.limits.max.rwIopsKiops = 9
    _ = try await bridge.update(limits, mask: paths.map { paths in .with { $0.paths = paths } }, allowMissing: false)
    fixture.stopDataPlane()
    try fixture.startDataPlane()
    #expect(try await bridge.repair().isEmpty)
    let bdev = try await fixture.client.call("bdev_get_bdevs", ["name": "m0"]).arrayValue?.first
    #expect(bdev?["assigned_rate_limits"]?["rw_ios_per_sec"] == 9000)
  }

  @Test func anUpdateToWhatIsWrittenDownUndoesWhatOthersDidAtTheTarget() async throws {
    let fixture = try Fixture()
    let bridge = try fixture.bridge()
    _ = try await bridge.malloc("m0")
    let limits: OPIQosVolume = try await bridge.create("q") {
      $0.volumeNameRef = "mallocVolumes/m0"
      $0.limits.max.rwIopsKiops = 4
    }
    _ = try await fixture.client.call("bdev_set_qos_limit", ["name": "m0", "rw_ios_per_sec": 9000])
    let updated = try await bridge.update(limits, mask: nil, allowMissing: false)
    #expect(updated.limits.max.rwIopsKiops == 4)
    let bdev = try await fixture.client.call("bdev_get_bdevs", ["name": "m0"]).arrayValue?.first
    #expect(bdev?["assigned_rate_limits"]?["rw_ios_per_sec"] == 4000)
  }

  @Test func aKeyWithoutItsRecordIsRemoved() async throws {
    let fixture = try Fixture()
    _ = try fixture.bridge()
    try fixture.directory.write("records/encryptedVolumes%x.json.key", "secret")
    _ = try fixture.bridge()
    #expect(try fixture.names("records") == [])
  }

  // MARK: Stores

  private func store(_ fixture: Fixture, _ body: (Bridge) async throws -> Void) async throws {
    let file = try await ReflinkFileSystem()
    _ = try await fixture.client.call(
      "bdev_aio_create", ["name": "folder", "filename": .string(file.path), "block_size": 4096])
    _ = try await fixture.client.call("bdev_lvol_create_lvstore", ["bdev_name": "folder", "lvs_name": "lvs"])
    try await body(try fixture.bridge())
    withExtendedLifetime(file) {}
  }

  private func create(_ bridge: Bridge, _ id: String) async throws -> YCVolume {
    try await bridge.createVolume(.with { $0.capacityBytes = 16 << 20 }, id: id, parent: "stores/lvs")
  }

  @Test func aSnapshotThatAVolumeWasClonedFromIsNoSnapshotOfIt() async throws {
    let fixture = try Fixture()
    try await store(fixture) { bridge in
      let first = try await create(bridge, "first")
      let monday = try await bridge.snapshotVolume(first.name, id: "monday")
      let copy = try await bridge.cloneVolume(monday.name, id: "copy")
      #expect(copy.source == monday.name)
      #expect(await code { _ = try await bridge.snapshotVolume(copy.name, id: "monday") } == .alreadyExists)
      // What another client of the target took is not known to be this one.
      _ = try await fixture.client.call(
        "bdev_lvol_snapshot", ["lvol_name": "lvs/copy", "snapshot_name": "tuesday"])
      #expect(await code { _ = try await bridge.snapshotVolume(copy.name, id: "tuesday") } == .alreadyExists)
      // A name that is free again is another snapshot's.
      try await bridge.deleteVolume(copy.name, allowMissing: false)
      try await bridge.deleteVolume("stores/lvs/volumes/tuesday", allowMissing: false)
      let tuesday = try await bridge.snapshotVolume(first.name, id: "tuesday")
      #expect(try await bridge.snapshotVolume(first.name, id: "tuesday") == tuesday)
      #expect(try fixture.names("records").count == 2)
      try await bridge.deleteVolume(first.name, allowMissing: false)
      try await bridge.deleteVolume(tuesday.name, allowMissing: false)
      try await bridge.deleteVolume(monday.name, allowMissing: false)
      #expect(try fixture.names("records") == [])
    }
  }

  @Test func askingAgainGivesTheSameWhateverHappenedToTheVolumeSince() async throws {
    let fixture = try Fixture()
    try await store(fixture) { first in
      let made = try await create(first, "v")
      let snapshot = try await first.snapshotVolume(made.name, id: "s1")
      _ = try await first.growVolume(made.name, capacity: 32 << 20)
      let clone = try await first.cloneVolume(snapshot.name, id: "c")
      let second = try await first.snapshotVolume(clone.name, id: "s2")
      // Also for a bridge that has just started.
      let bridge = try fixture.bridge()
      #expect(try await create(bridge, "v").uuid == made.uuid)
      #expect(try await bridge.cloneVolume(snapshot.name, id: "c").uuid == clone.uuid)
      #expect(try await bridge.snapshotVolume(clone.name, id: "s2") == second)
      // A clone is no empty volume, and its snapshot's clone is not the first one's.
      #expect(await code { _ = try await create(bridge, "c") } == .alreadyExists)
      #expect(await code { _ = try await bridge.cloneVolume(second.name, id: "c") } == .alreadyExists)
      #expect(await code { _ = try await create(bridge, "s1") } == .alreadyExists)
    }
  }

  // MARK: Remote volumes

  /// A path waits for its target to come back; one that was given up all the same is connected again by the repair.
  @Test func aPathThatWasGivenUpIsConnectedAgain() async throws {
    let directory = try TemporaryDirectory()
    let calls = Mutex<[String]>([])
    let state = Mutex<String?>(nil)
    let server = JSONRPCServer(path: directory.file("rpc")) { request, reply in
      switch request.method {
      case "bdev_nvme_get_controllers":
        let paths = state.withLock { $0 }.map { state -> JSONValue in
          ["state": .string(state), "trid": ["traddr": "127.0.0.1", "trsvcid": "4420"]]
        }
        reply(.success(paths.map { [["name": "far", "ctrlrs": [$0]]] } ?? []))
      case "bdev_nvme_attach_controller":
        calls.withLock { $0.append("attach, loss \(request.params?["ctrlr_loss_timeout_sec"]?.int64Value ?? 0)") }
        if state.withLock({ $0 }) != nil {
          return reply(.failure(ResponseError(code: -114, message: "Operation already in progress")))
        }
        state.withLock { $0 = "enabled" }
        reply(.success([]))
      case "bdev_nvme_reset_controller":
        calls.withLock { $0.append("reset") }
        state.withLock { $0 = "enabled" }
        reply(.success(true))
      case "bdev_get_bdevs": reply(.success([]))
      default: reply(.failure(.methodNotFound))
      }
    }
    try server.start()
    defer { server.stop() }
    let bridge = try Bridge(in: directory)
    let remote: OPINvmeRemoteController = try await bridge.create("far") { $0.multipath = .disable }
    let _: OPINvmePath = try await bridge.create("p", in: remote.name) {
      $0.trtype = .tcp
      $0.traddr = "127.0.0.1"
      $0.fabrics.trsvcid = 4420
      $0.fabrics.subnqn = "nqn.2024-01.org.example:sub"
      $0.fabrics.adrfam = .ipv4
    }
    #expect(try await bridge.repair().isEmpty)
    #expect(calls.withLock { $0 } == ["attach, loss -1"])
    state.withLock { $0 = "failed" }
    #expect(try await bridge.repair().isEmpty)
    #expect(calls.withLock { $0 } == ["attach, loss -1", "attach, loss -1", "reset"])
    #expect(state.withLock { $0 } == "enabled")
  }
}
