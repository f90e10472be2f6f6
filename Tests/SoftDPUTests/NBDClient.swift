import CLinux
import Glibc
import JSONRPC
import TestSupport

/// A small NBD client that tells which request failed and how: QEMU's and libnbd's tell less, and take a process each.
/// It blocks its thread. Its wire format is written out here once more, on purpose.
final class NBDClient {
  private let fd: Int32
  private(set) var size: UInt64 = 0
  private var cookie: UInt64 = 0

  enum Command: UInt16 { case read, write, disconnect, flush, trim, cache, writeZeroes }

  /// - Parameter seconds: how long an answer may take.
  init(_ path: String, export: String = "", seconds: Int = 30) throws {
    fd = try UnixSocket.connect(path: path)
    _ = fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK)
    var time = timeval(tv_sec: seconds, tv_usec: 0)
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, socklen_t(MemoryLayout<timeval>.size))
    _ = try receive(18)
    let option = Array("IHAVEOPT".utf8) + big(UInt32(7)) + big(UInt32(export.utf8.count + 6))
    try send(big(UInt32(3)) + option + big(UInt32(export.utf8.count)) + Array(export.utf8) + big(UInt16(0)))
    while true {
      let head = try receive(20)
      let type = number(head, 12, UInt32.self)
      let data = try receive(Int(number(head, 16, UInt32.self)))
      if type == 1 { return }
      guard type == 3 else { throw TestEnvironmentError("the export \(export) is refused: \(type)") }
      if number(data, 0, UInt16.self) == 0 { size = number(data, 2, UInt64.self) }
    }
  }

  deinit { close(fd) }

  /// Does a request: the error of its answer, 0 where it succeeded, and what was read.
  func perform(
    _ command: Command, at offset: UInt64 = 0, length: Int = 0, _ content: [UInt8] = [], flags: UInt16 = 0
  ) throws -> (error: UInt32, data: [UInt8]) {
    let cookie = try begin(command, at: offset, length: length, content, flags: flags)
    return try answer(to: cookie, reading: command == .read ? length : 0)
  }

  /// Sends a request, whose answer is taken later; its number.
  func begin(
    _ command: Command, at offset: UInt64 = 0, length: Int = 0, _ content: [UInt8] = [], flags: UInt16 = 0
  ) throws -> UInt64 {
    cookie += 1
    let length = command == .write ? content.count : length
    let header = big(UInt32(0x2560_9513)) + big(flags) + big(command.rawValue)
    try send(header + big(cookie) + big(offset) + big(UInt32(length)) + (command == .write ? content : []))
    return cookie
  }

  /// The next answer, which has to be to that request.
  func answer(to cookie: UInt64, reading length: Int = 0) throws -> (error: UInt32, data: [UInt8]) {
    let answer = try receive(16)
    guard number(answer, 0, UInt32.self) == 0x6744_6698, number(answer, 8, UInt64.self) == cookie else {
      throw TestEnvironmentError("an answer that is none: \(answer)")
    }
    let error = number(answer, 4, UInt32.self)
    return (error, error == 0 ? try receive(length) : [])
  }

  private func send(_ bytes: [UInt8]) throws {
    var done = 0
    while done < bytes.count {
      let count = bytes[done...].withUnsafeBytes { Glibc.send(fd, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
      guard count > 0 else { throw TestEnvironmentError("the server takes nothing: errno \(errno)") }
      done += count
    }
  }

  private func receive(_ count: Int) throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var done = 0
    while done < count {
      let part = bytes.withUnsafeMutableBytes { recv(fd, $0.baseAddress.map { $0 + done }, count - done, 0) }
      guard part > 0 else { throw TestEnvironmentError("the server closed, or does not answer: errno \(errno)") }
      done += part
    }
    return bytes
  }

  private func big<Number: FixedWidthInteger>(_ value: Number) -> [UInt8] {
    (0..<Number.bitWidth / 8).reversed().map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) }
  }

  private func number<Number: FixedWidthInteger>(_ bytes: [UInt8], _ offset: Int, _ type: Number.Type) -> Number {
    bytes[offset..<offset + Number.bitWidth / 8].reduce(0) { $0 << 8 | Number($1) }
  }
}
