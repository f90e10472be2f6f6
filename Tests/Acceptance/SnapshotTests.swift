import Foundation
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

    try await cleared(cloud)
  }

  /// The claim of a disk, whether made from a template or given by a restore.
  private func claim(_ machine: String, _ disk: String, _ cloud: CloudUnderTest) async throws -> String {
    let disks = try #require(try await cloud.object("bmm", machine)?["spec"]?["disks"]?.arrayValue)
    let entry = try #require(disks.first { $0["name"]?.stringValue == disk })
    return entry["existingClaim"]?["claimName"]?.stringValue ?? "\(machine)-\(disk)"
  }

  /// Waits for a phase of an object, through processes that are away for a while.
  private func see(_ resource: String, _ name: String, is phases: Set<String>, _ cloud: CloudUnderTest)
    async throws
  {
    try await eventually(within: .seconds(180), every: .milliseconds(50), "\(name) is in \(phases)") {
      let status = try? await cloud.object(resource, name)?["status"]
      return phases.contains(status?["phase"]?.stringValue ?? "")
    }
  }

  /// The first byte that a test wrote of a disk in a snapshot.
  private func kept(_ snapshot: String, _ cloud: CloudUnderTest) async throws -> UInt8 {
    let name = try #require(
      try await cloud.object("volumesnapshot", "\(snapshot)-data")?["status"]?["boundVolumeSnapshotContentName"]?
        .stringValue)
    let content = try #require(try await cloud.object("volumesnapshotcontent", name)?["status"])
    let handle = try #require(content["snapshotHandle"]?.stringValue)
    let fd = open("\(cloud.directory)/pool/snapshots/\(handle).img", O_RDONLY | O_CLOEXEC)
    defer { close(fd) }
    var byte: UInt8 = 0xEE
    #expect(pread(fd, &byte, 1, 0) == 1)
    return byte
  }

  @Test("A snapshot and a restore go on after a process was killed in the middle, and lose nothing")
  func killed() async throws {
    let cloud = try CloudUnderTest.running
    try await cloud.apply(machine("steady"))
    try await cloud.eventuallyRunning("steady")
    let moments: [(String, Set<String>)] = [
      ("bm-controller", ["Preparing"]), ("bm-controller", ["Stopping"]), ("bm-controller", ["Saving", "Switching"]),
      ("csi-controller", ["Preparing"]), ("csi-controller", ["Saving"]), ("bm-handler", ["Stopping"]),
      ("softdpu", ["Saving", "Switching"]),
    ]
    for (round, (process, phases)) in moments.enumerated() {
      let comment = "\(process) killed in \(phases)"
      let host = try #require(try await cloud.object("bmm", "steady")?["status"]?["host"]?.stringValue)
      let name = process.hasSuffix("controller") ? process : "\(process)-\(host)"
      let boot = try #require(try await cloud.object("bmm", "steady")?["status"]?["boot"]?.intValue)
      let old = UInt8(2 * round + 1)
      try await DataDisk(cloud: cloud, claim: try await claim("steady", "data", cloud)).write(old)
      try await cloud.bmctl("snapshot", "create", "steady", "--name", "s-\(round)", "--no-wait")
      try cloud.kill(name)
      try await see("bmms", "s-\(round)", is: ["Ready"], cloud)
      #expect(try await kept("s-\(round)", cloud) == old, "\(comment)")
      try await DataDisk(cloud: cloud, claim: try await claim("steady", "data", cloud)).write(old + 1)

      try await cloud.apply([
        "apiVersion": "iaas.yusur.io/v1", "kind": "BareMetalMachineRestore",
        "metadata": ["name": .string("r-\(round)")],
        "spec": ["snapshotName": .string("s-\(round)"), "machineName": "steady", "stopMachine": true],
      ])
      // What is over sooner than it is seen is met at its end.
      try await see("bmmr", "r-\(round)", is: phases.union(["Succeeded"]), cloud)
      try cloud.kill(name)
      try await see("bmmr", "r-\(round)", is: ["Succeeded"], cloud)
      let status = try #require(try await cloud.object("bmmr", "r-\(round)")?["status"])
      try await eventually(within: .seconds(180), every: .milliseconds(200), comment) {
        guard let present = try? await cloud.object("bmm", "steady")?["status"] else { return false }
        return present["boot"]?.intValue == boot + 1 && present["phase"]?.stringValue == "Running"
      }
      #expect(
        try await DataDisk(cloud: cloud, claim: try await claim("steady", "data", cloud)).read() == old, "\(comment)")
      #expect(try await kept(try #require(status["previousSnapshot"]?.stringValue), cloud) == old + 1, "\(comment)")
    }
    try await cleared(cloud)
  }

  @Test("A pool that is full in the middle of a clone of ten leaves few machines behind, and the clone goes on")
  func fullPool() async throws {
    let cloud = try CloudUnderTest.running
    var manifest = machine("seedling")
    manifest["spec"]?["running"] = false
    try await cloud.apply(manifest)
    try await see("bmm", "seedling", is: ["Stopped"], cloud)
    try await cloud.bmctl("snapshot", "create", "seedling", "--name", "full", "--timeout", "60")
    // Ten times its size is promised of a pool, and no volume is larger than it; so much that four machines or so still
    // fit in.
    var pool = statvfs()
    #expect(statvfs("\(cloud.directory)/pool", &pool) == 0)
    let total = Int64(pool.f_blocks) * Int64(pool.f_frsize) / (1 << 20)
    var sizes: [Int64] = []
    for disk in ["root", "data"] {
      let file = try await DataDisk(cloud: cloud, claim: "seedling-\(disk)").file()
      let size = try await command("stat", ["-c", "%s", file]).trimmingCharacters(in: .whitespacesAndNewlines)
      sizes.append(try #require(Int64(size)) >> 20)
    }
    let one = sizes.reduce(0, +)
    // The image, the machine and its snapshot are there already.
    let room = 4 * one + 2 * one + sizes[0]
    for (index, size) in ([Int64](repeating: total, count: 9) + [total - room]).enumerated() {
      try await cloud.apply([
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": ["name": .string("filler-\(index)"), "labels": ["is": "filler"]],
        "spec": [
          "storageClassName": "ycloud", "volumeMode": "Block", "accessModes": ["ReadWriteOnce"],
          "resources": ["requests": ["storage": .string("\(size)Mi")]],
        ],
      ])
      try await see("pvc", "filler-\(index)", is: ["Bound"], cloud)
    }

    try await cloud.bmctl(
      "clone", "--from", "full", "--name", "ten", "--replicas", "10", "--pattern", "web-{index}", "--stopped",
      "--no-wait")
    try await eventually(within: .seconds(60), every: .milliseconds(200), "the full pool is told of") {
      let status = try await cloud.object("bmmc", "ten")?["status"]
      return status?["message"]?.stringValue?.contains("promise") == true && status?["ready"]?.intValue ?? 0 > 0
    }
    let status = try #require(try await cloud.object("bmmc", "ten")?["status"])
    print("clone of ten in a full pool: \(status["ready"]?.text ?? "-") ready, \(status["message"]?.text ?? "")")
    let ready = try #require(status["ready"]?.intValue)
    #expect(ready < 10)
    #expect(try await cloud.objects("bmm").count <= 1 + ready + 4)
    try cloud.kill("bm-controller")
    try await cloud.kubectl("delete", "pvc", "-l", "is=filler", "--timeout", "60s")
    try await see("bmmc", "ten", is: ["Succeeded"], cloud)
    #expect(try await cloud.objects("bmm").count == 11)
    #expect(Set(try await cloud.objects("pvc").compactMap { $0["spec"]?["volumeName"]?.stringValue }).count == 23)
    try await cleared(cloud)
  }

  /// Deletes everything but the image, and sees that nothing is left.
  private func cleared(_ cloud: CloudUnderTest) async throws {
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
