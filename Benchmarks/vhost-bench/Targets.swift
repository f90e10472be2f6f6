import BenchmarkSupport
import Glibc
import JSON
import JSONRPC
import VhostFrontend

/// The processes that are compared, and the file that they serve.
final class Targets {
  struct Subject {
    let name: String
    let child: Child
    let socket: String
  }

  private let directory: String
  private var children: [Child] = []
  private var file: String { "\(directory)/disk" }

  init(directory: String) { self.directory = directory }

  /// Kills the processes and removes the files.
  func remove() {
    for child in children { child.end() }
    for name in ["disk", "bus/softdpu", "rpc.sock", "qsd.sock"] { unlink("\(directory)/\(name)") }
    rmdir("\(directory)/bus")
    rmdir(directory)
  }

  /// Fills the file, so that no read finds a hole.
  func makeFile(megabytes: Int) throws {
    let fd = open(file, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
    guard fd >= 0 else { throw FrontendError("cannot make \(file)") }
    defer { close(fd) }
    let chunk = [UInt8](repeating: 0x5A, count: 1 << 20)
    for _ in 0..<megabytes where write(fd, chunk, chunk.count) != chunk.count {
      throw FrontendError("cannot fill \(file)")
    }
  }

  func startSoftDPU(_ program: String?) async throws -> Subject {
    let bus = "\(directory)/bus"
    let command = program.map { [$0, "softdpu", "--log-level", "error"] } ?? ["/proc/self/exe", "serve"]
    let child = try start(command + ["--rpc-socket", "\(directory)/rpc.sock", "--vhost-dir", bus])
    try child.wait(for: "\(directory)/rpc.sock")
    let client = JSONRPCClient(path: "\(directory)/rpc.sock")
    _ = try await client.call("bdev_aio_create", ["name": "disk", "filename": .string(file), "block_size": 512])
    _ = try await client.call("vhost_create_blk_controller", ["ctrlr": "softdpu", "dev_name": "disk"])
    return Subject(name: "softdpu", child: child, socket: "\(bus)/softdpu")
  }

  func startStorageDaemon(queues: Int) throws -> Subject {
    let socket = "\(directory)/qsd.sock"
    let child = try start([
      "qemu-storage-daemon", "--blockdev", "driver=file,node-name=disk,aio=io_uring,filename=\(file)", "--export",
      "type=vhost-user-blk,id=disk,node-name=disk,writable=on,addr.type=unix,addr.path=\(socket),num-queues=\(queues)",
    ])
    try child.wait(for: socket)
    return Subject(name: "qemu-storage-daemon", child: child, socket: socket)
  }

  private func start(_ words: [String]) throws -> Child {
    let child = try Child(words)
    children.append(child)
    return child
  }
}
