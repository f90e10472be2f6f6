import Glibc
import JSON
import Kubernetes
import Storage
import TestSupport
import Testing

/// Snapshots by `ycloud csi-controller` as a process, with its own rights, against a real control plane and a real pool.
extension CSIControllerTests {
  @Test func aSnapshotIsTakenRestoredAndRemoved() async throws {
    try await StorageCloud.with("snapshots") { cloud in
      let controller = try await cloud.startController()
      try await cloud.makeClaim("disk")
      let volume = try await cloud.waitUntilBound("disk", controller)
      let file = "\(cloud.pool.path)/volumes/\(volume).img"
      try writeFile(file, [UInt8](repeating: 0x11, count: 8192))
      try await cloud.makeSnapshot("before", of: "disk")
      let handle = try await cloud.waitUntilReady("before", controller)
      try writeFile(file, [UInt8](repeating: 0x22, count: 8192))

      let snapshot = try await cloud.snapshot("before")
      let uid = snapshot.metadata.uid ?? ""
      #expect(snapshot.spec.volumeSnapshotClassName == "ycloud")
      #expect(snapshot.status?.boundVolumeSnapshotContentName == "snapcontent-\(uid)")
      #expect(snapshot.status?.restoreSize == Quantity("10Mi"))
      #expect(snapshot.status?.creationTime != nil && snapshot.status?.error == nil)
      #expect(
        Set(snapshot.metadata.finalizers ?? []) == [SnapshotNames.sourceFinalizer, SnapshotNames.boundFinalizer])
      let content = try await cloud.client.get(VolumeSnapshotContent.self, name: "snapcontent-\(uid)")
      #expect(content.spec.source.volumeHandle == volume && content.spec.driver == StorageNames.driver)
      #expect(content.spec.volumeSnapshotRef.uid == uid && content.spec.deletionPolicy == "Delete")
      #expect(content.status?.snapshotHandle == handle && content.status?.restoreSize == 10 * mebibyte)
      #expect(content.metadata.hasFinalizer(SnapshotNames.contentFinalizer))
      #expect(cloud.pool.files("snapshots") == ["\(handle).img"])
      try await eventually("the claim is let go") {
        try await cloud.claim("disk").metadata.hasFinalizer(SnapshotNames.claimFinalizer) == false
      }
      let table = try await cloud.plane.kubectl("get", "vs,vsc,vsclass", "-A")
      #expect(table.contains("READYTOUSE") && table.contains("10Mi") && table.contains("RESTORESIZE"))

      // A larger volume, with the content of that moment.
      try await cloud.makeClaim("restored", fromSnapshot: "before", size: "20Mi")
      let restored = try await cloud.waitUntilBound("restored", controller)
      #expect(try await cloud.claim("restored").status?.capacity?["storage"] == Quantity("20Mi"))
      let bytes = readFile("\(cloud.pool.path)/volumes/\(restored).img", count: 8192)
      #expect(bytes == [UInt8](repeating: 0x11, count: 8192))
      try await cloud.makeClaim("small", fromSnapshot: "before", size: "5Mi")
      try await cloud.waitUntilRefused("small", "RequestTooSmall")

      // The volume may go before its snapshot.
      try await cloud.deleteClaim("disk")
      try await cloud.waitUntilGone(volume)
      #expect(cloud.pool.files("snapshots") == ["\(handle).img"])
      try await cloud.deleteSnapshot("before")
      try await eventually(within: .seconds(20), "it leaves nothing; \(controller.output.suffix(3000))") {
        let contents = try await cloud.contents()
        return try await cloud.isGone(snapshot: "before") && contents.isEmpty
          && cloud.pool.files("snapshots") + cloud.pool.files("trash") == []
      }
      #expect(readFile("\(cloud.pool.path)/volumes/\(restored).img", count: 8192) == bytes)
    }
  }

  @Test func aVolumeWaitsForItsSnapshotAndASnapshotForItsVolume() async throws {
    try await StorageCloud.with("waits") { cloud in
      let controller = try await cloud.startController()
      try await cloud.makeClaim("restored", fromSnapshot: "later")
      try await cloud.waitUntilRefused("restored", "SourceNotFound")
      try await cloud.makeSnapshot("later", of: "disk")
      try await cloud.waitUntilFailed("later", "does not exist", reason: "SnapshotContentCreationFailed")
      try await cloud.waitUntilRefused("restored", "SourceNotReady")
      try await cloud.makeClaim("disk")
      try await cloud.waitUntilReady("later", controller)
      #expect(try await cloud.snapshot("later").status?.error == nil)
      try await cloud.waitUntilBound("restored", controller)

      try await cloud.makeSnapshot("classless", of: "disk", className: "absent")
      try await cloud.waitUntilFailed("classless", "no VolumeSnapshotClass absent", reason: "GetSnapshotClassFailed")
      try await cloud.deleteSnapshot("classless")
      try await eventually { try await cloud.isGone(snapshot: "classless") }
    }
  }

  @Test func snapshotsOfOtherDriversAreLeftAlone() async throws {
    try await StorageCloud.with("drivers") { cloud in
      _ = try? await cloud.client.create(
        VolumeSnapshotClass(metadata: ObjectMeta(name: "other"), driver: "other.example.com", deletionPolicy: "Delete"))
      let controller = try await cloud.startController()
      try await cloud.makeClaim("disk")
      let volume = try await cloud.waitUntilBound("disk", controller)
      try await cloud.makeSnapshot("wrong", of: "disk", className: "other")
      try await cloud.waitUntilFailed("wrong", "is for the driver other.example.com")
      _ = try await cloud.client.create(
        VolumeSnapshotContent(
          metadata: ObjectMeta(name: "theirs"),
          spec: .init(
            deletionPolicy: "Delete", driver: "other.example.com", source: .init(volumeHandle: volume),
            volumeSnapshotRef: ObjectReference(namespace: cloud.namespace, name: "theirs", uid: "1"))))
      try await cloud.makeSnapshot("ours", of: "disk")
      try await cloud.waitUntilReady("ours", controller)
      let theirs = try await cloud.client.get(VolumeSnapshotContent.self, name: "theirs")
      #expect(theirs.status == nil && theirs.metadata.finalizers == nil)
    }
  }

  @Test func aRetainedSnapshotIsKeptAndCanBeUsedAgain() async throws {
    try await StorageCloud.with("kept") { cloud in
      _ = try? await cloud.client.create(
        VolumeSnapshotClass(
          metadata: ObjectMeta(name: "kept"), driver: StorageNames.driver, deletionPolicy: "Retain"))
      let controller = try await cloud.startController()
      try await cloud.makeClaim("disk")
      let volume = try await cloud.waitUntilBound("disk", controller)
      try writeFile("\(cloud.pool.path)/volumes/\(volume).img", [0x33, 0x33])
      try await cloud.makeSnapshot("first", of: "disk", className: "kept")
      let handle = try await cloud.waitUntilReady("first", controller)
      let content = try await cloud.snapshot("first").status?.boundVolumeSnapshotContentName ?? ""
      try await cloud.deleteSnapshot("first")
      try await eventually(within: .seconds(20)) { try await cloud.isGone(snapshot: "first") }
      #expect(try await cloud.contents().map(\.metadata.name) == [content])
      try await cloud.client.delete(VolumeSnapshotContent.self, name: content)
      try await eventually(within: .seconds(20)) { try await cloud.contents().isEmpty }
      #expect(cloud.pool.files("snapshots") == ["\(handle).img"])

      // An administrator gives it a name again, this time to go with it.
      _ = try await cloud.client.create(
        VolumeSnapshotContent(
          metadata: ObjectMeta(name: "again"),
          spec: .init(
            deletionPolicy: "Delete", driver: StorageNames.driver, source: .init(snapshotHandle: handle),
            volumeSnapshotRef: ObjectReference(namespace: cloud.namespace, name: "again"))))
      _ = try await cloud.client.create(
        VolumeSnapshot(
          metadata: ObjectMeta(name: "again", namespace: cloud.namespace),
          spec: .init(source: .init(volumeSnapshotContentName: "again"))))
      try await cloud.waitUntilReady("again", controller)
      try await cloud.makeClaim("restored", fromSnapshot: "again")
      let restored = try await cloud.waitUntilBound("restored", controller)
      #expect(readFile("\(cloud.pool.path)/volumes/\(restored).img", count: 2) == [0x33, 0x33])

      // A snapshot that somebody is bound to is not removed from under them.
      try await cloud.client.delete(VolumeSnapshotContent.self, name: "again")
      try await eventually(within: .seconds(20), "an event tells what it waits for") {
        try await cloud.client.listAll(Event.self).items.contains {
          $0.reason == "SnapshotDeletePending" && $0.involvedObject.name == "again"
        }
      }
      #expect(cloud.pool.files("snapshots") == ["\(handle).img"])
      try await cloud.deleteSnapshot("again")
      try await eventually(within: .seconds(20), "it is gone with its file") {
        try await cloud.contents().isEmpty && cloud.pool.files("snapshots") == []
      }
    }
  }

  @Test func aFullPoolIsToldAndTheSnapshotIsTakenWhenThereIsRoom() async throws {
    try await StorageCloud.with("fullsnap", poolMiB: 320) { cloud in
      let controller = try await cloud.startController()
      try await cloud.makeClaim("disk")
      try await cloud.waitUntilBound("disk", controller)
      let filler = "\(cloud.pool.path)/filler"
      var info = statvfs()
      statvfs(cloud.pool.path, &info)
      let free = Int(info.f_bavail) * Int(info.f_frsize)
      try await ChildProcess.run("fallocate", ["-l", "\(free - (6 << 20))", filler])
      try await cloud.makeSnapshot("tight", of: "disk")
      try await cloud.waitUntilFailed("tight", "PoolFull")
      // Nobody takes the volume away meanwhile.
      #expect(try await cloud.claim("disk").metadata.hasFinalizer(SnapshotNames.claimFinalizer))
      unlink(filler)
      try await cloud.waitUntilReady("tight", controller)
      #expect(try await cloud.snapshot("tight").status?.error == nil)
    }
  }

  @Test func aHundredSnapshotsAreTakenAndRemoved() async throws {
    try await StorageCloud.with("hundred") { cloud in
      let controller = try await cloud.startController()
      try await cloud.makeClaim("disk")
      try await cloud.waitUntilBound("disk", controller)
      let start = ContinuousClock.now
      for index in 0..<100 { try await cloud.makeSnapshot("s\(index)", of: "disk") }
      try await eventually(within: .seconds(120), "all are ready; \(controller.output.suffix(3000))") {
        try await cloud.client.listAll(VolumeSnapshot.self, namespace: cloud.namespace).items.allSatisfy {
          $0.status?.readyToUse == true
        }
      }
      print("100 snapshots ready after \(ContinuousClock.now - start)")
      #expect(cloud.pool.files("snapshots").count == 100)
      for index in 0..<100 { try await cloud.deleteSnapshot("s\(index)") }
      try await eventually(within: .seconds(120), "all are gone; \(controller.output.suffix(3000))") {
        let contents = try await cloud.contents()
        let left = try await cloud.client.listAll(VolumeSnapshot.self, namespace: cloud.namespace).items
        return left.isEmpty && contents.isEmpty && cloud.pool.files("snapshots") == []
      }
      #expect(try await cloud.claim("disk").metadata.hasFinalizer(SnapshotNames.claimFinalizer) == false)
    }
  }

  @Test func snapshotsEndRightAfterBeingKilledAgainAndAgain() async throws {
    try await StorageCloud.with("killsnap") { cloud in
      var random = SeededGenerator(seed: 11)
      var controller = try await cloud.startController()
      try await cloud.makeClaim("disk")
      try await cloud.waitUntilBound("disk", controller)
      for index in 0..<12 {
        try await cloud.makeSnapshot("s\(index)", of: "disk")
        if index % 3 == 1 { try await cloud.makeClaim("r\(index)", fromSnapshot: "s\(index - 1)") }
        if index >= 4 { try await cloud.deleteSnapshot("s\(index - 4)") }
        // Somewhere in the work that this caused.
        try await Task.sleep(for: .milliseconds(Int.random(in: 0...600, using: &random)))
        controller.kill()
        controller = try await cloud.startController()
      }
      var kept: [String] = []
      for index in 8..<12 { kept.append("\(try await cloud.waitUntilReady("s\(index)", controller)).img") }
      try await eventually(within: .seconds(60), "files and contents agree") {
        let contents = try await cloud.contents()
        let snapshots = try await cloud.client.listAll(VolumeSnapshot.self, namespace: cloud.namespace).items
        return snapshots.count == 4 && contents.count == 4 && cloud.pool.files("snapshots") == kept.sorted()
      }
      try await eventually("nothing is half done") { cloud.pool.files("staging") + cloud.pool.files("trash") == [] }
      try await eventually("the claim is let go") {
        try await cloud.claim("disk").metadata.hasFinalizer(SnapshotNames.claimFinalizer) == false
      }
    }
  }

  @Test func anotherSnapshotControllerIsNotDisturbed() async throws {
    try await StorageCloud.with("roles") { cloud in
      let idle = try await cloud.startController(["--snapshots", "none"])
      try await cloud.makeClaim("disk")
      let volume = try await cloud.waitUntilBound("disk", idle)
      idle.signal(SIGTERM)
      _ = try await idle.waitForExit(within: .seconds(20))

      let controller = try await cloud.startController(["--snapshots", "contents"])
      try await cloud.makeSnapshot("theirs", of: "disk")
      let uid = try await cloud.snapshot("theirs").metadata.uid ?? ""
      // What the CSI project's snapshot-controller makes.
      _ = try await cloud.client.create(
        VolumeSnapshotContent(
          metadata: ObjectMeta(name: "snapcontent-\(uid)"),
          spec: .init(
            deletionPolicy: "Delete", driver: StorageNames.driver, source: .init(volumeHandle: volume),
            sourceVolumeMode: "Block", volumeSnapshotClassName: "ycloud",
            volumeSnapshotRef: ObjectReference(namespace: cloud.namespace, name: "theirs", uid: uid))))
      try await eventually(within: .seconds(20), "it is taken; \(controller.output.suffix(3000))") {
        try await cloud.contents().first?.status?.readyToUse == true
      }
      #expect(cloud.pool.files("snapshots") == ["snapshot-\(uid).img"])
      let snapshot = try await cloud.snapshot("theirs")
      #expect(snapshot.status == nil && snapshot.metadata.finalizers == nil)
    }
  }
}
