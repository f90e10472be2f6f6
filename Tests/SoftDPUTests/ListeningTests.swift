import Glibc
import JSON
import JSONRPC
import TestSupport
import Testing

import SoftDPU

/// Many connections, more than many, and those that never finish what they began.
@Suite(.serialized) struct ListeningTests {
  private static func export(_ client: JSONRPCClient) async throws -> Int {
    let port = try TestEnvironment.freePort()
    _ = try await client.call("bdev_malloc_create", ["name": "m", "block_size": 512, "num_blocks": 4096])
    _ = try await client.call(
      "nbd_start_disk", ["bdev_name": "m", "nbd_device": .string("nbd://127.0.0.1:\(port)/m")])
    return port
  }

  /// The data plane as a process whose memory and time can be measured.
  private struct Process {
    let directory: TemporaryDirectory
    let child: ChildProcess
    let port: Int

    init(_ launcher: [String] = []) async throws {
      directory = try TemporaryDirectory()
      let command =
        try launcher + [
          TestEnvironment.builtProduct("ycloud"), "softdpu", "--rpc-socket", directory.file("rpc.sock"), "--vhost-dir",
          directory.file("bus"), "--log-level", "warning",
        ]
      child = try ChildProcess(command[0], Array(command.dropFirst()))
      let client = JSONRPCClient(path: directory.file("rpc.sock"))
      try await eventually("the data plane answers") { try await client.call("spdk_get_version").objectValue != nil }
      port = try await ListeningTests.export(client)
    }

    /// Memory that is its own, in bytes.
    var memory: Int {
      let fields = (contentsOfFile("/proc/\(child.pid)/statm") ?? "").split(separator: " ").compactMap { Int($0) }
      return fields.count > 2 ? (fields[1] - fields[2]) * sysconf(Int32(_SC_PAGESIZE)) : 0
    }

    func isServed() async throws -> Bool {
      let run = try ChildProcess("nbdinfo", ["--size", "nbd://127.0.0.1:\(port)/m"])
      return try await run.waitForExit(within: .seconds(20)) == .code(0)
    }
  }

  /// Processor time of a process so far, in seconds.
  private static func time(_ pid: Int32) -> Double {
    let text = contentsOfFile("/proc/\(pid)/stat") ?? ""
    let fields = text[(text.lastIndex(of: ")") ?? text.startIndex)...].split(separator: " ")
    guard fields.count > 13, let user = Double(fields[12]), let system = Double(fields[13]) else { return 0 }
    return (user + system) / Double(sysconf(Int32(_SC_CLK_TCK)))
  }

