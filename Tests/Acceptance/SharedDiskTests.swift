import JSON
import TestSupport
import Testing

/// Disks that the machines on two servers have at the same time.
@Suite("Shared disks", .serialized, .cloud("ycash", hosts: 2, subnet: "192.168.107.1/24"))
struct SharedDiskTests {
  /// Writes a block for the other machine when it has found the other's, or at once where it is the first, and tries to
  /// write to the disk that is only read. Then it tells the size of the shared disk whenever that changes.
  private static func script(_ name: String, other: String, isFirst: Bool, shared: String, golden: String) -> String {
    """
    #!/bin/sh
    find_disk() {
      for disk in /sys/block/vd*; do
        [ "$(cat $disk/serial)" = "$1" ] && echo ${disk##*/}
      done
    }
    put() {
      echo "$2" | dd of=/tmp/block bs=4096 count=1 conv=sync 2>/dev/null
      dd if=/tmp/block of=/dev/$shared bs=4096 seek=$1 count=1 oflag=direct conv=fsync 2>/dev/null && echo "wrote: $2"
    }
    await() {
      while :; do
        found=$(dd if=/dev/$shared bs=4096 skip=$1 count=1 iflag=direct 2>/dev/null | head -n 1)
        [ "$found" = "$2" ] && break
        usleep 200000
      done
      echo "read: $found"
    }
    shared=$(find_disk \(shared))
    golden=$(find_disk \(golden))
    if [ \(isFirst ? 1 : 0) = 1 ]; then
      put 100 "\(name) was here"
      await 200 "\(other) was here"
    else
      await 100 "\(other) was here"
      put 200 "\(name) was here"
    fi
    echo "golden ends with: $(dd if=/dev/$golden bs=2 skip=255 count=1 2>/dev/null | hexdump -v -e '1/1 \"%02x\"')"
    dd if=/tmp/block of=/dev/$golden bs=4096 count=1 oflag=direct 2>/dev/null && echo "golden was written" || echo "golden was not written"
    while :; do
      size=$(cat /sys/block/$shared/size 2>/dev/null || echo none)
      [ "$size" = "$last" ] || echo "shared has: $size ."
      last=$size
      usleep 200000
    done
    """
  }

  private func claim(_ cloud: CloudUnderTest, _ name: String, mode: String, source: String? = nil) async throws
    -> String
  {
    var spec: JSONValue = [
      "accessModes": [.string(mode)], "volumeMode": "Block", "storageClassName": "ycloud",
      "resources": ["requests": ["storage": source == nil ? "64Mi" : "256Mi"]],
    ]
    if let source { spec["dataSource"] = ["kind": "PersistentVolumeClaim", "name": .string(source)] }
    try await cloud.apply([
      "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": ["name": .string(name)], "spec": spec,
    ])
    return try await eventualValue(within: .seconds(30), "\(name) is bound") {
      try await cloud.object("pvc", name)?["spec"]?["volumeName"]?.stringValue
    }
  }

  private func machine(_ name: String, disks: [JSONValue], script: String) -> JSONValue {
    var manifest = MachineManifest(name: name)
    manifest.userData = script
    var json = manifest.json
    guard var spec = json["spec"], let root = spec["disks"]?.arrayValue?.first else { return json }
    spec["disks"] = .array([root] + disks)
    json["spec"] = spec
    return json
  }

  private func disk(_ claim: String, readOnly: Bool = false) -> JSONValue {
    ["name": .string(claim), "readOnly": .bool(readOnly), "existingClaim": ["claimName": .string(claim)]]
  }

