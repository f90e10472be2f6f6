import CLinux
import Glibc
import JSON
import JSONRPC
import TestSupport

/// A host of NVMe/TCP with one I/O queue that tells the status of each command. It blocks its thread. Its wire format is
/// written out here once more, on purpose.
final class NVMeHost {
  static let nqn = "nqn.2026-11.io.yusur.test:errors"
  private var queues: [Int32] = []
  private var identifier: UInt16 = 0
  private let port: Int
  private var controller: UInt16 = 0xFFFF
  private let subsystem: String

  /// Shows a device in a subsystem of its own; the port.
  static func show(_ device: String, _ target: Target, maximumTransfer: Int64 = 131_072, isTransportNew: Bool = true)
    async throws -> Int
  {
    let port = try TestEnvironment.freePort()
    let client = target.client
    if isTransportNew {
      _ = try await client.call("nvmf_create_transport", ["trtype": "TCP", "max_io_size": .integer(maximumTransfer)])
    }
    _ = try await client.call("nvmf_create_subsystem", ["nqn": .string(nqn), "allow_any_host": true])
    _ = try await client.call(
      "nvmf_subsystem_add_ns", ["nqn": .string(nqn), "namespace": ["bdev_name": .string(device)]])
    _ = try await client.call(
      "nvmf_subsystem_add_listener",
      [
        "nqn": .string(nqn),
        "listen_address": [
          "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": .string("\(port)"),
        ],
      ])
    return port
  }

  init(
    _ target: Target, device: String, maximumTransfer: Int64 = 131_072, discovery isDiscovery: Bool = false
  ) async throws {
    port = try await NVMeHost.show(device, target, maximumTransfer: maximumTransfer)
    subsystem = isDiscovery ? "nqn.2014-08.org.nvmexpress.discovery" : NVMeHost.nqn
    queues.append(try NVMeHost.connect(port))
    controller = try connect(0, queue: 0, controller: 0xFFFF)
    var enable = [UInt8](repeating: 0, count: 64)
    enable[0] = 0x7F
    enable[44] = 0x14
    enable.replaceSubrange(48..<52, with: [1, 0, 0x46, 0])
    guard try perform(0, enable).status == 0 else { throw TestEnvironmentError("the controller is not enabled") }
    if !isDiscovery { try addQueue(1) }
  }

  /// Connects another I/O queue, which gets the next place in `queues`.
  func addQueue(_ number: UInt8) throws {
    queues.append(try NVMeHost.connect(port))
    _ = try connect(queues.count - 1, queue: number, controller: controller)
  }

  func closeQueues(from first: Int) {
    for fd in queues[first...] { close(fd) }
    queues.removeSubrange(first...)
  }

  /// Sends write commands whose data does not follow.
  func beginWrites(queue index: Int, count: Int, blocks: Int) throws {
    for number in 0..<count {
      var command = command(1, 0, blocks)
      command[1] = 0x40
      command[2] = UInt8(number)
      command.replaceSubrange(32..<36, with: NVMeHost.little(UInt32(blocks * 512)))
      command[39] = 0x5A
      try NVMeHost.send(queues[index], [4, 0, 72, 0] + NVMeHost.little(72) + command)
    }
  }

  /// Writes with many commands at a time, and sends what each is asked for; the statuses.
  func writeAll(count: Int, blocks: Int) throws -> [Int] {
    try beginWrites(queue: 1, count: count, blocks: blocks)
    let data = [UInt8](repeating: 7, count: blocks * 512)
    var statuses: [Int] = []
    while statuses.count < count {
      let head = try NVMeHost.receive(queues[1], 24)
      if head[0] == 9 {
        let header: [UInt8] = [6, 4, 24, 24] + NVMeHost.little(UInt32(24 + data.count)) + head[8..<12]
        try NVMeHost.send(
          queues[1], header + [0, 0, 0, 0] + NVMeHost.little(UInt32(data.count)) + [0, 0, 0, 0] + data)
      } else {
        statuses.append((Int(head[22]) | Int(head[23]) << 8) >> 1)
      }
    }
    return statuses
  }

  /// The value of a feature, of which the first 32 bits.
  func feature(_ number: UInt8) throws -> Int {
    var command = [UInt8](repeating: 0, count: 64)
    command[0] = 0x0A
    command[40] = number
    let answer = try perform(0, command)
    guard answer.status == 0 else { throw TestEnvironmentError("status \(answer.status)") }
    return answer.whole
  }

  func compare(block: UInt64, blocks: Int) throws -> Int {
    try perform(1, command(5, block, blocks), [UInt8](repeating: 7, count: blocks * 512)).status
  }

  deinit { for fd in queues { close(fd) } }

