package import IaaS

/// Who is behind an address, as the kernel has learnt it (ARP, RFC 826).
package enum NeighbourTable {
  /// Parses /proc/net/arp: the MAC address by IPv4 address, of what answers on one device. Entries that are not resolved
  /// and lines that are something else are left out.
  package static func parse(_ content: some Collection<UInt8>, device: String) -> [String: String] {
    var neighbours: [String: String] = [:]
    for line in content.split(separator: UInt8(ascii: "\n")) {
      guard line.count <= 1024 else { continue }
      let fields = line.split(separator: UInt8(ascii: " ")).map { String(decoding: $0, as: UTF8.self) }
      guard fields.count == 6, fields[5] == device, LeaseFile.isIPv4(fields[0]), fields[2].hasPrefix("0x"),
        let flags = UInt32(fields[2].dropFirst(2), radix: 16), flags & 2 != 0
      else { continue }
      let mac = fields[3].lowercased()
      if GuestInterface.isMAC(mac) { neighbours[fields[0]] = mac }
    }
    return neighbours
  }
}

/// Whether an answer to a ping came from the guest.
package enum AnswerVerdict: Sendable, Hashable {
  case guest
  /// Something else has the address.
  case other(mac: String)
  /// It may be anybody's.
  case unproven

  /// An address that is merely wanted proves nothing: another machine may have it. What does is the MAC address behind
  /// it, also for a guest that gives itself the address; or, where that is not known, a lease taken in this boot.
  package init(for interface: BareMetalHost.Interface, neighbour: String?) {
    if let neighbour {
      self = neighbour == interface.mac ? .guest : .other(mac: neighbour)
    } else {
      self = interface.leasedAt == nil ? .unproven : .guest
    }
  }
}
