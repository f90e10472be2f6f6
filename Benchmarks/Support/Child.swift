import CLinux
import Glibc

/// What a measurement needs and does not find.
public struct BenchmarkError: Error, CustomStringConvertible {
  public let description: String

  public init(_ description: String) { self.description = description }
}

/// A program that is measured. It is killed by `end`.
public struct Child: Sendable {
  public let pid: Int32

  /// Starts a program that is found as a shell finds it.
  public init(_ words: [String]) throws {
    let arguments: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) } + [nil]
    defer { arguments.forEach { free($0) } }
    var pid: pid_t = 0
    guard posix_spawnp(&pid, words[0], nil, nil, arguments, environ) == 0 else {
      throw BenchmarkError("cannot start \(words[0])")
    }
    self.pid = pid
  }

  /// Waits until there is something at `path`, which the program makes when it is ready.
  public func wait(for path: String) throws {
    let deadline = clinux_monotonic_nanoseconds() + 10_000_000_000
    while access(path, F_OK) != 0 {
      var status: CInt = 0
      guard clinux_monotonic_nanoseconds() < deadline, waitpid(pid, &status, CInt(WNOHANG)) == 0 else {
        throw BenchmarkError("what makes \(path) did not start")
      }
      usleep(10_000)
    }
  }

  public func end() {
    kill(pid, SIGKILL)
    var status: CInt = 0
    waitpid(pid, &status, 0)
  }

  /// Processor time that the program has used, in seconds, from its clock.
  public var processorSeconds: Double {
    var clock: clockid_t = 0
    guard clock_getcpuclockid(pid, &clock) == 0 else { return 0 }
    var time = timespec()
    clock_gettime(clock, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
  }

  /// Processor time in the system's ticks (a hundredth of a second), as /proc tells it.
  public var ticks: Int {
    guard let text = contents("stat"), let end = text.lastIndex(of: ")") else { return 0 }
    let fields = text[text.index(after: end)...].split(separator: " ")
    return fields.count > 12 ? (Int(fields[11]) ?? 0) + (Int(fields[12]) ?? 0) : 0
  }

  /// Memory that is the program's own, in bytes: its share of what it has with others counted in parts.
  public var memory: Int {
    let line = contents("smaps_rollup")?.split(separator: "\n").first { $0.hasPrefix("Pss:") }
    return (line?.split(separator: " ").dropFirst().first.flatMap { Int($0) } ?? 0) * 1024
  }

  private func contents(_ name: String) -> String? {
    guard let file = fopen("/proc/\(pid)/\(name)", "re") else { return nil }
    defer { fclose(file) }
    var bytes = [UInt8](repeating: 0, count: 65536)
    let count = fread(&bytes, 1, bytes.count, file)
    return String(decoding: bytes.prefix(count), as: UTF8.self)
  }
}

/// Processor time of this process, in seconds.
public func ownProcessorSeconds() -> Double {
  var time = timespec()
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time)
  return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
}

extension Sequence<Double> {
  public var median: Double {
    let values = sorted()
    return values.isEmpty ? 0 : values[values.count / 2]
  }

  /// The value that 99 of 100 do not exceed.
  public var p99: Double {
    let values = sorted()
    return values.isEmpty ? 0 : values[Swift.min(values.count - 1, values.count * 99 / 100)]
  }
}

/// With two decimal places.
public func rounded(_ value: Double) -> Double { (value * 100).rounded() / 100 }

/// A line of `make bench`'s table: what was measured, the figure, and the one to reach.
public func row(_ name: String, _ figure: String, _ target: String) {
  func pad(_ text: String, _ width: Int) -> String { String(repeating: " ", count: Swift.max(0, width - text.count)) }
  print("\(name)\(pad(name, 52)) \(pad(figure, 14))\(figure)   \(target)")
  fflush(nil)
}
