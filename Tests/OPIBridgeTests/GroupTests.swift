import DPU
import GRPCCore
import Glibc
import JSON
import JSONRPC
import Logging
import OPI
import OPIBridge
import SwiftProtobuf
import Synchronization
import Telemetry
import TestSupport
import Testing

/// `SnapshotFiles`: several volumes at one moment.
@Suite struct GroupTests {
  private static func request(_ folder: String, _ files: [(String, String)]) -> YCSnapshotFilesRequest {
    .with { request in
      request.folder = folder
      request.files = files.map { name, file in
        .with {
          $0.name = name
          $0.file = file
        }
      }
    }
  }

  @Test func volumesAreCapturedIntoAFolderOfTheirOwn() async throws {
    let fixture = try Fixture()
    let bridge = try fixture.bridge()
    let pool = try await ReflinkFileSystem()
    for name in ["a", "b"] {
      let fd = open("\(pool.path)/\(name)", O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
      _ = ftruncate(fd, 1 << 20)
      _ = pwrite(fd, [UInt8](repeating: name == "a" ? 1 : 2, count: 512), 512, 0)
      close(fd)
      _ = try await bridge.createVolume(.with { $0.file = "\(pool.path)/\(name)" }, id: name, parent: "")
    }
    let folder = "\(pool.path)/groups/one"
    let both = [("volumes/a", "a.img"), ("volumes/b", "b.img")]
    let answer = try await bridge.snapshotFiles(Self.request(folder, both))
    #expect(answer.folder == folder && answer.pauseUs > 0)
    #expect(abs(answer.takenAtUs / 1_000_000 - Int64(time(nil))) < 60)
    for (file, byte) in [("a.img", UInt8(1)), ("b.img", 2)] {
      let fd = open("\(folder)/\(file)", O_RDONLY | O_CLOEXEC)
      defer { close(fd) }
      var first: UInt8 = 0
      #expect(pread(fd, &first, 1, 0) == 1 && first == byte)
    }
    #expect(await code { _ = try await bridge.snapshotFiles(Self.request(folder, both)) } == .alreadyExists)

    let other = "\(pool.path)/groups/two"
    for files in [
      [], [("a", "a.img")], [("volumes/a", "../a")], [("volumes/a", "")], [("volumes/a", "x"), ("volumes/b", "x")],
      [("stores/s/volumes/a", "a")],
    ] {
      let refused = await code { _ = try await bridge.snapshotFiles(Self.request(other, files)) }
      #expect(refused == .invalidArgument, "\(files)")
    }
    for wrong in ["", "groups", "\(pool.path)/../x/y"] {
      let refused = await code { _ = try await bridge.snapshotFiles(Self.request(wrong, both)) }
      #expect(refused == .invalidArgument, "\(wrong)")
    }
    let unknown = await code { _ = try await bridge.snapshotFiles(Self.request(other, [("volumes/c", "c.img")])) }
    #expect(unknown == .notFound)
    #expect(access(other, F_OK) != 0)
  }

  @Test func aDataPlaneWithoutTheCallIsToldApart() async throws {
    let directory = try TemporaryDirectory()
    let server = JSONRPCServer(path: directory.file("rpc")) { _, reply in reply(.failure(.methodNotFound)) }
    try server.start()
    defer { server.stop() }
    let bridge = try Bridge(
      target: Target(socket: directory.file("rpc"), timeout: .seconds(5)),
      store: RecordStore(directory: directory.file("records")), registry: MetricsRegistry(), logger: Fixture.logger,
      wantsRepair: {})
    let request = Self.request("/pool/groups/one", [("volumes/a", "a.img")])
    #expect(await code { _ = try await bridge.snapshotFiles(request) } == .unimplemented)
    let client = SPDKClient(socket: directory.file("rpc"), timeout: .seconds(5))
    let error = await #expect(throws: DPUError.self) {
      try await client.snapshot(into: "/pool/groups/one", files: ["a": "a.img"])
    }
    #expect(error?.code == .unsupported)
  }
}
