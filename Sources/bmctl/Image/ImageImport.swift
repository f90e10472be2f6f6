import Glibc
import IaaS
import Kubernetes

/// Brings a disk image into a claim that machines can clone.
struct ImageImport {
  let connection: Connection
  let file: String
  let name: String
  let storageClass: String
  /// What the user says the file's SHA-256 is.
  let expectedDigest: String?
  let force: Bool
  /// Whether machines in other namespaces may clone it.
  let shared: Bool
  let temporaryFolder: String
  let timeoutSeconds: Int

  private struct Disk: ~Copyable {
    let path: String
    let size: Int64
    /// Keeps the file at `path` while it is needed.
    let folder: TemporaryFolder?
  }

  func run() async throws {
    let start = ContinuousClock.now
    // Everything about the file is known before anything is made in the cluster.
    let (image, fileSize) = try inspect()
    let digest = try await Programs.sha256(ofFile: file)
    if let expectedDigest, expectedDigest != digest {
      throw CommandError(
        .invalidInput, "import \(file)", "the file's SHA-256 is \(digest), not \(expectedDigest)",
        remedy: "The download is damaged or is another version; nothing was imported.")
    }
    let endpoint = try await endpoint()
    if try await isPresent(digest: digest) {
      Output.line("image \(name) is there already, from the same file")
      return
    }
    let disk = try await unpack(image, fileSize)
    let size = VolumeSize.roundedUp(disk.size)
    let token = Self.token()
    let claim = try await create(
      size: size, digest: digest, isRaw: image == .raw, tokenDigest: try await Programs.sha256(of: token))
    do {
      try await waitUntilBound(claim)
      let progress = UploadProgress(name: "image \(name)", total: disk.size)
      defer { progress.end() }
      try await endpoint.send(
        file: disk.path, bytes: disk.size, namespace: connection.namespace, claim: name, token: token,
        progress: { progress.sent($0) })
      try await waitUntilSucceeded(claim)
    } catch {
      await remove(claim)
      throw error
    }
    let seconds = DurationText.fixed(start.duration(to: .now).inSeconds, digits: 1)
    Output.line("image \(name) imported: \(DurationText.bytes(size)) in \(seconds) s")
  }

  // MARK: - The file

  private func inspect() throws -> (DiskImage, Int64) {
    let source = try RawFile(file)
    guard source.size > 0 else { throw CommandError(.invalidInput, "import \(file)", "the file is empty") }
    do {
      return (try DiskImage.inspect(try source.read(at: 0, count: DiskImage.inspectedBytes)), source.size)
    } catch let refusal as DiskImage.Refusal {
      throw CommandError(.invalidInput, "import \(file)", refusal.message, remedy: refusal.remedy)
    }
  }

  private func unpack(_ image: DiskImage, _ fileSize: Int64) async throws -> Disk {
    guard case .qcow2(let header) = image else { return Disk(path: file, size: fileSize, folder: nil) }
    Output.error("unpacking \(file) (qcow2, \(DurationText.bytes(header.virtualSize)))")
    let folder = try TemporaryFolder(in: temporaryFolder)
    let path = folder.file
    try await Programs.convert(qcow2: file, toRaw: path)
    let size = try RawFile(path).size
    // qemu-img rounds up to whole sectors.
    guard size >= header.virtualSize, size - header.virtualSize < 512 else {
      throw CommandError(
        .invalidInput, "unpack \(file)", "the disk has \(size) bytes; the header promised \(header.virtualSize)")
    }
    return Disk(path: path, size: size, folder: folder)
  }

  /// 256 random bits: whoever knows them may write into the volume, until the upload is complete.
  private static func token() -> String {
    var generator = SystemRandomNumberGenerator()
    return (0..<4).map { _ in
      let digits = String(generator.next(), radix: 16)
      return String(repeating: "0", count: 16 - digits.utf8.count) + digits
    }.joined()
  }

  // MARK: - The cluster

