import Glibc
import JSON
import Kubernetes
import Storage
import TestSupport
import Testing

extension CSIControllerTests {
  /// Uploads over TLS by curl, a client that knows nothing of ours.
  @Test func contentIsUploadedAndOnlyThenCloned() async throws {
    try await StorageCloud.with("upload") { cloud in
      let controller = try await cloud.startUploadController()
      let content = randomContent(seed: 1, count: 3_000_000)
      let file = try cloud.writeContent(content)
      let digest = SHA256.hexDigest(content)
      try await cloud.makeUploadClaim("image", token: "secret", checksum: "sha256:\(digest)")
      try await cloud.waitUntilBound("image", controller)
      try await cloud.waitForPhase("image", .pending)

      try await cloud.makeClaim("clone", source: "image")
      try await cloud.waitUntilRefused("clone", "SourceNotReady")

      #expect(try await cloud.put(file, into: "image", token: "wrong") == 401)
      #expect(try await cloud.put(file, into: "absent", token: "secret") == 401)
      #expect(try await cloud.put(file, into: "clone", token: "secret") == 401)
      #expect(try await cloud.put(file, into: "image", token: "secret") == 200)
      let claim = try await cloud.claim("image")
      #expect(claim.metadata.annotations?[StorageNames.uploadPhase] == "Succeeded")
      #expect(claim.metadata.annotations?[StorageNames.uploadTokenDigest] == nil)
      let name = claim.spec?.volumeName ?? ""
      #expect(readFile("\(cloud.pool.path)/volumes/\(name).img", count: content.count) == content)
      // A token is good for one upload.
      #expect(try await cloud.put(file, into: "image", token: "secret") == 401)

      let clone = try await cloud.waitUntilBound("clone", controller)
      #expect(readFile("\(cloud.pool.path)/volumes/\(clone).img", count: content.count) == content)
    }
  }

  @Test func wrongContentIsRefusedAndMayBeRepeated() async throws {
    try await StorageCloud.with("badupload") { cloud in
      let controller = try await cloud.startUploadController()
      let content = randomContent(seed: 2, count: 1_000_000)
      let right = try cloud.writeContent(content)
      let wrong = try cloud.writeContent([UInt8](repeating: 9, count: 1_000_000))
      let large = try cloud.writeContent([UInt8](repeating: 9, count: 11 << 20))
      try await cloud.makeUploadClaim("image", token: "t", checksum: "sha256:\(SHA256.hexDigest(content))")
      let name = try await cloud.waitUntilBound("image", controller)
      let volume = "\(cloud.pool.path)/volumes/\(name).img"

      #expect(try await cloud.put(wrong, into: "image", token: "t") == 422)
      try await cloud.waitForPhase("image", .failed)
      #expect(readFile(volume, count: 4096) == [UInt8](repeating: 0, count: 4096))
      #expect(cloud.pool.files("staging") == [])
      #expect(try await cloud.put(large, into: "image", token: "t") == 413)

      _ = try await cloud.client.create(
        VolumeAttachment(
          metadata: ObjectMeta(name: "ycloud-\(name)"),
          spec: .init(
            attacher: StorageNames.driver, nodeName: "dpu-01", source: .init(persistentVolumeName: name))))
      #expect(try await cloud.put(right, into: "image", token: "t") == 409)
      try await cloud.client.delete(VolumeAttachment.self, name: "ycloud-\(name)")
      #expect(try await cloud.put(right, into: "image", token: "t") == 200)
      try await cloud.waitForPhase("image", .succeeded)
    }
  }

