import JSON

/// The bridge that the simulated servers' network cards are on, and its DHCP server's settings.
package struct BridgeNetwork: Sendable {
  let directory: CloudDirectory
  let settings: CloudSettings

  private var bridge: String { settings.name }
  /// Marks the bridge as this cloud's.
  private var alias: String { Self.alias(directory) }

  static func alias(_ directory: CloudDirectory) -> String {
    "ycloud \(directory.path)"
  }

  /// Throws if the name or the network is used by something else.
  func check() async throws {
    if let link = try await Self.link(bridge), link.alias != alias {
      throw LocalCloudError(
        .conflict, operation: "use the bridge \(bridge)",
        "the interface exists and belongs to \(link.alias ?? "something else"); choose another --name")
    }
    guard let network = IPv4Network(settings.subnet) else { return }
    let routes = try Self.parseRoutes(try await Command.run("ip", "-json", "-4", "route", "show", "table", "main"))
    if let route = routes.first(where: { $0.device != bridge && $0.network.overlaps(network) }) {
      throw LocalCloudError(
        .conflict, operation: "use the network \(network)",
        "\(route.network) is already routed to \(route.device); choose another --subnet, such as \(Self.free(routes))")
    }
  }

  /// Makes the bridge, or repairs one that a crash left half made.
  func open() async throws {
    if try await Self.link(bridge) == nil {
      try await Command.run("ip", "link", "add", "name", bridge, "type", "bridge", "stp_state", "0")
    }
    try await Command.run("ip", "link", "set", "dev", bridge, "alias", alias)
    // A bridge without an address of its own takes that of a port, which changes as machines come and go.
    try await Command.run("ip", "link", "set", "dev", bridge, "address", Self.hardwareAddress(directory), "up")
    try await Command.run("ip", "address", "replace", settings.subnet, "dev", bridge)
    try writeDHCPConfiguration()
  }

  /// Removes the bridge of a cloud and the taps on it, found by its mark. Returns whether there was one.
  static func close(_ directory: CloudDirectory) async throws -> Bool {
    var found = false
    let bridges = try await links("type", "bridge")
    for bridge in bridges where bridge["ifalias"]?.stringValue == alias(directory) {
      guard let name = bridge["ifname"]?.stringValue else { continue }
      for port in try await links("master", name) {
        guard let tap = port["ifname"]?.stringValue else { continue }
        try await Command.run("ip", "link", "delete", "dev", tap)
      }
      try await Command.run("ip", "link", "delete", "dev", name)
      found = true
    }
    return found
  }

  private static func links(_ filter: String...) async throws -> [JSONValue] {
    let output = try await Command.run("ip", ["-json", "link", "show"] + filter)
    return output.allSatisfy(\.isWhitespace) ? [] : try JSONValue.parse(output).arrayValue ?? []
  }

  var dhcpConfigurationFile: String { "\(directory.dnsmasq)/dnsmasq.conf" }

  private func writeDHCPConfiguration() throws {
    guard let network = IPv4Network(settings.subnet) else { return }
    try Files.makeDirectory(directory.dhcpHosts)
    if !Files.exists(directory.dhcpLeases) { try Files.write(directory.dhcpLeases, "") }
    try Files.write(
      dhcpConfigurationFile,
      Self.dhcpConfiguration(
        bridge: bridge, network: network, hosts: directory.dhcpHosts, leases: directory.dhcpLeases))
  }

  /// DHCP alone, on this bridge alone: no name service, and no router, as there is no way out of this network.
  package static func dhcpConfiguration(
    bridge: String, network: IPv4Network, hosts: String, leases: String
  ) -> String {
    let range = network.dynamicRange
    return """
      # Written by `ycloud up`.
      interface=\(bridge)
      bind-interfaces
      except-interface=lo
      port=0
      no-resolv
      no-hosts
      no-ping
      dhcp-authoritative
      dhcp-range=\(range.lowerBound),\(range.upperBound),\(network.mask),12h
      dhcp-option=option:router
      dhcp-option=option:dns-server
      dhcp-hostsdir=\(hosts)
      dhcp-leasefile=\(leases)
      user=root
      group=root

      """
  }

  package struct Route: Sendable, Hashable {
    package var network: IPv4Network
    package var device: String
  }

  /// Parses `ip -json route`; the default route and routes without a device are left out.
  package static func parseRoutes(_ text: String) throws -> [Route] {
    guard !text.allSatisfy(\.isWhitespace) else { return [] }
    return try (JSONValue.parse(text).arrayValue ?? []).compactMap { route in
      guard let destination = route["dst"]?.stringValue, let network = IPv4Network(destination),
        network.prefixLength > 0, let device = route["dev"]?.stringValue
      else { return nil }
      return Route(network: network, device: device)
    }
  }

  /// A private network that no route leads to.
  package static func free(_ routes: [Route]) -> String {
    for third in 78...254 {
      if let network = IPv4Network("192.168.\(third).1/24"), !routes.contains(where: { $0.network.overlaps(network) }) {
        return network.description
      }
    }
    return "10.77.0.1/24"
  }

  static func link(_ name: String) async throws -> (name: String, alias: String?)? {
    guard Files.exists("/sys/class/net/\(name)") else { return nil }
    let links = try JSONValue.parse(try await Command.run("ip", "-json", "link", "show", "dev", name))
    return (name, links[0]?["ifalias"]?.stringValue)
  }

  /// The same for each start, and different for each cloud.
  private static func hardwareAddress(_ directory: CloudDirectory) -> String {
    let hash = fnv1a(directory.path)
    let bytes = [24, 16, 8, 0].map { shift -> String in
      let byte = String(hash >> UInt64(shift) & 255, radix: 16)
      return byte.count < 2 ? "0\(byte)" : byte
    }
    return "0a:79:\(bytes.joined(separator: ":"))"
  }
}
