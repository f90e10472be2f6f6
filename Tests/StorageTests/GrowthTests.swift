import Glibc
import IaaS
import JSON
import Kubernetes
import Storage
import TestSupport
import Testing

/// Volumes that grow, by `ycloud csi-controller` as a process against a real control plane and a real pool.
extension CSIControllerTests {
  @Test func aDetachedVolumeGrows() async throws {
    try await StorageCloud.with("grows") { cloud in
      let controller = try await cloud.startController()
      try await cloud.makeClaim("disk")
      let name = try await cloud.waitUntilBound("disk", controller)
      try await cloud.grow("disk", to: "30Mi")
      try await eventually(within: .seconds(20), "it has grown; \(controller.output.suffix(3000))") {
        let claim = try await cloud.claim("disk")
        return claim.status?.capacity?["storage"] == Quantity("30Mi") && claim.status?.conditions?.isEmpty ?? true
      }
      let volume = try await cloud.client.get(PersistentVolume.self, name: name)
      #expect(volume.spec?.capacity?["storage"] == Quantity("30Mi"))
      #expect(try fileSize("\(cloud.pool.path)/volumes/\(name).img") == 30 * mebibyte)
      try await eventually("events tell of it") {
        let reasons = try await cloud.client.listAll(Event.self, namespace: cloud.namespace).items.map(\.reason)
        return reasons.contains("Resizing") && reasons.contains("VolumeResizeSuccessful")
      }
    }
  }

  @Test func anAttachedVolumeHasGrownWhenItsServerSeesIt() async throws {
    try await StorageCloud.with("growsattached") { cloud in
      let controller = try await cloud.startController()
      try await cloud.makeClaim("disk")
      let name = try await cloud.waitUntilBound("disk", controller)
      let attachment = "ycloud-\(name)"
      _ = try await cloud.client.create(
        VolumeAttachment(
          metadata: ObjectMeta(name: attachment),
          spec: .init(
            attacher: StorageNames.driver, nodeName: "dpu-01", source: .init(persistentVolumeName: name))))
      try await report(10 * mebibyte, attachment, cloud)
      try await cloud.grow("disk", to: "30Mi")
      try await eventually(within: .seconds(20), "the handler is asked; \(controller.output.suffix(3000))") {
        let object = try await cloud.client.get(VolumeAttachment.self, name: attachment)
        let conditions = try await cloud.claim("disk").status?.conditions ?? []
        return object.metadata.annotations?[Names.capacityAnnotation] == "\(30 * mebibyte)"
          && conditions.map(\.type) == ["FileSystemResizePending"]
          && conditions[0].message?.contains("\(attachment) on dpu-01") == true
      }
      let volume = try await cloud.client.get(PersistentVolume.self, name: name)
      #expect(volume.spec?.capacity?["storage"] == Quantity("30Mi"))
      #expect(try await cloud.claim("disk").status?.capacity?["storage"] == Quantity("10Mi"))
      try await report(30 * mebibyte, attachment, cloud)
      try await eventually(within: .seconds(20), "the claim says so") {
        let status = try await cloud.claim("disk").status
        return status?.capacity?["storage"] == Quantity("30Mi") && status?.conditions?.isEmpty ?? true
      }
    }
  }

  @Test func whatThePoolCannotGiveIsTold() async throws {
    try await StorageCloud.with("growsnot", poolMiB: 320) { cloud in
      let controller = try await cloud.startController()
      try await cloud.makeClaim("disk")
      let name = try await cloud.waitUntilBound("disk", controller)
      try await cloud.grow("disk", to: "1Ti")
      try await eventually(within: .seconds(20), "a condition tells why; \(controller.output.suffix(3000))") {
        let conditions = try await cloud.claim("disk").status?.conditions ?? []
        return conditions.contains {
          $0.type == "ControllerResizeError" && $0.message?.hasPrefix("ExceedsPool:") == true
        }
      }
      try await eventually("an event tells too") {
        try await cloud.client.listAll(Event.self, namespace: cloud.namespace).items.contains {
          $0.reason == "VolumeResizeFailed" && $0.involvedObject.name == "disk"
        }
      }
      #expect(try await cloud.claim("disk").spec?.resources?.requests?["storage"] == Quantity("1Ti"))
      #expect(try await cloud.claim("disk").status?.capacity?["storage"] == Quantity("10Mi"))
      #expect(try fileSize("\(cloud.pool.path)/volumes/\(name).img") == 10 * mebibyte)
    }
  }

  @Test func growthEndsRightAfterBeingKilledAgainAndAgain() async throws {
    try await StorageCloud.with("growskilled") { cloud in
      var random = SeededGenerator(seed: 5)
      var controller = try await cloud.startController()
      try await cloud.makeClaim("disk")
      let name = try await cloud.waitUntilBound("disk", controller)
      for index in 1...8 {
        try await cloud.grow("disk", to: "\(10 + index)Mi")
        try await Task.sleep(for: .milliseconds(Int.random(in: 0...300, using: &random)))
        controller.kill()
        controller = try await cloud.startController()
      }
      try await eventually(within: .seconds(30), "all say 18 MiB") {
        let claim = try await cloud.claim("disk")
        let volume = try await cloud.client.get(PersistentVolume.self, name: name)
        return claim.status?.capacity?["storage"] == Quantity("18Mi") && claim.status?.conditions?.isEmpty ?? true
          && volume.spec?.capacity?["storage"] == Quantity("18Mi")
      }
      #expect(try fileSize("\(cloud.pool.path)/volumes/\(name).img") == 18 * mebibyte)
    }
  }

  private func report(_ bytes: Int64, _ attachment: String, _ cloud: StorageCloud) async throws {
    _ = try await cloud.client.mergePatch(
      VolumeAttachment.self, name: attachment,
      patch: [
        "status": ["attached": true, "attachmentMetadata": [Names.shownCapacity: .string("\(bytes)")]]
      ], subresource: "status")
  }
}

func fileSize(_ path: String) throws -> Int64 {
  let file = open(path, O_RDONLY)
  guard file >= 0 else { throw TestEnvironmentError("cannot open \(path)") }
  defer { close(file) }
  return Int64(lseek(file, 0, SEEK_END))
}
