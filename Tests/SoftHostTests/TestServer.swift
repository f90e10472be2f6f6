import BMC
import Glibc
import JSONRPC
import Logging
import Synchronization
import TestSupport

/// The tiny image (images/build-tiny.sh), built once.
enum TinyImage {
  static func path() async throws -> String {
    let home = getenv("HOME").map { String(cString: $0) } ?? "/root"
    let path = home + "/.cache/ycloud/images/tiny.raw"
    if access(path, R_OK) != 0 {
      try await ChildProcess.run(TestEnvironment.repository + "/images/build-tiny.sh", within: .seconds(600))
    }
    return path
  }
}

/// A `ycloud softhost` in a directory of its own, with back ends of qemu-storage-daemon.
final class TestServer: Sendable {
  let directory: TemporaryDirectory
  let port: Int
  private let process = Mutex<ChildProcess?>(nil)
  private let backEnds = Mutex<[String: ChildProcess]>([:])

  var bus: String { directory.file("bus") }
  var consoleSocket: String { directory.file("console.sock") }
  var consoleLog: String { contentsOfFile(directory.file("console.log")) ?? "" }
  var output: String { contentsOfFile(directory.file("softhost.log")) ?? "" }

  init() throws {
    directory = try TemporaryDirectory()
    port = try TestEnvironment.freePort()
    try directory.write("accounts", "admin:correct horse\n", mode: 0o600)
    mkdir(bus, 0o755)
  }

  /// Ends everything, also QEMU, which runs on its own.
  func end() {
    process.withLock { $0?.kill() }
    if let pid = qemu { Glibc.kill(pid, SIGKILL) }
    backEnds.withLock { for child in $0.values { child.kill() } }
  }

  /// The pid of the chassis process.
  var pid: pid_t? { process.withLock { $0?.pid } }

  /// How often the guest has told that it started.
  var starts: Int { consoleLog.split(whereSeparator: \.isNewline).count { $0.contains("started after") } }

  /// How many QEMUs serve this chassis.
  func countQEMUs() async throws -> Int {
    let output = try await ChildProcess.run(
      "sh", ["-c", "pgrep -c -f '[q]emu-system.*\(directory.path)/state/qmp.sock' || true"])
    return Int(output.prefix { $0.isNumber }) ?? -1
  }

  /// The pid of the running QEMU.
  var qemu: pid_t? {
    guard let text = contentsOfFile(directory.file("state/qemu.pid")), let pid = pid_t(text.prefix { $0.isNumber }),
      let line = contentsOfFile("/proc/\(pid)/cmdline"), line.contains(directory.path)
    else { return nil }
    return pid
  }

  func start(_ more: [String] = []) throws {
    let child = try ChildProcess(
      TestEnvironment.builtProduct("ycloud"),
      [
        "softhost", "--name", "test-1", "--bus-dir", bus, "--state-dir", directory.file("state"), "--bmc-listen",
        "127.0.0.1:\(port)", "--bmc-credentials-file", directory.file("accounts"), "--console-socket", consoleSocket,
        "--console-log", directory.file("console.log"), "--memory", "96",
      ] + more, output: directory.file("softhost.log"))
    process.withLock { $0 = child }
  }

  func kill() { process.withLock { $0?.kill() } }

  func terminate() async throws -> ChildProcess.Exit? {
    let child = process.withLock { $0 }
    child?.signal(SIGTERM)
    return try await child?.waitForExit()
  }

  /// Puts a disk on the bus; `source` nil gives an empty one.
  func addDisk(_ name: String, source: String?) async throws {
    let file = directory.file(name + ".raw")
    if let source {
      try await ChildProcess.run("cp", ["--sparse=always", "--reflink=auto", source, file])
    } else {
      try await ChildProcess.run("truncate", ["-s", "16M", file])
    }
    try startBackEnd(name)
    try await eventually { access(self.bus + "/" + name, F_OK) == 0 }
  }

  func startBackEnd(_ name: String) throws {
    let child = try ChildProcess(
      "qemu-storage-daemon",
      [
        "--blockdev", "driver=file,node-name=f,filename=\(directory.file(name + ".raw"))", "--blockdev",
        "driver=raw,node-name=d,file=f", "--export",
        "type=vhost-user-blk,id=e,node-name=d,addr.type=unix,addr.path=\(bus)/\(name),writable=on",
      ])
    backEnds.withLock { $0[name] = child }
  }

  func killBackEnd(_ name: String) { backEnds.withLock { $0.removeValue(forKey: name) }?.kill() }

  func removeDisk(_ name: String) {
    unlink(bus + "/" + name)
    killBackEnd(name)
  }

  /// Runs `body` with a client of the server's BMC, once that answers.
  func withBMC(_ body: (any BMC) async throws -> Void) async throws {
    let pool = BMCClientPool(logger: Logger(label: "test"))
    do {
      let bmc = try pool.client(
        for: BMCAddress("redfish+http://127.0.0.1:\(port)"),
        credentials: BMCCredentials(username: "admin", password: "correct horse"))
      try await eventually(within: .seconds(20), self.output) { try await bmc.power() != .unknown }
      try await body(bmc)
    } catch {
      try await pool.shutdown()
      throw error
    }
    try await pool.shutdown()
  }
}

/// Runs `body` with a server that is gone afterwards, whatever happens.
func withTestServer(_ body: (TestServer) async throws -> Void) async throws {
  let server = try TestServer()
  defer { server.end() }
  try await body(server)
}

/// A reader and writer of a console socket, without threads: it reads when it is asked.
final class TestConsole: Sendable {
  private let descriptor: CInt
  private let seen = Mutex<[UInt8]>([])

  init(_ server: TestServer) throws {
    descriptor = try UnixSocket.connect(path: server.consoleSocket)
  }

  deinit { close(descriptor) }

  func type(_ text: String) {
    let bytes = Array(text.utf8)
    _ = bytes.withUnsafeBytes { send(descriptor, $0.baseAddress, $0.count, CInt(MSG_NOSIGNAL)) }
  }

  /// Reads what has come; returns false at the end of the stream.
  @discardableResult
  func read() -> Bool {
    var chunk = [UInt8](repeating: 0, count: 1 << 16)
    while true {
      let count = chunk.withUnsafeMutableBytes { recv(descriptor, $0.baseAddress, $0.count, 0) }
      if count == 0 { return false }
      if count < 0 { return errno == EAGAIN || errno == EINTR }
      seen.withLock { seen in
        seen.append(contentsOf: chunk[..<count])
        if seen.count > 4 << 20 { seen.removeFirst(seen.count - (2 << 20)) }
      }
    }
  }

  var text: String { String(decoding: seen.withLock { $0 }, as: UTF8.self) }

  /// Waits for a text to come.
  func expect(_ text: String, within limit: Duration = .seconds(30)) async throws {
    try await eventually(within: limit, every: .milliseconds(10), "'\(text)' on the console: \(self.text.suffix(800))")
    {
      self.read()
      return self.text.contains(text)
    }
  }

  /// Runs a command in the guest's shell and returns when it is done; the output is in `text`.
  func run(_ command: String, within limit: Duration = .seconds(30)) async throws {
    let mark = "\(UInt32.random(in: .min ... .max))"
    // The echo of the command line must not look like its end.
    type("\(command); echo do\"\"ne-\(mark)\n")
    try await expect("done-\(mark)", within: limit)
  }
}
