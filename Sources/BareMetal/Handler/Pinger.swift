#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// ICMP echo (RFC 792) through one network device, without blocking.
///
/// Not shared between tasks: it has a single user, who sends and later looks what came back.
final class Pinger {
  private let socket: Int32
  private let identifier: UInt16
  private var sequence: UInt16 = 0

  init(device: String) throws(BareMetalError) {
    socket = Glibc.socket(
      AF_INET, Int32(SOCK_RAW.rawValue | SOCK_NONBLOCK.rawValue | SOCK_CLOEXEC.rawValue), Int32(IPPROTO_ICMP))
    guard socket >= 0 else {
      throw BareMetalError(
        .system, operation: "open a socket for ping",
        message: "\(String(cString: strerror(errno))); bm-handler needs the right to use raw sockets (CAP_NET_RAW)")
    }
    identifier = UInt16.random(in: 1 ... .max)
    let result = device.withCString { setsockopt(socket, SOL_SOCKET, SO_BINDTODEVICE, $0, socklen_t(strlen($0) + 1)) }
    guard result == 0 else {
      let reason = String(cString: strerror(errno))
      close(socket)
      throw BareMetalError(.system, operation: "ping through \(device)", message: reason)
    }
  }

  deinit { close(socket) }

  /// Sends one echo request; an address that cannot be reached now is no error.
  func send(to address: String) {
    guard let octets = LeaseFile.octets(address) else { return }
    sequence &+= 1
    var packet: [UInt8] = [8, 0, 0, 0]
    packet += [UInt8(identifier >> 8), UInt8(identifier & 0xff), UInt8(sequence >> 8), UInt8(sequence & 0xff)]
    packet += Array("ycloud bm-handler".utf8)
    let sum = Self.checksum(packet)
    packet[2] = UInt8(sum >> 8)
    packet[3] = UInt8(sum & 0xff)
    var target = sockaddr_in()
    target.sin_family = sa_family_t(AF_INET)
    target.sin_addr.s_addr = octets.withUnsafeBytes { $0.loadUnaligned(as: UInt32.self) }
    withUnsafePointer(to: &target) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { address in
        _ = sendto(socket, packet, packet.count, 0, address, socklen_t(MemoryLayout<sockaddr_in>.size))
      }
    }
  }

  /// The addresses that have answered since the last look.
  func answers() -> Set<String> {
    var addresses: Set<String> = []
    var buffer = [UInt8](repeating: 0, count: 2048)
    // Bounded: a raw socket sees every echo reply that comes to this machine.
    for _ in 0..<256 {
      let count = recv(socket, &buffer, buffer.count, 0)
      guard count >= 0 else { break }
      if let address = Self.answer(in: buffer[..<count], identifier: identifier) { addresses.insert(address) }
    }
    return addresses
  }

  /// The sender of an echo reply with this identifier, from a whole IPv4 packet; nil for anything else.
  static func answer(in packet: some RandomAccessCollection<UInt8>, identifier: UInt16) -> String? {
    let bytes = Array(packet)
    guard bytes.count >= 28, bytes[0] >> 4 == 4 else { return nil }
    let header = Int(bytes[0] & 15) * 4
    guard header >= 20, bytes.count >= header + 8, bytes[header] == 0, bytes[header + 1] == 0,
      bytes[header + 4] == UInt8(identifier >> 8), bytes[header + 5] == UInt8(identifier & 0xff)
    else { return nil }
    return bytes[12..<16].map { "\($0)" }.joined(separator: ".")
  }

  static func checksum(_ bytes: [UInt8]) -> UInt16 {
    var sum: UInt32 = 0
    for index in stride(from: 0, to: bytes.count, by: 2) {
      sum += UInt32(bytes[index]) << 8 | (index + 1 < bytes.count ? UInt32(bytes[index + 1]) : 0)
    }
    while sum > 0xffff { sum = (sum & 0xffff) + (sum >> 16) }
    return ~UInt16(sum)
  }
}
