#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// A candidate's name in elections that outlives its process: whoever holds the lock of a file, alone on its machine,
/// goes by the name in it.
///
/// A process that is started again after a kill then finds that it is the holder of the lease already, and need not
/// wait for it to expire. The kernel gives the lock back when the process ends, however it ends.
public final class CandidateLock: Sendable {
  public struct Failure: Error, CustomStringConvertible {
    public let description: String
  }

  /// For `LeaderElection.identity`: the machine's name and a random part that the file keeps.
  public let identity: String
  private let descriptor: CInt

  /// Takes the lock, making the file where it is missing; throws `Failure` where another process has it.
  public init(path: String) throws {
    descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
    guard descriptor >= 0 else {
      throw Failure(description: "cannot open the lock '\(path)': \(String(cString: strerror(errno)))")
    }
    guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
      close(descriptor)
      throw Failure(description: "another process holds the lock '\(path)'; end it, or name another file")
    }
    var buffer = [UInt8](repeating: 0, count: 33)
    let count = pread(descriptor, &buffer, buffer.count, 0)
    let present = String(decoding: buffer.prefix(max(0, count)), as: UTF8.self)
    if present.utf8.count == 32, present.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7F }) {
      identity = present
      return
    }
    // Padded, so that a file which a crash left half-written is recognised.
    let fresh = LeaderElection.uniqueIdentity().suffix(32)
    let name = String(repeating: "0", count: 32 - fresh.utf8.count) + fresh
    let bytes = Array(name.utf8)
    guard ftruncate(descriptor, 0) == 0, pwrite(descriptor, bytes, bytes.count, 0) == bytes.count,
      fsync(descriptor) == 0
    else {
      let text = String(cString: strerror(errno))
      close(descriptor)
      throw Failure(description: "cannot write the lock '\(path)': \(text)")
    }
    identity = name
  }

  deinit { close(descriptor) }
}
