import CLinux
import Dispatch
import Glibc
public import JSON
import Synchronization

/// A server of JSON-RPC 2.0 over a unix socket, as SPDK's is: requests without framing, one after the other or in
/// batches, and a connection that is closed where it sends what is not JSON.
///
/// Requests are handed on one at a time, in the order of their arrival; answers may come later and in any order.
public final class JSONRPCServer: Sendable {
  /// Answers one request. It must not block; `reply` is called exactly once, from any thread.
  public typealias Handler =
    @Sendable (_ request: Request, _ reply: @escaping @Sendable (Result<JSONValue, ResponseError>) -> Void) -> Void

  private struct State {
    var source: SharedSource<any DispatchSourceRead>?
    var connections: [ObjectIdentifier: (connection: JSONConnection, client: Client)] = [:]
    var isClosed = false
    /// How many clients there have been.
    var accepted: UInt64 = 0
    /// No descriptor was free for a client: nobody is taken for a moment.
    var isHeldBack = false
  }

  /// How many clients may be connected, and how many requests one of them may have open.
  public static let maximumConnections = 64
  public static let maximumOpenRequests = 256
  /// How many texts of one client may wait for their turn; then the client is held back.
  public static let maximumWaiting = 32

  public let path: String
  private let handler: Handler
  private let maximumLength: Int
  private let queue = DispatchQueue(label: "JSONRPCServer")
  private let state = Mutex(State())

  /// - Parameter maximumLength: the longest request, in bytes.
  public init(path: String, maximumLength: Int = 1 << 20, handler: @escaping Handler) {
    self.path = path
    self.maximumLength = maximumLength
    self.handler = handler
  }

  /// Runs `work` between two requests.
  public func run(_ work: @escaping @Sendable () -> Void) { queue.async(execute: work) }

  /// Begins to listen. The socket is open to the owner of this process only.
  public func start() throws(JSONRPCError) {
    let fd = try UnixSocket.listen(path: path)
    let source = DispatchSource.makeReadSource(fileDescriptor: fd, queue: queue)
    source.setEventHandler { [weak self] in self?.accept(fd) }
    source.setCancelHandler { close(fd) }
    let shared = SharedSource(source)
    state.withLock { $0.source = shared }
    shared.source.resume()
  }

  /// Ends listening, removes the socket and closes all connections.
  public func stop() {
    let connections = state.withLock { state -> [JSONConnection] in
      guard !state.isClosed else { return [] }
      state.isClosed = true
      unlink(path)
      // A source that is suspended cannot be let go.
      if state.isHeldBack { state.source?.source.resume() }
      state.isHeldBack = false
      state.source?.source.cancel()
      state.source = nil
      defer { state.connections = [:] }
      return state.connections.values.map(\.connection)
    }
    for connection in connections { connection.closeAfterFlush() }
  }

  private func accept(_ listener: CInt) {
    while true {
      let fd = clinux_accept(listener)
      guard fd >= 0 else {
        let error = errno
        if error == EAGAIN { return }
        if error == ECONNABORTED || error == EINTR { continue }
        return holdBack()
      }
      guard makeRoom() else {
        close(fd)
        continue
      }
      serve(fd)
    }
  }

  /// Takes nobody for a moment: the socket stays readable, and asking again at once would take a whole processor.
  private func holdBack() {
    state.withLock { state in
      guard let source = state.source, !state.isHeldBack else { return }
      state.isHeldBack = true
      source.source.suspend()
    }
    queue.asyncAfter(deadline: .now() + .milliseconds(100)) { [weak self] in
      self?.state.withLock { state in
        guard state.isHeldBack else { return }
        state.isHeldBack = false
        state.source?.source.resume()
      }
    }
  }

  /// False where there are as many clients as may be. Who connected and never asked for anything makes room for the
  /// next one, the oldest first: connections that only wait must not keep out the operator.
  private func makeRoom() -> Bool {
    let (hasRoom, oldest) = state.withLock { state -> (Bool, JSONConnection?) in
      guard !state.isClosed else { return (false, nil) }
      guard state.connections.count >= JSONRPCServer.maximumConnections else { return (true, nil) }
      let silent = state.connections.filter { !$0.value.client.hasAsked }
      guard let oldest = silent.min(by: { $0.value.client.number < $1.value.client.number }) else {
        return (false, nil)
      }
      state.connections.removeValue(forKey: oldest.key)
      return (true, oldest.value.connection)
    }
    oldest?.close(
      JSONRPCError(code: .overloaded, operation: "accept", message: "too many clients, and this one asked for nothing"))
    return hasRoom
  }