  @Test func aCutUploadLeavesNothingAndMayBeRepeated() async throws {
    try await StorageCloud.with("cut") { cloud in
      var controller = try await cloud.startUploadController()
      let content = randomContent(seed: 3, count: 4_000_000)
      let file = try cloud.writeContent(content)
      try await cloud.makeUploadClaim("image", token: "t", checksum: "sha256:\(SHA256.hexDigest(content))")
      let name = try await cloud.waitUntilBound("image", controller)

      // The sender dies.
      let sender = try await cloud.startPut(file, into: "image", token: "t", bytesPerSecond: 400_000)
      try await cloud.waitForPhase("image", .uploading)
      #expect(try await cloud.put(file, into: "image", token: "t") == 409)
      sender.kill()
      try await cloud.waitForPhase("image", .failed)
      #expect(cloud.pool.files("staging") == [])

      // The receiver dies.
      let again = try await cloud.startPut(file, into: "image", token: "t", bytesPerSecond: 400_000)
      try await cloud.waitForPhase("image", .uploading)
      try await eventually("content arrives") { cloud.pool.files("staging") != [] }
      controller.kill()
      controller = try await cloud.startUploadController()
      try await cloud.waitForPhase("image", .pending)
      again.kill()
      #expect(cloud.pool.files("staging") == [])

      // The receiver is told to end.
      let third = try await cloud.startPut(file, into: "image", token: "t", bytesPerSecond: 400_000)
      try await cloud.waitForPhase("image", .uploading)
      controller.signal(SIGTERM)
      #expect(try await controller.waitForExit(within: .seconds(20)) == .code(0))
      #expect(cloud.pool.files("staging") == [])
      third.kill()
      controller = try await cloud.startUploadController()

      #expect(try await cloud.put(file, into: "image", token: "t") == 200)
      try await cloud.waitForPhase("image", .succeeded)
      #expect(readFile("\(cloud.pool.path)/volumes/\(name).img", count: content.count) == content)
    }
  }

  @Test func anImageIsSentWithoutItsHoles() async throws {
    try await StorageCloud.with("sparse") { cloud in
      let controller = try await cloud.startUploadController()
      _ = try await cloud.uploadURL()
      // Data at the beginning, in the middle, and a hole at the end.
      let path = cloud.plane.directory.file("sparse.raw")
      let descriptor = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
      try #require(descriptor >= 0 && ftruncate(descriptor, 64 << 20) == 0)
      for (offset, count) in [(0, 300_000), (20 << 20, 1_500_000)] {
        let bytes = randomContent(seed: UInt64(offset + 7), count: count)
        try #require(pwrite(descriptor, bytes, count, off_t(offset)) == count)
      }
      close(descriptor)
      let bmctl = try TestEnvironment.builtProduct("bmctl")
      let output = try await ChildProcess.run(
        bmctl,
        ["image", "import", path, "--name", "sparse", "--storage-class", "delete", "--namespace", cloud.namespace],
        environment: ["KUBECONFIG": cloud.plane.kubeconfig])
      #expect(output.contains("imported"), "\(output), \(controller.output.suffix(2000))")
      let claim = try await cloud.claim("sparse")
      let volume = "\(cloud.pool.path)/volumes/\(claim.spec?.volumeName ?? "").img"
      try await ChildProcess.run("cmp", [path, volume])
      let message = claim.metadata.annotations?[StorageNames.uploadMessage] ?? ""
      let received = try #require(Int(message.prefix { $0 != " " }), "\(message)")
      #expect((1_800_000...2_500_000).contains(received), "\(received) bytes of 67108864 were sent")
    }
  }

  @Test func noServerGetsAVolumeWhileItsContentArrives() async throws {
    try await StorageCloud.with("hold") { cloud in
      var controller = try await cloud.startUploadController()
      let content = randomContent(seed: 5, count: 2_000_000)
      let file = try cloud.writeContent(content)
      try await cloud.makeUploadClaim("image", token: "t")
      let name = try await cloud.waitUntilBound("image", controller)
      let volume = "\(cloud.pool.path)/volumes/\(name).img"
      let attachment = VolumeAttachment(
        metadata: ObjectMeta(name: "ycloud-\(name)"),
        spec: .init(attacher: StorageNames.driver, nodeName: "dpu-01", source: .init(persistentVolumeName: name)))
      func attach() async throws { _ = try await cloud.client.create(attachment) }
      func isHeld() async throws -> Bool {
        let present = try await cloud.client.listAll(VolumeAttachment.self).items.first { $0.key == attachment.key }
        return present?.metadata.annotations?["csi.ycloud.yusur.io/upload-into"] == "\(cloud.namespace)/image"
      }

      // The API server itself refuses a server's attachment.
      let sender = try await cloud.startPut(file, into: "image", token: "t", bytesPerSecond: 800_000)
      try await cloud.waitForPhase("image", .uploading)
      #expect(try await isHeld())
      await #expect(throws: KubernetesError.self) { try await attach() }

      // Whoever removes the hold by force may attach; then the content is left as it is.
      try await cloud.client.delete(VolumeAttachment.self, name: attachment.key.name)
      try await attach()
      _ = try await sender.waitForExit(within: .seconds(60))
      #expect(sender.output.hasSuffix("409"))
      try await cloud.waitForPhase("image", .failed)
      #expect(readFile(volume, count: 4096) == [UInt8](repeating: 0, count: 4096))
      #expect(cloud.pool.files("staging") == [])
      try await cloud.client.delete(VolumeAttachment.self, name: attachment.key.name)

      // The receiver dies: its successor lets go of the volume.
      let second = try await cloud.startPut(file, into: "image", token: "t", bytesPerSecond: 100_000)
      try await eventually("the volume is held") { try await isHeld() }
      controller.kill()
      second.kill()
      #expect(try await isHeld())
      controller = try await cloud.startUploadController()
      try await eventually(within: .seconds(20), "the volume is let go") { try await !isHeld() }

      #expect(try await cloud.put(file, into: "image", token: "t") == 200)
      #expect(try await !isHeld())
      #expect(readFile(volume, count: content.count) == content)
      try await attach()
    }
  }

