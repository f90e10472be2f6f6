import Subprocess

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// A QEMU that runs on its own: it was started detached, outlives the chassis process, and is found again by its pid
/// file.
struct QEMUProcess: Sendable, Hashable {
  let pid: pid_t
  private let startTime: UInt64

  /// Starts QEMU, stopped before its first instruction. Returns when its monitor listens.
  static func start(_ commandLine: QEMUCommandLine, configuration: ChassisConfiguration) async throws -> QEMUProcess {
    let operation = "start \(commandLine.program)"
    // A chassis process that died while starting QEMU may have left one that had not written its pid yet.
    for stray in strays(configuration) { try await stray.kill() }
    for path in [configuration.pidFile, configuration.monitorSocket, configuration.serialSocket] { unlink(path) }
    var options = PlatformOptions()
    options.teardownSequence = [.send(signal: .kill, allowedDurationToNextStep: .zero)]
    let result: ExecutionResult<Void, DiscardedOutput, StringOutput<UTF8>>
    do {
      result = try await Subprocess.run(
        .name(commandLine.program), arguments: Arguments(commandLine.arguments), platformOptions: options,
        input: .none, output: .discarded, error: .string(limit: 64 << 10))
    } catch let error as SubprocessError {
      throw SoftHostError(
        .start, operation: operation, message: "it cannot be run; install the package qemu-system-x86 or -arm",
        cause: error)
    }
    guard result.terminationStatus == .exited(0) else {
      let reason = result.standardError.split(separator: "\n").last.map { String($0.prefix(300)) }
      throw SoftHostError(.start, operation: operation, message: reason ?? "it ended with \(result.terminationStatus)")
    }
    guard let process = find(configuration) else {
      throw SoftHostError(.start, operation: operation, message: "it ended right after its start")
    }
    return process
  }

  /// The QEMU of this chassis, if one runs.
  static func find(_ configuration: ChassisConfiguration) -> QEMUProcess? {
    guard let text = try? TextFile.read(configuration.pidFile, limit: 64),
      let pid = pid_t(text.prefix { $0.isNumber }), pid > 1
    else { return nil }
    return QEMUProcess(pid: pid, configuration: configuration)
  }

  /// All processes that serve this chassis' monitor, whatever the pid file says.
  private static func strays(_ configuration: ChassisConfiguration) -> [QEMUProcess] {
    guard let directory = opendir("/proc") else { return [] }
    defer { closedir(directory) }
    var strays: [QEMUProcess] = []
    while let entry = readdir(directory) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
        pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      if let pid = pid_t(name), pid > 1, let stray = QEMUProcess(pid: pid, configuration: configuration) {
        strays.append(stray)
      }
    }
    return strays
  }

  /// Whether anything of the process still runs. Its first thread may be a zombie while others go on.
  var isAlive: Bool {
    guard let status = ProcessStatus.read(pid), status.startTime == startTime else { return false }
    return !(status.isZombie && status.threads <= 1)
  }

  /// Sends the signal that cuts the power, without waiting for its effect.
  func signalKill() {
    if isAlive { Glibc.kill(pid, SIGKILL) }
  }

  /// Cuts the power: ends the process at once and returns when nothing of it runs any more.
  func kill() async throws {
    let deadline = ContinuousClock.now + .seconds(10)
    while isAlive {
      Glibc.kill(pid, SIGKILL)
      guard ContinuousClock.now < deadline else {
        throw SoftHostError(.timeout, operation: "end QEMU", message: "process \(pid) does not end")
      }
      try await Task.sleep(for: .milliseconds(5))
    }
  }

  /// The process of that number, if it is a QEMU that serves this chassis' monitor.
  private init?(pid: pid_t, configuration: ChassisConfiguration) {
    guard let line = try? TextFile.readBytes("/proc/\(pid)/cmdline", limit: 1 << 20),
      let status = ProcessStatus.read(pid)
    else { return nil }
    let monitor = Array("socket,id=monitor0,path=\(configuration.monitorSocket),".utf8)
    guard line.split(separator: 0).contains(where: { $0.starts(with: monitor) }) else { return nil }
    self.pid = pid
    startTime = status.startTime
  }
}

/// What `/proc/PID/stat` tells (proc(5)).
package struct ProcessStatus: Sendable, Hashable {
  package var isZombie: Bool
  package var threads: Int
  /// In clock ticks since the machine started: with the number it names a process for good.
  package var startTime: UInt64

  static func read(_ pid: pid_t) -> ProcessStatus? {
    guard let text = try? TextFile.read("/proc/\(pid)/stat", limit: 4096) else { return nil }
    return parse(text)
  }

  /// The name in parentheses may hold anything, so the fields are counted from the last parenthesis.
  package static func parse(_ text: String) -> ProcessStatus? {
    guard let end = text.lastIndex(of: ")") else { return nil }
    let fields = text[text.index(after: end)...].split(separator: " ")
    guard fields.count >= 20, let threads = Int(fields[17]), let startTime = UInt64(fields[19]) else { return nil }
    return ProcessStatus(isZombie: fields[0] == "Z" || fields[0] == "X", threads: threads, startTime: startTime)
  }
}
