import IaaS
import JSON

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// How a machine's interfaces come onto the server's bus and into the network. Every call may be repeated.
package protocol NetworkPlugger: Sendable {
  /// What is there, read back.
  func plugged() async throws -> [PluggedInterface]
  func plug(index: Int, _ interface: GuestInterface) async throws
  func unplug(_ interface: PluggedInterface) async throws
}

/// Interfaces on a Linux bridge: a tap in the bridge, a file on the bus that names it, and DHCP by dnsmasq.
package struct BridgePlugger: NetworkPlugger {
  private let host: String
  private let bridge: String
  private let busDirectory: String
  private let dhcpHostsDirectory: String

  package init(host: String, bridge: String, busDirectory: String, dhcpHostsDirectory: String) {
    self.host = host
    self.bridge = bridge
    self.busDirectory = busDirectory
    self.dhcpHostsDirectory = dhcpHostsDirectory
  }

  /// At most 15 bytes, the same for the same bridge, host and index.
  private func tap(_ index: Int) -> String {
    var hash: UInt32 = 0x811c_9dc5
    for byte in "\(bridge)/\(host)".utf8 { hash = (hash ^ UInt32(byte)) &* 0x0100_0193 }
    return "yt\(String(hash, radix: 16))n\(index)"
  }

  private func busFile(_ index: Int, _ name: String) -> String {
    "\(busDirectory)/\(Names.networkFunction(index: index, interface: name)).json"
  }

  private func dhcpFile(_ index: Int) -> String { "\(dhcpHostsDirectory)/\(host)-\(index)" }

  package func plugged() async throws -> [PluggedInterface] {
    var result: [PluggedInterface] = []
    for file in Files.list(busDirectory) where file.hasPrefix("nic-") && file.hasSuffix(".json") {
      let stem = file.dropFirst(4).dropLast(5)
      guard let dash = stem.firstIndex(of: "-"), let index = Int(stem[..<dash]) else { continue }
      let name = String(stem[stem.index(after: dash)...])
      let content = Files.read("\(busDirectory)/\(file)").flatMap { try? JSONValue.parse($0) }
      let tap = content?["tap"]?.stringValue ?? ""
      var fault: String?
      if content?["mac"]?.stringValue == nil || tap != self.tap(index) {
        fault = "the file on the bus is damaged"
      } else if !isInBridge(tap) {
        fault = "the tap \(tap) is not in the bridge \(bridge)"
      }
      result.append(
        PluggedInterface(
          index: index, name: name, mac: content?["mac"]?.stringValue ?? "", tap: tap.isEmpty ? self.tap(index) : tap,
          fault: fault))
    }
    return result
  }

  private func isInBridge(_ tap: String) -> Bool {
    var buffer = [CChar](repeating: 0, count: 512)
    let length = readlink("/sys/class/net/\(tap)/master", &buffer, buffer.count - 1)
    guard length > 0 else { return false }
    return String(decoding: buffer[..<length].map { UInt8(bitPattern: $0) }, as: UTF8.self).hasSuffix("/\(bridge)")
  }

  package func plug(index: Int, _ interface: GuestInterface) async throws {
    let tap = tap(index)
    let operation = "plug interface \(interface.name) into \(host)"
    if !Files.exists("/sys/class/net/\(tap)") {
      try await ip("tuntap add dev \(tap) mode tap\n", operation)
    }
    try await ip("link set dev \(tap) master \(bridge)\nlink set dev \(tap) up\n", operation)
    // dnsmasq reads a file when it appears. Without a wanted address any free one will do.
    if let address = interface.address {
      try Files.write("\(interface.mac),\(address)\n".utf8, to: dhcpFile(index))
    } else {
      try Files.remove(dhcpFile(index))
    }
    let content: JSONValue = ["mac": .string(interface.mac), "tap": .string(tap)]
    try Files.write(content.serialize(), to: busFile(index, interface.name))
  }

  package func unplug(_ interface: PluggedInterface) async throws {
    try Files.remove(busFile(interface.index, interface.name))
    try Files.remove(dhcpFile(interface.index))
    let tap = tap(interface.index)
    guard Files.exists("/sys/class/net/\(tap)") else { return }
    try await ip("link delete dev \(tap)\n", "unplug interface \(interface.name) of \(host)")
  }

  private func ip(_ commands: String, _ operation: String) async throws {
    try await Tool.run(
      "ip", ["-batch", "-"], input: commands, operation: operation,
      remedy: "install the package iproute2; bm-handler needs the right to administer the network (CAP_NET_ADMIN)")
  }
}
