import ArgumentParser
import Glibc
import Kubernetes

struct ScreenshotCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "screenshot", abstract: "Take a picture of a machine's screen (PNG).",
    discussion: """
      The picture is what a screen at the server would show now: the firmware, the boot loader, a kernel's last words. It \
      is taken through bm-api by the BMC of the machine's host, where that can do it (Dell's iDRAC9, and the servers of a \
      local cloud). What it shows may be secret, so a new file is readable by its owner only.

        bmctl screenshot bm-01                  # into bm-01.png
        bmctl screenshot bm-01 -o - | display
      """)

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "The machine.", completion: Completions.machines)
  var name: String

  @Option(
    name: .shortAndLong, help: ArgumentHelp("The file, which is replaced; - for standard output.", valueName: "file"),
    completion: .file(extensions: ["png"]))
  var output: String?

  /// More than any picture that bm-api gives out.
  private static let bytesMax = 9 << 20

  func validate() throws {
    if output == "" { throw ValidationError("-o needs the name of a file, or -.") }
    if output == "-", isatty(1) == 1 {
      throw ValidationError(
        "A PNG is not for a terminal: give a file with -o, or pipe it into a program that shows it.")
    }
  }

  func run() async throws {
    try await withConnection(connection) { connection in
      let subresources = MachineSubresources(connection: connection)
      guard try await subresources.isServed() else { throw MachineSubresources.missing("screenshot of \(name)") }
      let png = try await subresources.content("screenshot", name, limit: Self.bytesMax)
      guard let size = PictureSize(png: png) else {
        throw CommandError(
          .failure, "screenshot of \(name)", "the answer is no PNG",
          remedy: "Is bm-api of the same release? bmctl doctor tells more.")
      }
      if output == "-" { return try write(png, to: 1, "standard output") }
      let path = output ?? "\(name).png"
      try replace(path, with: png)
      Output.error(
        "\(TextWidth.printable(path)): \(size.width) by \(size.height) points, \((png.count + 1023) >> 10) KiB")
    }
  }

  private func replace(_ path: String, with bytes: [UInt8]) throws {
    let descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else {
      throw CommandError(
        .failure, "write \(TextWidth.printable(path))", String(cString: strerror(errno)),
        remedy: "Name another file with -o.")
    }
    defer { close(descriptor) }
    try write(bytes, to: descriptor, path)
  }

  private func write(_ bytes: [UInt8], to descriptor: CInt, _ name: String) throws {
    var left = bytes[...]
    while !left.isEmpty {
      let count = left.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
      guard count >= 0 || errno == EINTR else {
        throw CommandError(.failure, "write \(TextWidth.printable(name))", String(cString: strerror(errno)))
      }
      left = left.dropFirst(max(0, count))
    }
  }
}

/// Width and height of a PNG (RFC 2083), in points.
package struct PictureSize: Sendable, Hashable {
  package let width: Int
  package let height: Int

  /// Nil for what does not begin as a PNG does.
  package init?(png: [UInt8]) {
    let beginning: [UInt8] = [0x89, 0x50, 0x4E, 0x47, 0x0D, 0x0A, 0x1A, 0x0A, 0, 0, 0, 13] + Array("IHDR".utf8)
    guard png.count >= 33, png.starts(with: beginning) else { return nil }
    func number(at index: Int) -> Int { png[index..<(index + 4)].reduce(0) { $0 << 8 | Int($1) } }
    width = number(at: 16)
    height = number(at: 20)
  }
}