  @Test func knowsWhichFailuresPass() {
    #expect(AcceptFailure(EAGAIN) == .nothingWaits)
    for error in [ECONNABORTED, EPROTO, EPERM, ENETDOWN, EHOSTUNREACH] { #expect(AcceptFailure(error) == .takeNext) }
    for error in [EMFILE, ENFILE, ENOMEM, ENOBUFS, EINVAL] { #expect(AcceptFailure(error) == .pause) }
  }

  @Test func refusesConnectionsBeyondTheLimit() async throws {
    let target = try Target(.memory, connections: 3)
    let port = try await Self.export(target.client)
    var clients: [RawNBDClient] = []
    for _ in 0..<3 {
      let client = try RawNBDClient(port: port)
      try client.begin()
      clients.append(client)
    }
    #expect(try RawNBDClient(port: port).readToEnd() == [], "a connection too many")
    clients.removeFirst()
    try await eventually("there is room again") { try RawNBDClient(port: port).read(18).count == 18 }
  }

  @Test func endsNegotiationsThatNeverFinishAndNoOthers() async throws {
    let target = try Target(.memory, handshakeTime: .milliseconds(300))
    let port = try await Self.export(target.client)
    let served = try RawNBDClient(port: port)
    try served.begin()
    served.send(RawNBDClient.go("m"))
    for _ in 0..<3 { #expect(served.reply() != nil) }
    let silent = try RawNBDClient(port: port)
    #expect(silent.readToEnd()?.count == 18, "the greeting, and then the end")
    let slow = try RawNBDClient(port: port)
    try slow.begin()
    slow.send(Array("IHAVEOPT".utf8))
    #expect(slow.readToEnd() == [])
    // A read of 512 bytes from the start.
    served.send([0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0] + [UInt8](repeating: 0, count: 18) + [2, 0])
    #expect(served.read(16 + 512).count == 16 + 512)
  }

  @Test func endsHostsThatConnectNoQueue() async throws {
    let target = try Target(.memory, connections: 2, handshakeTime: .milliseconds(300))
    let port = try TestEnvironment.freePort()
    let nqn: JSONValue = "nqn.2026-11.io.yusur.test:silent"
    _ = try await target.client.call("nvmf_create_transport", ["trtype": "TCP"])
    _ = try await target.client.call("nvmf_create_subsystem", ["nqn": nqn])
    _ = try await target.client.call(
      "nvmf_subsystem_add_listener",
      [
        "nqn": nqn,
        "listen_address": ["trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": .string("\(port)")],
      ])
    let silent = try RawNBDClient(port: port)
    // The first PDU asks for the connection, and nothing follows.
    let begun = try RawNBDClient(port: port)
    begun.send([0, 0, 128, 0, 128, 0, 0, 0] + [UInt8](repeating: 0, count: 120))
    #expect(begun.read(128).first == 1)
    #expect(try RawNBDClient(port: port).readToEnd() == [], "a connection too many")
    #expect(silent.readToEnd() == [])
    #expect(begun.readToEnd() == [])
  }

  /// Thousands of names are more than a connection takes at once; nobody waits for the one who reads them slowly.
  @Test func listsThousandsOfExportsToASlowClient() async throws {
    let target = try Target(.memory, keepsState: false)
    _ = try await target.client.call("bdev_malloc_create", ["name": "m", "block_size": 512, "num_blocks": 4096])
    let port = try TestEnvironment.freePort()
    let count = 3000
    let name = { (number: Int) in "export-\(number)-\(String(repeating: "x", count: 2000))" }
    for number in 0..<count {
      _ = try await target.client.call(
        "nbd_start_disk", ["bdev_name": "m", "nbd_device": .string("nbd://127.0.0.1:\(port)/\(name(number))")])
    }
    let client = try RawNBDClient(port: port, receiveBuffer: 4096)
    try client.begin()
    // The list, and behind it the next option, which is answered when the list is through.
    client.send(RawNBDClient.list + RawNBDClient.go("none"))
    // Others are served while nothing is read.
    #expect(
      try await ChildProcess.run("nbdinfo", ["--size", "nbd://127.0.0.1:\(port)/\(name(7))"]).contains("2097152"))
    var names: Set<String> = []
    while let reply = client.reply(), reply.type == 2 {
      names.insert(String(decoding: reply.data.dropFirst(4), as: UTF8.self))
    }
    // Not in the expectation, which would print them all.
    let isWhole = names == Set((0..<count).map(name))
    #expect(isWhole, "\(names.count) of \(count)")
    #expect(
      client.reply()?.type == RawNBDClient.unknownExport, "the list's end was followed by the answer to the next option"
    )
  }

  /// Ten thousand connections that say nothing cost what the limit allows, and a client that is served notices nothing.
  @Test func outlivesTenThousandConnectionsThatSayNothing() async throws {
    let process = try await Process()
    let served = try RawNBDClient(port: process.port)
    try served.begin()
    served.send(RawNBDClient.go("m"))
    for _ in 0..<3 { #expect(served.reply() != nil) }
    var limit = rlimit()
    getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
    limit.rlim_cur = limit.rlim_max
    setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
    let count = min(10_000, Int(clamping: limit.rlim_cur) - 500)
    let before = process.memory
    var sockets: [Int32] = []
    defer { sockets.forEach { close($0) } }
    for _ in 0..<count {
      let fd = socket(AF_INET, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
      guard fd >= 0 else { break }
      sockets.append(fd)
      _ = connect(fd, process.port)
    }
    #expect(sockets.count == count)
    for _ in 0..<10 {
      served.send([0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0] + [UInt8](repeating: 0, count: 18) + [2, 0])
      #expect(served.read(16 + 512).count == 16 + 512)
    }
    // Those beyond the limit are refused: they see the end.
    try await eventually(within: .seconds(30), "the surplus is refused") {
      var descriptors = sockets.map { pollfd(fd: $0, events: pollPeerEnded, revents: 0) }
      return poll(&descriptors, nfds_t(descriptors.count), 0) >= count - 4096
    }
    let grown = process.memory - before
    #expect(grown < 4096 * 8192, "\(grown / 4096) bytes for each connection")
    sockets.forEach { close($0) }
    sockets = []
    try await eventually(within: .seconds(30), "others are served again") { try await process.isServed() }
  }

  /// A process without descriptors waits for them, and does not turn in circles.
  @Test func waitsForDescriptors() async throws {
    let process = try await Process(["prlimit", "--nofile=64:64"])
    var clients: [RawNBDClient] = []
    for _ in 0..<100 { clients.append(try RawNBDClient(port: process.port)) }
    try await eventually("the process has no descriptor left") { process.child.output.contains("cannot take") }
    // One that the RPC server would like to take as well.
    let waiting = try UnixSocket.connect(path: process.directory.file("rpc.sock"))
    defer { close(waiting) }
    // What a process would get here that does turn in circles.
    let spinner = try ChildProcess("sh", ["-c", "while :; do :; done"])
    let start = Self.time(process.child.pid)
    try await eventually(within: .seconds(60), "the spinner runs") { Self.time(spinner.pid) > 0.3 }
    let (spent, turned) = (Self.time(process.child.pid) - start, Self.time(spinner.pid))
    spinner.kill()
    #expect(spent < 0.3 * turned, "\(spent) s of processor time where one that turns in circles gets \(turned)")
    clients = []
    try await eventually(within: .seconds(20), "others are served again") { try await process.isServed() }
  }
}
