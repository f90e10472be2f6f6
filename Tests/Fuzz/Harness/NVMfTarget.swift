import CLinux
import Glibc
import JSON

/// A host of the NVMe/TCP target: an admin queue and an I/O queue, in any order and with anything in them.
final class NVMfTarget: FuzzTarget {
  private let fixture: Fixture
  private let port: UInt16
  private var runs = 0
  private static let subsystems = [
    NVMeTCPWire.nqn, "nqn.2014-08.org.nvmexpress.discovery", "nqn.2026-11.io.x:none", "",
  ]

  init() throws {
    fixture = try Fixture()
    let control = fixture.control
    Fixture.makeFile("\(fixture.directory)/disk", size: 1 << 20)
    for name in ["m", "late-base", "honest"] {
      try control.require("bdev_malloc_create", ["name": .string(name), "block_size": 512, "num_blocks": 2048])
    }
    try control.require(
      "bdev_delay_create",
      [
        "base_bdev_name": "late-base", "name": "late", "avg_read_latency": 50, "p99_read_latency": 100,
        "avg_write_latency": 50, "p99_write_latency": 100,
      ])
    try control.require(
      "bdev_aio_create",
      ["name": "file", "filename": .string("\(fixture.directory)/disk"), "block_size": 4096, "fallocate": true])
    try control.require("nvmf_create_transport", ["trtype": "TCP"])
    for (nqn, devices) in [(NVMeTCPWire.nqn, ["m", "late", "file"]), ("\(NVMeTCPWire.nqn)-honest", ["honest"])] {
      try control.require("nvmf_create_subsystem", ["nqn": .string(nqn), "allow_any_host": true])
      for device in devices {
        try control.require(
          "nvmf_subsystem_add_ns", ["nqn": .string(nqn), "namespace": ["bdev_name": .string(device)]])
      }
    }
    port = try NVMfTarget.listen(control)
  }

  private static func listen(_ control: ControlChannel) throws -> UInt16 {
    for _ in 0..<20 {
      let port = UInt16.random(in: 20000...29999)
      let place: JSONValue = [
        "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": .string("\(port)"),
      ]
      let first = try control.call(
        "nvmf_subsystem_add_listener", ["nqn": .string(NVMeTCPWire.nqn), "listen_address": place])
      guard case .success = first else { continue }
      try control.require(
        "nvmf_subsystem_add_listener", ["nqn": .string("\(NVMeTCPWire.nqn)-honest"), "listen_address": place])
      return port
    }
    throw FuzzFailure("no free port")
  }

  /// A connection and what was agreed on it.
  private struct Queue {
    let wire: Wire
    var hasHeaderDigest = false
    var hasDataDigest = false
    var completionLength: Int { hasHeaderDigest ? 28 : 24 }
  }

  private var queues: [Queue] = []
  private var controllerID: UInt16 = 0

  func run(_ input: [UInt8]) throws {
    var input = FuzzInput(input)
    queues = []
    controllerID = 0
    let kind = input.u8()
    if kind & 1 == 0 {
      try open(digests: kind >> 1 & 3)
      try connect(0, queue: 0, size: 31, controller: 0xFFFF, subsystem: Int(kind >> 5 & 1), keepAlive: 0)
      if kind & 8 == 0 {
        try enable(0, 0x46_0001)
        if kind & 16 == 0 {
          try open(digests: kind >> 1 & 3)
          try connect(1, queue: 1, size: 127, controller: controllerID, subsystem: 0, keepAlive: 0)
        }
      }
    }
    while !input.isAtEnd { try step(&input) }
    let isReversed = kind & 64 != 0
    for queue in isReversed ? queues.reversed() : queues {
      if kind & 128 != 0 { queue.wire.reset() } else { try queue.wire.end() }
      queue.wire.reset()
    }
    queues = []
    runs += 1
    if runs % 16 == 0 { try lookAround() }
  }

  private func open(digests: UInt8, raw: [UInt8]? = nil) throws {
    guard queues.count < 4 else { return }
    let wire = try Wire.tcp(port)
    queues.append(Queue(wire: wire, hasHeaderDigest: digests & 1 != 0, hasDataDigest: digests & 2 != 0))
    try wire.send(raw ?? NVMeTCPWire.initialize(isResponse: false, digests: digests))
    if raw == nil, wire.wait(for: 128, milliseconds: Wire.patience) { _ = wire.take(128) }
  }

