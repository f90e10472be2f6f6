public import JSON
import Synchronization

/// JSON texts both ways over a unix socket, without any meaning attached: the transport of QMP, where events stand
/// between the responses.
///
/// One task at a time reads; any number send. What the reader does not take yet is bounded: the peer is held back.
public final class JSONStream: Sendable, AsyncSequence {
  public typealias Element = JSONValue

  private struct State {
    var values: [JSONValue] = []
    var waiter: CheckedContinuation<JSONValue?, any Error>?
    var end: JSONRPCError?
  }

  private final class Inbox: Sendable {
    let state = Mutex(State())
  }

  /// How many received values may wait for the reader.
  public static let maximumWaiting = 1024

  private let inbox: Inbox
  private let connection: JSONConnection

  /// Connects to the socket at `path`.
  public static func connect(path: String, maximumLength: Int = 32 << 20) throws(JSONRPCError) -> JSONStream {
    JSONStream(adopting: try UnixSocket.connect(path: path), maximumLength: maximumLength)
  }

  /// Takes over a connected, non-blocking stream socket.
  public init(adopting fd: CInt, maximumLength: Int = 32 << 20) {
    let inbox = Inbox()
    let relay = Relay()
    self.inbox = inbox
    self.connection = JSONConnection(
      adopting: fd, maximumLength: maximumLength,
      onValue: { value in
        inbox.state.withLock { state in
          if let waiter = state.waiter {
            state.waiter = nil
            waiter.resume(returning: value)
            return
          }
          state.values.append(value)
          // Inside the lock, so that pausing and going on keep the order of what caused them.
          if state.values.count >= JSONStream.maximumWaiting { relay.connection?.pause() }
        }
      },
      onClose: { reason in
        inbox.state.withLock { state in
          state.end = reason
          guard let waiter = state.waiter else { return }
          state.waiter = nil
          JSONStream.resume(waiter, reason)
        }
      })
    relay.set(connection)
    connection.start()
  }

  deinit { connection.close() }

  /// Lets the callbacks reach the connection that they belong to, without keeping it alive.
  private final class Relay: Sendable {
    private struct Weak { weak var connection: JSONConnection? }
    private let box = Mutex(Weak())
    var connection: JSONConnection? { box.withLock { $0.connection } }
    func set(_ connection: JSONConnection) { box.withLock { $0.connection = connection } }
  }

  /// Sends one value; returns as soon as it is queued.
  public func send(_ value: JSONValue) throws(JSONRPCError) {
    try connection.send(value, operation: "send")
  }

  /// The next value from the peer, or nil where the peer closed the connection in order, or this side did.
  ///
  /// Throws a `JSONRPCError` where the connection broke or the peer sent garbage, and `CancellationError`.
  public func next() async throws -> JSONValue? {
    try Task.checkCancellation()
    return try await withTaskCancellationHandler {
      try await withCheckedThrowingContinuation { (waiter: CheckedContinuation<JSONValue?, any Error>) in
        inbox.state.withLock { state in
          if !state.values.isEmpty {
            waiter.resume(returning: state.values.removeFirst())
            if state.values.count <= JSONStream.maximumWaiting / 2 { connection.unpause() }
            return
          }
          if let end = state.end {
            JSONStream.resume(waiter, end)
          } else if Task.isCancelled {
            waiter.resume(throwing: CancellationError())
          } else if let other = state.waiter {
            // Two readers would tear the stream apart: the earlier one gives way.
            other.resume(throwing: CancellationError())
            state.waiter = waiter
          } else {
            state.waiter = waiter
          }
        }
      }
    } onCancel: {
      let waiter = inbox.state.withLock { state -> CheckedContinuation<JSONValue?, any Error>? in
        defer { state.waiter = nil }
        return state.waiter
      }
      waiter?.resume(throwing: CancellationError())
    }
  }

  /// Closes the connection; the reader sees the end of the stream.
  public func close() { connection.close() }

  private static func resume(_ waiter: CheckedContinuation<JSONValue?, any Error>, _ end: JSONRPCError) {
    if end.code == .closed { waiter.resume(returning: nil) } else { waiter.resume(throwing: end) }
  }

  public struct AsyncIterator: AsyncIteratorProtocol {
    let stream: JSONStream
    public func next() async throws -> JSONValue? { try await stream.next() }
  }

  public func makeAsyncIterator() -> AsyncIterator { AsyncIterator(stream: self) }
}