  @Test("Two machines write to one disk and read another; a third waits for a disk that one alone may have")
  func shared() async throws {
    let cloud = try CloudUnderTest.running
    let shared = try await claim(cloud, "shared", mode: "ReadWriteMany")
    let golden = try await claim(cloud, "golden", mode: "ReadOnlyMany", source: "tiny")
    _ = try await claim(cloud, "own", mode: "ReadWriteOnce")
    #expect(shared.hasSuffix("-rwx") && golden.hasSuffix("-rox"))
    for (name, other) in [("left", "right"), ("right", "left")] {
      let script = Self.script(
        name, other: other, isFirst: name == "left", shared: String(shared.prefix(20)),
        golden: String(golden.prefix(20)))
      var disks = [disk("shared"), disk("golden", readOnly: true)]
      if name == "left" { disks.append(disk("own")) }
      try await cloud.apply(machine(name, disks: disks, script: script))
    }
    var consoles: [String: String] = [:]
    for name in ["left", "right"] {
      try await cloud.eventuallyRunning(name)
      let host = try #require(try await cloud.object("bmm", name)?["status"]?["host"]?.stringValue)
      consoles[name] = "\(cloud.directory)/hosts/\(host)/console.log"
    }
    let paths = consoles
    func has(_ name: String, _ text: String) -> Bool { (contentsOfFile(paths[name] ?? "") ?? "").contains(text) }
    for (name, other) in [("left", "right"), ("right", "left")] {
      try await eventually(within: .seconds(60), "\(name) has read and written") {
        has(name, "read: \(other) was here") && has(name, "shared has: 131072 .")
      }
      #expect(has(name, "wrote: \(name) was here"))
      #expect(has(name, "golden ends with: 55aa") && has(name, "golden was not written"))
    }
    let attachments = try await cloud.objects("volumeattachment").map { attachment in
      (attachment["metadata"]?["name"]?.stringValue ?? "", attachment["spec"]?["nodeName"]?.stringValue ?? "")
    }
    for volume in [shared, golden] {
      let own = attachments.filter { $0.0.hasPrefix("ycloud-\(volume).") }
      #expect(own.count == 2 && Set(own.map(\.1)).count == 2, "\(attachments)")
    }

    // One more that names the disk which the first alone may have: it waits, and nothing of it is attached.
    try await cloud.apply(machine("third", disks: [disk("shared"), disk("own")], script: "#!/bin/sh\n"))
    try await eventually(within: .seconds(30)) {
      try await cloud.condition("VolumesReady", of: "third")?["reason"]?.stringValue == "VolumeInUse"
    }
    let told = try await cloud.condition("VolumesReady", of: "third")?["message"]?.stringValue ?? ""
    #expect(told.contains("claim own") && told.contains("default/left"), "\(told)")
    try await eventually(within: .seconds(30), "an event says the same") {
      try await cloud.objects("event").contains {
        $0["involvedObject"]?["name"]?.stringValue == "third" && $0["reason"]?.stringValue == "VolumeInUse"
      }
    }
    #expect(try await cloud.objects("volumeattachment").count == attachments.count)
    try await cloud.deleteAndCheck("third")

    // Nobody captures a disk together with others while somebody else writes to it.
    try await cloud.apply([
      "apiVersion": "iaas.yusur.io/v1", "kind": "BareMetalMachineSnapshot", "metadata": ["name": "all-of-left"],
      "spec": ["machineName": "left"],
    ])
    try await eventually(within: .seconds(30)) {
      let status = try await cloud.object("bmms", "all-of-left")?["status"]
      return status?["phase"]?.stringValue == "Failed" && status?["message"]?.stringValue?.contains("'shared'") == true
    }
    try await cloud.kubectl("delete", "bmms", "all-of-left", "--timeout", "60s")

    // All see it grow; then one gives it back while the other keeps it.
    try await cloud.kubectl(
      "patch", "pvc", "shared", "--type=merge", "-p", #"{"spec":{"resources":{"requests":{"storage":"96Mi"}}}}"#)
    for name in ["left", "right"] {
      try await eventually(within: .seconds(60), "\(name) sees it grow") { has(name, "shared has: 196608 .") }
    }
    try await eventually(within: .seconds(30)) {
      try await cloud.object("pvc", "shared")?["status"]?["capacity"]?["storage"]?.stringValue == "96Mi"
    }
    try await cloud.bmctl("disk", "remove", "right", "shared", "--wait")
    try await eventually(within: .seconds(30), "it is gone from the one") { has("right", "shared has: none .") }
    #expect(!has("left", "shared has: none ."))
    #expect(
      try await cloud.objects("volumeattachment").count {
        $0["metadata"]?["name"]?.stringValue?.hasPrefix("ycloud-\(shared).") == true
      } == 1)
    for name in ["left", "right"] { try await cloud.deleteAndCheck(name) }
    #expect(try await cloud.objects("volumeattachment").isEmpty)
    #expect(try await cloud.object("pvc", "shared")?["status"]?["phase"]?.stringValue == "Bound")
  }
}
