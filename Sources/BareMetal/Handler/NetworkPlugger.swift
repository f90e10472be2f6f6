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
  /// Cuts an interface off from the network and takes it from the bus. Throws while the server has not let go of it.
  func unplug(_ interface: PluggedInterface) async throws
}

/// Interfaces on a Linux bridge: a tap in the bridge, a file on the bus that names it, and DHCP by dnsmasq.
package struct BridgePlugger: NetworkPlugger {
  private let host: String
  private let bridge: String
  private let busDirectory: String
  private let dhcpHostsDirectory: String
  private let devicesDirectory: String
  private let dhcp: DHCPServer

  /// - Parameter devicesDirectory: Where the kernel lists network devices.
  package init(
    host: String, bridge: String, busDirectory: String, dhcpHostsDirectory: String, dhcp: DHCPServer,
    devicesDirectory: String = "/sys/class/net"
  ) {
    self.host = host
    self.bridge = bridge
    self.busDirectory = busDirectory
    self.dhcpHostsDirectory = dhcpHostsDirectory
    self.dhcp = dhcp
    self.devicesDirectory = devicesDirectory
  }

  /// At most 15 bytes, the same for the same bridge, host and index.
  package func tap(_ index: Int) -> String {
    var hash: UInt32 = 0x811c_9dc5
    for byte in "\(bridge)/\(host)".utf8 { hash = (hash ^ UInt32(byte)) &* 0x0100_0193 }
    return "yt\(String(hash, radix: 16))n\(index)"
  }

  private func busFile(_ index: Int, _ name: String) -> String {
    "\(busDirectory)/\(Names.networkFunction(index: index, interface: name)).json"
  }

  private func reservation(_ index: Int) -> String { "\(host)-\(index)" }
  private func dhcpFile(_ index: Int) -> String { "\(dhcpHostsDirectory)/\(reservation(index))" }

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
    return result + leftovers(beside: Set(result.map(\.index)))
  }

  /// Taps and reservations of interfaces that are not on the bus: whoever made or removed them was stopped halfway.
  private func leftovers(beside known: Set<Int>) -> [PluggedInterface] {
    var indices: Set<Int> = []
    for (directory, name) in [(devicesDirectory, tap), (dhcpHostsDirectory, reservation)] {
      for file in Files.list(directory) {
        // The index is what comes last; whether the whole name is its own is seen by making it again.
        let digits = String(file.reversed().prefix { $0.isNumber }.reversed())
        guard let index = Int(digits), name(index) == file else { continue }
        indices.insert(index)
      }
    }
    return indices.subtracting(known).sorted().map { index in
      let mac = Files.read(dhcpFile(index)).map {
        String(decoding: $0.prefix { $0 != UInt8(ascii: ",") }, as: UTF8.self)
      }
      return PluggedInterface(
        index: index, name: "", mac: mac.flatMap { GuestInterface.isMAC($0) ? $0 : nil } ?? "", tap: tap(index),
        fault: "it was left halfway")
    }
  }

  private func isInBridge(_ tap: String) -> Bool {
    var buffer = [CChar](repeating: 0, count: 512)
    let length = readlink("\(devicesDirectory)/\(tap)/master", &buffer, buffer.count - 1)
    guard length > 0 else { return false }
    return String(decoding: buffer[..<length].map { UInt8(bitPattern: $0) }, as: UTF8.self).hasSuffix("/\(bridge)")
  }

  package func plug(index: Int, _ interface: GuestInterface) async throws {
    let tap = tap(index)
    let operation = "plug interface \(interface.name) into \(host)"
    if !Files.exists("\(devicesDirectory)/\(tap)") {
      try await ip("tuntap add dev \(tap) mode tap\n", operation)
    }
    try await ip("link set dev \(tap) master \(bridge)\nlink set dev \(tap) up\n", operation)
    // Without a wanted address any free one will do.
    if let address = interface.address {
      try Files.write("\(interface.mac),\(address)\n".utf8, to: dhcpFile(index))
    } else {
      try Files.remove(dhcpFile(index))
    }
    // Also where nothing seems to have changed: this may be the repetition of an attempt that was cut off before it.
    dhcp.reload()
    let content: JSONValue = ["mac": .string(interface.mac), "tap": .string(tap)]
    try Files.write(content.serialize(), to: busFile(index, interface.name))
  }

  package func unplug(_ interface: PluggedInterface) async throws {
    try Files.remove(busFile(interface.index, interface.name))
    try Files.remove(dhcpFile(interface.index))
    dhcp.reload()
    if !interface.mac.isEmpty { dhcp.release(mac: interface.mac) }
    // Last, so that an attempt that is cut off before this is repeated as a whole.
    let tap = tap(interface.index)
    guard Files.exists("\(devicesDirectory)/\(tap)") else { return }
    let operation = "unplug interface \(interface.name) of \(host)"
    if isHeld(tap) {
      // The network goes at once; the card when the guest has let go of it, as it would be without its end otherwise.
      if isInBridge(tap) { try await ip("link set dev \(tap) nomaster\n", operation) }
      let deadline = ContinuousClock.now + Self.releaseTime
      while isHeld(tap) {
        guard ContinuousClock.now < deadline else {
          throw BareMetalError(.missing, operation: operation, message: "the server has not let go of it yet")
        }
        try await Task.sleep(for: .milliseconds(20))
      }
    }
    try await ip("link delete dev \(tap)\n", operation)
  }

  /// How long an unplug waits for the server.
  private static let releaseTime: Duration = .seconds(2)

  /// Whether a server has the tap open: the kernel gives it a carrier then.
  private func isHeld(_ tap: String) -> Bool {
    Files.read("\(devicesDirectory)/\(tap)/carrier")?.first == UInt8(ascii: "1")
  }

  private func ip(_ commands: String, _ operation: String) async throws {
    try await Tool.run(
      "ip", ["-batch", "-"], input: commands, operation: operation,
      remedy: "install the package iproute2; bm-handler needs the right to administer the network (CAP_NET_ADMIN)")
  }
}
