import CLinux
import Glibc

/// The other side of an initiator: knows what each command is to be answered with, and does something else where the
/// input says so.
final class HostileTarget {
  private final class Connection {
    let wire: Wire
    var isInitialized = false
    init(_ wire: Wire) { self.wire = wire }
  }

  private var connections: [Connection] = []
  private var input: FuzzInput
  private let digests: UInt8

  init(input: FuzzInput = FuzzInput([]), digests: UInt8 = 0) {
    self.input = input
    self.digests = digests
  }

  func closeAll() {
    for connection in connections { connection.wire.reset() }
    connections = []
  }

  /// Waits a moment for bytes, and answers what has come; false where nothing did.
  @discardableResult
  func turn(_ listener: CInt, also: [CInt]) throws -> Bool {
    var isAnswered = false
    var entries = ([listener] + also + connections.map(\.wire.fd)).map {
      pollfd(fd: $0, events: Int16(POLLIN), revents: 0)
    }
    _ = poll(&entries, nfds_t(entries.count), 5)
    while case let fd = clinux_accept(listener), fd >= 0 {
      guard connections.count < 8 else {
        close(fd)
        continue
      }
      connections.append(Connection(Wire(adopting: fd)))
      isAnswered = true
    }
    for connection in connections {
      connection.wire.receive()
      while try answerNext(connection) { isAnswered = true }
    }
    connections.removeAll(where: \.wire.isEnded)
    return isAnswered
  }

  /// Answers one PDU; false where none is whole.
  private func answerNext(_ connection: Connection) throws -> Bool {
    let wire = connection.wire
    guard wire.received.count >= 8, !wire.isEnded else { return false }
    let length = Int(wire.received.little(4, as: UInt32.self))
    guard length >= 8, length < 1 << 20, wire.received.count >= length else { return false }
    let pdu = wire.take(length)
    let answers: [[UInt8]]
    switch pdu[0] {
    case 0: answers = [NVMeTCPWire.initialize(isResponse: true, digests: digests, maximumData: 65536)]
    case 4 where pdu.count >= 72: answers = answer(Array(pdu[8..<72]))
    case 6 where pdu.count >= 24:
      // The last of the data that was asked for.
      answers = pdu[1] & 4 != 0 ? [completion(pdu.little(8, as: UInt16.self))] : []
    default: answers = []
    }
    for answer in answers { try send(answer, wire) }
    return true
  }

  /// Sends an answer, or what the input makes of it.
  private func send(_ answer: [UInt8], _ wire: Wire) throws {
    var bytes = answer
    switch input.u8() {
    case 0..<176: break
    case 176..<192: bytes[Int(input.u8()) % min(bytes.count, 32)] = input.u8()
    case 192..<200:
      // The same, with a digest that holds.
      bytes[Int(input.u8()) % min(bytes.count, 24)] = input.u8()
      seal(&bytes)
    case 200..<208:
      let place = Int(input.u16()) % bytes.count
      for (index, byte) in input.bytes(Int(input.u8() & 15)).enumerated() where place + index < bytes.count {
        bytes[place + index] = byte
      }
    case 208..<214: bytes += answer
    case 214..<220: bytes.removeLast(min(bytes.count - 1, 1 + Int(input.u8())))
    case 220..<226: bytes.insert(contentsOf: input.bytes(Int(input.u8() & 63)), at: 0)
    case 226..<232:
      // Data, or a request for data, for any command.
      var header = [UInt8](repeating: 0, count: 16)
      header.setLittle(UInt16(input.u8()), at: 0)
      header.setLittle(UInt16(input.u8()), at: 2)
      header.setLittle(UInt32(truncatingIfNeeded: input.interesting()), at: 4)
      let isData = input.u8() & 1 != 0
      let data = isData ? [UInt8](repeating: 3, count: Int(input.u8()) * 16) : []
      header.setLittle(
        input.u8() & 1 != 0 ? UInt32(truncatingIfNeeded: input.interesting()) : UInt32(data.count), at: 8)
      bytes = pdu(isData ? 7 : 9, header, data, flags: input.u8() & 12) + bytes
    case 232..<238: bytes = completion(UInt16(input.u8()), status: UInt16(truncatingIfNeeded: input.interesting()))
    case 238..<244:
      if bytes[0] == 5 { bytes.setLittle(UInt16(truncatingIfNeeded: input.interesting()) << 1, at: 22) }
      seal(&bytes)
    case 244..<248:
      // The first words of a page of data.
      let place = 24 + Int(input.u16()) % 4096
      for (index, byte) in input.bytes(8).enumerated() where place + index < bytes.count { bytes[place + index] = byte }
    case 248..<252:
      wire.reset()
      return
    default:
      try wire.send(bytes)
      wire.close()
      return
    }
    try wire.send(bytes)
  }

