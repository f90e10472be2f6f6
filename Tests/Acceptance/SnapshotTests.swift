import Glibc
import JSON
import TestSupport
import Testing

/// Snapshots, restores and clones of machines that run.
@Suite("Snapshots of machines", .serialized, .cloud("yca8", hosts: 3, subnet: "192.168.98.1/24"))
struct SnapshotTests {
  /// The first bytes of a disk that the guest leaves alone.
  private struct DataDisk {
    let cloud: CloudUnderTest
    let claim: String

    func file() async throws -> String {
      let volume = try #require(try await cloud.object("pvc", claim)?["spec"]?["volumeName"]?.stringValue)
      return "\(cloud.directory)/pool/volumes/\(volume).img"
    }

    func write(_ byte: UInt8) async throws {
      let fd = open(try await file(), O_WRONLY | O_CLOEXEC)
      defer { close(fd) }
      #expect(pwrite(fd, [UInt8](repeating: byte, count: 4096), 4096, 0) == 4096 && fsync(fd) == 0)
    }

    func read() async throws -> UInt8 {
      let fd = open(try await file(), O_RDONLY | O_CLOEXEC)
      defer { close(fd) }
      var byte: UInt8 = 0xEE
      #expect(pread(fd, &byte, 1, 0) == 1)
      return byte
    }
  }

  private func machine(_ name: String) -> JSONValue {
    var manifest = MachineManifest(name: name).json
    var disks = manifest["spec"]?["disks"]?.arrayValue ?? []
    disks.append(["name": "data", "template": ["size": "64Mi", "storageClassName": "ycloud"]])
    manifest["spec"]?["disks"] = .array(disks)
    return manifest
  }

  @Test("A machine that runs is captured, rolled back and cloned, and nothing is left of it")
  func life() async throws {
    let cloud = try CloudUnderTest.running
    try await cloud.apply(machine("origin"))
    try await cloud.bmctl("wait", "origin", "--for", "Running", "--timeout", "180")
    let data = DataDisk(cloud: cloud, claim: "origin-data")
    try await data.write(0x11)

    print(try await cloud.bmctl("snapshot", "create", "origin", "--name", "one", "--timeout", "60"))
    let snapshot = try #require(try await cloud.object("bmms", "one")?["status"])
    #expect(snapshot["consistency"]?.stringValue == "Crash")
    #expect(snapshot["disks"]?.arrayValue?.allSatisfy { $0["readyToUse"]?.boolValue == true } == true)
    let pause = try #require(snapshot["pauseMicroseconds"]?.int64Value)
    #expect(pause > 0 && pause < 1_000_000)
    #expect(snapshot["machineSpec"]?["disks"]?.arrayValue?.count == 2)
    #expect(try await cloud.bmctl("snapshot", "list", "origin").contains("Crash"))
    try await data.write(0x22)

    // A machine that runs is not rolled back unasked.
    await #expect(throws: (any Error).self) { try await cloud.bmctl("restore", "origin", "--from", "one") }
    let boot = try #require(try await cloud.object("bmm", "origin")?["status"]?["boot"]?.intValue)
    try await cloud.bmctl("restore", "origin", "--from", "one", "--stop", "--timeout", "180")
    let disks = try #require(try await cloud.object("bmm", "origin")?["spec"]?["disks"]?.arrayValue)
    let claims = disks.compactMap { $0["existingClaim"]?["claimName"]?.stringValue }
    #expect(claims.count == 2 && Set(claims).isDisjoint(with: ["origin-root", "origin-data"]))
    try await cloud.bmctl("wait", "origin", "--for", "Running", "--timeout", "180")
    #expect(try await cloud.object("bmm", "origin")?["status"]?["boot"]?.intValue == boot + 1)
    #expect(try await DataDisk(cloud: cloud, claim: claims[1]).read() == 0x11)
    // What was there before is in a snapshot; its disks are gone.
    try await eventually(within: .seconds(60), every: .milliseconds(200)) {
      let names = try await cloud.objects("pvc").compactMap { $0["metadata"]?["name"]?.stringValue }
      return Set(names).isDisjoint(with: ["origin-root", "origin-data"])
    }
    let restore = try #require(try await cloud.objects("bmmr").first?["status"])
    let before = try #require(restore["previousSnapshot"]?.stringValue)
    #expect(try await cloud.object("bmms", before)?["status"]?["consistency"]?.stringValue == "Clean")

    try await cloud.bmctl(
      "clone", "--from", before, "--replicas", "2", "--pattern", "twin-{index}", "--timeout", "60")
    var addresses: Set<String> = []
    for name in ["twin-1", "twin-2"] {
      try await cloud.bmctl("wait", name, "--for", "Running", "--timeout", "180")
      let twin = try #require(try await cloud.object("bmm", name)?["status"]?["addresses"]?[0])
      addresses.insert(twin["address"]?.stringValue ?? "")
      addresses.insert(twin["mac"]?.stringValue ?? "")
      #expect(try await DataDisk(cloud: cloud, claim: "\(name)-data").read() == 0x22)
    }
    #expect(addresses.count == 4)

    try await cloud.kubectl("delete", "bmmc,bmmr", "--all", "--timeout", "60s")
    try await cloud.kubectl("delete", "bmm", "--all", "--timeout", "120s")
    try await cloud.kubectl("delete", "bmms", "--all", "--timeout", "60s")
    try await eventually(within: .seconds(60), every: .milliseconds(200)) {
      let left =
        try await cloud.objects("volumesnapshot") + cloud.objects("volumesnapshotcontent")
        + cloud.objects("volumeattachment")
      let claims = try await cloud.objects("pvc").compactMap { $0["metadata"]?["name"]?.stringValue }
      return left.isEmpty && claims == ["tiny"]
    }
    for folder in ["groups", "snapshots"] {
      #expect(try await command("ls", ["-A", "\(cloud.directory)/pool/\(folder)"]).isEmpty)
    }
  }
}
