import CLinux
import Glibc
import JSON
import JSONRPC
import SoftDPU
import TestSupport
import Testing

@Suite struct NVMfTests {
  private static let nqn = "nqn.2026-11.io.yusur.test:a"

  private static func listenAddress(_ port: Int) -> JSONValue {
    ["trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": .string("\(port)")]
  }

  /// A target with one namespace on memory.
  private func serve(_ target: Target, allowAnyHost: Bool = true) async throws -> Int {
    let port = try TestEnvironment.freePort()
    let client = target.client
    _ = try await client.call("bdev_malloc_create", ["name": "m", "block_size": 512, "num_blocks": 8192])
    _ = try await client.call("nvmf_create_transport", ["trtype": "TCP"])
    _ = try await client.call(
      "nvmf_create_subsystem", ["nqn": .string(Self.nqn), "allow_any_host": .bool(allowAnyHost)])
    _ = try await client.call(
      "nvmf_subsystem_add_ns", ["nqn": .string(Self.nqn), "namespace": ["bdev_name": "m", "nsid": 3]])
    _ = try await client.call(
      "nvmf_subsystem_add_listener", ["nqn": .string(Self.nqn), "listen_address": Self.listenAddress(port)])
    return port
  }

  @Test func answersAsSPDKDoes() async throws {
    let target = try Target(.memory)
    let client = target.client
    let nqn: JSONValue = .string(Self.nqn)
    await expectCode(-32602) {
      try await client.call(
        "nvmf_subsystem_add_listener", ["nqn": nqn, "listen_address": Self.listenAddress(4420)])
    }
    let port = try await serve(target)
    await expectCode(-32603) { try await client.call("nvmf_create_transport", ["trtype": "TCP"]) }
    await expectCode(-32602) { try await client.call("nvmf_create_transport", ["trtype": "RDMA"]) }
    await expectCode(-32603) { try await client.call("nvmf_create_subsystem", ["nqn": nqn]) }
    await expectCode(-32602) { try await client.call("nvmf_create_subsystem", ["nqn": "nqn.none"]) }
    await expectCode(-32603) { try await client.call("nvmf_create_subsystem") }
    await expectCode(-32602) {
      try await client.call("nvmf_subsystem_add_ns", ["nqn": nqn, "namespace": ["bdev_name": "m", "nsid": 3]])
    }
    await expectCode(-32602) {
      try await client.call("nvmf_subsystem_add_ns", ["nqn": nqn, "namespace": ["bdev_name": "none"]])
    }
    await expectCode(-32602) {
      try await client.call("nvmf_subsystem_add_ns", ["nqn": nqn, "namespace": ["bdev_name": "m", "nguid": "x"]])
    }
    await expectCode(-32602) { try await client.call("nvmf_subsystem_remove_ns", ["nqn": nqn, "nsid": 1]) }
    await expectCode(-32602) { try await client.call("nvmf_delete_subsystem", ["nqn": "nqn.2026-11.io.x:none"]) }
    _ = try await client.call("nvmf_subsystem_add_host", ["nqn": nqn, "host": "nqn.2026-11.io.x:host"])
    await expectCode(-32603) {
      try await client.call("nvmf_subsystem_add_host", ["nqn": nqn, "host": "nqn.2026-11.io.x:host"])
    }
    await expectCode(-32603) {
      try await client.call("nvmf_subsystem_remove_host", ["nqn": nqn, "host": "nqn.2026-11.io.x:other"])
    }
    await expectCode(-16) { try await client.call("bdev_malloc_delete", ["name": "m"]) }

    let shown = try await client.call("nvmf_get_subsystems")
    #expect(shown[0]?["subtype"] == "Discovery")
    let namespace = shown[1]?["namespaces"]?[0]
    let uuid = namespace?["uuid"]?.stringValue ?? ""
    #expect(namespace?["nsid"]?.intValue == 3)
    #expect(namespace?["nguid"]?.stringValue == uuid.filter { $0 != "-" }.uppercased())
    #expect(shown[1]?["listen_addresses"]?[0]?["trsvcid"]?.stringValue == "\(port)")

    // What was made is made again by what is written down, and taken away in any order.
    let before = try await client.call("framework_get_config", ["name": "nvmf"])
    target.dataPlane.stop()
    let next = try Target.start(target.directory)
    defer { next.stop() }
    let again = JSONRPCClient(path: target.directory.file("rpc.sock"))
    #expect(try await again.call("framework_get_config", ["name": "nvmf"]) == before)
    _ = try await again.call("nvmf_delete_subsystem", ["nqn": nqn])
    _ = try await again.call("bdev_malloc_delete", ["name": "m"])
    let socket = try? connect(port)
    #expect(socket == nil, "nobody listens where no subsystem does")
  }

