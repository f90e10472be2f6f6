import CLinux
import Subprocess
import SystemPackage

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// A QEMU that runs on its own: it was started detached, outlives the chassis process, and is found again by its pid
/// file.
///
/// It is held by a pidfd, so that whether it has ended is asked of the kernel, without a file that could fail to open:
/// a server that is told as off while it runs loses its disks to another one.
package final class QEMUProcess: Sendable {
  package let pid: Int32
  private let descriptor: CInt

  /// Starts QEMU, stopped before its first instruction. Returns when its monitor listens.
  static func start(_ commandLine: QEMUCommandLine, configuration: ChassisConfiguration) async throws -> QEMUProcess {
    let operation = "start \(commandLine.program)"
    // A chassis process that died while starting QEMU may have left one that had not written its pid yet.
    try await endAll(configuration)
    for path in [
      configuration.pidFile, configuration.monitorSocket, configuration.serialSocket, configuration.screenFile,
    ] { unlink(path) }
    // Where this cannot be written, nobody could tell this tenant's output from the last one's.
    try ConsoleLog.notePowerOn(path: configuration.consoleLog)
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
    guard let process = try find(configuration) else {
      throw SoftHostError(.start, operation: operation, message: "it ended right after its start")
    }
    return process
  }

  // MARK: - Finding

  /// The QEMU of this chassis, or nil where none runs. Throws `SoftHostError` where that cannot be told.
  package static func find(_ configuration: ChassisConfiguration) throws -> QEMUProcess? {
    guard let bytes = try TextFile.readBytesIfPresent(configuration.pidFile, limit: 64),
      let pid = pid_t(String(decoding: bytes, as: UTF8.self).prefix { $0.isNumber }), pid > 1
    else { return nil }
    return try open(pid) { line in
      // A process that has given its memory back has no command line any more, but it may still hold the disks.
      line.isEmpty ? try isNamedQEMU(pid) : serves(configuration, line)
    }
  }

  /// All processes that serve this chassis' monitor, whatever the pid file says. Throws where that cannot be told.
  package static func strays(_ configuration: ChassisConfiguration) throws -> [QEMUProcess] {
    guard let directory = opendir("/proc") else { throw TextFile.failure("list the processes", errno) }
    defer { closedir(directory) }
    var strays: [QEMUProcess] = []
    while true {
      errno = 0
      guard let entry = readdir(directory) else {
        guard errno == 0 else { throw TextFile.failure("list the processes", errno) }
        return strays
      }
      let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
        pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      guard let pid = pid_t(name), pid > 1, let line = try commandLine(pid), serves(configuration, line) else {
        continue
      }
      if let stray = try open(pid, where: { serves(configuration, $0) }) { strays.append(stray) }
    }
  }

  /// Ends every QEMU of this chassis and returns when none is left.
  static func endAll(_ configuration: ChassisConfiguration) async throws {
    if let process = try find(configuration) { try await process.kill() }
    for stray in try strays(configuration) { try await stray.kill() }
  }

  /// Takes hold of a process if its command line fits; nil where it does not or has ended.
  private static func open(_ pid: pid_t, where fits: ([UInt8]) throws -> Bool) throws -> QEMUProcess? {
    let descriptor = clinux_pidfd_open(pid)
    guard descriptor >= 0 else {
      switch errno {
      // The last two: the number is that of a thread now.
      case ESRCH, ENOENT, EINVAL: return nil
      default: throw TextFile.failure("look at process \(pid)", errno)
      }
    }
    let process = QEMUProcess(pid: pid, descriptor: descriptor)
    guard let line = try commandLine(pid), try fits(line) else { return nil }
    // While the process of the descriptor lives its number is no other's: what was read was read of this one.
    return process.isAlive ? process : nil
  }

  private init(pid: pid_t, descriptor: CInt) {
    self.pid = pid
    self.descriptor = descriptor
  }

  deinit { close(descriptor) }

  /// The arguments of a process, each followed by a zero; nil where it has ended or belongs to somebody who hides it.
  private static func commandLine(_ pid: pid_t) throws -> [UInt8]? {
    do {
      return try TextFile.readBytesIfPresent("/proc/\(pid)/cmdline", limit: 8 << 20)
    } catch let error as SoftHostError
      where error.systemError == .permissionDenied || error.systemError == .notPermitted
    {
      // What this user started it can also look at.
      return nil
    }
  }

  private static func serves(_ configuration: ChassisConfiguration, _ commandLine: [UInt8]) -> Bool {
    let monitor = Array("socket,id=monitor0,path=\(configuration.monitorSocket),".utf8)
    return commandLine.split(separator: 0).contains { $0.starts(with: monitor) }
  }

  private static func isNamedQEMU(_ pid: pid_t) throws -> Bool {
    let name = try TextFile.readBytesIfPresent("/proc/\(pid)/comm", limit: 64)
    return name?.starts(with: Array("qemu-system".utf8)) ?? false
  }

  // MARK: - Ending

  /// Whether anything of the process still runs; false only where the kernel has said that it ended.
  package var isAlive: Bool {
    var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    return poll(&entry, 1, 0) != 1 || entry.revents & Int16(POLLIN) == 0
  }

  /// Sends the signal that cuts the power, without waiting for its effect.
  func signalKill() {
    if isAlive { Glibc.kill(pid, SIGKILL) }
  }

  /// Cuts the power: ends the process at once and returns when nothing of it runs any more.
  package func kill() async throws {
    let deadline = ContinuousClock.now + .seconds(10)
    while isAlive {
      Glibc.kill(pid, SIGKILL)
      guard ContinuousClock.now < deadline else {
        throw SoftHostError(.timeout, operation: "end QEMU", message: "process \(pid) does not end")
      }
      try await Task.sleep(for: .milliseconds(5))
    }
  }
}
