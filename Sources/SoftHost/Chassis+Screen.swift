import JSON
import Logging

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

extension Chassis {
  /// The longest picture that is given out, in bytes.
  package static let pictureMax = 8 << 20
  /// How long QEMU may take for one.
  static let pictureLimit = Duration.seconds(5)

  /// What the screen shows now, as a PNG.
  ///
  /// QEMU writes it into a file of the chassis' own folder, which is this user's alone before there is anything in it,
  /// and gone again when this returns. One picture is taken at a time: QEMU draws it while the guest waits.
  ///
  /// Throws `SoftHostError`: `conflict` where the server is off, `busy` while another picture is taken, `timeout` and
  /// `closed` where QEMU gives none.
  package func screenshot() async throws -> [UInt8] {
    let operation = "take a picture of the screen"
    guard !isPhotographing else {
      throw SoftHostError(.busy, operation: operation, message: "another picture is being taken; ask again")
    }
    guard power == .on || power == .poweringOn else {
      throw SoftHostError(.conflict, operation: operation, message: "the server is off; switch it on first")
    }
    guard let machine else {
      throw SoftHostError(.busy, operation: operation, message: "the server is only just being started; ask again")
    }
    isPhotographing = true
    defer { isPhotographing = false }
    let path = try makeScreenFile()
    defer { unlink(path) }
    do {
      try await machine.client.execute(
        "screendump", ["filename": .string(path), "format": "png"], timeout: Chassis.pictureLimit)
    } catch let error as SoftHostError {
      guard error.code == .refused, error.message.lowercased().contains("no console") else { throw error }
      throw SoftHostError(
        .conflict, operation: operation,
        message: "it was switched on by a release without screens; it has one after the next power cycle")
    }
    return try TextFile.readBytes(path, limit: Chassis.pictureMax)
  }

  /// An empty file that nobody else may read. QEMU keeps whose it is and who may read it. Returns its absolute path, as
  /// QEMU's own folder is another one.
  private func makeScreenFile() throws -> String {
    let path = configuration.screenFile
    unlink(path)
    let descriptor = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else { throw TextFile.failure("make \(path)", errno) }
    close(descriptor)
    guard let resolved = realpath(path, nil) else {
      let reason = errno
      unlink(path)
      throw TextFile.failure("find \(path)", reason)
    }
    defer { free(resolved) }
    return String(cString: resolved)
  }
}
