import Glibc
import JSON

/// A client of the NBD server: handshake and transmission.
final class NBDTarget: FuzzTarget {
  private let fixture: Fixture
  private var runs = 0
  private static let exports = ["m", "late", "bad", "file", "", "nobody"]
  private static let options: [UInt32] = [1, 2, 3, 5, 6, 7, 8, 9, 10, 4, 99]
  private static let size: UInt64 = 1 << 20

  init() throws {
    fixture = try Fixture()
    let control = fixture.control
    Fixture.makeFile("\(fixture.directory)/disk", size: Int(NBDTarget.size))
    try control.require(
      "bdev_aio_create",
      ["name": "file", "filename": .string("\(fixture.directory)/disk"), "block_size": 512, "fallocate": true])
    for name in ["m", "late-base", "bad-base", "honest"] {
      try control.require("bdev_malloc_create", ["name": .string(name), "block_size": 512, "num_blocks": 2048])
    }
    try control.require(
      "bdev_delay_create",
      [
        "base_bdev_name": "late-base", "name": "late", "avg_read_latency": 50, "p99_read_latency": 100,
        "avg_write_latency": 50, "p99_write_latency": 100,
      ])
    try control.require("bdev_error_create", ["base_name": "bad-base"])
    for (device, export) in [("m", "m"), ("late", "late"), ("EE_bad-base", "bad"), ("file", "file")] {
      try control.require(
        "nbd_start_disk",
        [
          "bdev_name": .string(device),
          "nbd_device": .string("nbd+unix:///\(export)?socket=\(fixture.directory)/nbd.sock"),
        ])
    }
    try control.require(
      "nbd_start_disk",
      ["bdev_name": "honest", "nbd_device": .string("nbd+unix:///?socket=\(fixture.directory)/honest.sock")])
  }

  func run(_ input: [UInt8]) throws {
    var input = FuzzInput(input)
    let kind = input.u8()
    if kind & 1 != 0 {
      try fixture.control.require(
        "bdev_error_inject_error",
        [
          "name": "EE_bad-base", "io_type": kind & 2 != 0 ? "all" : "read",
          "error_type": kind & 2 != 0 ? "failure" : "corrupt_data", "num": 4,
        ])
    }
    let wire = try Wire.unix("\(fixture.directory)/nbd.sock")
    if kind & 4 == 0 {
      // A sound negotiation, so that what follows is transmission.
      var hello: [UInt8] = []
      hello.appendBig(UInt32(3))
      if kind & 8 != 0 { hello += NBDTarget.option(8, []) }
      let export = NBDTarget.exports[Int(kind >> 4) % 4]
      if kind & 8 != 0 { hello += NBDTarget.option(10, NBDTarget.contextQuery(export)) }
      hello += NBDTarget.option(7, NBDTarget.goData(export))
      try wire.send(hello)
    }
    while !input.isAtEnd, !wire.isEnded { try step(&input, wire) }
    try wire.end()
    runs += 1
    if runs % 16 == 0 { try lookAround() }
  }

  private func step(_ input: inout FuzzInput, _ wire: Wire) throws {
    var bytes: [UInt8] = []
    switch input.u8() % 10 {
    case 0: bytes.appendBig(UInt32(input.u8()))
    case 1:
      let number = NBDTarget.options[Int(input.u8()) % NBDTarget.options.count]
      bytes = NBDTarget.option(number, input.bytes(Int(input.u8())))
    case 2:
      bytes = NBDTarget.option(7, NBDTarget.goData(NBDTarget.exports[Int(input.u8()) % NBDTarget.exports.count]))
    case 3:
      bytes = NBDTarget.option(10, NBDTarget.contextQuery(NBDTarget.exports[Int(input.u8()) % NBDTarget.exports.count]))
    case 4:
      // An option whose length lies.
      bytes = Array("IHAVEOPT".utf8)
      bytes.appendBig(UInt32(input.u8()))
      bytes.appendBig(UInt32(truncatingIfNeeded: input.interesting()))
      bytes += input.bytes(Int(input.u8()))
    case 5, 6, 7: bytes = request(&input)
    case 8: bytes = input.bytes(Int(input.u8()))
    default: wire.receive()
    }
    try wire.send(bytes)
  }

  /// A request of the transmission, with the data that a write has, or with less.
  private func request(_ input: inout FuzzInput) -> [UInt8] {
    let head = input.u8()
    let command = UInt16(head & 15)
    let flags: UInt16 = head & 16 != 0 ? UInt16(input.u8()) : 0
    var offset = UInt64(input.u8()) * 512
    var length = UInt64(1 + input.u8() % 64) * 512
    if head & 32 != 0 { offset = input.interesting() }
    if head & 64 != 0 { length = input.interesting() }
    var bytes: [UInt8] = []
    bytes.appendBig(UInt32(0x2560_9513))
    bytes.appendBig(flags)
    bytes.appendBig(command)
    bytes.appendBig(UInt64(input.u8()))
    bytes.appendBig(offset)
    bytes.appendBig(UInt32(truncatingIfNeeded: length))
    if command == 1 {
      let most = Int(min(length, 256 << 10))
      bytes += [UInt8](repeating: head, count: head & 128 != 0 ? most / 2 : most)
    }
    return bytes
  }

  private static func option(_ number: UInt32, _ data: [UInt8]) -> [UInt8] {
    var bytes = Array("IHAVEOPT".utf8)
    bytes.appendBig(number)
    bytes.appendBig(UInt32(data.count))
    return bytes + data
  }

  private static func goData(_ name: String) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.appendBig(UInt32(name.utf8.count))
    bytes += Array(name.utf8)
    bytes.appendBig(UInt16(1))
    bytes.appendBig(UInt16(3))
    return bytes
  }

  private static func contextQuery(_ name: String) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.appendBig(UInt32(name.utf8.count))
    bytes += Array(name.utf8)
    bytes.appendBig(UInt32(1))
    bytes.appendBig(UInt32(15))
    return bytes + Array("base:allocation".utf8)
  }

  /// Another client's disk is as it was, and is served.
  private func lookAround() throws {
    let wire = try Wire.unix("\(fixture.directory)/honest.sock")
    var bytes: [UInt8] = []
    bytes.appendBig(UInt32(3))
    bytes += NBDTarget.option(7, NBDTarget.goData(""))
    bytes.appendBig(UInt32(0x2560_9513))
    bytes.appendBig(UInt32(0))
    bytes.appendBig(UInt64(7))
    bytes.appendBig(UInt64(0))
    bytes.appendBig(UInt32(NBDTarget.size))
    try wire.send(bytes)
    // Greeting 18; information: export 32, block sizes 34, end 20; reply 16 and the data.
    let expected = 18 + 32 + 34 + 20 + 16 + Int(NBDTarget.size)
    let isThere = wire.wait(for: expected, milliseconds: Wire.patience)
    guard isThere, wire.received[104..<108] == [0x67, 0x44, 0x66, 0x98] else {
      throw FuzzFailure("an honest client is not served: \(wire.received.count) of \(expected) bytes")
    }
    guard wire.received[120...].allSatisfy({ $0 == 0 }) else {
      throw FuzzFailure("the disk of another client has changed")
    }
    wire.close()
  }

  func finish() throws {
    try lookAround()
    try fixture.end()
  }
}
