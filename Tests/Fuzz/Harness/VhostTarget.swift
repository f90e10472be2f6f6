import CLinux
import Glibc
import JSON
import VhostFrontend

/// A guest and its front end: messages, rings, memory and the record of requests in flight.
final class VhostTarget: FuzzTarget {
  private let fixture: Fixture
  private var runs = 0
  private static let controllers = ["m", "file", "late"]
  private static let types: [UInt32] = [0, 1, 4, 8, 11, 13, 0, 1, 99]

  init() throws {
    fixture = try Fixture()
    let control = fixture.control
    Fixture.makeFile("\(fixture.directory)/disk", size: 1 << 20)
    for name in ["m", "late-base", "honest"] {
      try control.require("bdev_malloc_create", ["name": .string(name), "block_size": 512, "num_blocks": 2048])
    }
    try control.require(
      "bdev_aio_create",
      ["name": "file", "filename": .string("\(fixture.directory)/disk"), "block_size": 512, "fallocate": true])
    try control.require(
      "bdev_delay_create",
      [
        "base_bdev_name": "late-base", "name": "late", "avg_read_latency": 50, "p99_read_latency": 100,
        "avg_write_latency": 50, "p99_write_latency": 100,
      ])
    for name in VhostTarget.controllers + ["honest"] {
      try control.require("vhost_create_blk_controller", ["ctrlr": .string(name), "dev_name": .string(name)])
    }
  }

  func run(_ input: [UInt8]) throws {
    var input = FuzzInput(input)
    let kind = input.u8()
    let path = "\(fixture.directory)/bus/\(VhostTarget.controllers[Int(kind >> 4) % 3])"
    let frontend = try VhostFrontend(path: path, queues: 2, queueSize: 16, slotLength: 4096)
    do {
      if kind & 1 != 0 {
        try frontend.connect()
      } else {
        try frontend.start(wanted: kind & 2 != 0 ? ~(1 << 29) : kind & 4 != 0 ? ~(1 << 9) : ~0)
      }
      while !input.isAtEnd { try step(&input, frontend) }
    } catch is FrontendError {
      // The target ended the connection, or refused something.
    }
    frontend.disconnect()
    runs += 1
    if runs % 16 == 0 { try lookAround() }
  }

  private func step(_ input: inout FuzzInput, _ frontend: VhostFrontend) throws {
    let head = input.u8()
    let queue = frontend.queues[Int(head >> 4) % frontend.queues.count]
    switch head % 16 {
    case 0, 1:
      // A message of any kind; with the memory, a bell, or both.
      let request = UInt32(input.u8() % 46)
      let flags: UInt32 = head & 128 != 0 ? 9 : 1
      let descriptors = [[], [frontend.ram.fd], [queue.kickFD], [frontend.ram.fd, queue.kickFD]][Int(input.u8() & 3)]
      try frontend.send(request, payload(request, &input, frontend), descriptors, flags: flags)
    case 2, 3:
      let address: UInt64
      let form = input.u8()
      if form & 1 != 0 {
        address = input.interesting()
      } else {
        address = frontend.ram.guestAddress(queue.dataOffset + Int(input.u16()) % 16384)
      }
      let length = form & 2 != 0 ? UInt32(truncatingIfNeeded: input.interesting()) : UInt32(input.u8()) * 16
      queue.writeDescriptor(
        Int(input.u8() % 16), address: address, length: length, flags: UInt16(input.u8() & 7),
        next: UInt16(input.u8() % 18))
    case 4:
      let bytes = input.bytes(Int(input.u8() % 65))
      let place = (queue.dataOffset + Int(input.u16()) % 16384) % (frontend.ram.length - 64)
      (frontend.ram.base + place).copyMemory(from: bytes, byteCount: bytes.count)
    case 5:
      queue.makeAvailable(UInt16(input.u8() % 18))
      queue.ringBell()
    case 6: queue.ringBell()
    case 7, 8, 9, 10:
      // A sound request of any kind.
      let type = VhostTarget.types[Int(input.u8()) % VhostTarget.types.count]
      let slot = Int(input.u8()) % queue.slots
      let sector = head & 128 != 0 ? input.interesting() : UInt64(input.u8()) * 8
      if type == 11 || type == 13 {
        for range in 0..<2 {
          queue.data(slot).storeBytes(of: input.interesting(), toByteOffset: 16 * range, as: UInt64.self)
          queue.data(slot).storeBytes(of: UInt32(input.u8()), toByteOffset: 16 * range + 8, as: UInt32.self)
          queue.data(slot).storeBytes(of: UInt32(input.u8() & 3), toByteOffset: 16 * range + 12, as: UInt32.self)
        }
      }
      let length = type == 4 ? 0 : type == 11 || type == 13 ? 16 + 16 * Int(head >> 7) : 512 * (1 + Int(input.u8() & 7))
      queue.submit(slot: slot, type: type, sector: sector, length: length, writable: type == 0 || type == 8)
      queue.kick()
    case 11: if queue.wait(milliseconds: 2) { queue.reap { _, _ in } }
    case 12:
      // The rings' indices.
      let place = frontend.ram.base + Int(input.u16()) % 4096
      place.storeBytes(of: input.u8(), as: UInt8.self)
    case 13:
      let at = Int(input.u16() % 512)
      let byte = input.u8()
      try? frontend.editInflight { $0.storeBytes(of: byte, toByteOffset: at, as: UInt8.self) }
    case 14:
      if head & 128 != 0 {
        frontend.disconnect()
        try frontend.start(resume: head & 64 != 0)
      } else if head & 64 != 0 {
        // This process must not touch what is gone now: the target alone does, and the connection ends.
        queue.makeAvailable(UInt16(input.u8() % 18))
        ftruncate(frontend.ram.fd, off_t(Int(input.u16())))
        frontend.queues.forEach { $0.ringBell() }
        _ = try? frontend.send(24, [UInt8](repeating: 0, count: 12))
        throw FrontendError("the memory is gone")
      } else {
        try frontend.start(queue, base: UInt16(input.u8()))
      }
    default:
      _ = try frontend.stop(queue)
    }
  }