  private func connect(
    _ index: Int, queue: UInt16, size: UInt16, controller: UInt16, subsystem: Int, keepAlive: UInt32
  ) throws {
    let (command, data) = NVMeTCPWire.connect(
      queue: queue, size: size, controller: controller, subsystem: NVMfTarget.subsystems[subsystem & 3],
      keepAlive: keepAlive)
    try send(index, command, data)
    let wire = queues[index].wire
    guard wire.wait(for: queues[index].completionLength, milliseconds: 30) else { return }
    let answer = wire.take(queues[index].completionLength)
    if queue == 0, answer[0] == 5 { controllerID = answer.little(8, as: UInt16.self) }
  }

  private func enable(_ index: Int, _ value: UInt32) throws {
    var command = [UInt8](repeating: 0, count: 64)
    command[0] = 0x7F
    command.setLittle(UInt32(0x14), at: 44)
    command.setLittle(value, at: 48)
    try send(index, command)
    let wire = queues[index].wire
    if wire.wait(for: queues[index].completionLength, milliseconds: 30) {
      _ = wire.take(queues[index].completionLength)
    }
  }

  private func send(_ index: Int, _ command: [UInt8], _ data: [UInt8] = [], type: UInt8 = 4, flags: UInt8 = 0) throws {
    let queue = queues[index]
    try queue.wire.send(
      NVMeTCPWire.pdu(
        type: type, header: command, data: data, flags: flags, hasHeaderDigest: queue.hasHeaderDigest,
        hasDataDigest: queue.hasDataDigest))
  }

  private func step(_ input: inout FuzzInput) throws {
    let head = input.u8()
    if queues.isEmpty || head % 16 == 15 {
      let digests = input.u8()
      guard digests & 4 != 0 else { return try open(digests: digests & 3) }
      var first = NVMeTCPWire.initialize(isResponse: false, digests: digests & 3)
      first[Int(input.u8() % 16)] = input.u8()
      return try open(digests: digests & 3, raw: first)
    }
    let index = Int(head >> 4) % queues.count
    switch head % 16 {
    case 0:
      let controller = head & 128 != 0 ? controllerID : UInt16(truncatingIfNeeded: input.interesting())
      try connect(
        index, queue: UInt16(input.u8()), size: UInt16(input.u8()), controller: controller, subsystem: Int(input.u8()),
        keepAlive: UInt32(input.u8()))
    case 1: try enable(index, UInt32(truncatingIfNeeded: input.interesting()))
    case 2, 3, 4: try send(index, adminCommand(&input), input.bytes(head % 16 == 4 ? Int(input.u8()) : 0))
    case 5, 6, 7, 8: try ioCommand(index, &input, isInline: head % 16 < 7)
    case 9:
      // Data that nobody asked for, or did.
      var header = [UInt8](repeating: 0, count: 16)
      header.setLittle(UInt16(input.u8()), at: 0)
      header.setLittle(UInt16(input.u8()), at: 2)
      header.setLittle(UInt32(truncatingIfNeeded: input.interesting()), at: 4)
      let length = Int(input.u8()) * 8
      header.setLittle(head & 128 != 0 ? UInt32(truncatingIfNeeded: input.interesting()) : UInt32(length), at: 8)
      try send(index, header, [UInt8](repeating: 7, count: length), type: 6, flags: 4)
    case 10: try queues[index].wire.send(input.bytes(Int(input.u8())))
    case 11:
      // A PDU whose frame is what the input says.
      var bytes: [UInt8] = [input.u8() % 12, input.u8(), input.u8(), input.u8()]
      bytes.appendLittle(UInt32(truncatingIfNeeded: input.interesting()))
      try queues[index].wire.send(bytes + input.bytes(Int(input.u8())))
    case 12: try send(index, input.bytes(64), input.bytes(Int(input.u8())))
    case 13: queues[index].wire.wait(for: queues[index].wire.received.count + 1, milliseconds: 2)
    default:
      if head & 128 != 0 {
        queues[index].wire.reset()
        queues.remove(at: index)
      } else {
        queues[index].wire.receive()
      }
    }
  }

