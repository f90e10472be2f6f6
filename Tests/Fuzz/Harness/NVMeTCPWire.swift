import CLinux

/// PDUs of NVMe/TCP as the fuzz targets write them: sound, but for what an input says.
enum NVMeTCPWire {
  static let nqn = "nqn.2026-11.io.yusur.fuzz:a"
  static let host = "nqn.2026-11.io.yusur.fuzz:host"

  static func digest(_ bytes: some Collection<UInt8>) -> UInt32 {
    Array(bytes).withUnsafeBytes { clinux_crc32c(0, $0.baseAddress, $0.count) }
  }

  /// A PDU with the digests that were agreed on.
  static func pdu(
    type: UInt8, header: [UInt8], data: [UInt8] = [], flags: UInt8 = 0, hasHeaderDigest: Bool, hasDataDigest: Bool
  ) -> [UInt8] {
    let headerLength = 8 + header.count
    let start = headerLength + (hasHeaderDigest ? 4 : 0)
    let hasDataDigest = hasDataDigest && !data.isEmpty
    var bytes: [UInt8] = [
      type, flags | (hasHeaderDigest ? 1 : 0) | (hasDataDigest ? 2 : 0), UInt8(truncatingIfNeeded: headerLength),
      data.isEmpty ? 0 : UInt8(truncatingIfNeeded: start),
    ]
    bytes.appendLittle(UInt32(start + data.count + (hasDataDigest ? 4 : 0)))
    bytes += header
    if hasHeaderDigest { bytes.appendLittle(digest(bytes)) }
    bytes += data
    if hasDataDigest { bytes.appendLittle(digest(data)) }
    return bytes
  }

  /// The first PDU of either side.
  static func initialize(isResponse: Bool, digests: UInt8, maximumData: UInt32 = 0) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 128)
    bytes[0] = isResponse ? 1 : 0
    bytes[2] = 128
    bytes.setLittle(UInt32(128), at: 4)
    bytes[11] = digests
    bytes.setLittle(maximumData, at: 12)
    return bytes
  }

  /// The 64 bytes of a Connect, and its data.
  static func connect(
    queue: UInt16, size: UInt16, controller: UInt16, subsystem: String, keepAlive: UInt32
  ) -> (command: [UInt8], data: [UInt8]) {
    var command = [UInt8](repeating: 0, count: 64)
    command[0] = 0x7F
    command[1] = 0x40
    command[4] = 1
    command.setLittle(UInt32(1024), at: 32)
    command[39] = 1
    command.setLittle(queue, at: 42)
    command.setLittle(size, at: 44)
    command.setLittle(keepAlive, at: 48)
    var data = [UInt8](repeating: 0, count: 1024)
    data.setLittle(controller, at: 16)
    for (index, byte) in subsystem.utf8.enumerated() { data[256 + index] = byte }
    for (index, byte) in host.utf8.enumerated() { data[512 + index] = byte }
    return (command, data)
  }
}
