import Glibc
import JSON
import Kubernetes
import Storage
import TestSupport
import Testing

extension CSIControllerTests {
  /// What a claim allows is what its volume is made for, and the volume's handle says so for ever.
  @Test func volumesForManyServersAreMadeAsSuch() async throws {
    try await StorageCloud.with("many") { cloud in
      let controller = try await cloud.startController()
      try await cloud.makeClaim("content")
      let content = try await cloud.waitUntilBound("content", controller)
      try writeFile("\(cloud.pool.path)/volumes/\(content).img", [UInt8](repeating: 0x42, count: 8192))
      var names: [String] = []
      for (claim, modes, suffix) in [
        ("one", ["ReadWriteOnce"], ""), ("many", ["ReadWriteMany"], "-rwx"),
        ("readers", ["ReadOnlyMany"], "-rox"),
      ] {
        try await cloud.makeClaim(claim, source: "content", accessModes: modes)
        let name = try await cloud.waitUntilBound(claim, controller)
        #expect(name == "pvc-\(try await cloud.claim(claim).metadata.uid ?? "")\(suffix)")
        let volume = try await cloud.client.get(PersistentVolume.self, name: name)
        #expect(volume.spec?.csi?.volumeHandle == name && volume.spec?.accessModes == modes)
        #expect(readFile("\(cloud.pool.path)/volumes/\(name).img", count: 4) == [0x42, 0x42, 0x42, 0x42])
        names.append(name)
      }
      #expect(cloud.pool.files("volumes") == (names + [content]).map { "\($0).img" }.sorted())

      // Nobody's orphans, also when the controller has begun anew and every grace is over.
      controller.signal(SIGKILL)
      _ = try await controller.waitForExit(within: .seconds(20))
      let second = try await cloud.startController()
      try await cloud.makeClaim("later", accessModes: ["ReadWriteMany"])
      names.append(try await cloud.waitUntilBound("later", second))

      try await cloud.makeClaim("mixed", accessModes: ["ReadWriteOnce", "ReadOnlyMany"])
      let refusal = try await cloud.waitUntilRefused("mixed", "UnsupportedAccessMode")
      for word in ["/mixed", "ReadWriteOnce, ReadOnlyMany", "make the claim again"] { #expect(refusal.contains(word)) }
      try await cloud.makeClaim("mounted", volumeMode: "Filesystem", accessModes: ["ReadWriteMany"])
      let mounted = try await cloud.waitUntilRefused("mounted", "UnsupportedVolumeMode")
      for word in ["/mounted", "spec.volumeMode is Filesystem", "volumeMode: Block"] { #expect(mounted.contains(word)) }
      try await cloud.makeClaim(
        "filled", annotations: [StorageNames.upload: "true"], accessModes: ["ReadOnlyMany"])
      try await cloud.waitUntilRefused("filled", "UnsupportedUpload")
      #expect(cloud.pool.files("volumes") == (names + [content]).map { "\($0).img" }.sorted())

      // As long as one server has it, it stays; then it goes with its claim.
      let many = names[1]
      for machine in ["a", "b"] {
        _ = try await cloud.client.create(
          VolumeAttachment(
            metadata: ObjectMeta(name: "ycloud-\(many).\(machine)"),
            spec: .init(
              attacher: StorageNames.driver, nodeName: "dpu-\(machine)", source: .init(persistentVolumeName: many))))
      }
      try await cloud.deleteClaim("many")
      try await cloud.client.delete(VolumeAttachment.self, name: "ycloud-\(many).a")
      try await eventually(within: .seconds(20), "the other server is told of") {
        try await cloud.client.listAll(Event.self).items.contains {
          $0.reason == "VolumeInUse" && $0.message?.contains("ycloud-\(many).b") == true
        }
      }
      #expect(cloud.pool.files("volumes").contains("\(many).img"))
      try await cloud.client.delete(VolumeAttachment.self, name: "ycloud-\(many).b")
      try await cloud.waitUntilGone(many)
      #expect(!cloud.pool.files("volumes").contains("\(many).img"))
    }
  }

  /// An annotation can come later than the volume.
  @Test func nothingIsUploadedIntoAVolumeThatServersShare() async throws {
    try await StorageCloud.with("noupload") { cloud in
      let controller = try await cloud.startUploadController()
      try await cloud.makeClaim("many", accessModes: ["ReadWriteMany"])
      let name = try await cloud.waitUntilBound("many", controller)
      _ = try await cloud.client.mergePatch(
        PersistentVolumeClaim.self, name: "many", namespace: cloud.namespace,
        patch: [
          "metadata": [
            "annotations": [
              StorageNames.upload: "true",
              StorageNames.uploadTokenDigest: .string(SHA256.hexDigest("secret".utf8)),
            ]
          ]
        ])
      let file = "\(cloud.plane.directory.path)/content"
      try writeFile(file, [UInt8](repeating: 7, count: 4096))
      #expect(try await cloud.put(file, into: "many", token: "secret") == 409)
      #expect(readFile("\(cloud.pool.path)/volumes/\(name).img", count: 4) == [0, 0, 0, 0])
    }
  }
}
