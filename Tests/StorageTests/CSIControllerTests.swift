import Glibc
import JSON
import Kubernetes
import Storage
import TestSupport
import Testing

/// `ycloud csi-controller` as a process, with its own rights, against a real control plane and a real pool.
@Suite(.serialized) struct CSIControllerTests {
  @Test func provisionsAndRemovesAnEmptyVolume() async throws {
    try await StorageCloud.with("empty") { cloud in
      let controller = try await cloud.startController()
      try await cloud.makeClaim("disk", size: "10000000")
      let name = try await cloud.waitUntilBound("disk", controller)
      let claim = try await cloud.claim("disk")
      #expect(name == "pvc-\(claim.metadata.uid ?? "")")
      #expect(claim.status?.capacity?["storage"] == Quantity("10Mi"))
      let volume = try await cloud.client.get(PersistentVolume.self, name: name)
      #expect(volume.spec?.csi?.driver == StorageNames.driver)
      #expect(volume.spec?.csi?.volumeHandle == name)
      #expect(volume.spec?.volumeMode == "Block")
      #expect(volume.metadata.hasFinalizer(StorageNames.finalizer))
      #expect(cloud.pool.files("volumes") == ["\(name).img"])
      try await eventually("an event tells of the success") {
        try await cloud.client.listAll(Event.self, namespace: cloud.namespace).items.contains {
          $0.reason == "ProvisioningSucceeded" && $0.involvedObject.name == "disk"
        }
      }
      try await cloud.deleteClaim("disk")
      try await cloud.waitUntilGone(name)
      #expect(cloud.pool.files("trash") == [])
      controller.signal(SIGTERM)
      #expect(try await controller.waitForExit(within: .seconds(20)) == .code(0))
    }
  }

  @Test func clonesWhatMayBeCloned() async throws {
    try await StorageCloud.with("clones") { cloud in
      let controller = try await cloud.startController()
      try await cloud.makeClaim("image", size: "20Mi")
      let image = try await cloud.waitUntilBound("image", controller)
      try writeFile("\(cloud.pool.path)/volumes/\(image).img", [UInt8](repeating: 0x42, count: 8192))

      try await cloud.makeClaim("clone", size: "30Mi", source: "image")
      let clone = try await cloud.waitUntilBound("clone", controller)
      let content = readFile("\(cloud.pool.path)/volumes/\(clone).img", count: 8192)
      #expect(content == [UInt8](repeating: 0x42, count: 8192))
      #expect(try await cloud.claim("clone").status?.capacity?["storage"] == Quantity("30Mi"))

      // Refused, and done as soon as the source is there.
      try await cloud.makeClaim("small", size: "10Mi", source: "image")
      let text = try await cloud.waitUntilRefused("small", "RequestTooSmall")
      #expect(text.contains("ask for at least 20Mi"))
      try await cloud.makeClaim("early", size: "20Mi", source: "late")
      try await cloud.waitUntilRefused("early", "SourceNotFound")
      try await cloud.makeClaim("file", volumeMode: "Filesystem")
      try await cloud.waitUntilRefused("file", "UnsupportedVolumeMode")
      #expect(cloud.pool.files("volumes") == [image, clone].map { "\($0).img" }.sorted())
      try await cloud.makeClaim("late", size: "20Mi")
      try await cloud.waitUntilBound("early", controller)
      #expect(try await cloud.claim("early").metadata.annotations?[StorageNames.provisioningMessage] == nil)

      // The source may go; its clones stay.
      try await cloud.deleteClaim("image")
      try await cloud.waitUntilGone(image)
      #expect(readFile("\(cloud.pool.path)/volumes/\(clone).img", count: 4) == [0x42, 0x42, 0x42, 0x42])
    }
  }

