import Glibc
import NIOCore

/// An IPv4 or IPv6 address, as its bytes in the network's order.
package struct MachineAddress: Sendable, Hashable, CustomStringConvertible {
  /// 4 or 16.
  package let bytes: [UInt8]
  package let description: String

  /// Parses what is an address and nothing else. An IPv4 address in IPv6's clothes (RFC 4291, section 2.5.5.2) is the IPv4
  /// address, so that no rule is passed by in them.
  package init?(_ text: String) {
    guard text.utf8.count <= 45, !text.utf8.contains(0) else { return nil }
    var four = in_addr()
    var six = in6_addr()
    if inet_pton(AF_INET, text, &four) == 1 {
      bytes = withUnsafeBytes(of: &four) { Array($0) }
      description = text
    } else if inet_pton(AF_INET6, text, &six) == 1 {
      let all = withUnsafeBytes(of: &six) { Array($0) }
      if all.prefix(12) == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF] {
        bytes = Array(all.suffix(4))
        description = bytes.map { "\($0)" }.joined(separator: ".")
      } else {
        bytes = all
        description = text
      }
    } else {
      return nil
    }
  }

  /// Why nothing of a machine can be at this address, wherever it is; nil where something can.
  package var objection: String? {
    if bytes.count == 4 {
      switch (bytes[0], bytes[1]) {
      case (0, _): return "it is unspecified"
      case (127, _): return "it is a loopback address"
      case (169, 254): return "it is a link-local address"
      case (224...239, _): return "it is a multicast address"
      case (240..., _): return "it is reserved or a broadcast address"
      default: return nil
      }
    }
    // Also IPv4 addresses in their old clothes (RFC 4291, section 2.5.5.1), which mean nothing any more.
    if bytes.prefix(12).allSatisfy({ $0 == 0 }) {
      let isShort = bytes.prefix(15).allSatisfy { $0 == 0 }
      return isShort && bytes[15] == 1 ? "it is a loopback address" : "it is unspecified or reserved"
    }
    if bytes[0] == 0xFF { return "it is a multicast address" }
    if bytes[0] == 0xFE, bytes[1] & 0xC0 == 0x80 { return "it is a link-local address" }
    return nil
  }
}

/// A network: `10.1.0.0/16`, `fd00:1::/64`.
package struct AddressPrefix: Sendable, Hashable, CustomStringConvertible {
  package let address: MachineAddress
  package let length: Int

  package init?(_ text: String) {
    let parts = text.split(separator: "/", omittingEmptySubsequences: false)
    guard parts.count == 2, let address = MachineAddress(String(parts[0])), parts[1].utf8.count <= 3,
      parts[1].utf8.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }), let length = Int(parts[1]),
      (1...(address.bytes.count * 8)).contains(length)
    else { return nil }
    self.address = address
    self.length = length
  }

  package var description: String { "\(address)/\(length)" }

  package func contains(_ other: MachineAddress) -> Bool {
    guard other.bytes.count == address.bytes.count else { return false }
    let whole = length / 8
    guard other.bytes.prefix(whole) == address.bytes.prefix(whole) else { return false }
    guard length % 8 > 0 else { return true }
    let mask = UInt8.max << UInt8(8 - length % 8)
    return other.bytes[whole] & mask == address.bytes[whole] & mask
  }
}

/// Which addresses bm-api connects to for users. Whoever could choose another would reach, from inside, what they cannot
/// reach from where they are: so only networks that the operator names are those of machines.
package struct AddressRule: Sendable {
  /// None: nothing is connected to.
  package var networks: [AddressPrefix]
  /// Addresses of the API server, as bm-api was told them.
  package var servers: Set<MachineAddress>
  /// The addresses of this computer at the moment, where what listens is no machine; nil where they cannot be found out.
  package var own: @Sendable () -> Set<MachineAddress>?

  package init(
    networks: [AddressPrefix] = [], servers: Set<MachineAddress> = [],
    own: @escaping @Sendable () -> Set<MachineAddress>? = AddressRule.ownAddresses
  ) {
    self.networks = networks
    self.servers = servers
    self.own = own
  }

  /// Why `address` is not connected to; nil where it is.
  package func objection(to address: MachineAddress) -> String? {
    if let objection = address.objection { return objection }
    guard networks.contains(where: { $0.contains(address) }) else { return "it is in none of the networks of machines" }
    guard let own = own() else { return "bm-api cannot find out which addresses are its own" }
    if servers.contains(address) || own.contains(address) { return "it belongs to the cloud itself" }
    return nil
  }

  /// The address in a server's URL, where it has one and no name.
  package static func addresses(inURL url: String) -> Set<MachineAddress> {
    let authority = url.split(separator: "/", omittingEmptySubsequences: false).dropFirst(2).first ?? ""
    let host =
      authority.hasPrefix("[")
      ? authority.dropFirst().prefix { $0 != "]" } : authority.prefix { $0 != ":" }
    return Set([MachineAddress(String(host))].compactMap { $0 })
  }

  @Sendable package static func ownAddresses() -> Set<MachineAddress>? {
    guard let devices = try? System.enumerateDevices() else { return nil }
    return Set(devices.compactMap { $0.address?.ipAddress.flatMap { MachineAddress($0) } })
  }
}
