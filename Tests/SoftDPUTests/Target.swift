import Glibc
import JSON
import JSONRPC
import Logging
import SoftDPU
import TestSupport
import Testing
import VhostFrontend

/// A data plane in this process, on directories of its own, with one volume and one controller.
final class Target: Sendable {
  /// Where the volume's file lives: on a disk it is served through the ring with direct I/O, in memory at once.
  enum Place: String, CaseIterable, Sendable, CustomTestStringConvertible {
    case disk, memory
    var testDescription: String { rawValue }
  }

  let directory: TemporaryDirectory
  let file: String
  let dataPlane: SoftDPU
  let client: JSONRPCClient
  private let ownFile: Bool

  static let socketName = "blk-00-disk"

  init(
    _ place: Place = .disk, megabytes: Int = 8, reactors: Int = 1, connections: Int = 4096,
    handshakeTime: Duration = .seconds(30), keepsState: Bool = true
  ) throws {
    directory = try TemporaryDirectory()
    file = place == .disk ? directory.file("disk") : "/dev/shm/ycloud-test-\(getpid())-\(UInt64.random(in: 0 ... .max))"
    ownFile = true
    let fd = open(file, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
    guard fd >= 0, ftruncate(fd, off_t(megabytes) << 20) == 0 else {
      throw TestEnvironmentError("cannot make \(file)")
    }
    close(fd)
    dataPlane = try Self.start(
      directory, reactors: reactors, connections: connections, handshakeTime: handshakeTime, keepsState: keepsState)
    client = JSONRPCClient(path: directory.file("rpc.sock"))
  }

  static func start(
    _ directory: TemporaryDirectory, reactors: Int = 1, connections: Int = 4096,
    handshakeTime: Duration = .seconds(30), keepsState: Bool = true
  ) throws -> SoftDPU {
    var logger = Logger(label: "softdpu")
    logger.logLevel = .error
    return try SoftDPU(
      SoftDPU.Configuration(
        rpcSocket: directory.file("rpc.sock"), vhostDirectory: directory.file("bus"),
        stateDirectory: keepsState ? directory.file("state") : nil, reactors: reactors,
        maximumConnections: connections, handshakeTime: handshakeTime),
      logger: logger)
  }

  deinit {
    dataPlane.stop()
    unlink(file)
  }

  var socket: String { "\(directory.file("bus"))/\(Target.socketName)" }

  func createVolume(readOnly: Bool = false, fallocate: Bool = true, blockSize: Int64 = 512) async throws {
    _ = try await client.call(
      "bdev_aio_create",
      [
        "name": "disk", "filename": .string(file), "block_size": .integer(blockSize), "readonly": .bool(readOnly),
        "fallocate": .bool(fallocate),
      ])
  }

  func createController(readOnly: Bool = false) async throws {
    _ = try await client.call(
      "vhost_create_blk_controller",
      ["ctrlr": .string(Target.socketName), "dev_name": "disk", "readonly": .bool(readOnly)])
  }

  /// Makes volume and controller, and connects a front end with running queues.
  func frontend(queues: Int = 1, slotLength: Int = 65536, wanted: UInt64 = ~0) async throws -> VhostFrontend {
    try await createVolume()
    try await createController()
    let frontend = try VhostFrontend(path: socket, queues: queues, slotLength: slotLength)
    try frontend.start(wanted: wanted)
    return frontend
  }

  /// What the file holds.
  func bytes(at offset: Int, count: Int) -> [UInt8] {
    let fd = open(file, O_RDONLY | O_CLOEXEC)
    defer { close(fd) }
    var buffer = [UInt8](repeating: 0xEE, count: count)
    _ = pread(fd, &buffer, count, off_t(offset))
    return buffer
  }
}

/// Statuses of virtio-blk (virtio 1.2, section 5.2.6).
let statusOK: UInt8 = 0
let statusError: UInt8 = 1
let statusUnsupported: UInt8 = 2
