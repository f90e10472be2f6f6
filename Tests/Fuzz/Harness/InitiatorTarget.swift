import CLinux
import Glibc
import JSON
import JSONRPC

/// A target that the initiator is connected to, and that answers as it should or as the input says: first while the
/// initiator connects, then while a client reads and writes through it.
final class InitiatorTarget: FuzzTarget {
  private let fixture: Fixture
  private let listener: CInt
  private let port: UInt16
  private var host = HostileTarget()
  private var runs = 0

  init() throws {
    fixture = try Fixture()
    var found: (CInt, UInt16)?
    for _ in 0..<20 where found == nil {
      let port = UInt16.random(in: 30000...32000)
      let fd = clinux_tcp_listen("127.0.0.1", port)
      if fd >= 0 { found = (fd, port) }
    }
    guard let found else { throw FuzzFailure("no free port") }
    (listener, port) = found
  }

  deinit { close(listener) }

  func run(_ bytes: [UInt8]) throws {
    var input = FuzzInput(bytes)
    let kind = input.u8()
    host = HostileTarget(input: input, digests: kind & 3)
    let control = fixture.control
    let outcome = try serve {
      try control.begin(
        "bdev_nvme_attach_controller",
        [
          "name": "r", "trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": .string("\(port)"),
          "subnqn": .string(NVMeTCPWire.nqn), "hdgst": .bool(kind & 1 != 0), "ddgst": .bool(kind & 2 != 0),
          "num_io_queues": .integer(kind & 4 != 0 ? 2 : 1),
        ])
    }
    if case .success(let names) = outcome {
      for name in (names.arrayValue ?? []).prefix(2) { try use(name.stringValue ?? "", kind) }
      _ = try serve { try control.begin("bdev_get_bdevs") }
      _ = try serve { try control.begin("bdev_nvme_get_controllers") }
      let socket = "\(fixture.directory)/r.sock"
      _ = try serve { try control.begin("nbd_stop_disk", ["nbd_device": .string("nbd+unix:///?socket=\(socket)")]) }
      let end = try serve { try control.begin("bdev_nvme_detach_controller", ["name": "r"]) }
      guard case .success = end else { throw FuzzFailure("the controller is not detached: \(end)") }
    }
    host.closeAll()
    runs += 1
    if runs % 16 == 0 {
      guard try control.require("bdev_get_bdevs") == [] else { throw FuzzFailure("a device is left") }
    }
  }

  /// Reads and writes a device, whatever its target answers.
  private func use(_ name: String, _ kind: UInt8) throws {
    let socket = "\(fixture.directory)/r.sock"
    let control = fixture.control
    let start = try serve {
      try control.begin(
        "nbd_start_disk", ["bdev_name": .string(name), "nbd_device": .string("nbd+unix:///?socket=\(socket)")])
    }
    guard case .success = start else { return }
    let wire = try Wire.unix(socket)
    var bytes: [UInt8] = []
    bytes.appendBig(UInt32(3))
    bytes += Array("IHAVEOPT".utf8)
    bytes.appendBig(UInt32(1))
    bytes.appendBig(UInt32(0))
    // Reads and writes of several lengths, a flush, zeros, a trim.
    let requests: [(UInt16, UInt64, UInt32)] = [
      (0, 0, 4096), (1, 4096, 4096), (1, 8192, 65536), (0, 0, 262_144), (3, 0, 0), (6, 0, 8192), (4, 8192, 8192),
      (0, 512, 512), (1, 0, 300_032),
    ]
    for (command, offset, length) in requests {
      bytes.appendBig(UInt32(0x2560_9513))
      bytes.appendBig(UInt16(0))
      bytes.appendBig(command)
      bytes.appendBig(offset)
      bytes.appendBig(offset)
      bytes.appendBig(length)
      if command == 1 { bytes += [UInt8](repeating: kind, count: Int(length)) }
    }
    try wire.send(bytes)
    wire.endSending()
    // Until the server has closed it, or all answers are there: a request that gets none for a while gets none.
    let deadline = clinux_monotonic_nanoseconds() + 30_000_000
    while !wire.isEnded, clinux_monotonic_nanoseconds() < deadline {
      try host.turn(listener, also: [wire.fd])
      wire.receive()
      _ = wire.take(wire.received.count)
    }
    wire.close()
  }

  /// Makes a call, and is the target until it is answered.
  private func serve(_ begin: () throws -> Void) throws -> Result<JSONValue, ResponseError> {
    try begin()
    let deadline = clinux_monotonic_nanoseconds() + UInt64(Wire.patience) * 1_000_000
    var lastWord = clinux_monotonic_nanoseconds()
    while clinux_monotonic_nanoseconds() < deadline {
      if let answer = try fixture.control.answer() { return answer }
      if try host.turn(listener, also: [fixture.control.wire.fd]) { lastWord = clinux_monotonic_nanoseconds() }
      // An initiator that waits for a word of a target that has said its last would wait for ten seconds.
      if clinux_monotonic_nanoseconds() > lastWord + 40_000_000 { host.closeAll() }
    }
    throw FuzzFailure("the initiator does not come to an end")
  }

  func finish() throws { fixture.stop() }
}
