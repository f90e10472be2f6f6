import Glibc
import NIOCore
import NIOPosix
import Subprocess
import Synchronization
import SystemPackage

/// SHA-256 of a stream, computed by `openssl dgst` beside the process: it uses the processor's instructions for it.
///
/// The program reads from a socket pair, so a slow digest slows down the stream instead of filling memory.
final class ContentDigest: Sendable {
  /// The end that is written to; nil once it is closed.
  private let descriptor: Mutex<Int32?>

  private init(descriptor: Int32) { self.descriptor = Mutex(descriptor) }

  deinit { close() }

  /// Runs `body`, which appends the content, and gives the digest of it as 64 hexadecimal digits.
  static func compute(_ body: (ContentDigest) async throws -> Void) async throws -> String {
    var ends: [Int32] = [-1, -1]
    let type = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
    guard socketpair(AF_UNIX, type, 0, &ends) == 0 else {
      throw StorageError.system("digest", "make a socket pair", errno)
    }
    let digest = ContentDigest(descriptor: ends[1])
    async let program = runProgram(input: ends[0], for: digest)
    do {
      try await body(digest)
    } catch {
      digest.close()
      // A program that could not be run is the reason why nothing could be passed to it.
      if let error = error as? StorageError, error.errorNumber == EPIPE { _ = try await program }
      throw error
    }
    digest.close()
    return try await program
  }

  private static func runProgram(input: Int32, for digest: ContentDigest) async throws -> String {
    // Whoever still writes when the program has ended is told so instead of waiting for ever.
    defer { digest.shutDown() }
    let ended: ExecutionResult<Void, StringOutput<UTF8>, StringOutput<UTF8>>
    do {
      ended = try await run(
        .name("openssl"), arguments: ["dgst", "-sha256", "-r"],
        input: .fileDescriptor(SystemPackage.FileDescriptor(rawValue: input), closeAfterSpawningProcess: true),
        output: .string(limit: 4096), error: .string(limit: 4096))
    } catch let error as SubprocessError {
      throw StorageError(
        .io, operation: "digest", message: "cannot run openssl, which computes checksums; install it (\(error))")
    }
    let text = ended.standardOutput.prefix(64)
    guard ended.terminationStatus.isSuccess, text.utf8.count == 64 else {
      throw StorageError(
        .io, operation: "digest", message: "openssl dgst failed (\(ended.terminationStatus)): \(ended.standardError)")
    }
    return String(text)
  }

  /// Waits until the program has taken the bytes.
  func append(_ bytes: ByteBuffer) async throws {
    guard let descriptor = descriptor.withLock({ $0 }) else { return }
    try await ReflinkPool.transferThreads.runIfActive {
      try bytes.withUnsafeReadableBytes { content in
        var sent = 0
        while sent < content.count {
          let rest = UnsafeRawBufferPointer(rebasing: content[sent...])
          // A program that has died must not raise SIGPIPE here.
          let count = send(descriptor, rest.baseAddress, rest.count, Int32(MSG_NOSIGNAL))
          if count < 0, errno == EINTR { continue }
          guard count > 0 else { throw StorageError.system("digest", "pass content to openssl", errno) }
          sent += count
        }
      }
    }
  }

  /// Waits until the program has taken so many zeros; `step` is called from time to time.
  func appendZeros(_ count: Int64, step: () -> Void) async throws {
    let zeros = ByteBuffer(repeating: 0, count: Int(min(count, 1 << 20)))
    var left = count
    while left > 0 {
      let length = Int(min(left, Int64(zeros.readableBytes)))
      try await append(zeros.getSlice(at: 0, length: length) ?? zeros)
      left -= Int64(length)
      step()
    }
  }

  private func close() {
    descriptor.withLock { descriptor in
      if let open = descriptor { Glibc.close(open) }
      descriptor = nil
    }
  }

  private func shutDown() {
    descriptor.withLock { descriptor in
      if let open = descriptor { shutdown(open, Int32(SHUT_RDWR)) }
    }
  }
}
