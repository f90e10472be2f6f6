import Glibc
import Subprocess
import SystemPackage

/// Programs of the system that an import uses.
enum Programs {
  /// SHA-256 of a file, in hexadecimal.
  static func sha256(ofFile path: String) async throws -> String {
    // A path that begins with a dash is no option.
    let output = try await text("sha256sum", ["--", path], package: "coreutils", operation: "checksum of \(path)")
    // A name with a backslash or a line break is marked by a backslash before the digest.
    return try digest(output.hasPrefix("\\") ? String(output.dropFirst()) : output)
  }

  /// SHA-256 of a short text, in hexadecimal. The text goes through a pipe: it is a secret.
  static func sha256(of text: String) async throws -> String {
    do {
      let result = try await Subprocess.run(
        .name("sha256sum"), input: .string(text), output: .string(limit: 4096), error: .string(limit: 4096))
      guard result.terminationStatus.isSuccess else {
        throw CommandError(.failure, "sha256sum", result.standardError)
      }
      return try digest(result.standardOutput)
    } catch let error as SubprocessError {
      throw missing("sha256sum", package: "coreutils", cause: error)
    }
  }

  private static func digest(_ output: String) throws -> String {
    let text = output.prefix(64).lowercased()
    guard ChecksumText.isDigest(text) else {
      throw CommandError(.failure, "sha256sum", "its answer was not understood")
    }
    return text
  }

  /// Writes the disk in a qcow2 file to a sparse raw file.
  static func convert(qcow2 source: String, toRaw target: String) async throws {
    _ = try await text(
      "qemu-img", ["convert", "-f", "qcow2", "-O", "raw", "-S", "64k", "-W", "--", absolute(source), target],
      package: "qemu-utils", operation: "convert \(source)")
  }

  /// A relative name with a colon in it would be a protocol to qemu-img.
  private static func absolute(_ path: String) -> String {
    guard !path.hasPrefix("/"), let pointer = getcwd(nil, 0) else { return path }
    defer { free(pointer) }
    return "\(String(cString: pointer))/\(path)"
  }

  private static func text(
    _ program: String, _ arguments: [String], package: String, operation: String
  ) async throws -> String {
    do {
      let result = try await Subprocess.run(
        .name(program), arguments: Arguments(arguments), output: .string(limit: 64 << 10),
        error: .string(limit: 64 << 10))
      guard result.terminationStatus.isSuccess else {
        let message = result.standardError.split(separator: "\n").last.map(String.init) ?? "\(result.terminationStatus)"
        throw CommandError(.invalidInput, operation, "\(program) says: \(TextWidth.printable(message))")
      }
      return result.standardOutput
    } catch let error as SubprocessError {
      throw missing(program, package: package, cause: error)
    }
  }

  private static func missing(_ program: String, package: String, cause: any Error) -> CommandError {
    CommandError(
      .failure, program, "the program cannot be run", remedy: "Install it: apt-get install \(package)", cause: cause)
  }
}

/// Checksums as users write them.
package enum ChecksumText {
  /// The digest of `<64 hexadecimal digits>` or `sha256:<64 hexadecimal digits>`, in lower case.
  package static func parse(_ text: String) -> String? {
    let folded = text.lowercased()
    let digest = folded.hasPrefix("sha256:") ? String(folded.dropFirst(7)) : folded
    return isDigest(digest) ? digest : nil
  }

  package static func isDigest(_ text: String) -> Bool {
    text.utf8.count == 64
      && text.utf8.allSatisfy {
        ($0 >= UInt8(ascii: "0") && $0 <= UInt8(ascii: "9")) || ($0 >= UInt8(ascii: "a") && $0 <= UInt8(ascii: "f"))
      }
  }
}
