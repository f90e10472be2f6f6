/// An IPv4 address as a number.
package struct IPv4Address: Sendable, Hashable, Comparable, CustomStringConvertible {
  package var value: UInt32

  package init(_ value: UInt32) {
    self.value = value
  }

  /// Parses dotted decimal notation with four parts and no leading zeros.
  package init?(_ text: some StringProtocol) {
    let parts = text.split(separator: ".", omittingEmptySubsequences: false)
    guard parts.count == 4 else { return nil }
    var value: UInt32 = 0
    for part in parts {
      guard (1...3).contains(part.utf8.count), part.utf8.allSatisfy({ (48...57).contains($0) }),
        part == "0" || part.first != "0", let byte = UInt8(part)
      else { return nil }
      value = value << 8 | UInt32(byte)
    }
    self.value = value
  }

  package static func < (left: Self, right: Self) -> Bool {
    left.value < right.value
  }

  package var description: String {
    "\(value >> 24).\(value >> 16 & 255).\(value >> 8 & 255).\(value & 255)"
  }
}

/// An interface's address together with its network, such as `192.168.77.1/24`.
package struct IPv4Network: Sendable, Hashable, CustomStringConvertible {
  package let address: IPv4Address
  package let prefixLength: Int

  /// Parses `a.b.c.d/n`; without `/n` it is a single address.
  package init?(_ text: some StringProtocol) {
    let parts = text.split(separator: "/", maxSplits: 1, omittingEmptySubsequences: false)
    guard let first = parts.first, let address = IPv4Address(first) else { return nil }
    if parts.count == 2 {
      guard parts[1].utf8.allSatisfy({ (48...57).contains($0) }), let length = Int(parts[1]), (0...32).contains(length)
      else { return nil }
      prefixLength = length
    } else {
      prefixLength = 32
    }
    self.address = address
  }

  package var mask: IPv4Address {
    IPv4Address(prefixLength == 0 ? 0 : UInt32.max << UInt32(32 - prefixLength))
  }

  package var first: IPv4Address {
    IPv4Address(address.value & mask.value)
  }

  package var last: IPv4Address {
    IPv4Address(first.value | ~mask.value)
  }

  package func overlaps(_ other: IPv4Network) -> Bool {
    first <= other.last && other.first <= last
  }

  /// The part that DHCP hands out: all but the network's, the interface's own and the broadcast address, and at most
  /// the upper half, so that the lower half is there for addresses that machines ask for.
  package var dynamicRange: ClosedRange<IPv4Address> {
    let size = last.value - first.value
    let lower = max(IPv4Address(first.value + (size + 1) / 2), IPv4Address(address.value + 1))
    return lower...IPv4Address(last.value - 1)
  }

  package var description: String {
    "\(address)/\(prefixLength)"
  }
}
