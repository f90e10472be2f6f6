import Glibc

/// Logs of the cloud's programs.
enum LogFile {
  /// The size from which a log is moved aside; together with the old one at most twice this and a minute's lines.
  static let bytesMax: Int64 = 32 << 20

  /// Copies a log that is too long to `<log>.1` and empties it.
  static func shorten(_ path: String, bytesMax: Int64 = bytesMax) throws {
    guard let size = Files.size(path), size > bytesMax else { return }
    let source = open(path, O_RDWR | O_CLOEXEC)
    guard source >= 0 else { throw Files.failure("open \(path)") }
    defer { close(source) }
    let target = open("\(path).1", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
    guard target >= 0 else { throw Files.failure("create \(path).1") }
    defer { close(target) }
    // Only the end: a log that grew enormously within a minute must not do so twice.
    var offset = off_t(max(0, size - bytesMax))
    while offset < size {
      guard sendfile(target, source, &offset, min(Int(size) - Int(offset), 1 << 20)) > 0 else {
        throw Files.failure("copy \(path)")
      }
    }
    guard ftruncate(source, 0) == 0 else { throw Files.failure("empty \(path)") }
  }

  /// The last lines of a log, for an error message.
  static func tail(_ path: String, lines: Int = 8) -> String {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return "" }
    defer { close(descriptor) }
    let size = lseek(descriptor, 0, SEEK_END)
    lseek(descriptor, max(0, size - 16_384), SEEK_SET)
    var bytes = [UInt8](repeating: 0, count: 16_384)
    let count = read(descriptor, &bytes, bytes.count)
    guard count > 0 else { return "" }
    let text = String(decoding: bytes[..<count], as: UTF8.self)
    return text.split(separator: "\n").suffix(lines).joined(separator: "\n")
  }
}
