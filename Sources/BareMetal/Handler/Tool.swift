import Subprocess
import SystemPackage

/// Runs small programs to their end.
enum Tool {
  /// Runs a program; its input goes to its standard input, where no process list shows it.
  static func run(
    _ program: String, _ arguments: [String], input: String = "", operation: String, remedy: String
  ) async throws {
    do {
      let result = try await Subprocess.run(
        .name(program), arguments: Arguments(arguments),
        environment: .inherit.updating(["PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]),
        input: .string(input), output: .string(limit: 64 << 10), error: .string(limit: 64 << 10))
      guard result.terminationStatus.isSuccess else {
        let text = "\(result.standardError)\(result.standardOutput)".prefix(512)
        throw BareMetalError(
          .system, operation: operation, message: "\(program) ended with \(result.terminationStatus): \(text)")
      }
    } catch let error as SubprocessError {
      throw BareMetalError(.system, operation: operation, message: "cannot run \(program); \(remedy)", cause: error)
    }
  }
}
