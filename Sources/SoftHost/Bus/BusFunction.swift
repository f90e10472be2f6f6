import JSON

/// One function on the chassis' PCIe bus, as the bus directory names it.
///
/// - `blk-NN-NAME`, a unix socket: a vhost-user-blk device; NN is its place in the boot order.
/// - `nic-NN-NAME.json`, a file `{"mac": "..", "tap": ".."}`: a network card behind that tap device.
package struct BusFunction: Sendable, Hashable {
  package enum Kind: Sendable, Hashable {
    case disk(socket: String)
    case nic(mac: String, tap: String)
  }

  /// The device's identifier in QEMU: the name in the directory, without `.json`.
  package let id: String
  /// 00 to 99.
  package let order: Int
  package let kind: Kind

  package init(id: String, order: Int, kind: Kind) {
    self.id = id
    self.order = order
    self.kind = kind
  }

  /// What a name in the directory stands for.
  package enum Entry: Hashable {
    case disk(id: String, order: Int)
    case nic(id: String, order: Int)
  }

  /// Reads a name; nil for names that are no functions, such as temporary files.
  package static func entry(_ name: String) -> Entry? {
    var stem = Substring(name)
    let isNIC = name.hasPrefix("nic-")
    guard isNIC || name.hasPrefix("blk-") else { return nil }
    if isNIC {
      guard stem.hasSuffix(".json") else { return nil }
      stem = stem.dropLast(5)
    }
    let rest = stem.dropFirst(4)
    let digits = rest.prefix(2)
    guard digits.utf8.count == 2, digits.utf8.allSatisfy({ $0 >= 0x30 && $0 <= 0x39 }), let order = Int(digits) else {
      return nil
    }
    let label = rest.dropFirst(2)
    // The characters that QEMU allows in identifiers.
    guard label.hasPrefix("-"), label.utf8.count >= 2, stem.utf8.count <= 120,
      label.utf8.allSatisfy({
        ($0 >= 0x30 && $0 <= 0x39) || ($0 >= 0x41 && $0 <= 0x5A) || ($0 >= 0x61 && $0 <= 0x7A)
          || $0 == 0x2D || $0 == 0x2E || $0 == 0x5F
      })
    else { return nil }
    return isNIC ? .nic(id: String(stem), order: order) : .disk(id: String(stem), order: order)
  }

  /// Reads the content of a NIC file; throws `SoftHostError` that says what is wrong with it.
  package static func nic(id: String, order: Int, content: [UInt8]) throws -> BusFunction {
    func invalid(_ message: String) -> SoftHostError {
      SoftHostError(.configuration, operation: "read \(id).json", message: message)
    }
    guard let value = try? JSONValue.parse(content), value.objectValue != nil else {
      throw invalid("it is not a JSON object")
    }
    guard let mac = value["mac"]?.stringValue?.lowercased(), isUnicastMAC(mac) else {
      throw invalid("'mac' must be a unicast address like 02:00:00:00:00:01")
    }
    guard let tap = value["tap"]?.stringValue, isInterfaceName(tap) else {
      throw invalid("'tap' must be the name of a network interface")
    }
    return BusFunction(id: id, order: order, kind: .nic(mac: mac, tap: tap))
  }

  private static func isUnicastMAC(_ text: String) -> Bool {
    let octets = text.split(separator: ":", omittingEmptySubsequences: false)
    guard octets.count == 6,
      octets.allSatisfy({ $0.utf8.count == 2 && UInt8($0, radix: 16) != nil && !$0.hasPrefix("+") }),
      let first = UInt8(octets[0], radix: 16)
    else { return false }
    return first & 1 == 0 && text != "00:00:00:00:00:00"
  }

  private static func isInterfaceName(_ text: String) -> Bool {
    !text.isEmpty && text.utf8.count <= 15 && text != "." && text != ".."
      && text.utf8.allSatisfy {
        ($0 >= 0x30 && $0 <= 0x39) || ($0 >= 0x41 && $0 <= 0x5A) || ($0 >= 0x61 && $0 <= 0x7A)
          || $0 == 0x2D || $0 == 0x2E || $0 == 0x5F
      }
  }
}