  private func serve(_ fd: CInt) {
    let client = Client(
      number: state.withLock { state in
        state.accepted &+= 1
        return state.accepted
      })
    let connection = JSONConnection(
      adopting: fd, maximumLength: maximumLength,
      onValue: { [weak self] value in
        guard let self, let connection = client.connection else { return }
        // Counted here and not on the server's queue: a handler that takes its time would let them pile up there.
        client.arrived()
        queue.async {
          self.receive(value, connection, client)
          client.taken()
        }
      },
      onClose: { [weak self] _ in
        guard let connection = client.connection else { return }
        // Also when the server itself is gone: the connection and what is known of it hold each other until here, and
        // with them the socket.
        client.set(nil)
        _ = self?.state.withLock { $0.connections.removeValue(forKey: ObjectIdentifier(connection)) }
      })
    client.set(connection)
    state.withLock { $0.connections[ObjectIdentifier(connection)] = (connection, client) }
    connection.start()
  }

  /// What the server knows of a connection.
  private final class Client: Sendable {
    private struct State {
      var connection: JSONConnection?
      var openRequests = 0
      var waiting = 0
      var hasAsked = false
    }
    private let state = Mutex(State())
    /// In the order in which clients connected.
    let number: UInt64

    init(number: UInt64) { self.number = number }

    /// Whether it has sent a whole text.
    var hasAsked: Bool { state.withLock { $0.hasAsked } }
    var connection: JSONConnection? { state.withLock { $0.connection } }
    func set(_ connection: JSONConnection?) { state.withLock { $0.connection = connection } }

    // Pausing and going on happen inside the lock, so that they keep the order of what caused them.

    /// Counts a text that waits for its turn.
    func arrived() {
      state.withLock { state in
        state.waiting += 1
        state.hasAsked = true
        if state.waiting >= JSONRPCServer.maximumWaiting { state.connection?.pause() }
      }
    }

    func taken() {
      state.withLock { state in
        state.waiting -= 1
        if state.waiting <= JSONRPCServer.maximumWaiting / 2 { state.connection?.unpause() }
      }
    }

    /// Counts a request in; false where the client has too many.
    func open() -> Bool {
      state.withLock { state in
        guard state.openRequests < JSONRPCServer.maximumOpenRequests else { return false }
        state.openRequests += 1
        return true
      }
    }

    func close() { state.withLock { $0.openRequests -= 1 } }
  }

  private func receive(_ value: JSONValue, _ connection: JSONConnection, _ client: Client) {
    guard client.open() else {
      return connection.close(
        JSONRPCError(code: .overloaded, operation: "receive", message: "too many open requests"))
    }
    answer(value) { answer in
      client.close()
      guard let answer else { return }
      try? connection.send(answer, operation: "reply")
    }
  }

  /// Answers a request or a batch; nil where there is nothing to answer.
  private func answer(_ value: JSONValue, _ reply: @escaping @Sendable (JSONValue?) -> Void) {
    guard let batch = value.arrayValue else { return answerOne(value, reply) }
    guard !batch.isEmpty, batch.count <= JSONRPCServer.maximumOpenRequests else {
      return reply(Response(id: .null, result: .failure(.invalidRequest)).json)
    }
    let collector = Collector(count: batch.count, reply: reply)
    for (index, element) in batch.enumerated() {
      answerOne(element) { collector.add($0, at: index) }
    }
  }

  /// Gathers the answers of a batch in the order of its requests.
  private final class Collector: Sendable {
    private let answers: Mutex<(left: Int, values: [JSONValue?])>
    private let reply: @Sendable (JSONValue?) -> Void

    init(count: Int, reply: @escaping @Sendable (JSONValue?) -> Void) {
      answers = Mutex((left: count, values: Array(repeating: nil, count: count)))
      self.reply = reply
    }

    func add(_ answer: JSONValue?, at index: Int) {
      let complete = answers.withLock { answers -> [JSONValue]? in
        answers.values[index] = answer
        answers.left -= 1
        return answers.left == 0 ? answers.values.compactMap { $0 } : nil
      }
      guard let complete else { return }
      reply(complete.isEmpty ? nil : .array(complete))
    }
  }

  private func answerOne(_ value: JSONValue, _ reply: @escaping @Sendable (JSONValue?) -> Void) {
    switch Request.parse(value) {
    case .failure(let error):
      reply(Response(id: .null, result: .failure(error)).json)
    case .success(let request):
      handler(request) { result in
        reply(request.id.map { Response(id: $0, result: result).json })
      }
    }
  }
}