  private static func connect(_ port: Int) throws -> Int32 {
    let fd = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = UInt16(port).bigEndian
    address.sin_addr.s_addr = inet_addr("127.0.0.1")
    var time = timeval(tv_sec: 30, tv_usec: 0)
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, socklen_t(MemoryLayout<timeval>.size))
    let result = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        Glibc.connect(fd, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
      }
    }
    guard result == 0 else { throw TestEnvironmentError("nobody listens at \(port)") }
    var hello = [UInt8](repeating: 0, count: 128)
    hello[2] = 128
    hello[4] = 128
    try send(fd, hello)
    _ = try receive(fd, 128)
    return fd
  }

  private static func send(_ fd: Int32, _ bytes: [UInt8]) throws {
    var done = 0
    while done < bytes.count {
      let count = bytes[done...].withUnsafeBytes { Glibc.send(fd, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
      guard count > 0 else { throw TestEnvironmentError("the target takes nothing: errno \(errno)") }
      done += count
    }
  }

  private static func receive(_ fd: Int32, _ count: Int) throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var done = 0
    while done < count {
      let part = bytes.withUnsafeMutableBytes { recv(fd, $0.baseAddress.map { $0 + done }, count - done, 0) }
      guard part > 0 else { throw TestEnvironmentError("the target closed, or does not answer: errno \(errno)") }
      done += part
    }
    return bytes
  }

  private func connect(_ index: Int, queue: UInt8, controller: UInt16) throws -> UInt16 {
    var command = [UInt8](repeating: 0, count: 64)
    command[0] = 0x7F
    command[4] = 1
    command[42] = queue
    command[44] = 31
    var data = [UInt8](repeating: 0, count: 1024)
    data[16] = UInt8(truncatingIfNeeded: controller)
    data[17] = UInt8(truncatingIfNeeded: controller >> 8)
    for (offset, byte) in subsystem.utf8.enumerated() { data[256 + offset] = byte }
    for (offset, byte) in "nqn.2026-11.io.yusur.test:host".utf8.enumerated() { data[512 + offset] = byte }
    let answer = try perform(index, command, data)
    guard answer.status == 0 else { throw TestEnvironmentError("not connected: status \(answer.status)") }
    return answer.value
  }

  /// Sends a command, with its data in the capsule or when it is asked for, and takes what is read: its status without
  /// the phase bit, and the first two bytes of its result.
  private func perform(_ index: Int, _ command: [UInt8], _ data: [UInt8] = []) throws -> (
    status: Int, value: UInt16, whole: Int
  ) {
    let fd = queues[index]
    let isInline = !data.isEmpty && (index == 0 || data.count <= 4096 || command[0] == 0x7F)
    identifier &+= 1
    var command = command
    command[1] = 0x40
    command[2] = UInt8(truncatingIfNeeded: identifier)
    command[3] = UInt8(truncatingIfNeeded: identifier >> 8)
    if !data.isEmpty { command.replaceSubrange(32..<36, with: NVMeHost.little(UInt32(data.count))) }
    command[39] = isInline ? 1 : 0x5A
    let inline = isInline ? data : []
    try NVMeHost.send(
      fd, [4, 0, 72, isInline ? 72 : 0] + NVMeHost.little(UInt32(72 + inline.count)) + command + inline)
    while true {
      let head = try NVMeHost.receive(fd, 24)
      let length = Int(head[4]) | Int(head[5]) << 8 | Int(head[6]) << 16
      switch head[0] {
      case 5:
        let whole = (8..<12).reversed().reduce(0) { $0 << 8 | Int(head[$1]) }
        return ((Int(head[22]) | Int(head[23]) << 8) >> 1, UInt16(head[8]) | UInt16(head[9]) << 8, whole)
      case 7:
        _ = try NVMeHost.receive(fd, length - 24)
        if head[1] & 8 != 0 { return (0, 0, 0) }
      case 9:
        let header: [UInt8] = [6, 4, 24, 24] + NVMeHost.little(UInt32(24 + data.count)) + head[8..<12]
        try NVMeHost.send(fd, header + [0, 0, 0, 0] + NVMeHost.little(UInt32(data.count)) + [0, 0, 0, 0] + data)
      default: throw TestEnvironmentError("PDU \(head[0])")
      }
    }
  }

  private static func little(_ value: UInt32) -> [UInt8] {
    (0..<4).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) }
  }

  private func command(_ opcode: UInt8, _ block: UInt64 = 0, _ blocks: Int = 1) -> [UInt8] {
    var command = [UInt8](repeating: 0, count: 64)
    command[0] = opcode
    command[4] = 1
    for index in 0..<8 { command[40 + index] = UInt8(truncatingIfNeeded: block >> (8 * UInt64(index))) }
    command.replaceSubrange(48..<52, with: NVMeHost.little(UInt32(blocks - 1)))
    return command
  }

  func write(block: UInt64, blocks: Int) throws -> Int {
    try perform(1, command(1, block, blocks), [UInt8](repeating: 7, count: blocks * 512)).status
  }

  func read(block: UInt64, blocks: Int) throws -> Int {
    var command = command(2, block, blocks)
    command.replaceSubrange(32..<36, with: NVMeHost.little(UInt32(blocks * 512)))
    return try perform(1, command).status
  }

  func writeZeroes(block: UInt64, blocks: Int) throws -> Int { try perform(1, command(8, block, blocks)).status }
  func flush() throws -> Int { try perform(1, command(0)).status }

  func deallocate(block: UInt64, blocks: Int) throws -> Int {
    var command = command(9)
    command.replaceSubrange(40..<52, with: [0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0])
    let range = [0, 0, 0, 0] + NVMeHost.little(UInt32(blocks)) + NVMeHost.little(UInt32(block)) + [0, 0, 0, 0]
    return try perform(1, command, range).status
  }
}
