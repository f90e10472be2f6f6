import CLinux
import Glibc

/// Carries bytes between the user's terminal and a serial console, until the detach key.
///
/// One loop around poll(2) and nothing else: idle hours cost nothing and end nothing, and a flood of output cannot hold
/// up the detach key, because every turn looks at the keyboard too. Queues are bounded: where the guest does not read,
/// the keyboard is not read either; where the terminal does not, the console is not, and its server drops what is too
/// much.
struct ConsoleSession {
  enum Ending: Sendable, Hashable {
    case detached
    /// Standard input ended (a pipe), and the guest has been quiet for a moment.
    case inputEnded
    case signal(CInt)
  }

  private static let queueMax = 64 << 10
  private static let chunk = 4096
  private static let reconnectIntervalMs: Int32 = 500
  /// After the end of a piped input: how long the guest must be quiet.
  private static let quietMs: Int32 = 1000

  let line: any ConsoleLine
  let key: DetachKey
  /// Types `stty` with the terminal's size when the session starts and when the size changes.
  let sendsSize: Bool
  /// Where there is no terminal: how long to try to reach a console that went away.
  let reconnectLimitSeconds: Int

  private var socket: CInt = -1
  private var toGuest: [UInt8] = []
  private var toTerminal: [UInt8] = []
  private var filter: DetachFilter
  private var inputEnded = false
  private var lostAt: ContinuousClock.Instant?

  init(line: any ConsoleLine, key: DetachKey, sendsSize: Bool, reconnectLimitSeconds: Int = 30) {
    self.line = line
    self.key = key
    self.sendsSize = sendsSize
    self.reconnectLimitSeconds = reconnectLimitSeconds
    filter = DetachFilter(key: key)
  }

  mutating func run() throws -> Ending {
    try connect()
    defer {
      line.end()
      if socket >= 0 { close(socket) }
    }
    let signals = try SignalPipe.open([SIGTERM, SIGHUP, SIGWINCH, SIGINT])
    defer { close(signals) }
    let terminal = RawTerminal()
    if terminal.isTerminal {
      Output.write("Connected to \(line). \(key.byte == nil ? "" : "\(key.name) ends the session.")\r\n", to: 2)
    }
    if sendsSize { typeSize() }
    while true {
      if let ending = try turn(signals: signals, isTerminal: terminal.isTerminal) {
        if terminal.isTerminal { Output.write("\r\n", to: 2) }
        return ending
      }
    }
  }

  private mutating func turn(signals: CInt, isTerminal: Bool) throws -> Ending? {
    var wanted = [
      pollfd(fd: inputEnded || toGuest.count >= Self.queueMax ? -1 : 0, events: Int16(POLLIN), revents: 0),
      pollfd(fd: toTerminal.isEmpty ? -1 : 1, events: Int16(POLLOUT), revents: 0),
      pollfd(fd: socket, events: socketEvents, revents: 0),
      pollfd(fd: signals, events: Int16(POLLIN), revents: 0),
    ]
    var timeout: CInt = -1
    if inputEnded, toGuest.isEmpty, toTerminal.isEmpty { timeout = Self.quietMs }
    if socket < 0 { timeout = Self.reconnectIntervalMs }
    let count = poll(&wanted, nfds_t(wanted.count), timeout)
    if count < 0 {
      guard errno == EINTR else { throw failure("poll") }
      return nil
    }
    if count == 0 {
      if socket >= 0 { return inputEnded && line.isConnected ? .inputEnded : nil }
      try reconnect(isTerminal: isTerminal)
      return nil
    }
    if wanted[3].revents != 0, let ending = takeSignals(signals) { return ending }
    if wanted[0].revents != 0, try readInput() { return .detached }
    if wanted[2].revents & Int16(POLLOUT) != 0 { flushToGuest() }
    if wanted[2].revents & Int16(POLLIN | POLLHUP | POLLERR) != 0 { try readSocket(isTerminal: isTerminal) }
    if wanted[1].revents != 0 { try flushToTerminal() }
    return nil
  }

  private var socketEvents: Int16 {
    Int16(toTerminal.count < Self.queueMax ? POLLIN : 0) | Int16(toGuest.isEmpty ? 0 : POLLOUT)
  }

