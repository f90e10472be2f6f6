import CLinux
import Glibc
import IaaS
import JSON
import Kubernetes
import Synchronization

/// A serial console, as connected stream sockets.
protocol ConsoleLine: Sendable, CustomStringConvertible {
  /// A new connection, which does not block; nil where there is none, and errno tells why.
  func open() throws -> CInt?
  /// Whether what is written arrives somewhere.
  var isConnected: Bool { get }
  /// Whether it tells the user itself when it goes away and comes back.
  var tellsItself: Bool { get }
  /// Why it is of no use to try again.
  var refusal: CommandError? { get }
  /// The session is over: that the connection ends now is no news.
  func end()
}

/// A console that its chassis serves on this computer.
struct LocalConsoleLine: ConsoleLine {
  let address: ConsoleAddress

  var description: String { "\(address)" }
  var isConnected: Bool { true }
  var tellsItself: Bool { false }
  var refusal: CommandError? { nil }
  func end() {}

  func open() throws -> CInt? {
    let descriptor = Glibc.socket(AF_UNIX, CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue), 0)
    guard descriptor >= 0 else { return nil }
    var name = sockaddr_un()
    name.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &name.sun_path) { $0.copyBytes(from: Array(address.path.utf8)) }
    let status = withUnsafePointer(to: &name) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    guard status == 0 else {
      let reason = errno
      close(descriptor)
      errno = reason
      return nil
    }
    _ = fcntl(descriptor, F_SETFL, O_NONBLOCK)
    return descriptor
  }
}

/// A console through bm-api: a pair of sockets, of which one end is the session's, and the other is carried over a
/// WebSocket of the API server.
final class RemoteConsoleLine: ConsoleLine {
  private struct State {
    var isConnected = false
    /// Where on the console's tape the next byte is from; after a new connection it goes on there.
    var place: (epoch: String, offset: UInt64)?
    var takesOver: Bool
    var lostAt: ContinuousClock.Instant?
    var hasToldLoss = false
    var refusal: CommandError?
  }

  /// For how long a script tries to get a console back; a person can press the detach key.
  private static let patience: Duration = .seconds(30)

  let description: String
  private let client: KubernetesClient
  private let path: String
  private let isReadOnly: Bool
  private let isTerminal: Bool
  private let state: Mutex<State>
  private let sockets: AsyncStream<CInt>
  private let newSocket: AsyncStream<CInt>.Continuation

  init(
    client: KubernetesClient, path: String, description: String, takesOver: Bool, isReadOnly: Bool, isTerminal: Bool
  ) {
    self.client = client
    self.path = path
    self.description = description
    self.isReadOnly = isReadOnly
    self.isTerminal = isTerminal
    state = Mutex(State(takesOver: takesOver))
    (sockets, newSocket) = AsyncStream.makeStream(of: CInt.self, bufferingPolicy: .bufferingNewest(4))
  }

  var isConnected: Bool { state.withLock { $0.isConnected } }
  var tellsItself: Bool { true }
  var refusal: CommandError? { state.withLock { $0.refusal } }
  func end() { state.withLock { $0.hasToldLoss = true } }

  func open() throws -> CInt? {
    var ends: [CInt] = [-1, -1]
    let kind = CInt(SOCK_STREAM.rawValue) | CInt(SOCK_CLOEXEC.rawValue) | CInt(SOCK_NONBLOCK.rawValue)
    guard socketpair(AF_UNIX, kind, 0, &ends) == 0 else { return nil }
    newSocket.yield(ends[1])
    return ends[0]
  }

  /// Carries the sessions' sockets, one after the other, until cancelled.
  func run() async {
    for await socket in sockets {
      var query: [(String, String)] = []
      let (place, takesOver) = state.withLock { ($0.place, $0.takesOver) }
      if let place { query.append(("since", "\(place.epoch).\(place.offset)")) }
      if takesOver { query.append(("takeover", "true")) }
      if isReadOnly { query.append(("readOnly", "true")) }
      do {
        try await client.carry(
          path: path, query: query, subprotocol: "console.iaas.yusur.io", over: socket,
          onEvent: { [self] event in take(event) })
        lost(nil)
      } catch {
        lost(error)
      }
    }
  }

  private func lost(_ error: (any Error)?) {
    let error = error as? KubernetesError
    let tells = state.withLock { state -> Bool in
      state.isConnected = false
      let since = state.lostAt ?? .now
      state.lostAt = since
      if let error, !error.isTransient {
        state.refusal = CommandError(error)
      } else if !isTerminal, since.duration(to: .now) > Self.patience {
        state.refusal = CommandError(
          .unreachable, description, error?.message ?? "the connection was lost and did not come back in 30 s")
      }
      defer { state.hasToldLoss = true }
      return !state.hasToldLoss && state.refusal == nil
    }
    if tells { tell("the console is away; trying again") }
  }

  private func take(_ event: WebSocketEvent) {
    switch event {
    case .opened:
      let isBack = state.withLock { state in
        state.isConnected = true
        state.lostAt = nil
        defer { state.hasToldLoss = false }
        // Who took the line once does not take it back from somebody who took it since.
        state.takesOver = false
        return state.hasToldLoss
      }
      if isBack { tell("connected again") }
    case .delivered(let count):
      state.withLock { state in
        if let place = state.place { state.place = (place.epoch, place.offset + UInt64(count)) }
      }
    case .text(let bytes):
      guard let notice = try? JSONValue.parse(bytes) else { return }
      note(notice)
    case .closed(let code, let reason):
      // 1000 and 1008: the server means it. 1001, 1012, 1013: another may serve.
      guard code == 1008 else { return }
      let words = TextWidth.printable(reason)
      state.withLock { $0.refusal = CommandError(.refused, description, words.isEmpty ? "the server ended it" : words) }
    }
  }

  private func note(_ notice: JSONValue) {
    if let text = notice["place"]?.stringValue {
      let parts = text.split(separator: ".")
      if parts.count == 2, let offset = UInt64(parts[1]) {
        state.withLock { $0.place = (String(parts[0]), offset) }
      }
    }
    switch notice["type"]?.stringValue {
    case "skipped": tell("\(notice["bytes"]?.int64Value ?? 0) bytes skipped")
    case "refused": tell(notice["reason"]?.stringValue ?? "what was typed is lost")
    case "line" where notice["up"]?.boolValue == false: tell("the server's line is away")
    case "writer" where notice["you"]?.boolValue == false:
      if let user = notice["user"]?.stringValue { tell("\(user) has the line") }
    default: break
    }
  }

  private func tell(_ text: String) {
    Output.write("\r\n[bmctl: \(TextWidth.printable(text))]\(isTerminal ? "\r" : "")\n", to: 2)
  }
}
