import Glibc

/// A process that cannot be mistaken for a later one with the same number: the number together with the moment of its
/// start, in the same boot.
package struct ProcessIdentity: Sendable, Hashable {
  package var pid: Int32
  /// Clock ticks from the boot to the start of the process.
  package var startTicks: UInt64
  package var bootID: String

  package init(pid: Int32, startTicks: UInt64, bootID: String) {
    self.pid = pid
    self.startTicks = startTicks
    self.bootID = bootID
  }

  /// The text of a pid file: the number alone in the first line, as other tools expect it.
  package var pidFileText: String {
    "\(pid)\n\(startTicks) \(bootID)\n"
  }

  /// Parses ``pidFileText``; nil for anything else.
  package init?(pidFileText text: String) {
    let lines = text.split(separator: "\n", omittingEmptySubsequences: false)
    guard lines.count >= 2, let pid = Int32(lines[0]), pid > 1 else { return nil }
    let parts = lines[1].split(separator: " ")
    guard parts.count == 2, let ticks = UInt64(parts[0]) else { return nil }
    self.init(pid: pid, startTicks: ticks, bootID: String(parts[1]))
  }
}

/// A line of `/proc/<pid>/stat`.
package struct ProcessStatus: Sendable, Hashable {
  package var state: Character
  package var startTicks: UInt64

  /// The command's name stands in parentheses and may hold spaces and parentheses itself.
  package init?(statLine line: String) {
    guard let end = line.lastIndex(of: ")") else { return nil }
    let fields = line[line.index(after: end)...].split(separator: " ")
    // The first field here is the third of proc(5): state; starttime is its field 22.
    guard fields.count >= 20, fields[0].count == 1, let state = fields[0].first, let ticks = UInt64(fields[19]) else {
      return nil
    }
    self.state = state
    startTicks = ticks
  }

  /// A zombie has ended; only its parent has not looked yet.
  package var isAlive: Bool {
    state != "Z" && state != "X"
  }
}

/// What the kernel says about processes.
package enum ProcessTable {
  package static let bootID: String = {
    ((try? Files.read("/proc/sys/kernel/random/boot_id")) ?? nil)?.split(separator: "\n").first.map(String.init)
      ?? "unknown"
  }()

  package static func status(_ pid: Int32) -> ProcessStatus? {
    guard let line = try? Files.read("/proc/\(pid)/stat") else { return nil }
    return ProcessStatus(statLine: line)
  }

  /// The identity of a running process, nil when there is none with this number.
  package static func identity(_ pid: Int32) -> ProcessIdentity? {
    guard let status = status(pid), status.isAlive else { return nil }
    return ProcessIdentity(pid: pid, startTicks: status.startTicks, bootID: bootID)
  }

  package static func isAlive(_ identity: ProcessIdentity) -> Bool {
    self.identity(identity.pid) == identity
  }

  /// The process that a pid file names, if it still runs.
  package static func running(pidFile path: String) -> ProcessIdentity? {
    guard let text = try? Files.read(path), let identity = ProcessIdentity(pidFileText: text), isAlive(identity) else {
      return nil
    }
    return identity
  }

  /// The arguments of a process; empty for one that has ended.
  static func arguments(_ pid: Int32) -> [String] {
    guard let text = try? Files.read("/proc/\(pid)/cmdline") else { return [] }
    return text.split(separator: "\0", omittingEmptySubsequences: true).map(String.init)
  }

  /// The file that a process runs; " (deleted)" is cut off, as a rebuilt program shows it.
  static func executable(_ pid: Int32) -> String? {
    var buffer = [UInt8](repeating: 0, count: Int(PATH_MAX))
    let count = buffer.withUnsafeMutableBytes { bytes in
      bytes.withMemoryRebound(to: CChar.self) { characters in
        characters.baseAddress.map { readlink("/proc/\(pid)/exe", $0, characters.count) } ?? -1
      }
    }
    guard count > 0 else { return nil }
    let path = String(decoding: buffer[..<count], as: UTF8.self)
    return path.hasSuffix(" (deleted)") ? String(path.dropLast(10)) : path
  }

  static func all() -> [Int32] {
    Files.names(in: "/proc").compactMap { Int32($0) }
  }

  /// Sends a signal only if the process is still the one that is meant.
  @discardableResult
  static func signal(_ identity: ProcessIdentity, _ number: Int32) -> Bool {
    isAlive(identity) && kill(identity.pid, number) == 0
  }
}
