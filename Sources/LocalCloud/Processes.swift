import CLinux
import Dispatch
import Glibc

/// Starts, watches and stops the cloud's programs.
enum Processes {
  /// What programs see of the environment of whoever ran `up`; nothing else, so that they are the same after each start.
  private static let inheritedVariables = [
    "PATH", "HOME", "LANG", "XDG_CACHE_HOME", "YCLOUD_CACHE", "YCLOUD_DEPLOY", "YCLOUD_KUBERNETES", "LD_LIBRARY_PATH",
    "SWIFT_BACKTRACE",
  ]

  /// Starts a program in a session of its own, so that it outlives whoever started it, and writes its pid file.
  static func start(_ program: Program) throws -> ProcessIdentity {
    let environment = inheritedVariables.compactMap { name in Machine.variable(name).map { "\(name)=\($0)" } }
    let arguments: [UnsafeMutablePointer<CChar>?] =
      ([program.executable] + program.arguments).map { strdup($0) } + [nil]
    let variables: [UnsafeMutablePointer<CChar>?] = environment.map { strdup($0) } + [nil]
    defer { (arguments + variables).forEach { free($0) } }
    var pid: pid_t = 0
    let status = clinux_spawn(program.executable, arguments, variables, -1, program.log, "/", 1, &pid)
    guard status == 0 else {
      throw LocalCloudError(
        .process, operation: "start \(program.executable)", String(cString: strerror(status)))
    }
    // The child may have ended already; as a zombie it still has its start time.
    let ticks = ProcessTable.status(pid)?.startTicks ?? 0
    let identity = ProcessIdentity(pid: pid, startTicks: ticks, bootID: ProcessTable.bootID)
    try Files.write(program.pidFile, identity.pidFileText, isDurable: false)
    return identity
  }

  /// The running process of a program: by its pid file, or, if the supervisor died before it could write that, by its
  /// command line.
  static func find(_ program: Program) -> ProcessIdentity? {
    if let identity = ProcessTable.running(pidFile: program.pidFile) { return identity }
    let wanted = [program.executable] + program.arguments
    for pid in ProcessTable.all() where ProcessTable.arguments(pid) == wanted {
      if let identity = ProcessTable.identity(pid) { return identity }
    }
    return nil
  }

  /// Whether a running process is what would be started now: the same arguments, and the file on disk.
  static func isCurrent(_ identity: ProcessIdentity, _ program: Program) -> Bool {
    guard ProcessTable.arguments(identity.pid) == [program.executable] + program.arguments else { return false }
    var running = stat()
    var onDisk = stat()
    return stat("/proc/\(identity.pid)/exe", &running) == 0 && stat(program.executable, &onDisk) == 0
      && running.st_ino == onDisk.st_ino && running.st_dev == onDisk.st_dev
  }

  /// Waits until the process has ended, or the task is cancelled.
  static func waitForEnd(_ identity: ProcessIdentity) async {
    let descriptor = clinux_pidfd_open(identity.pid)
    guard descriptor >= 0 else { return }
    // Only now is the number bound to a process; make sure that it is the one that is meant. (A zombie is: its main thread
    // may have ended a moment before the others, and the descriptor waits for those too.)
    guard ProcessTable.status(identity.pid)?.startTicks == identity.startTicks else {
      close(descriptor)
      return
    }
    let source = ReadSource(descriptor)
    await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in source.run { continuation.resume() } }
    } onCancel: {
      source.cancel()
    }
  }

  /// How a child of this process ended, for the log; nil when it is somebody else's child.
  static func reap(_ identity: ProcessIdentity) -> String? {
    var status: Int32 = 0
    guard waitpid(identity.pid, &status, WNOHANG) == identity.pid else { return nil }
    let signal = status & 0x7f
    return signal == 0 ? "ended with code \((status >> 8) & 0xff)" : "was ended by signal \(signal)"
  }

  /// Ends a process: SIGTERM, and SIGKILL after the grace. Returns whether the grace was enough.
  @discardableResult
  static func stop(_ identity: ProcessIdentity, graceSeconds: Double) async throws -> Bool {
    if graceSeconds > 0 {
      ProcessTable.signal(identity, SIGTERM)
      if await hasEnded(identity, within: .seconds(graceSeconds)) { return true }
    }
    ProcessTable.signal(identity, SIGKILL)
    guard await hasEnded(identity, within: .seconds(10)) else {
      throw LocalCloudError(
        .process, operation: "end process \(identity.pid)",
        "it is still there 10 s after SIGKILL; it waits for the kernel, see /proc/\(identity.pid)/stack")
    }
    return false
  }

  private static func hasEnded(_ identity: ProcessIdentity, within limit: Duration) async -> Bool {
    await withTaskGroup(of: Void.self) { group in
      group.addTask { await waitForEnd(identity) }
      group.addTask { try? await Task.sleep(for: limit) }
      await group.next()
      group.cancelAll()
    }
    // A process that is this one's child stays a zombie until it is looked at.
    _ = reap(identity)
    return !ProcessTable.isAlive(identity)
  }

  /// A dispatch source that runs its handler once, at the first event or when it is cancelled, and closes the
  /// descriptor.
  private final class ReadSource: @unchecked Sendable {
    // Safe to share: dispatch sources are thread-safe, and the property never changes.
    private let source: any DispatchSourceRead
    private let descriptor: Int32

    init(_ descriptor: Int32) {
      self.descriptor = descriptor
      source = DispatchSource.makeReadSource(fileDescriptor: descriptor, queue: .global())
    }

    func run(_ finished: @escaping @Sendable () -> Void) {
      let descriptor = descriptor
      source.setEventHandler { [source] in source.cancel() }
      source.setCancelHandler {
        close(descriptor)
        finished()
      }
      source.activate()
    }

    func cancel() {
      source.cancel()
    }
  }
}
