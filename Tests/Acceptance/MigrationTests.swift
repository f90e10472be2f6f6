import Foundation
import JSON
import TestSupport
import Testing

/// Machines that move between two servers.
@Suite("Moving between servers", .serialized, .cloud("ycam", hosts: 2, subnet: "192.168.106.1/24"))
struct MigrationTests {
  /// Writes a mark at the end of its disk in the first boot, and tells in every boot what it finds there.
  private static let marker = """
    #!/bin/sh
    found=$(dd if=/dev/vda bs=512 skip=$((128 * 2048)) count=1 2>/dev/null | head -c 11)
    echo "mark on the disk: [$found]"
    [ "$found" = "it was here" ] || echo "it was here" | dd of=/dev/vda bs=512 seek=$((128 * 2048)) conv=notrunc,fsync 2>/dev/null
    sync
    echo "mark written"
    """

  private func console(_ cloud: CloudUnderTest, _ host: String) -> String {
    (try? String(contentsOfFile: "\(cloud.directory)/hosts/\(host)/console.log", encoding: .utf8)) ?? ""
  }

  @Test("A running machine moves with its disk, MAC and address, and a drained host gives it back again")
  func coldMigration() async throws {
    let cloud = try CloudUnderTest.running
    var manifest = MachineManifest(name: "mover")
    manifest.userData = Self.marker
    try await cloud.apply(manifest.json)
    try await cloud.eventuallyRunning("mover")
    let before = try #require(try await cloud.object("bmm", "mover")?["status"])
    let source = try #require(before["host"]?.stringValue)
    let target = source == "host-01" ? "host-02" : "host-01"
    try await eventually(within: .seconds(60), "the guest writes its mark") {
      self.console(cloud, source).contains("mark written")
    }

    let told = try await cloud.bmctl("migrate", "mover", "--to", target, "--grace", "2", "--wait", "--timeout", "120")
    #expect(told.contains("moved from \(source) to \(target)"))
    try await cloud.eventuallyRunning("mover")
    let after = try #require(try await cloud.object("bmm", "mover")?["status"])
    #expect(after["host"]?.stringValue == target)
    #expect(after["addresses"]?[0]?["mac"] == before["addresses"]?[0]?["mac"])
    #expect(after["addresses"]?[0]?["address"] == before["addresses"]?[0]?["address"])
    #expect(after["volumes"]?[0]?["volume"] == before["volumes"]?[0]?["volume"])
    try await eventually(within: .seconds(60), "the guest finds its mark on the other server") {
      self.console(cloud, target).contains("mark on the disk: [it was here]")
    }
    let migration = try #require(try await cloud.objects("bmmig").first?["status"])
    let timeline = try #require(migration["timeline"])
    print("cold migration: \(timeline.text)")
    let own = try #require(timeline["ownSeconds"]?.doubleValue)
    let down = try #require(timeline["downSeconds"]?.doubleValue)
    #expect(own <= down)
    #expect(try await cloud.object("bmh", source)?["status"]?["claim"] == nil)
    #expect(try await cloud.objects("volumeattachment").count == 1)

    // The host that it is on now is drained: it goes back, and the host takes nothing more.
    try await cloud.bmctl("host", "drain", target, "--wait", "--timeout", "180")
    try await cloud.eventuallyRunning("mover")
    #expect(try await cloud.object("bmm", "mover")?["status"]?["host"]?.stringValue == source)
    let conditions = try await cloud.object("bmh", target)?["status"]?["conditions"]?.arrayValue
    let drained = conditions?.first { $0["type"]?.stringValue == "Drained" }
    #expect(drained?["status"]?.stringValue == "True")
    try await cloud.bmctl("host", "uncordon", target)
    try await cloud.deleteAndCheck("mover")
  }

  @Test("A migration that cannot be placed changes nothing, and is given up")
  func nowhereToGo() async throws {
    let cloud = try CloudUnderTest.running
    try await cloud.bmctl("host", "cordon", "host-02")
    try await cloud.apply(MachineManifest(name: "stays").json)
    try await cloud.eventuallyRunning("stays")
    let boot = try await cloud.object("bmm", "stays")?["status"]?["boot"]
    try await cloud.bmctl("migrate", "stays")
    try await eventually(within: .seconds(30), every: .milliseconds(200)) {
      try await cloud.objects("bmmig").contains {
        $0["spec"]?["machineName"]?.stringValue == "stays" && $0["status"]?["reason"]?.stringValue == "NoHostFree"
      }
    }
    try await cloud.bmctl("migrate", "stays", "--cancel")
    #expect(try await cloud.phase("stays") == "Running")
    #expect(try await cloud.object("bmm", "stays")?["status"]?["boot"] == boot)
    try await cloud.bmctl("host", "uncordon", "host-02")
    try await cloud.deleteAndCheck("stays")
  }
}