  private func endpoint() async throws -> UploadEndpoint {
    let map: ConfigMap
    do {
      map = try await connection.client.get(ConfigMap.self, name: "upload", namespace: Names.systemNamespace)
    } catch let error as KubernetesError where error.code == .notFound {
      throw CommandError(
        .unreachable, "find the upload service", "there is no ConfigMap \(Names.systemNamespace)/upload",
        remedy: "csi-controller makes it when it runs with --upload-listen.", cause: error)
    }
    guard let url = map.data?["url"], url.hasPrefix("https://"), let authority = map.data?["ca.crt"] else {
      throw CommandError(
        .unreachable, "find the upload service",
        "the ConfigMap \(Names.systemNamespace)/upload lacks ca.crt, or a url that begins with https://")
    }
    let types = (map.data?["contentTypes"] ?? "").split(separator: ",")
    return UploadEndpoint(
      url: url.hasSuffix("/") ? String(url.dropLast()) : url, certificateAuthority: authority,
      takesExtents: types.contains { $0 == UploadLayout.extentsType })
  }

  /// - Returns: Whether the image is there, from the same file and complete. One that is not is removed where `force`
  ///   says so, or where it is the rest of an import of the same file that did not come to its end.
  private func isPresent(digest: String) async throws -> Bool {
    let claim: PersistentVolumeClaim
    do {
      claim = try await connection.client.get(
        PersistentVolumeClaim.self, name: name, namespace: connection.namespace)
    } catch let error as KubernetesError where error.code == .notFound {
      return false
    }
    let verdict = PresentImage(
      isImage: claim.metadata.labels?[ImageNames.label] != nil, isBeingDeleted: claim.metadata.isBeingDeleted,
      isSameFile: claim.metadata.annotations?[ImageNames.source] == digest,
      phase: claim.metadata.annotations?[ImageNames.uploadPhase]
    ).verdict(force: force)
    switch verdict {
    case .present: return true
    case .refuse(let message, let remedy):
      throw CommandError(.conflict, "import \(name)", message, remedy: remedy)
    case .replace:
      if !claim.metadata.isBeingDeleted {
        try await connection.client.delete(
          PersistentVolumeClaim.self, name: name, namespace: connection.namespace, uid: claim.metadata.uid)
      }
      try await waitUntilGone(claim)
      return false
    }
  }

  private func create(
    size: Int64, digest: String, isRaw: Bool, tokenDigest: String
  ) async throws -> PersistentVolumeClaim {
    var metadata = ObjectMeta(name: name, namespace: connection.namespace)
    metadata.labels = [ImageNames.label: "true"]
    var annotations = [
      ImageNames.upload: "true", ImageNames.uploadTokenDigest: tokenDigest, ImageNames.source: digest,
      ImageNames.sourceName: TextWidth.printable(String(file.split(separator: "/").last ?? "image")),
    ]
    // TLS keeps the bytes whole on their way; of a raw file the digest is known already, so it costs nothing to ask.
    if isRaw { annotations[ImageNames.uploadChecksum] = "sha256:\(digest)" }
    if shared { annotations[ImageNames.shared] = "true" }
    metadata.annotations = annotations
    let spec = PersistentVolumeClaim.Spec(
      accessModes: ["ReadWriteOnce"], resources: .init(requests: ["storage": Quantity(bytes: size)]),
      storageClassName: storageClass, volumeMode: "Block")
    return try await connection.client.create(PersistentVolumeClaim(metadata: metadata, spec: spec))
  }

  private func waitUntilBound(_ claim: PersistentVolumeClaim) async throws {
    try await wait("wait for the volume of image \(name)") {
      let now = try await current(claim)
      if now.status?.phase == "Bound" { return .done }
      return .waiting(
        now.metadata.annotations?[ImageNames.provisioningMessage] ?? "the claim is \(now.status?.phase ?? "Pending")")
    }
  }

