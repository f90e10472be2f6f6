import CLinux
import Glibc

/// A name at a fixed address: of a device, or of who asks for its requests. The hot path copies it without allocating.
///
/// SAFETY: at an address, it is allocated and freed by those whose name it is; requests that carry the address do not
/// outlive them.
struct IOLabel {
  /// What is kept of a name, in bytes of UTF-8.
  static let capacity = 119

  private var count: UInt8 = 0
  private var bytes = InlineArray<119, UInt8>(repeating: 0)

  init(_ text: String) {
    for byte in text.utf8.prefix(IOLabel.capacity) {
      bytes[Int(count)] = byte
      count += 1
    }
  }

  var text: String {
    String(decoding: (0..<Int(count)).map { bytes[$0] }, as: UTF8.self)
  }

  /// At an address of its own, which `deallocate` gives back.
  static func make(_ text: String) -> UnsafeMutablePointer<IOLabel> {
    let label = UnsafeMutablePointer<IOLabel>.allocate(capacity: 1)
    unsafe label.initialize(to: IOLabel(text))
    return unsafe label
  }

  /// The address of a socket's peer without its port; "unix" for unix sockets.
  static func host(of fd: CInt) -> String {
    let name = peer(of: fd).drop { $0 == " " || $0 == "[" }
    guard let colon = name.lastIndex(of: ":") else { return "unix" }
    let host = name[..<colon]
    return String(host.last == "]" ? host.dropLast() : host)
  }

  /// The address of a socket's peer with a space before it; empty for unix sockets.
  static func peer(of fd: CInt) -> String {
    var buffer = [CChar](repeating: 0, count: 64)
    guard unsafe clinux_peer_name(fd, &buffer, buffer.count) > 0 else { return "" }
    return " " + String(decoding: buffer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }
}
