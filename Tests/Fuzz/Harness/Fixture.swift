import CLinux
import Glibc
import JSON
import Logging
import SoftDPU

/// A data plane in this process, in a directory of its own in memory.
final class Fixture {
  let directory: String
  private(set) var dataPlane: SoftDPU
  private(set) var control: ControlChannel
  private let keepsState: Bool

  init(keepsState: Bool = false) throws {
    self.keepsState = keepsState
    directory = try Fixture.makeDirectory()
    dataPlane = try Fixture.start(directory, keepsState: keepsState)
    control = try ControlChannel("\(directory)/rpc.sock")
  }

  deinit { Fixture.remove(directory) }

  func stop() { dataPlane.stop() }

  /// Ends the data plane, after a look whether it has let go of all that was its peers'.
  func end() throws {
    let limit = clinux_monotonic_nanoseconds() + UInt64(Wire.patience) * 1_000_000
    while !dataPlane.holdings.isEmpty {
      guard clinux_monotonic_nanoseconds() < limit else {
        throw FuzzFailure("its peers are gone, and it holds \(dataPlane.holdings)")
      }
      usleep(5000)
    }
    stop()
  }

  /// Ends the data plane and starts it again, with what it wrote down.
  func restart() throws {
    dataPlane.stop()
    dataPlane = try Fixture.start(directory, keepsState: keepsState)
    control = try ControlChannel("\(directory)/rpc.sock")
  }

  static func makeDirectory() throws -> String {
    var template = Array("/dev/shm/yf-XXXXXX".utf8CString)
    guard mkdtemp(&template) != nil else { throw FuzzFailure("cannot make a directory in /dev/shm") }
    return String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  static func start(_ directory: String, keepsState: Bool) throws -> SoftDPU {
    var logger = Logger(label: "softdpu")
    logger.logLevel = .critical
    return try SoftDPU(
      SoftDPU.Configuration(
        rpcSocket: "\(directory)/rpc.sock", vhostDirectory: "\(directory)/bus",
        stateDirectory: keepsState ? "\(directory)/state" : nil),
      logger: logger)
  }

  /// Makes a file of so many bytes, or of this content.
  static func makeFile(_ path: String, size: Int = 0, content: [UInt8] = []) {
    let fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
    guard fd >= 0 else { return }
    defer { close(fd) }
    if size > 0 { ftruncate(fd, off_t(size)) }
    _ = content.withUnsafeBytes { pwrite(fd, $0.baseAddress, $0.count, 0) }
  }

  /// Removes a tree below /dev/shm.
  static func remove(_ path: String) {
    guard path.hasPrefix("/dev/shm/yf-") else { return }
    var status = stat()
    guard lstat(path, &status) == 0 else { return }
    if status.st_mode & S_IFMT == S_IFDIR {
      if let handle = opendir(path) {
        var names: [String] = []
        while let entry = readdir(handle) {
          names.append(
            withUnsafeBytes(of: entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) })
        }
        closedir(handle)
        for name in names where name != "." && name != ".." { remove("\(path)/\(name)") }
      }
      rmdir(path)
    } else {
      unlink(path)
    }
  }
}
