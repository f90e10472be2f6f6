#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// dnsmasq on this machine, as far as it has to be told what it does not notice by itself.
///
/// It reads a reservation when its file appears, but keeps what it has read until it gets SIGHUP, also when the file
/// changes or goes. And it gives a reserved address to nobody as long as somebody else's lease of it lasts, which a guest
/// whose power was cut has not given back. All of this is best effort: the lease runs out by itself.
package struct DHCPServer: Sendable {
  private let bridge: String
  private let leaseFile: String
  private let pidFile: String?

  /// - Parameters:
  ///   - bridge: The device that it serves.
  ///   - pidFile: Without it, changes of reservations count from its next start.
  package init(bridge: String, leaseFile: String, pidFile: String?) {
    self.bridge = bridge
    self.leaseFile = leaseFile
    self.pidFile = pidFile
  }

  /// Has it read all reservations anew.
  package func reload() {
    guard let pidFile, let text = Files.read(pidFile, limit: 64), let pid = Self.pid(text) else { return }
    // The file may be of a process that is no more, and the number somebody else's by now.
    let name = Files.read("/proc/\(pid)/comm", limit: 64).map { String(decoding: $0, as: UTF8.self) }
    guard name == "dnsmasq\n" else { return }
    kill(pid, SIGHUP)
  }

  /// The process id in a pid file.
  package static func pid(_ text: some Collection<UInt8>) -> Int32? {
    let line = text.prefix { $0 != UInt8(ascii: "\n") }
    guard let pid = Int32(String(decoding: line, as: UTF8.self)), pid > 1 else { return nil }
    return pid
  }

  /// Gives the lease of a network card back that is no more.
  package func release(mac: String) {
    guard let lease = Files.read(leaseFile, limit: 8 << 20).flatMap({ LeaseFile.parse($0)[mac] }),
      let guest = LeaseFile.octets(lease.address)
    else { return }
    let socket = Glibc.socket(AF_INET, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
    guard socket >= 0 else { return }
    defer { close(socket) }
    // So it seems to come from the network that the server serves, although it never leaves this machine.
    guard
      bridge.withCString({ setsockopt(socket, SOL_SOCKET, SO_BINDTODEVICE, $0, socklen_t(strlen($0) + 1)) }) == 0,
      let server = Self.ownAddress(socket, towards: guest), let packet = Self.releasePacket(lease, server: server)
    else { return }
    Self.withAddress(server) { _ = sendto(socket, packet, packet.count, 0, $0, $1) }
  }

  /// The address of this machine in the network of another one: the kernel chooses it as the sender's.
  private static func ownAddress(_ socket: Int32, towards other: [UInt8]) -> [UInt8]? {
    guard withAddress(other, { connect(socket, $0, $1) }) == 0 else { return nil }
    var own = sockaddr_in()
    var length = socklen_t(MemoryLayout<sockaddr_in>.size)
    let result = withUnsafeMutablePointer(to: &own) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { getsockname(socket, $0, &length) }
    }
    guard result == 0 else { return nil }
    return withUnsafeBytes(of: own.sin_addr.s_addr) { Array($0) }
  }

  private static func withAddress<R>(_ address: [UInt8], _ body: (UnsafePointer<sockaddr>, socklen_t) -> R) -> R {
    var target = sockaddr_in()
    target.sin_family = sa_family_t(AF_INET)
    target.sin_port = in_port_t(67).bigEndian
    target.sin_addr.s_addr = address.withUnsafeBytes { $0.loadUnaligned(as: UInt32.self) }
    return withUnsafePointer(to: &target) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { body($0, socklen_t(MemoryLayout<sockaddr_in>.size)) }
    }
  }

  /// A DHCPRELEASE (RFC 2131, 4.4.6) as the lease's holder would send it; nil where the lease is not one of an Ethernet
  /// card.
  package static func releasePacket(_ lease: DHCPLease, server: [UInt8]) -> [UInt8]? {
    let mac = lease.mac.split(separator: ":").compactMap { UInt8($0, radix: 16) }
    guard mac.count == 6, server.count == 4, let address = LeaseFile.octets(lease.address) else { return nil }
    var packet: [UInt8] = [1, 1, 6, 0]
    packet += (0..<4).map { _ in UInt8.random(in: 0...255) }
    packet += [0, 0, 0, 0] + address
    // Other addresses, the rest of the hardware address, names of a server and a file.
    packet += [UInt8](repeating: 0, count: 12) + mac + [UInt8](repeating: 0, count: 10 + 64 + 128)
    packet += [0x63, 0x82, 0x53, 0x63, 53, 1, 7, 54, 4] + server
    if let client = lease.clientID, !client.isEmpty, client.count <= 255 {
      packet += [61, UInt8(client.count)] + client
    }
    packet.append(255)
    return packet + [UInt8](repeating: 0, count: max(0, 300 - packet.count))
  }
}
