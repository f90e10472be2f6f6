import ArgumentParser

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

struct ImageCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "image", abstract: "Disk images that machines are cloned from.",
    subcommands: [ImageImportCommand.self, ImageListCommand.self])
}

struct ImageImportCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "import", abstract: "Import a qcow2 or raw disk image.",
    discussion: """
      The image becomes a PersistentVolumeClaim that a machine's disk template can name as its source. Its content is
      sent to csi-controller over TLS. A qcow2 image must stand alone: backing files and external data files are refused.

        bmctl image import debian-12.qcow2 --name debian-12 --sha256 4f1c...
      """)

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "The image file.", completion: .file())
  var file: String

  @Option(help: "The image's name; the file's name without its extension where not given.")
  var name: String?

  @Option(help: "What the file's SHA-256 must be; checked before anything is made.")
  var sha256: String?

  @Option(help: "The storage class of the volume.")
  var storageClass: String = "ycloud"

  @Flag(help: "Replace an image of the same name.")
  var force = false

  @Flag(help: "Let machines in other namespaces clone it.")
  var shared = false

  @Option(help: "Where a qcow2 image is unpacked; $TMPDIR or /var/tmp where not given.", completion: .directory)
  var temporaryFolder: String?

  @Option(help: "Seconds to wait at most for the volume, and for the end of the upload.")
  var timeout: Int = 120

  func validate() throws {
    if let sha256, ChecksumText.parse(sha256) == nil {
      throw ValidationError("--sha256 is 64 hexadecimal digits.")
    }
    guard ImageName.isValid(imageName) else {
      throw ValidationError(
        "'\(imageName)' is no name for an image: lower-case letters, digits, '-' and '.', at most 200; see --name.")
    }
    guard (1...86_400).contains(timeout) else { throw ValidationError("--timeout is 1 to 86400 seconds.") }
  }

  private var imageName: String { name ?? ImageName.from(file: file) }

  func run() async throws {
    let environment = ProcessInfo.processInfo.environment["TMPDIR"] ?? ""
    let folder = temporaryFolder ?? (environment.isEmpty ? "/var/tmp" : environment)
    try await withConnection(connection) { connection in
      try await ImageImport(
        connection: connection, file: file, name: imageName, storageClass: storageClass,
        expectedDigest: sha256.flatMap { ChecksumText.parse($0) }, force: force, shared: shared,
        temporaryFolder: folder, timeoutSeconds: timeout
      ).run()
    }
  }
}

struct ImageListCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "List images; the same as `get images`.")

  @OptionGroup var connection: ConnectionOptions

  @Option(name: .shortAndLong, help: "wide, json, yaml or name; a table where not given.")
  var output: OutputFormat?

  func run() async throws {
    try await withConnection(connection) { connection in
      try await ObjectPrinter.list(.images, namespace: connection.namespace, format: output, client: connection.client)
    }
  }
}

/// Names of images: they are names of claims.
package enum ImageName {
  /// The name for a file that the user gave none.
  package static func from(file: String) -> String {
    var name = String(file.split(separator: "/").last ?? "")
    for ending in [".qcow2", ".raw", ".img"] where name.lowercased().hasSuffix(ending) {
      name = String(name.dropLast(ending.count))
    }
    return name.lowercased()
  }

  /// RFC 1123 subdomain, short enough for the names that are made of it.
  package static func isValid(_ name: String) -> Bool {
    guard (1...200).contains(name.utf8.count) else { return false }
    return name.split(separator: ".", omittingEmptySubsequences: false).allSatisfy { label in
      guard let first = label.utf8.first, let last = label.utf8.last, isAlphanumeric(first), isAlphanumeric(last) else {
        return false
      }
      return label.utf8.allSatisfy { isAlphanumeric($0) || $0 == UInt8(ascii: "-") }
    }
  }

  private static func isAlphanumeric(_ byte: UInt8) -> Bool {
    (byte >= UInt8(ascii: "a") && byte <= UInt8(ascii: "z")) || (byte >= UInt8(ascii: "0") && byte <= UInt8(ascii: "9"))
  }
}
