import DPU
import Glibc
import JSON
import JSONRPC
import Logging
import SoftDPU
import Synchronization
import TestSupport
import Testing

@Suite struct SPDKClientTests {
  private final class Fixture: Sendable {
    let directory: TemporaryDirectory
    let dataPlane: SoftDPU
    let dpu: SPDKClient
    let file: String

    init() throws {
      directory = try TemporaryDirectory()
      file = directory.file("disk")
      close(open(file, O_RDWR | O_CREAT, 0o600))
      truncate(file, 1 << 20)
      var logger = Logger(label: "softdpu")
      logger.logLevel = .critical
      dataPlane = try SoftDPU(
        SoftDPU.Configuration(rpcSocket: directory.file("rpc"), vhostDirectory: directory.file("bus")), logger: logger)
      dpu = SPDKClient(socket: directory.file("rpc"))
    }

    deinit { dataPlane.stop() }
  }

  private func code(_ body: () async throws -> Void) async -> DPUError.Code? {
    await #expect(throws: DPUError.self) { try await body() }?.code
  }

  @Test func makesAndTakesAwayADisk() async throws {
    let fixture = try Fixture()
    let dpu = fixture.dpu
    #expect(try await dpu.version() == SoftDPU.version)
    #expect(try await dpu.volumes() == [])
    // Each step twice: what is there already is done.
    for _ in 0..<2 { try await dpu.createVolume(name: "v", file: fixture.file, readOnly: false) }
    #expect(
      try await dpu.volumes() == [
        BlockVolume(name: "v", file: fixture.file, blockSize: 512, blockCount: 2048, readOnly: false)
      ])
    for _ in 0..<2 { try await dpu.plug(function: "blk-00-v", volume: "v", readOnly: true) }
    #expect(try await dpu.functions() == [BlockFunction(name: "blk-00-v", volume: "v", readOnly: true)])
    truncate(fixture.file, 2 << 20)
    for _ in 0..<2 { try await dpu.rescanVolume(name: "v") }
    #expect(try await dpu.volumes().first?.capacity == 2 << 20)
    for _ in 0..<2 { try await dpu.unplug(function: "blk-00-v") }
    #expect(try await dpu.functions() == [])
    for _ in 0..<2 { try await dpu.deleteVolume(name: "v") }
    #expect(try await dpu.volumes() == [])
  }

  @Test func tellsErrorsApart() async throws {
    let fixture = try Fixture()
    let dpu = fixture.dpu
    #expect(
      await code { try await dpu.createVolume(name: "v", file: fixture.file + "-not", readOnly: false) } == .notFound)
    #expect(await code { try await dpu.rescanVolume(name: "v") } == .notFound)
    #expect(await code { try await dpu.plug(function: "f", volume: "v", readOnly: false) } == .notFound)
    try await dpu.createVolume(name: "v", file: fixture.file, readOnly: false)
    #expect(await code { try await dpu.createVolume(name: "v", file: fixture.file, readOnly: true) } == .conflict)
    #expect(await code { try await dpu.createVolume(name: "v", file: "/other", readOnly: false) } == .conflict)
    try await dpu.plug(function: "f", volume: "v", readOnly: false)
    #expect(await code { try await dpu.plug(function: "f", volume: "v", readOnly: true) } == .conflict)
    #expect(await code { try await dpu.deleteVolume(name: "v") } == .busy)
    #expect(await code { _ = try await SPDKClient(socket: "/nowhere/rpc").version() } == .unavailable)
    #expect(await code { try await dpu.createVolume(name: "w", file: fixture.file, readOnly: false) } == .busy)
  }

  /// A target that refuses one parameter of bdev_aio_create, and keeps those of the calls that it takes.
  private final class OtherTarget: Sendable {
    private let directory: TemporaryDirectory
    private let server: JSONRPCServer
    private let taken: Kept
    let dpu: SPDKClient

    private final class Kept: Sendable {
      let calls = Mutex<[JSONValue]>([])
    }

    init(refusing parameter: String) throws {
      directory = try TemporaryDirectory()
      let kept = Kept()
      taken = kept
      server = JSONRPCServer(path: directory.file("rpc")) { request, reply in
        switch request.method {
        case "bdev_get_bdevs": reply(.success([]))
        case "bdev_aio_create" where request.params?[parameter] != nil:
          reply(.failure(.internalError("spdk_json_decode_object failed")))
        case "bdev_aio_create":
          kept.calls.withLock { $0.append(request.params ?? .null) }
          reply(.success("v"))
        default: reply(.failure(.methodNotFound))
        }
      }
      try server.start()
      dpu = SPDKClient(socket: directory.file("rpc"))
    }

    deinit { server.stop() }

    var created: [JSONValue] { taken.calls.withLock { $0 } }
  }

  /// An SPDK before 23.05 refuses parameters that it does not know.
  @Test func worksWithATargetThatDoesNotKnowFallocate() async throws {
    let target = try OtherTarget(refusing: "fallocate")
    try await target.dpu.createVolume(name: "v", file: "/f", readOnly: true)
    #expect(target.created == [["name": "v", "filename": "/f", "block_size": 512, "readonly": true]])
  }

  /// SPDK locks no files and knows no "shared"; what it does know it is told all the same.
  @Test func sharesAFileThroughATargetThatHasNoWordForIt() async throws {
    let target = try OtherTarget(refusing: "shared")
    try await target.dpu.createVolume(name: "v", file: "/f", readOnly: false, shared: true)
    #expect(
      target.created == [
        ["name": "v", "filename": "/f", "block_size": 512, "readonly": false, "fallocate": true]
      ])
  }

  /// What a live SPDK answers for volumes and controllers of other kinds is left alone.
  @Test func leavesOthersObjectsAlone() async throws {
    let directory = try TemporaryDirectory()
    let server = JSONRPCServer(path: directory.file("rpc")) { request, reply in
      switch request.method {
      case "bdev_get_bdevs":
        reply(
          .success([
            [
              "name": "Malloc0", "product_name": "Malloc disk", "block_size": 512, "num_blocks": 1,
              "driver_specific": [:],
            ],
            [
              "name": "a", "block_size": 4096, "num_blocks": 16,
              "driver_specific": ["aio": ["filename": "/a", "block_size_override": true]],
              "supported_io_types": ["read": true, "write": false],
            ],
          ]))
      case "vhost_get_controllers":
        reply(
          .success([
            ["ctrlr": "scsi", "backend_specific": ["scsi": []]],
            ["ctrlr": "b", "backend_specific": ["block": ["bdev": nil, "readonly": false]]],
          ]))
      default: reply(.failure(.methodNotFound))
      }
    }
    try server.start()
    defer { server.stop() }
    let dpu = SPDKClient(socket: directory.file("rpc"))
    #expect(
      try await dpu.volumes() == [BlockVolume(name: "a", file: "/a", blockSize: 4096, blockCount: 16, readOnly: true)])
    #expect(try await dpu.functions() == [BlockFunction(name: "b", volume: "", readOnly: false)])
  }
}
