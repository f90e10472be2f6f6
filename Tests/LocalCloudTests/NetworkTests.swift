import LocalCloud
import TestSupport
import Testing

@Suite("Networks")
struct NetworkTests {
  @Test(
    "Addresses are read strictly",
    arguments: ["1.2.3", "1.2.3.4.5", "1.2.3.256", "01.2.3.4", "1.2.3.+4", "", "a.b.c.d"])
  func badAddresses(text: String) {
    #expect(IPv4Address(text) == nil)
  }

  @Test("A network knows its bounds and the part for DHCP")
  func bounds() throws {
    let network = try #require(IPv4Network("192.168.77.1/24"))
    #expect(network.first.description == "192.168.77.0")
    #expect(network.last.description == "192.168.77.255")
    #expect(network.mask.description == "255.255.255.0")
    #expect(network.dynamicRange.lowerBound.description == "192.168.77.128")
    #expect(network.dynamicRange.upperBound.description == "192.168.77.254")
    let small = try #require(IPv4Network("10.0.0.1/28"))
    #expect(small.dynamicRange.lowerBound.description == "10.0.0.8")
    #expect(small.dynamicRange.upperBound.description == "10.0.0.14")
  }

  @Test("Overlap is seen from both sides")
  func overlap() throws {
    let wide = try #require(IPv4Network("192.168.0.0/16"))
    let narrow = try #require(IPv4Network("192.168.77.1/24"))
    let other = try #require(IPv4Network("192.169.0.0/16"))
    let all = try #require(IPv4Network("0.0.0.0/0"))
    #expect(wide.overlaps(narrow) && narrow.overlaps(wide))
    #expect(!narrow.overlaps(other) && !other.overlaps(narrow))
    #expect(all.overlaps(narrow))
  }

  @Test("Routes are read as ip prints them; the default route is none of them")
  func routes() throws {
    let text = """
      [{"dst":"default","gateway":"10.0.0.1","dev":"eth0","flags":[]},
       {"dst":"10.0.0.0/24","dev":"eth0","protocol":"kernel","scope":"link","prefsrc":"10.0.0.2","flags":[]},
       {"dst":"10.9.9.9","dev":"tun0","flags":[]},{"type":"blackhole","dst":"10.8.0.0/16","flags":[]}]
      """
    let routes = try BridgeNetwork.parseRoutes(text)
    #expect(routes.map(\.network.description) == ["10.0.0.0/24", "10.9.9.9/32"])
    #expect(try BridgeNetwork.parseRoutes("\n").isEmpty)
  }

  @Test("The network that is proposed is free")
  func proposal() throws {
    let taken = try BridgeNetwork.parseRoutes(
      #"[{"dst":"192.168.78.0/24","dev":"a"},{"dst":"192.168.79.0/25","dev":"b"}]"#)
    #expect(BridgeNetwork.free(taken) == "192.168.80.1/24")
  }

  @Test("The DHCP server is told to stay on its bridge and to give no router")
  func dhcp() throws {
    let text = BridgeNetwork.dhcpConfiguration(
      bridge: "yc0", network: try #require(IPv4Network("192.168.77.1/24")), hosts: "/c/hosts.d", leases: "/c/leases")
    let lines = Set(text.split(separator: "\n").map(String.init))
    for line in [
      "interface=yc0", "bind-interfaces", "port=0", "dhcp-option=option:router", "dhcp-hostsdir=/c/hosts.d",
      "dhcp-range=192.168.77.128,192.168.77.254,255.255.255.0,12h",
    ] {
      #expect(lines.contains(line))
    }
  }

  @Test("The mount table is read with its escapes, and garbage is passed over")
  func mounts() {
    let table = MountTable.parse(
      """
      36 35 98:0 /mnt1 /mnt2\\040x rw,noatime master:1 - ext3 /dev/root rw,errors=continue
      not a line
      94 25 7:0 / /c/pool rw,noatime - xfs /dev/loop0 rw
      """)
    #expect(table.map(\.mountPoint) == ["/mnt2 x", "/c/pool"])
    #expect(table.map(\.fileSystem) == ["ext3", "xfs"])
    #expect(table.map(\.source) == ["/dev/root", "/dev/loop0"])
  }

  @Test("Random text never ends a parser")
  func fuzz() {
    var random = SeededGenerator(seed: 42)
    for _ in 0..<2_000 {
      let text = String(decoding: random.bytes(Int.random(in: 0..<200, using: &random)), as: UTF8.self)
      _ = MountTable.parse(text)
      _ = try? BridgeNetwork.parseRoutes(text)
      _ = IPv4Network(text)
      _ = ProcessStatus(statLine: text)
      _ = ProcessIdentity(pidFileText: text)
      _ = try? Manifests.parse(text)
    }
  }
}