  /// What a message of that kind carries, more or less.
  private func payload(_ request: UInt32, _ input: inout FuzzInput, _ frontend: VhostFrontend) -> [UInt8] {
    let form = input.u8()
    var bytes: [UInt8] = []
    switch form % 5 {
    case 0: return input.bytes(Int(form))
    case 1: bytes.appendLittle(input.interesting())
    case 2:
      bytes.appendLittle(UInt32(input.u8()))
      bytes.appendLittle(UInt32(truncatingIfNeeded: input.interesting()))
      if request == 9 {
        for _ in 0..<4 { bytes.appendLittle(frontend.ram.userAddress(Int(input.u16()) & ~15)) }
      }
    case 3:
      let count = Int(input.u8() % 10)
      bytes.appendLittle(UInt32(count))
      bytes.appendLittle(UInt32(0))
      for _ in 0..<min(count, 8) { region(&bytes, &input, frontend) }
    default:
      bytes.appendLittle(UInt64(0))
      region(&bytes, &input, frontend)
    }
    return bytes
  }

  private func region(_ bytes: inout [UInt8], _ input: inout FuzzInput, _ frontend: VhostFrontend) {
    let form = input.u8()
    bytes.appendLittle(form & 1 != 0 ? input.interesting() : GuestRAM.guestStart)
    bytes.appendLittle(form & 2 != 0 ? input.interesting() : UInt64(frontend.ram.length))
    bytes.appendLittle(form & 4 != 0 ? input.interesting() : frontend.ram.userAddress(0))
    bytes.appendLittle(form & 8 != 0 ? input.interesting() : 0)
  }

  /// Another guest's disk is served, and the controllers that were attacked take the next front end.
  private func lookAround() throws {
    for name in VhostTarget.controllers + ["honest"] {
      let frontend = try VhostFrontend(path: "\(fixture.directory)/bus/\(name)", queues: 1, slotLength: 4096)
      try frontend.start()
      let answer = try frontend.perform(VhostFrontend.readType, read: 4096)
      guard answer.status == 0 else { throw FuzzFailure("\(name) answers a read with \(answer.status)") }
      guard name != "honest" || answer.data.allSatisfy({ $0 == 0 }) else {
        throw FuzzFailure("the disk of another guest has changed")
      }
      frontend.disconnect()
    }
  }

  func finish() throws {
    try lookAround()
    try fixture.end()
  }
}
