import Dispatch
public import JSON
import Synchronization

/// A client of JSON-RPC 2.0 over a unix socket.
///
/// Calls run concurrently on one connection and are matched to their answers by identifier. The connection is made by
/// the first call and made anew by the first call after it broke; a call that was under way fails with `.closed`, as
/// only the caller knows whether it may be repeated.
public final class JSONRPCClient: Sendable {
  /// The socket's path.
  public let path: String
  /// How long a call waits for its answer where the call does not say otherwise.
  public let timeout: Duration
  /// How many calls may wait for answers at a time.
  public let maximumPending: Int
  private let maximumLength: Int
  private let onNotification: (@Sendable (Request) -> Void)?
  private let state = Mutex(State())

  fileprivate struct Pending {
    let method: String
    let continuation: CheckedContinuation<JSONValue, any Error>
    let timer: SharedSource<any DispatchSourceTimer>
  }

  private struct State {
    var connection: JSONConnection?
    /// Tells the connections of one client apart, so that the end of an old one does not touch a new one.
    var generation: UInt64 = 0
    var nextID: Int64 = 1
    var pending: [Int64: Pending] = [:]
    /// Calls that have an identifier but are not pending yet, and those of them that were cancelled meanwhile.
    var starting: Set<Int64> = []
    var cancelled: Set<Int64> = []
  }

  /// - Parameter onNotification: called for every request that the server sends on its own; it must not block.
  public init(
    path: String, timeout: Duration = .seconds(30), maximumPending: Int = 256, maximumLength: Int = 32 << 20,
    onNotification: (@Sendable (Request) -> Void)? = nil
  ) {
    self.path = path
    self.timeout = timeout
    self.maximumPending = maximumPending
    self.maximumLength = maximumLength
    self.onNotification = onNotification
  }

  deinit {
    let connection = state.withLock { $0.connection }
    connection?.close()
  }

  /// Calls a method and waits for its result.
  ///
  /// Throws a `JSONRPCError`, or `CancellationError`; a cancelled call may still be carried out.
  public func call(_ method: String, _ params: JSONValue? = nil, timeout: Duration? = nil) async throws -> JSONValue {
    let id = state.withLock { state in
      defer { state.nextID += 1 }
      state.starting.insert(state.nextID)
      return state.nextID
    }
    let request = Request(id: .integer(id), method: method, params: params)
    return try await withTaskCancellationHandler {
      try await withCheckedThrowingContinuation { continuation in
        begin(request, id: id, timeout: timeout ?? self.timeout, continuation)
      }
    } onCancel: {
      let pending = state.withLock { state -> Pending? in
        guard let pending = state.pending.removeValue(forKey: id) else {
          if state.starting.contains(id) { state.cancelled.insert(id) }
          return nil
        }
        return pending
      }
      pending?.fail(CancellationError())
    }
  }

  /// Sends a notification: a request that has no answer.
  public func notify(_ method: String, _ params: JSONValue? = nil) throws(JSONRPCError) {
    try connect().connection.send(Request(id: nil, method: method, params: params).json, operation: method)
  }

  /// Ends the connection; calls that wait fail with `.closed`. A later call connects again.
  public func disconnect() {
    let connection = state.withLock { $0.connection }
    connection?.close()
  }

  private func begin(
    _ request: Request, id: Int64, timeout: Duration, _ continuation: CheckedContinuation<JSONValue, any Error>
  ) {
    do throws(JSONRPCError) {
      let (connection, generation) = try connect()
      let timer = SharedSource(DispatchSource.makeTimerSource())
      let pending = Pending(method: request.method, continuation: continuation, timer: timer)
      timer.source.setEventHandler { [weak self] in self?.timeOut(id: id, timeout: timeout) }
      timer.source.schedule(deadline: .now() + .nanoseconds(timeout.nanoseconds))
      let refusal = state.withLock { state -> (any Error)? in
        state.starting.remove(id)
        if state.cancelled.remove(id) != nil { return CancellationError() }
        guard state.generation == generation else {
          return JSONRPCError(code: .closed, operation: request.method, message: "the server closed the connection")
        }
        guard state.pending.count < maximumPending else {
          return JSONRPCError(
            code: .overloaded, operation: request.method, message: "\(maximumPending) calls wait for their answers")
        }
        state.pending[id] = pending
        return nil
      }
      timer.source.resume()
      if let refusal { return pending.fail(refusal) }
      do throws(JSONRPCError) {
        try connection.send(request.json, operation: request.method)
      } catch {
        state.withLock { $0.pending.removeValue(forKey: id) }?.fail(error)
      }
    } catch {
      state.withLock { state in
        state.starting.remove(id)
        state.cancelled.remove(id)
      }
      continuation.resume(throwing: error)
    }
  }

  private func connect() throws(JSONRPCError) -> (connection: JSONConnection, generation: UInt64) {
    let result = state.withLock { state -> Result<(JSONConnection, UInt64), JSONRPCError> in
      if let connection = state.connection {
        // A server that was restarted since the last call is no reason for this one to fail.
        guard state.pending.isEmpty, connection.isHungUp else { return .success((connection, state.generation)) }
        connection.close()
        state.connection = nil
      }
      do throws(JSONRPCError) {
        let fd = try UnixSocket.connect(path: path)
        state.generation += 1
        let generation = state.generation
        let connection = JSONConnection(
          adopting: fd, maximumLength: maximumLength, onValue: { [weak self] in self?.receive($0) },
          onClose: { [weak self] in self?.closed(generation: generation, $0) })
        state.connection = connection
        connection.start()
        return .success((connection, generation))
      } catch {
        return .failure(error)
      }
    }
    return try result.get()
  }

  private func receive(_ value: JSONValue) {
    for element in value.arrayValue ?? [value] {
      if let response = Response(element) {
        guard let id = response.id.int64Value,
          let pending = state.withLock({ $0.pending.removeValue(forKey: id) })
        else { continue }
        pending.finish(response.result)
      } else if case .success(let request) = Request.parse(element) {
        onNotification?(request)
      }
    }
  }

  private func closed(generation: UInt64, _ reason: JSONRPCError) {
    let abandoned = state.withLock { state -> [Int64: Pending] in
      guard state.generation == generation else { return [:] }
      state.connection = nil
      defer { state.pending = [:] }
      // Calls that are about to register see that their connection is gone.
      state.generation += 1
      return state.pending
    }
    for pending in abandoned.values {
      pending.fail(JSONRPCError(code: reason.code, operation: pending.method, message: reason.message))
    }
  }

  private func timeOut(id: Int64, timeout: Duration) {
    guard let pending = state.withLock({ $0.pending.removeValue(forKey: id) }) else { return }
    pending.fail(
      JSONRPCError(code: .timeout, operation: pending.method, message: "\(path) did not answer within \(timeout)"))
  }
}

extension JSONRPCClient.Pending {
  fileprivate func fail(_ error: any Error) {
    timer.source.cancel()
    continuation.resume(throwing: error)
  }

  fileprivate func finish(_ result: Result<JSONValue, ResponseError>) {
    timer.source.cancel()
    switch result {
    case .success(let value): continuation.resume(returning: value)
    case .failure(let error):
      continuation.resume(
        throwing: JSONRPCError(
          code: .server(error.code), operation: method, message: error.message, data: error.data))
    }
  }
}

extension Duration {
  /// Whole nanoseconds, capped at 100 years so that arithmetic on deadlines does not overflow.
  fileprivate var nanoseconds: Int {
    let (seconds, attoseconds) = components
    return Int(min(seconds, 3_155_760_000)) * 1_000_000_000 + Int(attoseconds / 1_000_000_000)
  }
}