  @Test func otherNamespacesAreClonedWhenTheyAreShared() async throws {
    try await StorageCloud.with("images") { images in
      let controller = try await images.startController()
      try await images.makeClaim("debian")
      try await images.waitUntilBound("debian", controller)
      _ = try await images.client.create(Namespace(metadata: ObjectMeta(name: "tenant")))
      let tenant = ["csi.ycloud.yusur.io/clone-from": "images/debian"]
      var metadata = ObjectMeta(name: "root", namespace: "tenant")
      metadata.annotations = tenant
      _ = try await images.client.create(
        PersistentVolumeClaim(
          metadata: metadata,
          spec: .init(
            accessModes: ["ReadWriteOnce"], resources: .init(requests: ["storage": Quantity(bytes: 10 << 20)]),
            storageClassName: "ycloud", volumeMode: "Block")))
      func root() async throws -> PersistentVolumeClaim {
        try await images.client.get(PersistentVolumeClaim.self, name: "root", namespace: "tenant")
      }
      try await eventually("the claim is refused") {
        try await root().metadata.annotations?[StorageNames.provisioningMessage]?.hasPrefix("SourceNotFound:") == true
      }
      _ = try await images.client.mergePatch(
        PersistentVolumeClaim.self, name: "debian", namespace: "images",
        patch: ["metadata": ["annotations": ["csi.ycloud.yusur.io/shared": "true"]]])
      try await eventually(within: .seconds(20), "the claim is bound") {
        try await root().status?.phase == "Bound"
      }
      try await images.client.delete(PersistentVolumeClaim.self, name: "root", namespace: "tenant")
    }
  }

  @Test func aFullPoolIsWaitedFor() async throws {
    try await StorageCloud.with("full", poolMiB: 320) { cloud in
      let controller = try await cloud.startController()
      try await cloud.makeClaim("large", size: "1Gi")
      let text = try await cloud.waitUntilRefused("large", "ExceedsPool")
      #expect(text.contains("the whole pool has"))

      let filler = "\(cloud.pool.path)/filler"
      var info = statvfs()
      statvfs(cloud.pool.path, &info)
      let free = Int(info.f_bavail) * Int(info.f_frsize)
      try await ChildProcess.run("fallocate", ["-l", "\(free - (6 << 20))", filler])
      try await cloud.makeClaim("disk")
      try await cloud.waitUntilRefused("disk", "PoolFull")
      unlink(filler)
      try await cloud.waitUntilBound("disk", controller)
    }
  }

  @Test func aRetainedVolumeIsKeptAndCanBeUsedAgain() async throws {
    try await StorageCloud.with("retain") { cloud in
      let controller = try await cloud.startController()
      try await cloud.makeClaim("disk", className: "retain")
      let name = try await cloud.waitUntilBound("disk", controller)
      try await cloud.deleteClaim("disk")
      try await eventually(within: .seconds(20), "the volume is released") {
        try await cloud.client.get(PersistentVolume.self, name: name).status?.phase == "Released"
      }
      #expect(cloud.pool.files("volumes") == ["\(name).img"])
      try await cloud.client.delete(PersistentVolume.self, name: name)
      try await eventually(within: .seconds(20), "the volume is retained") {
        try await cloud.isGone(name) && cloud.pool.files("retained") == ["\(name).img"]
      }

      // An administrator brings it back under another name.
      _ = try await cloud.client.create(
        PersistentVolume(
          metadata: ObjectMeta(name: "recovered"),
          spec: .init(
            capacity: ["storage": Quantity(bytes: 10 << 20)], accessModes: ["ReadWriteOnce"],
            csi: .init(driver: StorageNames.driver, volumeHandle: name), persistentVolumeReclaimPolicy: "Retain",
            storageClassName: "manual", volumeMode: "Block")))
      try await eventually(within: .seconds(20), "the volume is back, and protected") {
        let volume = try await cloud.client.get(PersistentVolume.self, name: "recovered")
        return cloud.pool.files("volumes") == ["\(name).img"] && volume.metadata.hasFinalizer(StorageNames.finalizer)
      }
    }
  }

