import CLinux
import Glibc
import Synchronization

/// A program run by a test. It, and everything it started in its process group, dies with the test: when the value
/// goes away, and also when the test process itself is killed.
public final class ChildProcess: Sendable {
  /// How the program ended.
  public enum Exit: Sendable, Hashable {
    case code(Int32)
    case signal(Int32)

    /// What waitpid tells of a process that has ended.
    fileprivate init(_ status: Int32) {
      let signal = status & 0x7f
      self = signal == 0 ? .code((status >> 8) & 0xff) : .signal(signal)
    }
  }

  /// The process id, which is also the id of its process group.
  public let pid: Int32
  /// The file that receives standard output and standard error.
  public let outputFile: String

  private let exit = Mutex<Exit?>(nil)
  private let ownedDirectory: TemporaryDirectory?

  /// Starts a program.
  /// - Parameters:
  ///   - executable: a path, or a name that is looked up in `PATH`.
  ///   - environment: added to the test's own environment; nil removes a variable.
  ///   - output: the file for standard output and error; a temporary file when nil.
  public init(
    _ executable: String, _ arguments: [String] = [], environment: [String: String?] = [:],
    workingDirectory: String? = nil, output: String? = nil
  ) throws {
    let program = executable.contains("/") ? executable : try TestEnvironment.requireTool(executable)
    if let output {
      ownedDirectory = nil
      outputFile = output
    } else {
      let directory = try TemporaryDirectory()
      ownedDirectory = directory
      outputFile = directory.file("output")
    }

    var variables = Self.inheritedEnvironment()
    for (name, value) in environment { variables[name] = value }
    let argumentPointers: [UnsafeMutablePointer<CChar>?] = ([program] + arguments).map { strdup($0) } + [nil]
    let environmentPointers: [UnsafeMutablePointer<CChar>?] = variables.map { strdup("\($0)=\($1)") } + [nil]
    defer { (argumentPointers + environmentPointers).forEach { free($0) } }

    var child: pid_t = 0
    let status = clinux_spawn(
      program, argumentPointers, environmentPointers, -1, outputFile, workingDirectory, 0, &child)
    guard status == 0 else {
      throw TestEnvironmentError("cannot start \(program): \(String(cString: strerror(status)))")
    }
    pid = child
    Undertaker.shared.watch(group: child)
  }

  deinit {
    kill()
    Undertaker.shared.forget(group: pid)
  }

  /// What the program has printed so far.
  public var output: String {
    contentsOfFile(outputFile) ?? ""
  }

  /// How the program ended, or nil while it runs.
  public var exitIfEnded: Exit? {
    exit.withLock { exit in
      if exit == nil {
        var status: Int32 = 0
        if waitpid(pid, &status, WNOHANG) == pid { exit = Exit(status) }
      }
      return exit
    }
  }

  public var isRunning: Bool {
    exitIfEnded == nil
  }

  /// Sends a signal to the program alone; nothing happens when it has ended.
  public func signal(_ number: Int32) {
    if isRunning { Glibc.kill(pid, number) }
  }

  /// Stops the program alone. When this returns, none of its threads runs: the signal alone takes a moment to reach
  /// them all.
  public func freeze() {
    exit.withLock { exit in
      guard exit == nil, Glibc.kill(pid, SIGSTOP) == 0 else { return }
      var status: Int32 = 0
      // The kernel tells the parent when the last thread has stopped.
      guard waitpid(pid, &status, WUNTRACED) == pid, status & 0xff != 0x7f else { return }
      exit = Exit(status)
    }
  }

  /// Kills the program and its process group, and reaps it.
  public func kill() {
    Glibc.kill(-pid, SIGKILL)
    exit.withLock { exit in
      guard exit == nil else { return }
      var status: Int32 = 0
      if waitpid(pid, &status, 0) == pid { exit = .signal(SIGKILL) }
    }
  }

  /// Waits until the program has ended by itself.
  public func waitForExit(within limit: Duration = .seconds(10)) async throws -> Exit {
    try await eventualValue(
      within: limit, "the end of process \(pid); its output: \(output.suffix(2000))"
    ) {
      exitIfEnded
    }
  }

  /// Runs a program to its end and returns its output; throws when it fails or takes longer than `limit`.
  @discardableResult
  public static func run(
    _ executable: String, _ arguments: [String] = [], environment: [String: String?] = [:],
    within limit: Duration = .seconds(60)
  ) async throws -> String {
    let child = try ChildProcess(executable, arguments, environment: environment)
    let exit = try await child.waitForExit(within: limit)
    guard exit == .code(0) else {
      throw TestEnvironmentError("\(executable) \(arguments.first ?? "") ended with \(exit): \(child.output)")
    }
    return child.output
  }

  private static func inheritedEnvironment() -> [String: String] {
    var variables: [String: String] = [:]
    var next = environ
    while let entry = next.pointee {
      let text = String(cString: entry)
      if let separator = text.firstIndex(of: "=") {
        variables[String(text[..<separator])] = String(text[text.index(after: separator)...])
      }
      next += 1
    }
    return variables
  }
}

/// A small shell that outlives the tests by a moment: when its standard input closes, because the test process ended
/// for whatever reason, it kills the process groups that are still on its list.
private final class Undertaker: Sendable {
  static let shared = Undertaker()

  private let input: Int32

  private init() {
    let script = """
      trap '' HUP INT TERM
      groups=' '
      while read -r verb group; do
        case $verb in
          watch) groups="$groups$group " ;;
          forget) groups="${groups%% "$group" *} ${groups#* "$group" }" ;;
        esac
      done
      for group in $groups; do kill -s KILL -- "-$group" 2>/dev/null; done
      """
    var ends: [Int32] = [-1, -1]
    guard clinux_pipe(&ends) == 0 else {
      input = -1
      return
    }
    let words: [String] = ["sh", "-c", script]
    let arguments: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) } + [nil]
    defer { arguments.forEach { free($0) } }
    var pid: pid_t = 0
    let status = clinux_spawn("/bin/sh", arguments, environ, ends[0], nil, nil, 1, &pid)
    close(ends[0])
    input = status == 0 ? ends[1] : -1
  }

  func watch(group: Int32) {
    tell("watch \(group)\n")
  }

  func forget(group: Int32) {
    tell("forget \(group)\n")
  }

  private func tell(_ line: String) {
    // Lines are shorter than PIPE_BUF, so concurrent writers do not mix.
    let bytes = Array(line.utf8)
    _ = bytes.withUnsafeBytes { write(input, $0.baseAddress, $0.count) }
  }
}
