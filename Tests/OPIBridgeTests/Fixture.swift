import GRPCCore
import Glibc
import JSON
import JSONRPC
import Logging
import OPI
import OPIBridge
import SoftDPU
import SwiftProtobuf
import Synchronization
import Telemetry
import TestSupport
import Testing

/// A bridge without its server, in front of a data plane in this process.
final class Fixture: Sendable {
  let directory: TemporaryDirectory
  let client: JSONRPCClient
  let registry = MetricsRegistry()
  let doubts = Atomic(0)
  private let dataPlane = Mutex<SoftDPU?>(nil)

  init() throws {
    directory = try TemporaryDirectory()
    client = JSONRPCClient(path: directory.file("rpc"))
    try startDataPlane()
  }

  deinit { stopDataPlane() }

  static let logger: Logger = {
    var logger = Logger(label: "test")
    logger.logLevel = .critical
    return logger
  }()

  /// Without a folder for its configuration, as SPDK starts: a data plane that comes back has forgotten everything.
  func startDataPlane() throws {
    let fresh = try SoftDPU(
      SoftDPU.Configuration(rpcSocket: directory.file("rpc"), vhostDirectory: directory.file("bus")),
      logger: Self.logger)
    dataPlane.withLock { $0 = fresh }
  }

  func stopDataPlane() {
    let old = dataPlane.withLock { plane in
      defer { plane = nil }
      return plane
    }
    old?.stop()
  }

  /// A bridge on the records that are on disk.
  func bridge() throws -> Bridge {
    try Bridge(
      target: Target(socket: directory.file("rpc"), timeout: .seconds(5)),
      store: RecordStore(directory: directory.file("records")), registry: registry, logger: Self.logger,
      wantsRepair: { [self] in doubts.add(1, ordering: .relaxed) })
  }

  func file(_ name: String, megabytes: Int = 1) -> String {
    let path = directory.file(name)
    close(open(path, O_RDWR | O_CREAT, 0o600))
    truncate(path, off_t(megabytes) << 20)
    return path
  }

  var bdevs: [String] {
    get async throws {
      try await client.call("bdev_get_bdevs").arrayValue?.compactMap { $0["name"]?.stringValue }.sorted() ?? []
    }
  }
}

/// The code of the error that `body` ends with.
func code(_ body: () async throws -> Void) async -> RPCError.Code? {
  await #expect(throws: RPCError.self) { try await body() }?.code
}

extension Bridge {
  /// In front of a target that a test plays, at `rpc` in its folder.
  init(
    in directory: TemporaryDirectory, timeout: Duration = .seconds(20), wantsRepair: @escaping @Sendable () -> Void = {}
  ) throws {
    try self.init(
      target: Target(socket: directory.file("rpc"), timeout: timeout),
      store: RecordStore(directory: directory.file("records")), registry: .init(), logger: Fixture.logger,
      wantsRepair: wantsRepair)
  }

  func malloc(_ id: String, blocks: Int64 = 2048) async throws -> OPIMallocVolume {
    try await create(id) {
      $0.blockSize = 512
      $0.blocksCount = blocks
    }
  }

  func create<R: Resource>(_ id: String, in parent: String = "", _ fill: (inout R) -> Void) async throws -> R {
    var resource = R()
    fill(&resource)
    return try await create(resource, id: id, idField: "id", parent: parent)
  }
}

extension Fixture {
  /// The names in a folder of the test's.
  func names(_ folder: String) throws -> [String] {
    guard let stream = opendir(directory.file(folder)) else { return [] }
    defer { closedir(stream) }
    var names: [String] = []
    while let entry = readdir(stream) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
        pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      if name != ".", name != ".." { names.append(name) }
    }
    return names.sorted()
  }

  func bytes(_ file: String) throws -> [UInt8] {
    let descriptor = open(directory.file(file), O_RDONLY)
    guard descriptor >= 0 else { throw TestEnvironmentError("cannot read \(file)") }
    defer { close(descriptor) }
    var content = [UInt8](repeating: 0, count: 1 << 16)
    let count = read(descriptor, &content, content.count)
    return Array(content.prefix(max(0, count)))
  }
}
