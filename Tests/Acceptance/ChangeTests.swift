import Glibc
import JSON
import TestSupport
import Testing

/// What changes under a machine on its way: its host, its spec, its own end, the space for its disk.
@Suite("Changes on the way", .serialized, .cloud("yca3", hosts: 1, subnet: "192.168.94.1/24"))
struct ChangeTests {
  @Test("A machine can be deleted in every phase, and leaves nothing", arguments: Milestone.inOrder)
  func deleteInEveryPhase(_ milestone: Milestone) async throws {
    let cloud = try CloudUnderTest.running
    let name = "del-\(milestone)".lowercased()
    try await cloud.apply(MachineManifest(name: name).json)
    try await eventually(within: .seconds(180), every: .milliseconds(50)) { try await cloud.has(milestone, name) }
    try await cloud.deleteAndCheck(name)
    let host = try await cloud.object("bmh", "host-01")
    #expect(host?["status"]?["claim"] == nil)
    try await eventually(within: .seconds(60), every: .milliseconds(200)) {
      try await cloud.object("bmh", "host-01")?["status"]?["phase"]?.stringValue == "Available"
    }
  }

  @Test("A machine can be deleted while it is being stopped")
  func deleteWhileStopping() async throws {
    let cloud = try CloudUnderTest.running
    try await cloud.apply(MachineManifest(name: "stopping").json)
    try await cloud.eventuallyRunning("stopping")
    try await cloud.bmctl("stop", "stopping")
    try await cloud.deleteAndCheck("stopping")
  }

  @Test("A disk that is added before the machine is up is there when it is up")
  func changeWhileInProgress() async throws {
    let cloud = try CloudUnderTest.running
    try await cloud.apply(MachineManifest(name: "change").json)
    try await eventually(within: .seconds(60), every: .milliseconds(50)) { try await cloud.has(.claimed, "change") }
    let disk: JSONValue = [
      "op": "add", "path": "/spec/disks/-",
      "value": ["name": "data", "template": ["size": "64Mi", "storageClassName": "ycloud"]],
    ]
    try await cloud.kubectl("patch", "bmm", "change", "--type=json", "-p", JSONValue.array([disk]).text)
    try await cloud.eventuallyRunning("change")
    try await eventually(within: .seconds(60), every: .milliseconds(200)) {
      let attached = try await cloud.objects("volumeattachment").filter {
        $0["status"]?["attached"]?.boolValue == true
      }
      return attached.count == 2
    }
    try await cloud.deleteAndCheck("change")
  }

  @Test("A disk that grows is seen by its running guest, and the claim says so only then")
  func growWhileRunning() async throws {
    let cloud = try CloudUnderTest.running
    var manifest = MachineManifest(name: "grow")
    manifest.userData = """
      #!/bin/sh
      while sleep 1; do
        now=$(cat /sys/block/vda/size)
        [ "$now" = "$last" ] || echo "sectors of vda: $now"
        last=$now
      done
      """
    try await cloud.apply(manifest.json)
    try await cloud.eventuallyRunning("grow")
    let console = "\(cloud.directory)/hosts/host-01/console.log"
    try await eventually(within: .seconds(60), "the guest tells its size") {
      textOf(console).contains("sectors of vda: \(256 << 11)")
    }
    let wish = #"{"spec":{"resources":{"requests":{"storage":"384Mi"}}}}"#
    try await cloud.kubectl("patch", "pvc", "grow-root", "--type=merge", "-p", wish)
    try await eventually(within: .seconds(60), every: .milliseconds(200), "the claim has grown") {
      try await cloud.object("pvc", "grow-root")?["status"]?["capacity"]?["storage"]?.stringValue == "384Mi"
    }
    try await eventually(within: .seconds(30), "the guest sees it") {
      textOf(console).contains("sectors of vda: \(384 << 11)")
    }

    // A snapshot of the disk that the guest runs from becomes the disk of another volume.
    try await cloud.apply([
      "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": ["name": "grow-now"],
      "spec": ["source": ["persistentVolumeClaimName": "grow-root"]],
    ])
    try await eventually(within: .seconds(30), every: .milliseconds(200), "the snapshot is ready") {
      let status = try await cloud.object("volumesnapshot", "grow-now")?["status"]
      return status?["readyToUse"]?.boolValue == true && status?["restoreSize"]?.stringValue == "384Mi"
    }
    try await cloud.kubectl("delete", "volumesnapshot", "grow-now")
    try await cloud.deleteAndCheck("grow")
  }

