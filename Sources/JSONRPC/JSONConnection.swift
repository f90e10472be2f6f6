import Dispatch
import Glibc
package import JSON
import Synchronization

/// A connected socket that carries JSON texts in both directions, driven by its own serial queue.
///
/// Received values go to `onValue`, in order; `onClose` comes exactly once, after the last of them. Both are called on
/// the queue, and must not block.
package final class JSONConnection: Sendable {
  private struct State {
    var isClosed = false
    var isPaused = false
    var isWriting = false
    var outbox: [UInt8] = []
    var outboxSent = 0
    var splitter: JSONSplitter
    var reader: SharedSource<any DispatchSourceRead>?
    var writer: SharedSource<any DispatchSourceWrite>?
  }

  /// The most bytes that may wait for a peer that does not read.
  package static let maximumOutbox = 64 << 20

  private let fd: CInt
  private let queue: DispatchQueue
  private let state: Mutex<State>
  private let onValue: @Sendable (JSONValue) -> Void
  private let onClose: @Sendable (JSONRPCError) -> Void

  /// Takes over a connected, non-blocking socket.
  package init(
    adopting fd: CInt, maximumLength: Int, onValue: @escaping @Sendable (JSONValue) -> Void,
    onClose: @escaping @Sendable (JSONRPCError) -> Void
  ) {
    self.fd = fd
    self.queue = DispatchQueue(label: "JSONConnection")
    self.state = Mutex(State(splitter: JSONSplitter(maximumLength: maximumLength)))
    self.onValue = onValue
    self.onClose = onClose
  }

  deinit {
    // The sources hold the connection while they live, so nothing watches the descriptor any more.
    Glibc.close(fd)
  }

  /// Begins to receive.
  package func start() {
    let source = DispatchSource.makeReadSource(fileDescriptor: fd, queue: queue)
    source.setEventHandler { self.readable() }
    // Until the cancel handler ran, the source keeps this object alive, and with it the descriptor.
    source.setCancelHandler { _ = self }
    let shared = SharedSource(source)
    let isClosed = state.withLock { state -> Bool in
      if !state.isClosed { state.reader = shared }
      return state.isClosed
    }
    // A source has to run before it can be let go.
    shared.source.resume()
    // Closed before it began: nobody else would take the source away again.
    if isClosed { shared.source.cancel() }
  }

  /// Sends a value; returns as soon as it is queued.
  package func send(_ value: JSONValue, operation: String) throws(JSONRPCError) {
    let bytes = value.serialize()
    let failure = state.withLock { state -> JSONRPCError? in
      if state.isClosed {
        return JSONRPCError(code: .closed, operation: operation, message: "the connection is closed")
      }
      guard state.outbox.count - state.outboxSent + bytes.count <= JSONConnection.maximumOutbox else {
        return JSONRPCError(
          code: .overloaded, operation: operation,
          message: "more than \(JSONConnection.maximumOutbox) bytes wait for the peer to read")
      }
      state.outbox.append(contentsOf: bytes)
      return nil
    }
    if let failure { throw failure }
    queue.async { self.flush() }
  }

  /// Stops receiving until `unpause`; the peer then feels back-pressure. Called within `onValue` it counts at once:
  /// values that arrived together with that one wait as bytes.
  package func pause() {
    state.withLock { state in
      guard !state.isPaused, !state.isClosed else { return }
      state.isPaused = true
      state.reader?.source.suspend()
    }
  }

  package func unpause() {
    let wasPaused = state.withLock { state -> Bool in
      guard state.isPaused else { return false }
      state.isPaused = false
      state.reader?.source.resume()
      return true
    }
    guard wasPaused else { return }
    // What arrived before the pause may be all there is: the socket need not become readable again.
    queue.async { self.deliver() }
  }

  /// Closes the connection; `onClose` follows on the queue.
  package func close(
    _ reason: JSONRPCError = JSONRPCError(code: .closed, operation: "close", message: "closed by this side")
  ) {
    queue.async { self.finish(reason) }
  }

  /// Closes the connection after everything queued has been handed to the kernel, as far as the peer takes it. Nothing
  /// is received any more when this returns. Not to be called on the connection's own queue.
  package func closeAfterFlush() {
    queue.sync {
      flush()
      finish(JSONRPCError(code: .closed, operation: "close", message: "closed by this side"))
    }
  }

  /// Whether the peer is gone, also where that has not been worked on yet.
  package var isHungUp: Bool {
    var entry = pollfd(fd: fd, events: 0, revents: 0)
    return poll(&entry, 1, 0) == 1 && entry.revents & Int16(POLLHUP | POLLERR) != 0
  }

  private func readable() {
    // Bytes are taken only when those before them are used up, so that not more than one chunk waits.
    guard deliver() else { return }
    var chunk = [UInt8](repeating: 0, count: 1 << 16)
    let count = chunk.withUnsafeMutableBytes { recv(fd, $0.baseAddress, $0.count, 0) }
    if count < 0 {
      if errno == EAGAIN || errno == EINTR { return }
      return finish(JSONRPCError(code: .closed, operation: "receive", message: UnixSocket.text(errno)))
    }
    if count == 0 {
      return finish(JSONRPCError(code: .closed, operation: "receive", message: "the peer closed the connection"))
    }
    state.withLock { $0.splitter.append(chunk[..<count]) }
    deliver()
  }

  /// Hands on the values that have arrived. False where some are left because of a pause, or the connection has ended.
  @discardableResult
  private func deliver() -> Bool {
    while true {
      do {
        let (value, isReceiving) = try state.withLock { state -> (JSONValue?, Bool) in
          guard !state.isClosed, !state.isPaused else { return (nil, false) }
          return (try state.splitter.next(), true)
        }
        guard let value else { return isReceiving }
        onValue(value)
      } catch {
        finish(JSONRPCError(code: .malformed, operation: "receive", message: "the peer sent \(error)"))
        return false
      }
    }
  }

  private func flush() {
    let failure = state.withLock { state -> JSONRPCError? in
      guard !state.isClosed else { return nil }
      while state.outboxSent < state.outbox.count {
        let count = state.outbox[state.outboxSent...].withUnsafeBytes {
          Glibc.send(fd, $0.baseAddress, $0.count, CInt(MSG_NOSIGNAL))
        }
        if count >= 0 {
          state.outboxSent += count
        } else if errno == EAGAIN {
          waitUntilWritable(&state)
          return nil
        } else if errno != EINTR {
          return JSONRPCError(code: .closed, operation: "send", message: UnixSocket.text(errno))
        }
      }
      state.outbox.removeAll(keepingCapacity: state.outbox.count < 1 << 16)
      state.outboxSent = 0
      state.writer?.source.cancel()
      state.writer = nil
      return nil
    }
    if let failure { finish(failure) }
  }

  private func waitUntilWritable(_ state: inout State) {
    guard state.writer == nil else { return }
    let source = DispatchSource.makeWriteSource(fileDescriptor: fd, queue: queue)
    source.setEventHandler { self.flush() }
    source.setCancelHandler { _ = self }
    state.writer = SharedSource(source)
    source.resume()
  }

  private func finish(_ reason: JSONRPCError) {
    let isFirst = state.withLock { state -> Bool in
      guard !state.isClosed else { return false }
      state.isClosed = true
      if state.isPaused { state.reader?.source.resume() }
      state.isPaused = false
      state.reader?.source.cancel()
      state.writer?.source.cancel()
      state.reader = nil
      state.writer = nil
      state.outbox = []
      return true
    }
    guard isFirst else { return }
    shutdown(fd, CInt(SHUT_RDWR))
    onClose(reason)
  }
}
