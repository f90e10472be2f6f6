import IaaS
package import Logging
package import NIOCore
import Synchronization

/// How an upload ended: an HTTP status and what a person should know.
package struct UploadReply: Error, Sendable, Hashable {
  package var status: Int
  package var message: String
  package var receivedBytes: Int64 = 0
  package var allocatedBytes: Int64 = 0

  package init(_ status: Int, _ message: String) {
    self.status = status
    self.message = message
  }
}

/// Receives the content of volumes.
///
/// The content is collected beside the volume and takes its place when it is complete and its checksum is right; until
/// then nothing of it is seen. So an upload may be cut off at any point, and repeated. Meanwhile the upload has the one
/// attachment that the volume can have, so that no server gets it: the API server decides who was first.
package final class UploadService<Cluster: VolumeCluster>: Sendable {
  /// How many uploads are received at the same time.
  private static var maximumUploads: Int { 16 }
  /// Content is handed on in pieces of this size: also all that is held in memory of one upload.
  private static var pieceBytes: Int { 1 << 20 }

  private let backend: any VolumeBackend
  private let cluster: Cluster
  private let metrics: StorageMetrics
  private let logger: Logger
  /// How long nothing may arrive before an upload is given up.
  private let stallLimit: Duration
  /// Called when the last word about an upload has been written: what waited for it may go on.
  private let onEnd: @Sendable (VolumeHandle, ClaimKey) -> Void
  /// Volumes with an upload, up to the last word about it being written.
  private let active = Mutex<Set<VolumeHandle>>([])

  package init(
    backend: any VolumeBackend, cluster: Cluster, metrics: StorageMetrics, logger: Logger,
    stallLimit: Duration = .seconds(60), onEnd: @escaping @Sendable (VolumeHandle, ClaimKey) -> Void = { _, _ in }
  ) {
    self.backend = backend
    self.cluster = cluster
    self.metrics = metrics
    self.logger = logger
    self.stallLimit = stallLimit
    self.onEnd = onEnd
  }

  package func isActive(_ handle: VolumeHandle) -> Bool { active.withLock { $0.contains(handle) } }

  /// Receives one upload to its end.
  ///
  /// - Parameters:
  ///   - authorization: the header of that name.
  ///   - contentLength: what the sender announced; a body that ends earlier was cut off.
  ///   - isExtents: whether the body is an ``ExtentStream``.
  package func receive<Body: AsyncSequence & Sendable>(
    _ key: ClaimKey, authorization: String?, contentLength: Int64?, isExtents: Bool = false, body: Body
  ) async -> UploadReply where Body.Element == ByteBuffer {
    var reply: UploadReply
    do {
      reply = try await admitAndReceive(key, authorization, contentLength, isExtents, body)
    } catch let refusal as UploadReply {
      reply = refusal
    } catch {
      logger.error("upload failed", metadata: ["claim": "\(key)", "error": "\(error)"])
      reply = UploadReply(503, "the upload could not be received; repeat it later")
    }
    metrics.uploadEnded(status: reply.status, bytes: reply.receivedBytes)
    return reply
  }

  private func admitAndReceive<Body: AsyncSequence & Sendable>(
    _ key: ClaimKey, _ authorization: String?, _ contentLength: Int64?, _ isExtents: Bool, _ body: Body
  ) async throws -> UploadReply where Body.Element == ByteBuffer {
    // Whether there is such a claim is told only to those who know its token.
    guard let token = UploadAuthorization.bearerToken(authorization), let claim = try await cluster.currentClaim(key),
      claim.isUploaded, !claim.isBeingDeleted,
      UploadAuthorization.isValid(token: token, digest: claim.annotations[StorageNames.uploadTokenDigest])
    else { throw UploadReply(401, "the token is not valid for an upload into \(key)") }
    guard let contentLength else {
      throw UploadReply(411, "the length of the content must be announced (Content-Length)")
    }
    guard contentLength > 0 else { throw UploadReply(400, "the content is empty") }
    let digest = try announcedDigest(claim)
    let (handle, size, persistentVolume) = try await volume(of: claim)
    guard isExtents || contentLength <= size else {
      throw UploadReply(413, "the content has \(contentLength) bytes, but the volume \(formatBytes(size))")
    }

    try begin(handle)
    defer {
      active.withLock { _ = $0.remove(handle) }
      onEnd(handle, key)
    }
    guard let hold = try await cluster.hold(handle, persistentVolume: persistentVolume, for: claim.key) else {
      throw UploadReply(409, "the volume has just been attached to a server; detach it first")
    }
    let start = ContinuousClock.now
    do {
      try await requireDetached(persistentVolume, handle)
      try await setPhase(claim, .uploading, "receiving \(contentLength) bytes")
      let extents = isExtents ? ExtentStream(limit: size) : nil
      var reply = try await store(body, extents, into: handle, contentLength: contentLength, digest: digest) {
        // Whoever removed it by hand may have let a server have the volume.
        guard try await self.cluster.isCurrent(hold) else {
          throw UploadReply(409, "the VolumeAttachment \(hold.name) of the upload was removed meanwhile; repeat it")
        }
      }
      // What fails here is done by the reconciler when the upload is not active any more.
      try? await cluster.release(hold)
      let message = "\(reply.receivedBytes) bytes received in \(ContinuousClock.now - start)"
      try await persistently { try await self.setPhase(claim, .succeeded, message) }
      cluster.record(claim, isWarning: false, reason: "UploadSucceeded", message: message)
      logger.info("upload complete", metadata: ["claim": "\(key)", "volume": "\(handle)", "result": "\(message)"])
      reply.message = message
      return reply
    } catch {
      let reply = UploadService.reply(to: error)
      logger.warning(
        "upload failed", metadata: ["claim": "\(key)", "volume": "\(handle)", "error": "\(reply.message)"])
      cluster.record(claim, isWarning: true, reason: "UploadFailed", message: reply.message)
      // Also when the process is stopping: a task that has been cancelled makes no calls.
      try? await uncancelled { try await self.cluster.release(hold) }
      try? await uncancelled { try await self.setPhase(claim, .failed, "\(reply.message); the upload may be repeated") }
      throw reply
    }
  }

  private func announcedDigest(_ claim: ClaimView) throws -> String? {
    guard let text = claim.annotations[StorageNames.uploadChecksum] else { return nil }
    guard let digest = UploadAuthorization.checksumDigest(text) else {
      throw UploadReply(400, "annotation \(StorageNames.uploadChecksum) is not sha256:<64 hexadecimal digits>")
    }
    return digest
  }

  /// The volume of a claim that an upload may replace the content of.
  private func volume(of claim: ClaimView) async throws -> (VolumeHandle, Int64, persistentVolume: String) {
    guard claim.isBound, let name = claim.volumeName,
      let volume = try await cluster.currentPersistentVolume(name), volume.claimUID == claim.uid,
      let handle = try? VolumeHandle(volume.handle), let file = try await backend.volume(handle)
    else {
      throw UploadReply(409, "claim \(claim.key) is not bound to a volume of \(StorageNames.driver) yet; wait for it")
    }
    // The attachment that an upload has keeps away one server, and not the many that this volume may have.
    guard handle.sharing == .exclusive else {
      throw UploadReply(
        409,
        "the volume of claim \(claim.key) is one that several servers may have; upload into a ReadWriteOnce claim, and "
          + "make this one again with that as its dataSource")
    }
    try await requireDetached(name, handle)
    return (handle, file.sizeBytes, name)
  }

  private func requireDetached(_ persistentVolume: String, _ handle: VolumeHandle) async throws {
    let names = Set(cluster.persistentVolumes(handle: handle.name).map(\.name) + [persistentVolume])
    let attachments = try await cluster.currentAttachments(persistentVolumes: names.sorted())
    guard attachments.isEmpty else {
      throw UploadReply(409, "the volume is attached (\(attachments.joined(separator: ", "))); detach it first")
    }
  }

  private func begin(_ handle: VolumeHandle) throws {
    try active.withLock { active in
      guard !active.contains(handle) else { throw UploadReply(409, "another upload into the volume is in progress") }
      guard active.count < UploadService.maximumUploads else {
        throw UploadReply(503, "\(UploadService.maximumUploads) uploads are in progress; repeat it later")
      }
      active.insert(handle)
    }
  }

  private func setPhase(_ claim: ClaimView, _ phase: UploadPhase, _ message: String) async throws {
    var annotations: [String: String?] = [
      StorageNames.uploadPhase: phase.rawValue, StorageNames.uploadMessage: message,
    ]
    // A token is good for one upload.
    if phase == .succeeded { annotations.updateValue(nil, forKey: StorageNames.uploadTokenDigest) }
    try await cluster.annotate(claim, annotations, unchanged: false)
  }
}

