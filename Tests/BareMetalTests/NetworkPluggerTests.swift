import BareMetal
import Foundation
import TestSupport
import Testing

@Suite("Interfaces on a bridge")
struct NetworkPluggerTests {
  let directory: TemporaryDirectory
  let plugger: BridgePlugger

  init() throws {
    directory = try TemporaryDirectory()
    for name in ["bus", "dhcp", "net"] {
      try FileManager.default.createDirectory(atPath: directory.file(name), withIntermediateDirectories: false)
    }
    plugger = BridgePlugger(
      host: "host-01", bridge: "yc0", busDirectory: directory.file("bus"), dhcpHostsDirectory: directory.file("dhcp"),
      dhcp: DHCPServer(bridge: "yc0", leaseFile: directory.file("leases"), pidFile: nil),
      devicesDirectory: directory.file("net"))
  }

  @Test("What is not on the bus yet, or no more, is found by its tap and its reservation")
  func leftovers() async throws {
    #expect(try await plugger.plugged() == [])
    try directory.write("bus/nic-00-eth0.json", "{\"mac\": \"02:00:00:00:00:01\", \"tap\": \"\(plugger.tap(0))\"}")
    try directory.write("net/\(plugger.tap(0))", "")
    // Killed between the tap and the bus, and between the tap and the reservation when it was removed.
    try directory.write("net/\(plugger.tap(1))", "")
    try directory.write("dhcp/host-01-2", "02:00:00:00:00:03,192.0.2.3\n")
    // Of others.
    for name in ["net/eth0", "net/yt1n1", "dhcp/host-02-1", "dhcp/host-01-2-3", "dhcp/host-01-02", "dhcp/host-01-x"] {
      try directory.write(name, "")
    }
    let plugged = try await plugger.plugged()
    #expect(plugged.map(\.index) == [0, 1, 2])
    #expect(plugged.map(\.name) == ["eth0", "", ""])
    #expect(plugged.map(\.mac) == ["02:00:00:00:00:01", "", "02:00:00:00:00:03"])
    var view = HandlerView(host: nil, volumesDirectory: "/p")
    view.host = HandlerTests().host()
    view.interfaces = Array(plugged.dropFirst())
    #expect(HandlerPlan.steps(view) == view.interfaces.map { .unplugInterface($0) })
  }

  @Test("A pid file names one process, and never all of them")
  func pidFile() {
    #expect(DHCPServer.pid("1234\n".utf8) == 1234)
    for text in ["", "\n", "0\n", "-1\n", "1\n", "12x\n", "99999999999\n"] { #expect(DHCPServer.pid(text.utf8) == nil) }
  }

  @Test("A lease is given back as its holder would")
  func release() throws {
    let text =
      "1795253724 02:1a:8c:75:68:95 192.168.94.148 m1 01:02:1a:8c:75:68:95\n5 02:00:00:00:00:02 192.0.2.1 * *\n"
    let leases = LeaseFile.parse(text.utf8)
    let lease = try #require(leases["02:1a:8c:75:68:95"])
    #expect(lease.clientID == [1, 2, 0x1a, 0x8c, 0x75, 0x68, 0x95])
    #expect(leases["02:00:00:00:00:02"]?.clientID == nil)
    let packet = try #require(DHCPServer.releasePacket(lease, server: [192, 168, 94, 1]))
    #expect(packet.count == 300)
    #expect(packet[0..<4] == [1, 1, 6, 0])
    #expect(packet[12..<16] == [192, 168, 94, 148], "the address that is given back")
    #expect(packet[28..<34] == [2, 0x1a, 0x8c, 0x75, 0x68, 0x95])
    let options: [UInt8] = [
      0x63, 0x82, 0x53, 0x63, 53, 1, 7, 54, 4, 192, 168, 94, 1, 61, 7, 1, 2, 0x1a, 0x8c, 0x75, 0x68, 0x95, 255,
    ]
    #expect(Array(packet[236..<236 + options.count]) == options)
    #expect(DHCPServer.releasePacket(lease, server: []) == nil)
  }
}