  // MARK: - The keyboard and the screen

  /// - Returns: Whether the detach key was typed.
  private mutating func readInput() throws -> Bool {
    var buffer = [UInt8](repeating: 0, count: Self.chunk)
    let count = read(0, &buffer, buffer.count)
    if count < 0, errno == EINTR || errno == EAGAIN { return false }
    if count <= 0 {
      inputEnded = true
      return false
    }
    let result = filter.feed(buffer[..<count])
    toGuest += result.forward
    flushToGuest()
    return result.detached
  }

  private mutating func flushToTerminal() throws {
    // A terminal that is ready takes a little at least; more could block while a key waits.
    let count = toTerminal.withUnsafeBytes { write(1, $0.baseAddress, min($0.count, 1024)) }
    if count > 0 { toTerminal.removeFirst(count) }
    if count < 0, errno != EINTR, errno != EAGAIN { throw failure("write to the terminal") }
  }

  private mutating func takeSignals(_ descriptor: CInt) -> Ending? {
    var numbers = [UInt8](repeating: 0, count: 64)
    let count = read(descriptor, &numbers, numbers.count)
    guard count > 0 else { return nil }
    for number in numbers[..<count] {
      if CInt(number) != SIGWINCH { return .signal(CInt(number)) }
      if sendsSize { typeSize() }
    }
    return nil
  }

  /// A serial line has no window size: where the user wants it, the guest's shell is told by typing.
  private mutating func typeSize() {
    var (rows, columns): (CUnsignedShort, CUnsignedShort) = (0, 0)
    guard clinux_terminal_size(0, &rows, &columns) == 0, rows > 0, columns > 0 else { return }
    toGuest += Array(" stty rows \(rows) columns \(columns)\r".utf8)
    flushToGuest()
  }

  // MARK: - The console

  private mutating func connect() throws {
    guard try open() else { throw failure("console at \(line)") }
  }

  /// - Returns: Whether there is a connection; errno tells why not.
  private mutating func open() throws -> Bool {
    guard let descriptor = try line.open() else { return false }
    socket = descriptor
    return true
  }

  private mutating func reconnect(isTerminal: Bool) throws {
    if let refusal = line.refusal { throw refusal }
    if try open() {
      lostAt = nil
      notify("connected again", isTerminal: isTerminal)
      return
    }
    // A person can press the detach key; a script would wait for ever.
    if !isTerminal, let lostAt, lostAt.duration(to: .now) > .seconds(reconnectLimitSeconds) {
      throw CommandError(
        .unreachable, "console at \(line)",
        "the connection was lost and did not come back in \(reconnectLimitSeconds) s")
    }
  }

  private mutating func flushToGuest() {
    guard socket >= 0, !toGuest.isEmpty else { return }
    let count = toGuest.withUnsafeBytes { send(socket, $0.baseAddress, $0.count, CInt(MSG_NOSIGNAL)) }
    if count > 0 { toGuest.removeFirst(count) }
  }

  private mutating func readSocket(isTerminal: Bool) throws {
    var buffer = [UInt8](repeating: 0, count: Self.chunk)
    let count = read(socket, &buffer, buffer.count)
    if count > 0 {
      toTerminal += buffer[..<count]
    } else if count == 0 || (errno != EINTR && errno != EAGAIN) {
      close(socket)
      socket = -1
      // What was typed into a line that is gone must not come out in another one.
      toGuest = []
      if let refusal = line.refusal { throw refusal }
      lostAt = .now
      notify("the console is away; trying again", isTerminal: isTerminal)
    }
  }

  private func notify(_ text: String, isTerminal: Bool) {
    guard !line.tellsItself else { return }
    Output.write("\r\n[bmctl: \(text)]\(isTerminal ? "\r" : "")\n", to: 2)
  }

  private func failure(_ operation: String) -> CommandError {
    let reason = errno
    var remedy: String?
    switch reason {
    case ENOENT, ECONNREFUSED:
      remedy = "Its chassis does not run on this computer. For a local cloud: ycloud up."
    case EACCES, EPERM: remedy = "The console belongs to another user; run bmctl as the one who runs the cloud."
    default: break
    }
    return CommandError(.unreachable, operation, String(cString: strerror(reason)), remedy: remedy)
  }
}
