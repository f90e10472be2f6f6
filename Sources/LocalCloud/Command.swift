import Subprocess
import SystemPackage

/// Runs a program to its end.
enum Command {
  /// Directories beside `PATH` in which system programs are, also for users whose `PATH` lacks them.
  static let systemDirectories = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"]

  /// The absolute path of a program.
  static func find(_ program: String) throws -> String {
    if program.contains("/") { return program }
    let path = Machine.variable("PATH") ?? ""
    for directory in path.split(separator: ":").map(String.init) + systemDirectories {
      let candidate = "\(directory)/\(program)"
      if Machine.isExecutable(candidate) { return candidate }
    }
    throw LocalCloudError(
      .missingRequirement, operation: "run \(program)",
      "the program is not installed; run scripts/install-dependencies.sh")
  }

  /// Returns what the program printed; throws ``LocalCloudError`` with its complaint when it fails.
  @discardableResult
  static func run(_ program: String, _ arguments: String..., input: String = "") async throws -> String {
    try await run(program, arguments, input: input)
  }

  @discardableResult
  static func run(_ program: String, _ arguments: [String], input: String = "") async throws -> String {
    let path = try find(program)
    let result: (succeeded: Bool, status: String, output: String, errors: String)
    do {
      let record = try await Subprocess.run(
        .path(FilePath(path)), arguments: Arguments(arguments), input: .string(input),
        output: .string(limit: 4 << 20), error: .string(limit: 1 << 20))
      result = (
        record.terminationStatus.isSuccess, "\(record.terminationStatus)", record.standardOutput, record.standardError
      )
    } catch let error as CancellationError {
      throw error
    } catch {
      throw LocalCloudError(.commandFailed, operation: "run \(program)", "it could not be started", cause: error)
    }
    guard result.succeeded else {
      let complaint = (result.errors.isEmpty ? result.output : result.errors).suffix(2_000)
      throw LocalCloudError(
        .commandFailed, operation: "run '\(([program] + arguments).joined(separator: " "))'",
        "\(result.status): \(complaint.split(separator: "\n").joined(separator: "; "))")
    }
    return result.output
  }
}
