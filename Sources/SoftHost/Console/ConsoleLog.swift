#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// The log of a console. QEMU appends to it; this bounds its size.
///
/// QEMU keeps the file open and opened it for appending, so the file is copied away and cut, not renamed.
package struct ConsoleLog: Sendable {
  /// Stands in the log where the server was switched on: what is before it may be another tenant's.
  package static let powerOn = Array("\r\n[chassis: power on]\r\n".utf8)

  let path: String
  /// The file is rotated when it is longer than this; one older file (`.1`) is kept.
  static let sizeMax = 8 << 20
  private var unlooked = 0

  init(path: String) {
    self.path = path
  }

  /// Notes that the server is switched on. To be called before it can write.
  package static func notePowerOn(path: String) throws {
    guard !path.isEmpty else { return }
    let descriptor = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0o640)
    guard descriptor >= 0 else { throw TextFile.failure("open \(path)", errno) }
    defer { close(descriptor) }
    guard powerOn.withUnsafeBytes({ write(descriptor, $0.baseAddress, $0.count) }) == powerOn.count else {
      throw TextFile.failure("write to \(path)", errno)
    }
  }

  /// The last `count` bytes at most of what was written since the server was switched on.
  func present(_ count: Int) -> [UInt8] {
    let tail = tail(count)
    let marker = Self.powerOn
    guard tail.count >= marker.count else { return tail }
    for start in stride(from: tail.count - marker.count, through: 0, by: -1)
    where tail[start] == marker[0] && tail[start..<(start + marker.count)].elementsEqual(marker) {
      return Array(tail[(start + marker.count)...])
    }
    return tail
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
