import FoundationEssentials
import GRPCCore
import Glibc
import JSON
import JSONRPC
import OPI
import OPIBridge
import SwiftProtobuf
import TestSupport
import Testing

@Suite struct BridgeTests {
  // MARK: Volumes

  @Test func creatingAgainGivesTheSameAndOtherwiseIsRefused() async throws {
    let fixture = try Fixture()
    let bridge = try fixture.bridge()
    let made = try await bridge.malloc("m0")
    #expect(made.name == "mallocVolumes/m0")
    #expect(made.blocksCount == 2048)
    #expect(!made.uuid.isEmpty)
    #expect(try await bridge.malloc("m0") == made)
    #expect(await code { _ = try await bridge.malloc("m0", blocks: 4096) } == .alreadyExists)
    // Two kinds cannot be one block device.
    #expect(
      await code {
        let _: OPINullVolume = try await bridge.create("m0") {
          $0.blockSize = 512
          $0.blocksCount = 8
        }
      } == .alreadyExists)
    #expect(try await bridge.get(OPIMallocVolume.self, "mallocVolumes/m0") == made)
  }

  @Test func aVolumeIsDeletedOnceAndOnlyWhenNobodyUsesIt() async throws {
    let fixture = try Fixture()
    let bridge = try fixture.bridge()
    _ = try await bridge.malloc("m0")
    let disk: OPIVirtioBlk = try await bridge.create("disk0") {
      $0.volumeNameRef = "mallocVolumes/m0"
      $0.pcieID.virtualFunction = 1
    }
    #expect(disk.volumeNameRef == "mallocVolumes/m0")
    let error = await #expect(throws: RPCError.self) {
      try await bridge.delete(OPIMallocVolume.self, "mallocVolumes/m0", allowMissing: false)
    }
    #expect(error?.code == .failedPrecondition)
    #expect(error?.message.contains("virtioBlks/disk0") == true)
    try await bridge.delete(OPIVirtioBlk.self, disk.name, allowMissing: false)
    try await bridge.delete(OPIMallocVolume.self, "mallocVolumes/m0", allowMissing: false)
    #expect(
      await code { try await bridge.delete(OPIMallocVolume.self, "mallocVolumes/m0", allowMissing: false) }
        == .notFound)
    try await bridge.delete(OPIMallocVolume.self, "mallocVolumes/m0", allowMissing: true)
    #expect(try await fixture.bdevs == [])
  }

  @Test func aUserThatWasMadePastTheBridgeCountsToo() async throws {
    let fixture = try Fixture()
    let bridge = try fixture.bridge()
    _ = try await bridge.malloc("m0")
    _ = try await fixture.client.call("vhost_create_blk_controller", ["ctrlr": "other", "dev_name": "m0"])
    let error = await #expect(throws: RPCError.self) {
      try await bridge.delete(OPIMallocVolume.self, "mallocVolumes/m0", allowMissing: false)
    }
    #expect(error?.message.contains("the function other") == true)
  }

  @Test func aFileHasItsOwnSizeAndBlockSize() async throws {
    let fixture = try Fixture()
    let bridge = try fixture.bridge()
    let file = fixture.file("disk")
    let made: OPIAioVolume = try await bridge.create("a") {
      $0.filename = file
      $0.blockSize = 4096
      $0.blocksCount = 256
    }
    #expect(made.blockSize == 4096)
    #expect(made.blocksCount == 256)
    // A client that counts on another size learns it, and nothing is left.
    let other = fixture.file("other")
    #expect(
      await code {
        let _: OPIAioVolume = try await bridge.create("b") {
          $0.filename = other
          $0.blocksCount = 1
        }
      } == .invalidArgument)
    #expect(
      await code {
        let _: OPIAioVolume = try await bridge.create("c") { $0.filename = "\(file)-not" }
      } == .notFound)
    #expect(try await fixture.bdevs == ["a"])
    #expect(try await bridge.list(OPIAioVolume.self, size: 0, token: "").resources.map(\.name) == ["aioVolumes/a"])
  }

  @Test func whatTheTargetHasWithoutARecordIsSeenAndCanBeDeleted() async throws {
    let fixture = try Fixture()
    let bridge = try fixture.bridge()
    _ = try await fixture.client.call(
      "bdev_malloc_create", ["name": "foreign", "block_size": 512, "num_blocks": 2048])
    let page = try await bridge.list(OPIMallocVolume.self, size: 0, token: "")
    #expect(page.resources.map(\.name) == ["mallocVolumes/foreign"])
    #expect(try await bridge.get(OPIMallocVolume.self, "mallocVolumes/foreign").blocksCount == 2048)
    try await bridge.delete(OPIMallocVolume.self, "mallocVolumes/foreign", allowMissing: false)
    #expect(try await fixture.bdevs == [])
  }

  @Test(arguments: [
    ("block_size", Int64(0), Int64(8)), ("block_size", 500, 8), ("blocks_count", 512, 0), ("blocks_count", 512, -1),
    ("blocks_count", 4096, .max),
  ])
  func anErrorNamesTheField(_ field: String, _ blockSize: Int64, _ count: Int64) async throws {
    let fixture = try Fixture()
    let bridge = try fixture.bridge()
    let error = await #expect(throws: RPCError.self) {
      let _: OPINullVolume = try await bridge.create("n") {
        $0.blockSize = blockSize
        $0.blocksCount = count
      }
    }
    #expect(error?.code == .invalidArgument)
    #expect(error?.message.contains(field) == true)
  }

  // MARK: Updates

  @Test func aNullVolumeGrowsAndDoesNotShrink() async throws {
    let fixture = try Fixture()
    let bridge = try fixture.bridge()
    var volume: OPINullVolume = try await bridge.create("n") {
      $0.blockSize = 512
      $0.blocksCount = 2048
    }
    volume.blocksCount = 4096
    let mask = Google_Protobuf_FieldMask.with { $0.paths = ["blocks_count"] }
    #expect(try await bridge.update(volume, mask: mask, allowMissing: false).blocksCount == 4096)
    volume.blocksCount = 2048
    #expect(await code { _ = try await bridge.update(volume, mask: mask, allowMissing: false) } == .invalidArgument)
    #expect(try await bridge.get(OPINullVolume.self, volume.name).blocksCount == 4096)
    volume.blockSize = 4096
    let whole = await #expect(throws: RPCError.self) {
      _ = try await bridge.update(
        volume, mask: Google_Protobuf_FieldMask.with { $0.paths = ["block_size"] }, allowMissing: false)
    }
    #expect(whole?.message.contains("block_size") == true)
    #expect(
      await code {
        _ = try await bridge.update(
          volume, mask: Google_Protobuf_FieldMask.with { $0.paths = ["colour"] }, allowMissing: false)
      } == .invalidArgument)
  }

  @Test func anUpdateOfWhatIsMissingCreatesItOnlyWhereThatIsAllowed() async throws {
    let fixture = try Fixture()
    let bridge = try fixture.bridge()
    let volume = OPINullVolume.with {
      $0.name = "nullVolumes/n"
      $0.blockSize = 512
      $0.blocksCount = 8
    }
    #expect(await code { _ = try await bridge.update(volume, mask: nil, allowMissing: false) } == .notFound)
    #expect(try await bridge.update(volume, mask: nil, allowMissing: true).blocksCount == 8)
  }

  // MARK: Limits and encryption

  @Test func limitsAreSetChangedAndLifted() async throws {
    let fixture = try Fixture()
    let bridge = try fixture.bridge()
    _ = try await bridge.malloc("m0")
    func assigned() async throws -> JSONValue? {
      try await fixture.client.call("bdev_get_bdevs", ["name": "m0"]).arrayValue?.first?["assigned_rate_limits"]
    }
    var limits: OPIQosVolume = try await bridge.create("q") {
      $0.volumeNameRef = "mallocVolumes/m0"
      $0.limits.max.rwIopsKiops = 5
      $0.limits.max.wrBandwidthMbs = 20
    }
    #expect(try await assigned()?["rw_ios_per_sec"] == 5000)
    #expect(try await assigned()?["w_mbytes_per_sec"] == 20)
    #expect(
      await code {
        let _: OPIQosVolume = try await bridge.create("second") {
          $0.volumeNameRef = "m0"
          $0.limits.max.rwIopsKiops = 1
        }
      } == .failedPrecondition)
    limits.limits.max.rwIopsKiops = 8
    _ = try await bridge.update(limits, mask: nil, allowMissing: false)
    #expect(try await assigned()?["rw_ios_per_sec"] == 8000)
    try await bridge.delete(OPIQosVolume.self, "qosVolumes/q", allowMissing: false)
    #expect(try await assigned()?["rw_ios_per_sec"] == 0)
    for wrong in [
      OPIQosVolume.with { $0.limits.max.rdIopsKiops = 1 }, OPIQosVolume.with { $0.limits.min.rwIopsKiops = 1 },
    ] {
      var wrong = wrong
      wrong.volumeNameRef = "m0"
      if wrong.limits.hasMin { wrong.limits.max.rwIopsKiops = 1 }
      let given = wrong
      #expect(await code { _ = try await bridge.create(given, id: "w", idField: "id") } == .unimplemented)
    }
  }

  @Test func noKeyIsShownOrWrittenWithTheRest() async throws {
    let fixture = try Fixture()
    let bridge = try fixture.bridge()
    _ = try await bridge.malloc("m0")
    let key = (0..<64).map { UInt8($0) &* 3 }
    func encrypted(_ key: [UInt8]) async throws -> OPIEncryptedVolume {
      try await bridge.create("e") {
        $0.volumeNameRef = "mallocVolumes/m0"
        $0.cipher = .aesXts256
        $0.key = Data(key)
      }
    }
    let made = try await encrypted(key)
    #expect(made.key.isEmpty)
    #expect(try await encrypted(key) == made)
    #expect(await code { _ = try await encrypted(key.reversed()) } == .alreadyExists)
    let short = await #expect(throws: RPCError.self) {
      let _: OPIEncryptedVolume = try await bridge.create("f") {
        $0.volumeNameRef = "mallocVolumes/m0"
        $0.cipher = .aesXts256
        $0.key = Data(key.prefix(33))
      }
    }
    #expect(short?.code == .invalidArgument)
    #expect(try await bridge.list(OPIEncryptedVolume.self, size: 0, token: "").resources.allSatisfy(\.key.isEmpty))
    // The key is in one file, which only its owner reads.
    let hexadecimal = key.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
    for name in try fixture.names("records") {
      let path = "\(fixture.directory.file("records"))/\(name)"
      var status = stat()
      #expect(lstat(path, &status) == 0 && status.st_mode & 0o077 == 0)
      let content = try fixture.bytes("records/\(name)")
      #expect(name.hasSuffix(".key") ? content == key : !String(decoding: content, as: UTF8.self).contains(hexadecimal))
    }
    try await bridge.delete(OPIEncryptedVolume.self, made.name, allowMissing: false)
    #expect(try fixture.names("records").filter { $0.hasSuffix(".key") } == [])
    #expect(try await fixture.client.call("accel_crypto_keys_get").arrayValue?.count == 0)
  }

  // MARK: NVMe

  @Test func aSubsystemIsBuiltAndTakenApart() async throws {
    let port = try TestEnvironment.freePort()
    let fixture = try Fixture()
    let bridge = try fixture.bridge()
    _ = try await bridge.malloc("m0")
    let host = "nqn.2024-01.org.example:host"
    var subsystem: OPINvmeSubsystem = try await bridge.create("sub") {
      $0.spec.nqn = "nqn.2024-01.org.example:sub"
      $0.spec.hostnqn = host
      $0.spec.serialNumber = "SN1"
      $0.spec.maxNamespaces = 10
    }
    #expect(subsystem.status.firmwareRevision.contains("SPDK"))
    let space: OPINvmeNamespace = try await bridge.create("ns", in: subsystem.name) {
      $0.spec.volumeNameRef = "mallocVolumes/m0"
      $0.spec.hostNsid = 3
      $0.spec.uuid = "1B4E28BA-2FA1-11D2-883F-B9A761BDE3FB"
      $0.spec.nguid = "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb"
    }
    #expect(space.name == "nvmeSubsystems/sub/nvmeNamespaces/ns")
    #expect(space.status.state == .enabled)
    #expect(space.status.operState == .offline)
    let controller: OPINvmeController = try await bridge.create("ctl", in: subsystem.name) {
      $0.spec.trtype = .tcp
      $0.spec.fabricsID.traddr = "127.0.0.1"
      $0.spec.fabricsID.trsvcid = "\(port)"
    }
    #expect(controller.status.active)
    #expect(try await bridge.get(OPINvmeNamespace.self, space.name).status.operState == .online)
    let shown = try await fixture.client.call("nvmf_get_subsystems", ["nqn": .string(subsystem.spec.nqn)])
      .arrayValue?.first
    #expect(shown?["hosts"]?.arrayValue?.first?["nqn"]?.stringValue == host)
    #expect(shown?["allow_any_host"] == false)
    #expect(shown?["namespaces"]?.arrayValue?.first?["nsid"] == 3)

    // Who may connect can change, and what the subsystem is cannot.
    subsystem.spec.hostnqn = "nqn.2024-01.org.example:other"
    _ = try await bridge.update(subsystem, mask: nil, allowMissing: false)
    #expect(
      try await fixture.client.call("nvmf_get_subsystems", ["nqn": .string(subsystem.spec.nqn)])
        .arrayValue?.first?["hosts"]?.arrayValue?.compactMap { $0["nqn"]?.stringValue }
        == ["nqn.2024-01.org.example:other"])
    subsystem.spec.nqn = "nqn.2024-01.org.example:another"
    #expect(await code { _ = try await bridge.update(subsystem, mask: nil, allowMissing: false) } == .invalidArgument)

    #expect(
      await code { try await bridge.delete(OPINvmeSubsystem.self, subsystem.name, allowMissing: false) }
        == .failedPrecondition)
    try await bridge.delete(OPINvmeController.self, controller.name, allowMissing: false)
    try await bridge.delete(OPINvmeNamespace.self, space.name, allowMissing: false)
    try await bridge.delete(OPINvmeSubsystem.self, subsystem.name, allowMissing: false)
    #expect(
      await code {
        _ = try await bridge.list(OPINvmeNamespace.self, parent: subsystem.name, size: 0, token: "")
      } == .notFound)
  }

  @Test func whatTheTargetHasNotIsSaidAndNotPretended() async throws {
    let fixture = try Fixture()
    let bridge = try fixture.bridge()
    let subsystem: OPINvmeSubsystem = try await bridge.create("sub") { $0.spec.nqn = "nqn.2024-01.org.example:sub" }
    #expect(
      await code {
        let _: OPINvmeController = try await bridge.create("c", in: subsystem.name) {
          $0.spec.trtype = .pcie
          $0.spec.pcieID.physicalFunction = 1
        }
      } == .unimplemented)
    #expect(
      await code {
        let _: OPINvmeSubsystem = try await bridge.create("p") {
          $0.spec.nqn = "nqn.2024-01.org.example:p"
          $0.spec.psk = Data([1, 2, 3])
        }
      } == .unimplemented)
    // The same NQN under two identifiers would be one subsystem.
    #expect(
      await code {
        let _: OPINvmeSubsystem = try await bridge.create("again") { $0.spec.nqn = "nqn.2024-01.org.example:sub" }
      } == .alreadyExists)
  }

  @Test func aRemoteVolumeIsReachedThroughItsPath() async throws {
    let port = try TestEnvironment.freePort()
    let fixture = try Fixture()
    let bridge = try fixture.bridge()
    _ = try await bridge.malloc("m0")
    let subsystem: OPINvmeSubsystem = try await bridge.create("sub") { $0.spec.nqn = "nqn.2024-01.org.example:sub" }
    let _: OPINvmeNamespace = try await bridge.create("ns", in: subsystem.name) {
      $0.spec.volumeNameRef = "mallocVolumes/m0"
      // Both ends are one process here, which knows each block device by its UUID.
      $0.spec.uuid = "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb"
    }
    let _: OPINvmeController = try await bridge.create("ctl", in: subsystem.name) {
      $0.spec.trtype = .tcp
      $0.spec.fabricsID.traddr = "127.0.0.1"
      $0.spec.fabricsID.trsvcid = "\(port)"
    }
    let remote: OPINvmeRemoteController = try await bridge.create("far") { $0.multipath = .disable }
    func path(_ id: String, port: Int64) async throws -> OPINvmePath {
      try await bridge.create(id, in: remote.name) {
        $0.trtype = .tcp
        $0.traddr = "127.0.0.1"
        $0.fabrics.trsvcid = port
        $0.fabrics.subnqn = subsystem.spec.nqn
        $0.fabrics.adrfam = .ipv4
      }
    }
    // A path to nowhere is refused, and leaves nothing.
    #expect(await code { _ = try await path("wrong", port: Int64(TestEnvironment.freePort())) } == .unavailable)
    let made = try await path("p", port: Int64(port))
    #expect(await code { _ = try await path("second", port: Int64(port)) } == .failedPrecondition)
    let spaces = try await bridge.remoteNamespaces(remote.name, size: 0, token: "").namespaces
    #expect(spaces.map(\.name) == ["\(remote.name)/nvmeRemoteNamespaces/farn1"])
    #expect(spaces.first?.nsid == 1)
    // It can be shown on.
    let _: OPIVirtioBlk = try await bridge.create("disk") {
      $0.volumeNameRef = spaces[0].name
      $0.pcieID.virtualFunction = 1
    }
    #expect(
      await code { try await bridge.delete(OPINvmeRemoteController.self, remote.name, allowMissing: false) }
        == .failedPrecondition)
    try await bridge.delete(OPIVirtioBlk.self, "virtioBlks/disk", allowMissing: false)
    #expect(try await bridge.statistics(OPINvmePath.self, made.name).readOpsCount >= 0)
    func identifier() async throws -> JSONValue? {
      try await fixture.client.call("bdev_nvme_get_controllers")[0]?["ctrlrs"]?[0]?["cntlid"]
    }
    let before = try await identifier()
    try await bridge.resetRemoteController(remote.name)
    #expect(try await identifier() != before)
    #expect(await code { try await bridge.resetRemoteController("nvmeRemoteControllers/none") } == .notFound)
    try await bridge.delete(OPINvmePath.self, made.name, allowMissing: false)
    try await bridge.delete(OPINvmeRemoteController.self, remote.name, allowMissing: false)
    #expect(try await fixture.bdevs == ["m0"])
  }

  /// Of two paths each has its own numbers, whichever the requests took.
  @Test func pathsAreCountedByThemselves() async throws {
    let fixture = try Fixture()
    let bridge = try fixture.bridge()
    _ = try await bridge.malloc("m0")
    let subsystem: OPINvmeSubsystem = try await bridge.create("sub") { $0.spec.nqn = "nqn.2024-01.org.example:sub" }
    let _: OPINvmeNamespace = try await bridge.create("ns", in: subsystem.name) {
      $0.spec.volumeNameRef = "mallocVolumes/m0"
      $0.spec.uuid = "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb"
    }
    let remote: OPINvmeRemoteController = try await bridge.create("far") { $0.multipath = .multipath }
    var paths: [OPINvmePath] = []
    for number in 0..<2 {
      let port = try TestEnvironment.freePort()
      let _: OPINvmeController = try await bridge.create("ctl\(number)", in: subsystem.name) {
        $0.spec.trtype = .tcp
        $0.spec.fabricsID.traddr = "127.0.0.1"
        $0.spec.fabricsID.trsvcid = "\(port)"
      }
      paths.append(
        try await bridge.create("p\(number)", in: remote.name) {
          $0.trtype = .tcp
          $0.traddr = "127.0.0.1"
          $0.fabrics.trsvcid = Int64(port)
          $0.fabrics.subnqn = subsystem.spec.nqn
          $0.fabrics.adrfam = .ipv4
        })
    }
    let socket = fixture.directory.file("n.sock")
    _ = try await fixture.client.call("nbd_start_disk", ["bdev_name": "farn1", "nbd_device": .string(socket)])
    try await ChildProcess.run(
      "qemu-img", ["bench", "-f", "raw", "-c", "500", "-d", "8", "-s", "4096", "-t", "none", "nbd:unix:\(socket)"])
    let counts = [
      try await bridge.statistics(OPINvmePath.self, paths[0].name).readOpsCount,
      try await bridge.statistics(OPINvmePath.self, paths[1].name).readOpsCount,
    ]
    let all = try await bridge.statistics(OPINvmeRemoteController.self, remote.name).readOpsCount
    #expect(counts[0] > 0 && counts[1] > 0 && counts[0] + counts[1] == all, "\(counts) of \(all)")
  }

  /// Every method that the bridge calls is one that the data plane has.
  @Test func theTargetServesWhatTheBridgeCalls() async throws {
    let fixture = try Fixture()
    let served = Set(try await fixture.client.call("rpc_get_methods").arrayValue?.compactMap(\.stringValue) ?? [])
    let method = /"((?:bdev|nvmf|vhost|accel|spdk)_[a-z_]+)"/
    var called: Set<String> = []
    for folder in ["Sources/OPIBridge", "Sources/DPU"] {
      let files = try await ChildProcess.run(
        "find", ["\(TestEnvironment.repository)/\(folder)", "-name", "*.swift"])
      for file in files.split(separator: "\n") {
        called.formUnion((contentsOfFile(String(file)) ?? "").matches(of: method).map { String($0.1) })
      }
    }
    // A parameter.
    called.remove("bdev_name")
    #expect(called.count > 30)
    #expect(called.subtracting(served) == [])
  }

  // MARK: Stores

  @Test func volumesOfAStoreAreMadeGrownSnapshottedAndCloned() async throws {
    let fixture = try Fixture()
    let file = try await ReflinkFileSystem()
    let bridge = try fixture.bridge()
    _ = try await fixture.client.call(
      "bdev_aio_create", ["name": "folder", "filename": .string(file.path), "block_size": 4096])
    _ = try await fixture.client.call("bdev_lvol_create_lvstore", ["bdev_name": "folder", "lvs_name": "lvs"])
    let stores = try await bridge.stores(size: 0, token: "").stores
    #expect(stores.map(\.name) == ["stores/lvs"])
    #expect(stores[0].freeBytes > 0)
    func volume() async throws -> YCVolume {
      try await bridge.createVolume(.with { $0.capacityBytes = 16 << 20 }, id: "v", parent: "stores/lvs")
    }
    let made = try await volume()
    #expect(made.name == "stores/lvs/volumes/v")
    #expect(try await volume() == made)
    let snapshot = try await bridge.snapshotVolume(made.name, id: "s")
    #expect(snapshot.snapshot)
    #expect(try await bridge.snapshotVolume(made.name, id: "s") == snapshot)
    let clone = try await bridge.cloneVolume(snapshot.name, id: "c")
    #expect(clone.source == snapshot.name)
    #expect(try await bridge.cloneVolume(snapshot.name, id: "c") == clone)
    #expect(await code { _ = try await bridge.cloneVolume(made.name, id: "x") } == .failedPrecondition)
    #expect(try await bridge.growVolume(clone.name, capacity: 32 << 20).capacityBytes == 32 << 20)
    #expect(await code { _ = try await bridge.growVolume(clone.name, capacity: 16 << 20) } == .invalidArgument)
    #expect(await code { _ = try await bridge.growVolume(clone.name, capacity: 33 << 20 | 1) } == .invalidArgument)
    #expect(try await bridge.volumes(store: "stores/lvs", size: 0, token: "").volumes.map(\.name).count == 3)
    // It can be shown by its name here.
    let _: OPIVirtioBlk = try await bridge.create("disk") {
      $0.volumeNameRef = clone.name
      $0.pcieID.virtualFunction = 1
    }
    #expect(await code { try await bridge.deleteVolume(clone.name, allowMissing: false) } == .failedPrecondition)
    try await bridge.delete(OPIVirtioBlk.self, "virtioBlks/disk", allowMissing: false)
    try await bridge.deleteVolume(clone.name, allowMissing: false)
    try await bridge.deleteVolume(made.name, allowMissing: false)
    try await bridge.deleteVolume(snapshot.name, allowMissing: false)
    #expect(await code { _ = try await bridge.getVolume(snapshot.name) } == .notFound)
    #expect(
      await code { _ = try await bridge.volumes(store: "stores/none", size: 0, token: "") } == .notFound)
  }
}
