import CLinux
import Glibc
import JSON
import JSONRPC
import VhostFrontend

/// The processes that are compared, and the file that they serve.
final class Targets {
  struct Subject {
    let name: String
    let pid: pid_t
    let socket: String
  }

  private let directory: String
  private var children: [pid_t] = []
  private var file: String { "\(directory)/disk" }

  init(directory: String) { self.directory = directory }

  /// Kills the processes and removes the files.
  func remove() {
    for child in children {
      kill(child, SIGKILL)
      var status: CInt = 0
      waitpid(child, &status, 0)
    }
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
    let pid = try spawn(command + ["--rpc-socket", "\(directory)/rpc.sock", "--vhost-dir", bus])
    try wait(for: "\(directory)/rpc.sock", pid)
    let client = JSONRPCClient(path: "\(directory)/rpc.sock")
    _ = try await client.call("bdev_aio_create", ["name": "disk", "filename": .string(file), "block_size": 512])
    _ = try await client.call("vhost_create_blk_controller", ["ctrlr": "softdpu", "dev_name": "disk"])
    return Subject(name: "softdpu", pid: pid, socket: "\(bus)/softdpu")
  }

  func startStorageDaemon(queues: Int) throws -> Subject {
    let socket = "\(directory)/qsd.sock"
    let pid = try spawn([
      "qemu-storage-daemon", "--blockdev", "driver=file,node-name=disk,aio=io_uring,filename=\(file)", "--export",
      "type=vhost-user-blk,id=disk,node-name=disk,writable=on,addr.type=unix,addr.path=\(socket),num-queues=\(queues)",
    ])
    try wait(for: socket, pid)
    return Subject(name: "qemu-storage-daemon", pid: pid, socket: socket)
  }

  private func spawn(_ words: [String]) throws -> pid_t {
    let arguments: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) } + [nil]
    defer { arguments.forEach { free($0) } }
    var pid: pid_t = 0
    guard posix_spawnp(&pid, words[0], nil, nil, arguments, environ) == 0 else {
      throw FrontendError("cannot start \(words[0])")
    }
    children.append(pid)
    return pid
  }

  private func wait(for path: String, _ pid: pid_t) throws {
    let end = clinux_monotonic_nanoseconds() + 10_000_000_000
    while access(path, F_OK) != 0 {
      var status: CInt = 0
      guard clinux_monotonic_nanoseconds() < end, waitpid(pid, &status, CInt(WNOHANG)) == 0 else {
        throw FrontendError("the target at \(path) did not start")
      }
      usleep(10_000)
    }
  }
}