  @Test func aClaimDeletedDuringItsUploadLeavesNothing() async throws {
    try await StorageCloud.with("gone") { cloud in
      let controller = try await cloud.startUploadController()
      let file = try cloud.writeContent(randomContent(seed: 4, count: 4_000_000))
      try await cloud.makeUploadClaim("image", token: "t")
      let name = try await cloud.waitUntilBound("image", controller)
      let sender = try await cloud.startPut(file, into: "image", token: "t", bytesPerSecond: 400_000)
      try await eventually("content arrives") { cloud.pool.files("staging") != [] }
      try await cloud.deleteClaim("image")
      try await cloud.waitUntilGone(name)
      try await eventually(within: .seconds(20), "the rest of the upload is gone") { cloud.pool.files("staging") == [] }
      sender.kill()
      #expect(cloud.pool.files("volumes") == [])
    }
  }
}

private func randomContent(seed: UInt64, count: Int) -> [UInt8] {
  var random = SeededGenerator(seed: seed)
  return random.bytes(count)
}

extension StorageCloud {
  func startUploadController() async throws -> ChildProcess {
    try? await client.delete(ConfigMap.self, name: "upload", namespace: "ycloud-system")
    let child = try await startController([
      "--upload-listen", "127.0.0.1:0", "--upload-tls-cert", plane.directory.file("server.crt"), "--upload-tls-key",
      plane.directory.file("server.key"), "--upload-ca", plane.directory.file("ca.crt"),
    ])
    _ = try await uploadURL()
    return child
  }

  func uploadURL() async throws -> String {
    try await eventualValue(within: .seconds(20), "the address for uploads is published") {
      let map = try await self.client.get(ConfigMap.self, name: "upload", namespace: "ycloud-system")
      guard map.data?["ca.crt"]?.contains("BEGIN CERTIFICATE") == true else { return nil }
      return map.data?["url"]
    }
  }

  fileprivate func writeContent(_ content: [UInt8]) throws -> String {
    let path = "\(plane.directory.path)/content-\(content.count)-\(content.first ?? 0)"
    try writeFile(path, content)
    return path
  }

  func makeUploadClaim(
    _ name: String, token: String, checksum: String? = nil, size: String = "10Mi"
  ) async throws {
    var annotations = [
      StorageNames.upload: "true", StorageNames.uploadTokenDigest: SHA256.hexDigest(token.utf8),
    ]
    annotations[StorageNames.uploadChecksum] = checksum
    try await makeClaim(name, size: size, annotations: annotations)
  }

  fileprivate func waitForPhase(_ name: String, _ phase: UploadPhase) async throws {
    try await eventually(within: .seconds(20), "the upload of \(name) is \(phase)") {
      try await self.claim(name).metadata.annotations?[StorageNames.uploadPhase] == phase.rawValue
    }
  }

  /// The HTTP status of an upload.
  func put(_ file: String, into name: String, token: String) async throws -> Int {
    let child = try await startPut(file, into: name, token: token)
    _ = try await child.waitForExit(within: .seconds(120))
    return Int(child.output.suffix(3)) ?? 0
  }

  fileprivate func startPut(
    _ file: String, into name: String, token: String, bytesPerSecond: Int? = nil
  ) async throws -> ChildProcess {
    let header = plane.directory.file("header-\(token)")
    try plane.directory.write("header-\(token)", "Authorization: Bearer \(token)\n", mode: 0o600)
    return try ChildProcess(
      "curl",
      [
        "--silent", "--show-error", "--cacert", plane.directory.file("ca.crt"), "--upload-file", file, "--header",
        "@\(header)", "--write-out", "%{http_code}", "\(try await uploadURL())/v1/upload/\(namespace)/\(name)",
      ] + (bytesPerSecond.map { ["--limit-rate", "\($0)"] } ?? []))
  }
}
