import CLinux
import Glibc
import Synchronization

/// The user's terminal in raw mode: every key goes to the guest, also Ctrl-C.
///
/// The old mode comes back when the session ends, whatever ends it short of SIGKILL.
struct RawTerminal: ~Copyable {
  private let saved: termios?

  /// Does nothing where standard input is not a terminal.
  init() {
    var mode = termios()
    guard isatty(0) == 1, tcgetattr(0, &mode) == 0 else {
      saved = nil
      return
    }
    saved = mode
    cfmakeraw(&mode)
    tcsetattr(0, TCSANOW, &mode)
  }

  var isTerminal: Bool { saved != nil }

  deinit {
    guard var mode = saved else { return }
    tcsetattr(0, TCSAFLUSH, &mode)
  }
}

/// Turns signals into bytes of a pipe, so that a loop around poll(2) sees them.
enum SignalPipe {
  private static let writer = Atomic<CInt>(-1)

  /// Starts to deliver `signals`; each arrives as one byte with its number at the returned descriptor.
  static func open(_ signals: [CInt]) throws -> CInt {
    var ends: [CInt] = [-1, -1]
    let status = clinux_pipe(&ends)
    guard status == 0 else {
      throw CommandError(.failure, "console", "no pipe: \(String(cString: strerror(errno)))")
    }
    for end in ends { _ = fcntl(end, F_SETFL, O_NONBLOCK) }
    writer.store(ends[1], ordering: .releasing)
    for number in signals {
      var action = sigaction()
      action.__sigaction_handler.sa_handler = { number in
        let saved = errno
        var byte = UInt8(truncatingIfNeeded: number)
        _ = Glibc.write(SignalPipe.writer.load(ordering: .acquiring), &byte, 1)
        errno = saved
      }
      action.sa_flags = SA_RESTART
      sigaction(number, &action, nil)
    }
    return ends[0]
  }
}
