import Glibc

/// Why a file could not be read or written.
package struct FileError: Error, Sendable, Hashable, CustomStringConvertible {
  /// What was tried, with the path: "write /var/lib/ycloud/x.json".
  package let operation: String
  /// The kernel's error number; EFBIG where a file is longer than its reader takes.
  package let number: CInt

  package init(_ number: CInt, _ operation: String) {
    self.number = number
    self.operation = operation
  }

  /// The number in words.
  package var reason: String {
    if number == EFBIG { return "it is longer than its reader takes" }
    var text = [CChar](repeating: 0, count: 128)
    // SAFETY: the buffer's length goes with it, and the text is read up to its first zero.
    guard unsafe strerror_r(number, &text, text.count) == 0 else { return "error \(number)" }
    return String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  package var description: String { "\(operation): \(reason)" }
}