  @Test func anAttachedVolumeIsNotRemoved() async throws {
    try await StorageCloud.with("attached") { cloud in
      let controller = try await cloud.startController()
      try await cloud.makeClaim("disk")
      let name = try await cloud.waitUntilBound("disk", controller)
      _ = try await cloud.client.create(
        VolumeAttachment(
          metadata: ObjectMeta(name: "ycloud-\(name)"),
          spec: .init(
            attacher: StorageNames.driver, nodeName: "dpu-01", source: .init(persistentVolumeName: name))))
      try await cloud.deleteClaim("disk")
      try await eventually(within: .seconds(20), "an event names the attachment") {
        try await cloud.client.listAll(Event.self).items.contains {
          $0.reason == "VolumeInUse" && $0.involvedObject.name == name && $0.message?.contains("ycloud-\(name)") == true
        }
      }
      #expect(cloud.pool.files("volumes") == ["\(name).img"])
      try await cloud.client.delete(VolumeAttachment.self, name: "ycloud-\(name)")
      try await cloud.waitUntilGone(name)
    }
  }

  @Test func orphansAreRemovedAfterTheGracePeriod() async throws {
    try await StorageCloud.with("orphans") { cloud in
      let first = try await cloud.startController()
      try await cloud.makeClaim("kept")
      let kept = try await cloud.waitUntilBound("kept", first)
      first.kill()
      try writeFile("\(cloud.pool.path)/volumes/pvc-nobody.img", [1])
      let second = try await cloud.startController()
      try await eventually(within: .seconds(30), "the orphan is gone; \(second.output.suffix(2000))") {
        cloud.pool.files("volumes") == ["\(kept).img"]
      }
      // It is told once it is done.
      try await eventually(within: .seconds(10), "the removal is logged; \(second.output.suffix(2000))") {
        second.output.contains("orphaned volume removed")
      }
    }
  }

  @Test func volumesOfAnotherClusterAreNoOrphans() async throws {
    try await StorageCloud.with("foreign") { cloud in
      try writeFile("\(cloud.pool.path)/.cluster", Array("another".utf8))
      mkdir("\(cloud.pool.path)/volumes", 0o700)
      try writeFile("\(cloud.pool.path)/volumes/pvc-theirs.img", [1])
      let controller = try await cloud.startController()
      try await eventually(within: .seconds(20), "a warning") {
        controller.output.contains("used with another cluster")
      }
      #expect(cloud.pool.files("volumes") == ["pvc-theirs.img"])
    }
  }

  @Test func endsRightAfterBeingKilledAgainAndAgain() async throws {
    try await StorageCloud.with("killed") { cloud in
      var random = SeededGenerator(seed: 7)
      var controller = try await cloud.startController()
      try await cloud.makeClaim("image")
      try await cloud.waitUntilBound("image", controller)
      for index in 0..<12 {
        try await cloud.makeClaim("disk-\(index)", source: index % 2 == 0 ? "image" : nil)
        if index >= 4 { try await cloud.deleteClaim("disk-\(index - 4)") }
        // Somewhere in the work that this caused.
        try await Task.sleep(for: .milliseconds(Int.random(in: 0...400, using: &random)))
        controller.kill()
        controller = try await cloud.startController()
      }
      for index in 8..<12 { try await cloud.waitUntilBound("disk-\(index)", controller) }
      try await eventually(within: .seconds(30), "files and PersistentVolumes agree") {
        let volumes = try await cloud.client.listAll(PersistentVolume.self).items
        let names = volumes.compactMap(\.metadata.name)
        return names.count == 5 && cloud.pool.files("volumes") == names.map { "\($0).img" }.sorted()
          && volumes.allSatisfy { $0.status?.phase == "Bound" }
      }
      // The last controller may still be trying the file system.
      try await eventually("nothing is half done") { cloud.pool.files("staging") + cloud.pool.files("trash") == [] }
    }
  }
}

func writeFile(_ path: String, _ bytes: [UInt8]) throws {
  let file = open(path, O_WRONLY | O_CREAT, 0o600)
  guard file >= 0 else { throw TestEnvironmentError("cannot open \(path)") }
  defer { close(file) }
  guard write(file, bytes, bytes.count) == bytes.count else { throw TestEnvironmentError("cannot write \(path)") }
}