  private func adminCommand(_ input: inout FuzzInput) -> [UInt8] {
    var command = [UInt8](repeating: 0, count: 64)
    let opcode = input.u8()
    command[0] = [0x02, 0x06, 0x08, 0x09, 0x0A, 0x0C, 0x18, 0x7F, 0x06, 0x0C, 0x02, opcode][Int(opcode) % 12]
    command[1] = 0x40
    command.setLittle(UInt16(input.u8()), at: 2)
    command.setLittle(UInt32(truncatingIfNeeded: input.u8()) &- 1 &+ 1, at: 4)
    command.setLittle(UInt32(truncatingIfNeeded: input.interesting()), at: 32)
    command[39] = input.u8() & 1 != 0 ? 0x5A : 1
    for word in 0..<4 { command.setLittle(UInt32(truncatingIfNeeded: input.interesting()), at: 40 + 4 * word) }
    return command
  }

  /// An I/O command, with its data in the capsule, or handed in when the target asks for it.
  private func ioCommand(_ index: Int, _ input: inout FuzzInput, isInline: Bool) throws {
    var command = [UInt8](repeating: 0, count: 64)
    let opcode = input.u8()
    command[0] = [0, 1, 2, 5, 8, 9, 1, 2, opcode][Int(opcode) % 9]
    command[1] = 0x40
    command.setLittle(UInt16(input.u8()), at: 2)
    let flags = input.u8()
    command.setLittle(flags & 1 != 0 ? UInt32(truncatingIfNeeded: input.interesting()) : UInt32(flags >> 6), at: 4)
    command.setLittle(flags & 2 != 0 ? input.interesting() : UInt64(input.u8()), at: 40)
    let blocks = UInt16(flags & 4 != 0 ? UInt16(truncatingIfNeeded: input.interesting()) : UInt16(input.u8() & 31))
    command.setLittle(blocks, at: 48)
    command.setLittle(UInt16(flags & 8 != 0 ? 0x4000 : 0), at: 50)
    var length = command[0] == 9 ? (Int(blocks) & 0xFF + 1) * 16 : (Int(blocks) + 1) * (flags >> 6 == 3 ? 4096 : 512)
    if command[0] == 9 {
      command.setLittle(UInt32(blocks & 0xFF), at: 40)
      command.setLittle(UInt32(4), at: 44)
    }
    if flags & 16 != 0 { length = Int(truncatingIfNeeded: input.interesting() & 0xF_FFFF) }
    length = min(length, 192 << 10)
    let brings = command[0] & 3 == 1
    command.setLittle(UInt32(truncatingIfNeeded: length), at: 32)
    command[39] = isInline && brings ? 1 : 0x5A
    let data = brings ? self.data(length, &input, isRanges: command[0] == 9) : []
    if !brings || isInline { return try send(index, command, brings ? data : []) }
    try send(index, command)
    guard flags & 32 == 0 else { return }
    let wire = queues[index].wire
    let size = queues[index].completionLength
    guard wire.wait(for: size, milliseconds: 20), wire.received[0] == 9 else { return }
    let request = wire.take(size)
    var header = [UInt8](repeating: 0, count: 16)
    header.setLittle(request.little(8, as: UInt16.self), at: 0)
    header.setLittle(request.little(10, as: UInt16.self), at: 2)
    header.setLittle(UInt32(data.count), at: 8)
    try send(index, header, data, type: 6, flags: 4)
  }

  private func data(_ length: Int, _ input: inout FuzzInput, isRanges: Bool) -> [UInt8] {
    guard isRanges else { return [UInt8](repeating: input.u8(), count: length) }
    var bytes = [UInt8](repeating: 0, count: length)
    for range in 0..<min(3, length / 16) {
      bytes.setLittle(UInt32(input.u8()), at: 16 * range + 4)
      bytes.setLittle(input.interesting(), at: 16 * range + 8)
    }
    return bytes
  }

  /// Another host is let in.
  private func lookAround() throws {
    let wire = try Wire.tcp(port)
    try wire.send(NVMeTCPWire.initialize(isResponse: false, digests: 0))
    let (command, data) = NVMeTCPWire.connect(
      queue: 0, size: 31, controller: 0xFFFF, subsystem: "\(NVMeTCPWire.nqn)-honest", keepAlive: 0)
    try wire.send(
      NVMeTCPWire.pdu(type: 4, header: command, data: data, hasHeaderDigest: false, hasDataDigest: false))
    guard wire.wait(for: 152, milliseconds: Wire.patience), wire.received.little(128 + 22, as: UInt16.self) == 0 else {
      throw FuzzFailure("an honest host is not let in: \(wire.received.suffix(24))")
    }
    wire.reset()
  }

  func finish() throws {
    try lookAround()
    try fixture.end()
  }
}