  private func seal(_ bytes: inout [UInt8]) {
    guard digests & 1 != 0, bytes.count >= 28, bytes[0] != 1 else { return }
    bytes.setLittle(NVMeTCPWire.digest(bytes[..<24]), at: 24)
  }

  // MARK: Sound answers

  private func pdu(_ type: UInt8, _ header: [UInt8], _ data: [UInt8] = [], flags: UInt8 = 0) -> [UInt8] {
    NVMeTCPWire.pdu(
      type: type, header: header, data: data, flags: flags, hasHeaderDigest: digests & 1 != 0,
      hasDataDigest: digests & 2 != 0)
  }

  private func completion(_ id: UInt16, word0: UInt32 = 0, status: UInt16 = 0) -> [UInt8] {
    var header = [UInt8](repeating: 0, count: 16)
    header.setLittle(word0, at: 0)
    header.setLittle(id, at: 12)
    header.setLittle(status << 1, at: 14)
    return pdu(5, header)
  }

  private func data(_ id: UInt16, _ bytes: [UInt8]) -> [UInt8] {
    var header = [UInt8](repeating: 0, count: 16)
    header.setLittle(id, at: 0)
    header.setLittle(UInt32(bytes.count), at: 8)
    return pdu(7, header, bytes, flags: 4)
  }

  private func answer(_ command: [UInt8]) -> [[UInt8]] {
    let id = command.little(2, as: UInt16.self)
    let selector = command.little(40, as: UInt32.self)
    let length = Int(min(command.little(32, as: UInt32.self), 1 << 20))
    switch command[0] {
    case 0x7F: return [completion(id, word0: 1)]
    case 0x06: return [data(id, identify(UInt8(truncatingIfNeeded: selector))), completion(id)]
    case 0x09: return [completion(id, word0: 0x0003_0003)]
    case 0x0C: return []
    case 0x02 where command.little(36, as: UInt32.self) >> 24 == 0x5A && command.little(4, as: UInt32.self) == 1:
      return [data(id, [UInt8](repeating: 5, count: length)), completion(id)]
    case 0x02: return [data(id, [UInt8](repeating: 0, count: length)), completion(id)]
    case 0x01 where command[39] == 0x5A, 0x09 where command[39] == 0x5A:
      var header = [UInt8](repeating: 0, count: 16)
      header.setLittle(id, at: 0)
      header.setLittle(UInt16(7), at: 2)
      header.setLittle(UInt32(length), at: 8)
      return [pdu(9, header)]
    default: return [completion(id)]
    }
  }

  private func identify(_ selector: UInt8) -> [UInt8] {
    var page = [UInt8](repeating: 0, count: 4096)
    switch selector {
    case 1:
      page[77] = 5
      page.setLittle(UInt32(8), at: 1792)
      page[520] = 8
    case 2: page.setLittle(UInt32(1), at: 0)
    case 0:
      page.setLittle(UInt64(2048), at: 0)
      page.setLittle(UInt64(2048), at: 8)
      page[130] = 9
      page[104] = 0x77
    default: break
    }
    return page
  }
}