  private func waitUntilSucceeded(_ claim: PersistentVolumeClaim) async throws {
    try await wait("upload of image \(name)") {
      let now = try await current(claim)
      let message = now.metadata.annotations?[ImageNames.uploadMessage] ?? ""
      switch now.metadata.annotations?[ImageNames.uploadPhase] {
      case "Succeeded": return .done
      case "Failed": throw CommandError(.failure, "upload of image \(name)", TextWidth.printable(message))
      default: return .waiting(message)
      }
    }
  }

  private func waitUntilGone(_ claim: PersistentVolumeClaim) async throws {
    try await wait("wait until the old image \(name) is gone") {
      do {
        let now = try await connection.client.get(
          PersistentVolumeClaim.self, name: name, namespace: connection.namespace)
        guard now.metadata.uid == claim.metadata.uid else { return .done }
        return .waiting("finalizers: \((now.metadata.finalizers ?? []).joined(separator: ", "))")
      } catch let error as KubernetesError where error.code == .notFound {
        return .done
      }
    }
  }

  private func current(_ claim: PersistentVolumeClaim) async throws -> PersistentVolumeClaim {
    let now = try await connection.client.get(
      PersistentVolumeClaim.self, name: name, namespace: connection.namespace)
    guard now.metadata.uid == claim.metadata.uid, !now.metadata.isBeingDeleted else {
      throw CommandError(.conflict, "import \(name)", "somebody deleted the claim meanwhile")
    }
    return now
  }

  /// Takes back what this import has made, and nothing else; an image that is half there is of no use.
  private func remove(_ claim: PersistentVolumeClaim) async {
    do {
      try await connection.client.delete(
        PersistentVolumeClaim.self, name: name, namespace: connection.namespace, uid: claim.metadata.uid)
    } catch let error as KubernetesError where error.code == .notFound || error.code == .conflict {
      // It is gone, or its name is another claim's by now.
    } catch {
      Output.error("the claim \(connection.namespace)/\(name) could not be removed: \(error)")
    }
  }

  private enum Progress {
    case done
    /// What it waits for.
    case waiting(String)
  }

  private func wait(_ operation: String, _ look: () async throws -> Progress) async throws {
    let deadline = ContinuousClock.now + .seconds(timeoutSeconds)
    while true {
      var reason: String
      do {
        guard case .waiting(let message) = try await look() else { return }
        reason = message
      } catch let error as KubernetesError where error.isTransient {
        reason = error.message
      }
      guard ContinuousClock.now < deadline else {
        throw CommandError(
          .timedOut, operation, "not done after \(timeoutSeconds) s: \(TextWidth.printable(reason))",
          remedy: "See: kubectl describe pvc -n \(connection.namespace) \(name)")
      }
      try await Task.sleep(for: .milliseconds(200))
    }
  }
}

/// What to do about a claim that has the name of the image to import.
package struct PresentImage: Sendable, Hashable {
  package enum Verdict: Sendable, Hashable {
    case present
    case replace
    case refuse(message: String, remedy: String)
  }

  package var isImage: Bool
  package var isBeingDeleted: Bool
  package var isSameFile: Bool
  /// The phase of its upload.
  package var phase: String?

  package init(isImage: Bool, isBeingDeleted: Bool, isSameFile: Bool, phase: String?) {
    self.isImage = isImage
    self.isBeingDeleted = isBeingDeleted
    self.isSameFile = isSameFile
    self.phase = phase
  }

  package func verdict(force: Bool) -> Verdict {
    guard isImage else {
      return .refuse(message: "a claim of this name exists and is no image", remedy: "Choose another name with --name.")
    }
    if isBeingDeleted { return .replace }
    if phase == "Uploading" {
      return .refuse(
        message: "an upload into it is under way",
        remedy: "Wait for it: bmctl get images --watch. Or delete the claim with kubectl.")
    }
    if force { return .replace }
    guard isSameFile else {
      return .refuse(
        message: "an image of this name exists, from another file",
        remedy: "Choose another --name, or replace it with --force. Machines that were cloned from it keep their disks."
      )
    }
    return phase == "Succeeded" ? .present : .replace
  }
}
