import Synchronization
import TestSupport

/// The end of a round of a crash test: after a time the process is killed, and in some rounds its disk loses its power
/// before that.
final class Death: Sendable {
  private final class Flag: Sendable {
    let value = Mutex(false)
  }

  private let begun: Flag
  private let task: Task<Void, any Error>

  /// - Parameter fileSystem: loses its power, and is there again after `wait`; nil: it is left alone.
  init(_ process: ChildProcess, powerOf fileSystem: ReflinkFileSystem?, after milliseconds: Int) {
    let begun = Flag()
    self.begun = begun
    task = Task {
      try await Task.sleep(for: .milliseconds(milliseconds))
      begun.value.withLock { $0 = true }
      if let fileSystem {
        // Nothing answers any more when the power goes: while XFS shuts down, an fsync may succeed that did nothing.
        process.freeze()
        try await fileSystem.cutPower()
      }
      process.kill()
      _ = try await process.waitForExit()
      try await fileSystem?.mountAgain()
    }
  }

  /// From now on calls may fail.
  var hasBegun: Bool { begun.value.withLock { $0 } }

  func wait() async throws { try await task.value }
}
