import CLinux
import Glibc
import JSONRPC
import TestSupport

/// A client of NBD that says what it is told to, byte for byte.
final class RawNBDClient {
  let fd: Int32

  /// - Parameter receiveBuffer: how much the socket takes before it is read, in bytes; nil for the system's choice.
  init(port: Int, receiveBuffer: Int32? = nil) throws {
    fd = socket(AF_INET, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
    guard fd >= 0 else { throw TestEnvironmentError("no socket: \(errno)") }
    if var length = receiveBuffer {
      setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &length, socklen_t(MemoryLayout<Int32>.size))
    }
    // What does not come fails the test, and does not hang it.
    var limit = timeval(tv_sec: 20, tv_usec: 0)
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    guard connect(fd, port) == 0 else { throw TestEnvironmentError("cannot connect: \(errno)") }
  }

  deinit { close(fd) }

  func send(_ bytes: [UInt8]) {
    _ = bytes.withUnsafeBytes { Glibc.send(fd, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
  }

  /// The next bytes; fewer where the connection has ended before.
  func read(_ count: Int) -> [UInt8] {
    var bytes: [UInt8] = []
    while bytes.count < count {
      var part = [UInt8](repeating: 0, count: count - bytes.count)
      let got = recv(fd, &part, part.count, 0)
      guard got > 0 else { break }
      bytes += part.prefix(got)
    }
    return bytes
  }

  /// What comes until the server ends the connection; nil where it does not.
  func readToEnd() -> [UInt8]? {
    var bytes: [UInt8] = []
    var part = [UInt8](repeating: 0, count: 65536)
    while true {
      let got = recv(fd, &part, part.count, 0)
      if got > 0 { bytes += part.prefix(got) } else { return got == 0 || errno == ECONNRESET ? bytes : nil }
    }
  }

  /// Reads the greeting and answers it.
  func begin() throws {
    guard read(18).prefix(8) == Array("NBDMAGIC".utf8)[...] else { throw TestEnvironmentError("no greeting") }
    send([0, 0, 0, 3])
  }

  static func option(_ number: UInt8, _ data: [UInt8] = []) -> [UInt8] {
    Array("IHAVEOPT".utf8) + [0, 0, 0, number, 0, 0, UInt8(data.count >> 8), UInt8(data.count & 255)] + data
  }

  /// Types of answers that refuse an option.
  static let tlsRequired: UInt32 = 0x8000_0005
  static let unknownExport: UInt32 = 0x8000_0006

  static let list = option(3)
  static let startTLS = option(5)

  /// NBD_OPT_GO for an export, without requests for information.
  static func go(_ name: String) -> [UInt8] {
    option(7, [0, 0, 0, UInt8(name.utf8.count)] + Array(name.utf8) + [0, 0])
  }

  /// The type of the next answer to an option, and its data; nil where the connection has ended.
  func reply() -> (type: UInt32, data: [UInt8])? {
    let header = read(20)
    guard header.count == 20 else { return nil }
    let numbers = stride(from: 8, to: 20, by: 4).map { at in
      header[at..<at + 4].reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
    }
    return (numbers[1], read(Int(numbers[2])))
  }
}

/// Connects a socket to a port of this machine: 0, or -1 with the error in `errno`.
func connect(_ fd: Int32, _ port: Int) -> Int32 {
  var address = sockaddr_in()
  address.sin_family = sa_family_t(AF_INET)
  address.sin_port = in_port_t(UInt16(port).bigEndian)
  address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
  return withUnsafePointer(to: &address) { pointer in
    pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
      Glibc.connect(fd, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
    }
  }
}

/// How many descriptors this process has.
func descriptorCount() -> Int {
  guard let folder = opendir("/proc/self/fd") else { return -1 }
  defer { closedir(folder) }
  var count = 0
  while readdir(folder) != nil { count += 1 }
  return count
}

/// POLLRDHUP of poll(2), which glibc's module does not show: the peer has ended the connection.
let pollPeerEnded: Int16 = 0x2000