  private func textOf(_ path: String) -> String {
    let file = open(path, O_RDONLY)
    guard file >= 0 else { return "" }
    defer { close(file) }
    var bytes = [UInt8](repeating: 0, count: 1 << 20)
    let count = read(file, &bytes, bytes.count)
    return String(decoding: bytes.prefix(max(count, 0)), as: UTF8.self)
  }

  @Test("A host that is removed while claimed stays until its machine is gone")
  func removeClaimedHost() async throws {
    let cloud = try CloudUnderTest.running
    let manifest = try await cloud.hostManifest()
    try await cloud.apply(MachineManifest(name: "tenant").json)
    try await cloud.eventuallyRunning("tenant")
    try await cloud.kubectl("delete", "bmh", "host-01", "--wait=false")
    #expect(try await cloud.object("bmh", "host-01")?["metadata"]?["deletionTimestamp"] != nil)
    #expect(try await cloud.phase("tenant") == "Running")
    try await cloud.deleteAndCheck("tenant")
    try await eventually(within: .seconds(60), every: .milliseconds(200)) {
      try await cloud.object("bmh", "host-01") == nil
    }
    try await cloud.apply(manifest)
    try await cloud.eventuallyAvailable()
  }

  @Test("A host that is torn away while claimed is told, and is taken again when it comes back")
  func tearClaimedHost() async throws {
    let cloud = try CloudUnderTest.running
    let manifest = try await cloud.hostManifest()
    try await cloud.apply(MachineManifest(name: "torn").json)
    try await cloud.eventuallyRunning("torn")
    try await cloud.kubectl("delete", "bmh", "host-01", "--wait=false")
    try await cloud.kubectl(
      "patch", "bmh", "host-01", "--type=merge", "-p", "{\"metadata\":{\"finalizers\":null}}")
    try await eventually(within: .seconds(60), every: .milliseconds(200)) {
      try await cloud.condition("HostClaimed", of: "torn")?["reason"]?.stringValue == "HostGone"
    }
    #expect(try await cloud.objects("volumeattachment").count == 1, "nothing is taken from a server that may be on")
    try await cloud.apply(manifest)
    try await eventually(within: .seconds(120), every: .milliseconds(200)) {
      let claim = try await cloud.object("bmh", "host-01")?["status"]?["claim"]?["name"]?.stringValue
      let phase = try await cloud.phase("torn")
      return claim == "torn" && phase == "Running"
    }
    try await cloud.deleteAndCheck("torn")
  }

  @Test("A full pool is told on the claim, and the machine comes up when there is space")
  func fullPool() async throws {
    let cloud = try CloudUnderTest.running
    let filler = "\(cloud.directory)/pool/filler"
    let free = try freeBytes("\(cloud.directory)/pool")
    try await command("fallocate", ["-l", "\(free - (1 << 20))", filler])
    do {
      try await cloud.apply(MachineManifest(name: "full").json)
      try await eventually(within: .seconds(60), every: .milliseconds(200)) {
        let events = try await cloud.objects("events")
        return events.contains {
          $0["involvedObject"]?["name"]?.stringValue == "full-root" && $0["type"]?.stringValue == "Warning"
            && $0["message"]?.stringValue?.contains("full") == true
        }
      }
      #expect(try await cloud.phase("full") != "Running")
    } catch {
      unlink(filler)
      throw error
    }
    unlink(filler)
    try await cloud.eventuallyRunning("full")
    try await cloud.deleteAndCheck("full")
  }

  private func freeBytes(_ path: String) throws -> UInt64 {
    var status = statvfs()
    try #require(statvfs(path, &status) == 0)
    return UInt64(status.f_bavail) * UInt64(status.f_frsize)
  }
}

extension Milestone {
  static let inOrder: [Milestone] = [.applied, .claimed, .attached, .poweredOn, .running]
}

extension CloudUnderTest {
  /// The only host's manifest, to register it again.
  func hostManifest() async throws -> JSONValue {
    let host = try #require(try await object("bmh", "host-01"))
    return [
      "apiVersion": "iaas.yusur.io/v1", "kind": "BareMetalHost", "metadata": ["name": "host-01"],
      "spec": host["spec"] ?? [:],
    ]
  }

  func eventuallyAvailable() async throws {
    try await eventually(within: .seconds(120), every: .milliseconds(200)) {
      try await self.object("bmh", "host-01")?["status"]?["phase"]?.stringValue == "Available"
    }
  }
}
