#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// The log of a console. QEMU appends to it; this bounds its size.
///
/// QEMU keeps the file open and opened it for appending, so the file is copied away and cut, not renamed.
struct ConsoleLog: Sendable {
  let path: String
  /// The file is rotated when it is longer than this; one older file (`.1`) is kept.
  static let sizeMax = 8 << 20
  private var unlooked = 0

  init(path: String) {
    self.path = path
  }

  /// The last `count` bytes.
  func tail(_ count: Int) -> [UInt8] {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { return [] }
    defer { close(descriptor) }
    let size = Int(lseek(descriptor, 0, SEEK_END))
    guard size > 0 else { return [] }
    var bytes = [UInt8](repeating: 0, count: min(size, count))
    let read = bytes.withUnsafeMutableBytes { pread(descriptor, $0.baseAddress, $0.count, off_t(size - $0.count)) }
    return Array(bytes.prefix(max(0, read)))
  }

  /// Counts what the guest wrote, and rotates when it is time.
  mutating func wrote(_ count: Int) {
    unlooked += count
    guard unlooked >= ConsoleLog.sizeMax / 8 else { return }
    unlooked = 0
    rotateIfLong()
  }

  func rotateIfLong() {
    let descriptor = open(path, O_RDWR | O_CLOEXEC)
    guard descriptor >= 0 else { return }
    defer { close(descriptor) }
    let size = Int(lseek(descriptor, 0, SEEK_END))
    guard size > ConsoleLog.sizeMax else { return }
    let old = open(path + ".1", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o640)
    guard old >= 0 else { return }
    defer { close(old) }
    var offset = off_t(max(0, size - ConsoleLog.sizeMax))
    var chunk = [UInt8](repeating: 0, count: 1 << 20)
    while true {
      let count = chunk.withUnsafeMutableBytes { pread(descriptor, $0.baseAddress, $0.count, offset) }
      guard count > 0 else { break }
      offset += off_t(count)
      // A disk that is full keeps less of the old log; the new one must be cut all the same.
      guard chunk.withUnsafeBytes({ write(old, $0.baseAddress, count) }) == count else { break }
    }
    ftruncate(descriptor, 0)
  }
}