extension UploadService {
  private func store<Body: AsyncSequence & Sendable>(
    _ body: Body, _ extents: ExtentStream?, into handle: VolumeHandle, contentLength: Int64, digest: String?,
    beforeCommit: () async throws -> Void
  ) async throws -> UploadReply where Body.Element == ByteBuffer {
    let upload = try await backend.beginUpload(handle)
    do {
      if let digest {
        let actual = try await ContentDigest.compute { sink in
          try await self.copy(body, extents, to: upload, and: sink, contentLength: contentLength)
        }
        guard actual == digest else {
          throw UploadReply(422, "the content has checksum sha256:\(actual), but sha256:\(digest) was announced")
        }
      } else {
        try await copy(body, extents, to: upload, and: nil, contentLength: contentLength)
      }
      // The check comes after what takes long.
      try await upload.sync()
      try await beforeCommit()
      let volume = try await upload.commit()
      var reply = UploadReply(200, "")
      reply.receivedBytes = contentLength
      reply.allocatedBytes = volume.allocatedBytes
      return reply
    } catch {
      await upload.abort()
      throw error
    }
  }

  /// Copies the body piece by piece, and gives up when nothing arrives for too long.
  private func copy<Body: AsyncSequence & Sendable>(
    _ body: Body, _ extents: ExtentStream?, to upload: any VolumeUpload, and digest: ContentDigest?,
    contentLength: Int64
  ) async throws where Body.Element == ByteBuffer {
    let progress = Progress()
    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask {
        try await self.copyPieces(body, extents, to: upload, and: digest, contentLength: contentLength, progress)
      }
      group.addTask {
        var before = -1
        while true {
          let now = progress.steps
          guard now != before else { throw UploadReply(408, "nothing arrived for \(self.stallLimit)") }
          before = now
          try await Task.sleep(for: self.stallLimit)
        }
      }
      defer { group.cancelAll() }
      try await group.next()
    }
  }

  private func copyPieces<Body: AsyncSequence & Sendable>(
    _ body: Body, _ extents: ExtentStream?, to upload: any VolumeUpload, and digest: ContentDigest?,
    contentLength: Int64, _ progress: Progress
  ) async throws where Body.Element == ByteBuffer {
    var extents = extents
    var total: Int64 = 0
    var piece = ByteBuffer()
    piece.reserveCapacity(UploadService.pieceBytes)
    func handOn() async throws {
      let full = piece
      async let digested: Void? = digest?.append(full)
      try await upload.append(full)
      try await digested
      progress.step()
      piece.clear(minimumCapacity: UploadService.pieceBytes)
    }
    do {
      for try await part in body {
        total += Int64(part.readableBytes)
        guard total <= contentLength else { throw UploadReply(400, "the content is longer than announced") }
        progress.step()
        guard extents != nil else {
          piece.writeImmutableBuffer(part)
          if piece.readableBytes >= UploadService.pieceBytes { try await handOn() }
          continue
        }
        var rest = part
        while let next = try extents?.next(&rest) {
          switch next {
          case .data(let data):
            piece.writeImmutableBuffer(data)
            if piece.readableBytes >= UploadService.pieceBytes { try await handOn() }
          case .zeros(let count):
            if piece.readableBytes > 0 { try await handOn() }
            try await upload.skip(count)
            try await digest?.appendZeros(count) { progress.step() }
          }
        }
      }
    } catch let error as StorageError {
      throw error
    } catch let error as UploadReply {
      throw error
    } catch {
      throw UploadReply(400, "the connection ended after \(total) of \(contentLength) bytes")
    }
    guard total == contentLength else {
      throw UploadReply(400, "the connection ended after \(total) of \(contentLength) bytes")
    }
    guard extents?.isComplete != false else { throw UploadReply(400, "the content ends within an extent") }
    if piece.readableBytes > 0 { try await handOn() }
  }

  private static func reply(to error: any Error) -> UploadReply {
    switch error {
    case let reply as UploadReply: return reply
    case let error as StorageError:
      switch error.code {
      case .poolFull, .overcommitted, .exceedsPool: return UploadReply(507, error.message)
      case .busy, .notFound, .discarded: return UploadReply(409, error.message)
      case .contentMismatch: return UploadReply(413, error.message)
      default: return UploadReply(500, error.message)
      }
    default: return UploadReply(503, "\(error)")
    }
  }
}

/// How often something has moved.
private final class Progress: Sendable {
  private let count = Mutex(0)
  var steps: Int { count.withLock { $0 } }
  func step() { count.withLock { $0 += 1 } }
}

/// Repeats what must be written although the API server is away for a while: about half a minute.
private func persistently(_ body: () async throws -> Void) async throws {
  for attempt in 0..<10 {
    do { return try await body() } catch {
      guard attempt < 9, !Task.isCancelled else { throw error }
    }
    try await Task.sleep(for: .milliseconds(500 * (attempt + 1)))
  }
}

/// Runs `body` in a task that does not know of the caller's cancellation, and waits for it.
private func uncancelled(_ body: @escaping @Sendable () async throws -> Void) async throws {
  try await Task.detached { try await body() }.value
}