  /// - Parameter patience: how long to wait for bytes, in microseconds.
  private func connect(_ port: Int, patience: Int = 10_000_000) throws -> Int32 {
    let fd = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = UInt16(port).bigEndian
    address.sin_addr.s_addr = inet_addr("127.0.0.1")
    var time = timeval(tv_sec: patience / 1_000_000, tv_usec: patience % 1_000_000)
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, socklen_t(MemoryLayout<timeval>.size))
    let result = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        Glibc.connect(fd, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
      }
    }
    guard result == 0 else {
      close(fd)
      throw TestEnvironmentError("nobody listens at \(port)")
    }
    return fd
  }

  private func send(_ fd: Int32, _ bytes: [UInt8]) {
    _ = bytes.withUnsafeBytes { Glibc.send(fd, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
  }

  private func receive(_ fd: Int32, _ count: Int) -> [UInt8] {
    var bytes: [UInt8] = []
    while bytes.count < count {
      var chunk = [UInt8](repeating: 0, count: count - bytes.count)
      let received = recv(fd, &chunk, chunk.count, 0)
      guard received > 0 else { break }
      bytes += chunk.prefix(received)
    }
    return bytes
  }

  private static let initialize: [UInt8] =
    [0, 0, 128, 0, 128, 0, 0, 0] + [UInt8](repeating: 0, count: 120)

  /// A Connect for the admin queue, with its data in the capsule.
  private func connectCapsule(_ subsystem: String, _ host: String, queue: UInt16 = 0, size: UInt16 = 31) -> [UInt8] {
    var command = [UInt8](repeating: 0, count: 64)
    command[0] = 0x7F
    command[1] = 0x40
    command[4] = 1
    command[33] = 4  // 1024 bytes
    command[39] = 1
    command[42] = UInt8(queue)
    command[44] = UInt8(size)
    var data = [UInt8](repeating: 0, count: 1024)
    data[16] = 0xFF
    data[17] = 0xFF
    for (index, byte) in subsystem.utf8.enumerated() { data[256 + index] = byte }
    for (index, byte) in host.utf8.enumerated() { data[512 + index] = byte }
    return [4, 0, 72, 72, 0x48, 4, 0, 0] + command + data
  }

  /// The status of a completion, without its phase bit.
  private func status(_ capsule: [UInt8]) -> Int {
    capsule.count == 24 ? (Int(capsule[22]) | Int(capsule[23]) << 8) >> 1 : -1
  }

  @Test func onlyAllowedHostsConnect() async throws {
    let target = try Target(.memory)
    let port = try await serve(target, allowAnyHost: false)
    let host = "nqn.2026-11.io.x:host"
    func tryConnect(_ subsystem: String) throws -> Int {
      let fd = try connect(port)
      defer { close(fd) }
      send(fd, Self.initialize)
      #expect(receive(fd, 128).count == 128)
      send(fd, connectCapsule(subsystem, host))
      return status(receive(fd, 24))
    }
    // Do not retry; invalid host.
    #expect(try tryConnect(Self.nqn) == 0x4184)
    _ = try await target.client.call("nvmf_subsystem_add_host", ["nqn": .string(Self.nqn), "host": .string(host)])
    #expect(try tryConnect(Self.nqn) == 0)
    #expect(try tryConnect("nqn.2026-11.io.x:absent") == 0x0182)
    #expect(try tryConnect("nqn.2014-08.org.nvmexpress.discovery") == 0)
    // A host that is not allowed any more is cut off.
    let fd = try connect(port)
    send(fd, Self.initialize + connectCapsule(Self.nqn, host))
    #expect(receive(fd, 152).count == 152)
    _ = try await target.client.call("nvmf_subsystem_remove_host", ["nqn": .string(Self.nqn), "host": .string(host)])
    #expect(receive(fd, 1).isEmpty)
    close(fd)
  }

  /// Numbers are a subsystem's own, and of the range that it was given.
  @Test func controllersHaveNumbersOfTheirSubsystemsRange() async throws {
    let target = try Target(.memory)
    let client = target.client
    let port = try await serve(target)
    @discardableResult
    func create(_ nqn: String, _ range: JSONValue) async throws -> JSONValue {
      var parameters: JSONValue = ["nqn": .string(nqn), "allow_any_host": true]
      for (key, value) in range.objectValue ?? [:] { parameters[key] = value }
      return try await client.call("nvmf_create_subsystem", parameters)
    }
    let narrow = "nqn.2026-11.io.yusur.test:narrow"
    let wrong: [JSONValue] = [
      ["min_cntlid": 0], ["min_cntlid": 65520], ["max_cntlid": 0], ["max_cntlid": 65520],
      ["min_cntlid": 6, "max_cntlid": 5],
    ]
    for range in wrong { await expectCode(-32602) { try await create(narrow, range) } }
    // As SPDK, which reads numbers of 16 bits.
    let none: [JSONValue] = [["min_cntlid": 65536], ["min_cntlid": -1], ["max_cntlid": "7"]]
    for range in none { await expectCode(-32603) { try await create(narrow, range) } }
    do {
      try await create(narrow, ["min_cntlid": 6, "max_cntlid": 5])
    } catch let error as JSONRPCError {
      #expect(error.message.contains("Invalid cntlid range [6-5]"))
    }
    try await create(narrow, ["min_cntlid": 1, "max_cntlid": 2])
    _ = try await client.call(
      "nvmf_subsystem_add_listener", ["nqn": .string(narrow), "listen_address": Self.listenAddress(port)])
    let shown = try await client.call("nvmf_get_subsystems", ["nqn": .string(narrow)])[0]
    #expect(shown?["min_cntlid"] == 1 && shown?["max_cntlid"] == 2)
    let written = try await client.call("framework_get_config", ["name": "nvmf"]).arrayValue?.first {
      $0["method"] == "nvmf_create_subsystem" && $0["params"]?["nqn"]?.stringValue == narrow
    }
    #expect(written?["params"]?["min_cntlid"] == 1 && written?["params"]?["max_cntlid"] == 2)

    var sockets: [Int32] = []
    defer { for fd in sockets { close(fd) } }
    func tryConnect(_ subsystem: String) throws -> (status: Int, number: Int) {
      let fd = try connect(port)
      sockets.append(fd)
      send(fd, Self.initialize + connectCapsule(subsystem, "nqn.2026-11.io.x:host"))
      #expect(receive(fd, 128).count == 128)
      let answer = receive(fd, 24)
      return (status(answer), answer.count == 24 ? Int(answer[8]) | Int(answer[9]) << 8 : -1)
    }
    // Another subsystem's controllers take nothing of it.
    #expect(try tryConnect(Self.nqn) == (0, 1))
    #expect(try tryConnect(narrow) == (0, 1))
    #expect(try tryConnect(narrow) == (0, 2))
    // All are taken: busy, which may be tried again, and without a number.
    #expect(try tryConnect(narrow).status == 0x181)
    #expect(try tryConnect(Self.nqn) == (0, 2))
    // The first of them leaves, and its number is there again.
    close(sockets.remove(at: 1))
    try await eventually(within: .seconds(20)) {
      try await client.call("nvmf_subsystem_get_controllers", ["nqn": .string(narrow)]).arrayValue?.count == 1
    }
    #expect(try tryConnect(narrow) == (0, 1))
  }

  /// The end of a connection may come together with its last bytes, and is seen all the same.
  @Test func seesHostsLeaveInTheMiddleOfWhatTheySay() async throws {
    let target = try Target(.memory)
    let port = try await serve(target)
    for _ in 0..<300 {
      let fd = try connect(port)
      send(fd, Self.initialize)
      #expect(receive(fd, 128).count == 128)
      send(fd, connectCapsule(Self.nqn, "nqn.2026-11.io.x:h"))
      close(fd)
    }
    try await eventually(within: .seconds(20)) {
      try await target.client.call("nvmf_subsystem_get_controllers", ["nqn": .string(Self.nqn)]).arrayValue?.isEmpty
        == true
    }
  }

  /// Bytes that no host sends end the connection, or get an error, and never more.
  @Test func outlivesHostileHosts() async throws {
    let target = try Target(.memory)
    let port = try await serve(target)
    var random = SystemRandomNumberGenerator()
    func noise(_ count: Int) -> [UInt8] { (0..<count).map { _ in UInt8.random(in: 0...255, using: &random) } }
    for round in 0..<600 {
      let fd = try connect(port, patience: 50_000)
      var bytes: [UInt8] = round % 5 == 0 ? [] : Self.initialize
      if round % 5 == 1 { bytes[Int.random(in: 0..<16)] = UInt8.random(in: 0...255) }
      if round % 5 >= 2 { bytes += connectCapsule(Self.nqn, "nqn.2026-11.io.x:h") }
      for _ in 0..<Int.random(in: 0...8) {
        switch round % 5 {
        case 2:
          // Commands with a sound frame and any content.
          bytes += [4, 0, 72, 0, 72, 0, 0, 0, [0x7F, 2, 6, 9, 10, 12, 8, 0x18].randomElement() ?? 0] + noise(63)
        case 3:
          // Property set: enable, then anything.
          var enable = [UInt8](repeating: 0, count: 64)
          enable[0] = 0x7F
          enable[44] = 0x14
          enable[48] = 1
          bytes += [4, 0, 72, 0, 72, 0, 0, 0] + enable
          bytes += [4, 0, 72, 0, 72, 0, 0, 0, [2, 6, 9, 10, 12, 8].randomElement() ?? 0] + noise(63)
        default:
          // Data that nobody asked for, and lengths that lie.
          bytes += [[4, 6, 2, 0, 99].randomElement() ?? 6, UInt8.random(in: 0...15)] + noise(Int.random(in: 6...200))
        }
      }
      send(fd, bytes)
      if round % 3 == 0 { _ = receive(fd, Int.random(in: 0...64)) }
      close(fd)
    }
    // All of them are gone, and the target serves.
    try await eventually(within: .seconds(20)) {
      try await target.client.call("nvmf_subsystem_get_controllers", ["nqn": .string(Self.nqn)]).arrayValue?.isEmpty
        == true
    }
    let fd = try connect(port)
    send(fd, Self.initialize + connectCapsule(Self.nqn, "nqn.2026-11.io.x:h"))
    #expect(status(Array(receive(fd, 152).dropFirst(128))) == 0)
    close(fd)
    _ = try await target.client.call("nvmf_delete_subsystem", ["nqn": .string(Self.nqn)])
    _ = try await target.client.call("bdev_malloc_delete", ["name": "m"])
  }
}
