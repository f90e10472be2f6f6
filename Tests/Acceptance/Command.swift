import Subprocess
import SystemPackage

/// A program that did not exit with 0, with what it said.
struct CommandFailure: Error, CustomStringConvertible {
  let command: String
  let status: String
  let output: String
  let errors: String

  var description: String { "'\(command)' ended with \(status)\n\(output)\(errors)" }
}

/// Runs a program to its end and returns what it printed on standard output.
@discardableResult
func command(_ program: String, _ arguments: [String], environment: [String: String] = [:]) async throws -> String {
  let overrides = Dictionary(
    uniqueKeysWithValues: environment.map { (Environment.Key(stringLiteral: $0.key), Optional($0.value)) })
  let result = try await Subprocess.run(
    program.contains("/") ? .path(FilePath(program)) : .name(program),
    arguments: Arguments(arguments),
    environment: .inherit.updating(overrides),
    output: .string(limit: 16 << 20), error: .string(limit: 4 << 20))
  let output = result.standardOutput
  guard result.terminationStatus.isSuccess else {
    throw CommandFailure(
      command: ([program] + arguments).joined(separator: " "), status: "\(result.terminationStatus)", output: output,
      errors: result.standardError)
  }
  return output
}
