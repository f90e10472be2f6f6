import ArgumentParser
import BenchmarkSupport
import CLinux
import Glibc
import JSON
import JSONRPC

struct Scale: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "A thousand volumes, each shown over NVMe/TCP and over NBD: calls, memory, connections, idleness.")

  @Option(help: "A ycloud binary to measure; without it, the data plane that this program contains.") var ycloud:
    String?
  @Option(help: "Volumes.") var volumes = 1000
  @Option(help: "Connections of NVMe/TCP, an admin and an I/O queue for each subsystem that is used.") var connections =
    64
  @Option(help: "Seconds for which nothing happens.") var idle = 10
  @Option(help: "Threads of the data plane that serve I/O.") var reactors = 1

  /// Namespaces of each subsystem.
  private static let perSubsystem = 10

  func run() async throws {
    let remote = try Remote(ycloud, reactors: reactors)
    defer { remote.remove() }
    let port = try Remote.freePort()
    var calls = Calls(remote.client)
    try await calls.time("nvmf_create_transport", ["trtype": "TCP"])
    let before = remote.child.memory
    let start = clinux_monotonic_nanoseconds()
    try await export(remote, port, &calls)
    let seconds = Double(clinux_monotonic_nanoseconds() - start) / 1e9
    let disk = try diskTimes(remote.directory)
    let perVolume = Double(remote.child.memory - before) / Double(volumes) / 1024
    print("  \(volumes) volumes over NVMe/TCP and NBD: \(calls.all.count) calls in \(rounded(seconds)) s")
    calls.report()
    print("    the disk alone, a line and fdatasync: median \(rounded(disk.median)) ms, p99 \(rounded(disk.p99))")
    row("\(volumes) volumes: configuring calls, p99 (ms)", "\(rounded(calls.all.p99))", "<= 10")
    row("\(volumes) volumes: memory per volume (KiB)", "\(rounded(perVolume))", "<= 64")

    let ticks = remote.child.ticks
    try await Task.sleep(for: .seconds(idle))
    row("\(volumes) volumes: idle \(idle) s, ticks of CPU", "\(remote.child.ticks - ticks)", "0")

    let unconnected = remote.child.memory
    let hosts = connections / 2
    for number in 0..<hosts { try await remote.attach("h\(number)", subsystem: number, port: port) }
    // Each has moved what makes its buffers real.
    for number in 0..<hosts { _ = try remote.load("h\(number)n1", depth: 32, seconds: 0.02) }
    let perConnection = Double(remote.child.memory - unconnected) / Double(connections) / 1024
    row("\(connections) connections: memory of each (KiB)", "\(rounded(perConnection))", "<= 512")
    calls = Calls(remote.client)
    for round in 0..<200 { try await everyday(round, &calls) }
    calls.report()
    row("\(connections) connections: calls, p99 (ms)", "\(rounded(calls.all.p99))", "<= 10")
    calls = Calls(remote.client)
    for _ in 0..<10 {
      try await calls.time("bdev_get_bdevs")
      try await calls.time("bdev_get_iostat")
      try await calls.time("nvmf_get_subsystems")
      try await calls.time("nbd_get_disks")
      try await calls.time("framework_get_config", ["name": "bdev"])
    }
    calls.report()
    row("\(volumes) volumes: calls that list all, p99 (ms)", "\(rounded(calls.all.p99))", "")
  }

  /// What a configuring call waits for: lines that go to the disk one after the other, in milliseconds.
  private func diskTimes(_ directory: String) throws -> [Double] {
    let path = "\(directory)/lines"
    let fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o600)
    guard fd >= 0 else { throw BenchmarkError("cannot make \(path)") }
    defer {
      close(fd)
      unlink(path)
    }
    let line = [UInt8](repeating: 0x41, count: 256)
    return try (0..<400).map { _ in
      let start = clinux_monotonic_nanoseconds()
      guard write(fd, line, line.count) == line.count, fdatasync(fd) == 0 else {
        throw BenchmarkError("cannot write \(path)")
      }
      return Double(clinux_monotonic_nanoseconds() - start) / 1e6
    }
  }

  private func export(_ remote: Remote, _ port: Int, _ calls: inout Calls) async throws {
    for number in 0..<volumes {
      try await calls.time(
        "bdev_malloc_create", ["name": .string("v\(number)"), "block_size": 512, "num_blocks": 16384])
      let nqn = JSONValue.string(Remote.nqn(number / Scale.perSubsystem))
      if number % Scale.perSubsystem == 0 {
        try await calls.time("nvmf_create_subsystem", ["nqn": nqn, "allow_any_host": true])
        try await calls.time(
          "nvmf_subsystem_add_listener", ["nqn": nqn, "listen_address": Remote.address(port)])
      }
      try await calls.time(
        "nvmf_subsystem_add_ns", ["nqn": nqn, "namespace": ["bdev_name": .string("v\(number)")]])
      try await calls.time(
        "nbd_start_disk",
        [
          "bdev_name": .string("v\(number)"),
          "nbd_device": .string("nbd+unix:///v\(number)?socket=\(remote.directory)/nbd.sock"),
        ])
    }
  }

  /// What a cluster asks for all day: volumes that come and go, limits, looks at one.
  private func everyday(_ round: Int, _ calls: inout Calls) async throws {
    let one = JSONValue.string("v\(round * 7 % volumes)")
    let nqn = JSONValue.string(Remote.nqn(round % (volumes / Scale.perSubsystem)))
    try await calls.time("bdev_get_bdevs", ["name": one])
    try await calls.time("bdev_get_iostat", ["name": one])
    try await calls.time("bdev_set_qos_limit", ["name": one, "rw_ios_per_sec": 100_000])
    try await calls.time("bdev_malloc_create", ["name": "new", "block_size": 512, "num_blocks": 16384])
    try await calls.time(
      "nvmf_subsystem_add_ns", ["nqn": nqn, "namespace": ["bdev_name": "new", "nsid": 20]])
    try await calls.time("nvmf_subsystem_remove_ns", ["nqn": nqn, "nsid": 20])
    try await calls.time("bdev_malloc_delete", ["name": "new"])
  }
}

/// Calls and how long each took, in milliseconds.
struct Calls {
  private let client: JSONRPCClient
  private var times: [String: [Double]] = [:]

  init(_ client: JSONRPCClient) { self.client = client }

  mutating func time(_ method: String, _ parameters: JSONValue? = nil) async throws {
    let start = clinux_monotonic_nanoseconds()
    _ = try await client.call(method, parameters)
    times[method, default: []].append(Double(clinux_monotonic_nanoseconds() - start) / 1e6)
  }

  var all: [Double] { times.values.flatMap(\.self) }

  func report() {
    for (method, values) in times.sorted(by: { $0.key < $1.key }) {
      let most = values.max() ?? 0
      print("    \(method): median \(rounded(values.median)) ms, p99 \(rounded(values.p99)), most \(rounded(most))")
    }
  }
}
