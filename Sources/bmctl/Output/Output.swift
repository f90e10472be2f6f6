import CLinux
import Glibc
import Synchronization

/// Standard output and standard error, unbuffered, so that lines of both come in the order in which they were written.
enum Output {
  static func line(_ text: String) { write(text + "\n", to: 1) }

  static func error(_ text: String) { write(text + "\n", to: 2) }

  static func write(_ text: String, to descriptor: CInt) {
    var bytes = Array(text.utf8)[...]
    while !bytes.isEmpty {
      let count = bytes.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
      if count < 0 {
        if errno == EINTR { continue }
        // The reader of a pipe went away (`bmctl get | head`): nobody is there to tell.
        if errno == EPIPE, descriptor == 1 { exit(0) }
        return
      }
      bytes = bytes.dropFirst(count)
    }
  }

  /// Rows of the terminal of standard output; 24 where there is none.
  static func rows() -> Int {
    var (rows, columns): (CUnsignedShort, CUnsignedShort) = (0, 0)
    guard clinux_terminal_size(1, &rows, &columns) == 0, rows > 0 else { return 24 }
    return Int(rows)
  }

  /// Columns of the terminal behind `descriptor`; 80 where there is none.
  static func columns(of descriptor: CInt = 1) -> Int {
    var (rows, columns): (CUnsignedShort, CUnsignedShort) = (0, 0)
    guard clinux_terminal_size(descriptor, &rows, &columns) == 0, columns > 0 else { return 80 }
    return Int(columns)
  }
}

/// A line that is written anew while something goes on; in a log, a line of its own for each thing that is new.
struct ProgressLine {
  private let isTerminal = isatty(2) == 1
  private var shown = false
  private var lastKey = ""

  /// - Parameters:
  ///   - text: What a terminal shows.
  ///   - key: In a log, the text is printed only when this has changed.
  mutating func show(_ text: String, key: String) {
    if isTerminal {
      Output.write("\r\u{1B}[K" + TextWidth.truncated(text, to: max(20, Output.columns(of: 2) - 1)), to: 2)
      shown = true
    } else if key != lastKey {
      Output.error(text)
    }
    lastKey = key
  }

  /// Ends the line, leaving it as it is.
  mutating func keep() {
    if shown { Output.write("\n", to: 2) }
    shown = false
  }

  /// Takes the line away.
  mutating func clear() {
    if shown { Output.write("\r\u{1B}[K", to: 2) }
    shown = false
  }
}
