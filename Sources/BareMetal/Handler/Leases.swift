/// One line of dnsmasq's lease file.
package struct DHCPLease: Sendable, Hashable {
  /// Seconds since 1970; 0 for never.
  package var expires: Int64
  package var mac: String
  package var address: String
  /// What the guest calls itself (option 61), where it does.
  package var clientID: [UInt8]?

  package init(expires: Int64, mac: String, address: String, clientID: [UInt8]? = nil) {
    self.expires = expires
    self.mac = mac
    self.address = address
    self.clientID = clientID
  }
}

package enum LeaseFile {
  /// Parses a lease file: `<expires> <mac> <address> <name> <client id>` in each line. Lines that are something else
  /// (IPv6, a half-written end) are left out. Of several leases of a MAC address the last one counts.
  package static func parse(_ content: some Collection<UInt8>) -> [String: DHCPLease] {
    var leases: [String: DHCPLease] = [:]
    for line in content.split(separator: UInt8(ascii: "\n")) {
      guard line.count <= 1024 else { continue }
      let fields = line.split(separator: UInt8(ascii: " ")).map { String(decoding: $0, as: UTF8.self) }
      guard fields.count >= 4, let expires = Int64(fields[0]), expires >= 0 else { continue }
      let mac = fields[1].lowercased()
      guard GuestInterface.isMAC(mac), isIPv4(fields[2]) else { continue }
      leases[mac] = DHCPLease(
        expires: expires, mac: mac, address: fields[2], clientID: fields.count >= 5 ? bytes(fields[4]) : nil)
    }
    return leases
  }

  /// Bytes that are written as `01:ab:..`; nil for anything else, such as `*` for none.
  private static func bytes(_ text: String) -> [UInt8]? {
    let parts = text.split(separator: ":", omittingEmptySubsequences: false)
    let bytes = parts.compactMap { $0.utf8.count == 2 ? UInt8($0, radix: 16) : nil }
    return bytes.count == parts.count ? bytes : nil
  }

  package static func isIPv4(_ text: String) -> Bool { octets(text) != nil }

  /// The four bytes of an IPv4 address.
  static func octets(_ text: String) -> [UInt8]? {
    let parts = text.split(separator: ".", omittingEmptySubsequences: false)
    guard parts.count == 4 else { return nil }
    var octets: [UInt8] = []
    for part in parts {
      guard part.utf8.count <= 3, part.allSatisfy(\.isNumber), let octet = UInt8(part) else { return nil }
      octets.append(octet)
    }
    return octets
  }
}
