import Deadlines
import JSON
import JSONRPC
import Synchronization

/// Something that QEMU tells without being asked (QMP, `docs/interop/qmp-spec`).
struct QMPEvent: Sendable, Hashable {
  let name: String
  let data: JSONValue
}

/// A connection to a QEMU's monitor.
///
/// Commands are matched to their answers by identifier; events go to `onEvent` in order. Both callbacks come on the
/// connection's own queue and must not block.
final class QMPClient: Sendable {
  private struct State {
    var nextID: Int64 = 1
    var pending: [Int64: CheckedContinuation<JSONValue, any Error>] = [:]
    var cancelled: Set<Int64> = []
    var closed: SoftHostError?
  }

  private final class Shared: Sendable {
    let state = Mutex(State())
  }

  private let shared: Shared
  private let connection: JSONConnection

  /// Commands that may wait for their answers.
  static let pendingMax = 64

  /// Connects to the monitor's socket. `onClose` comes once, when QEMU or this side ended the connection.
  init(
    path: String, onEvent: @escaping @Sendable (QMPEvent) -> Void, onClose: @escaping @Sendable () -> Void
  ) throws {
    let shared = Shared()
    self.shared = shared
    connection = JSONConnection(
      adopting: try UnixSocket.connect(path: path), maximumLength: 8 << 20,
      onValue: { value in
        if let name = value["event"]?.stringValue {
          onEvent(QMPEvent(name: name, data: value["data"] ?? [:]))
          return
        }
        guard let id = value["id"]?.int64Value,
          let continuation = shared.state.withLock({ $0.pending.removeValue(forKey: id) })
        else { return }
        if let result = value["return"] {
          continuation.resume(returning: result)
        } else {
          let text = value["error"]?["desc"]?.stringValue ?? "no reason given"
          continuation.resume(throwing: SoftHostError(.refused, operation: "command QEMU", message: text))
        }
      },
      onClose: { reason in
        let error = SoftHostError(.closed, operation: "command QEMU", message: reason.message)
        let pending = shared.state.withLock { state in
          state.closed = error
          defer { state.pending = [:] }
          return state.pending
        }
        for continuation in pending.values { continuation.resume(throwing: error) }
        onClose()
      })
    connection.start()
  }

  deinit { connection.close() }

  func close() { connection.close() }

  /// Leaves the negotiation mode that every connection starts in.
  func negotiate() async throws {
    _ = try await execute("qmp_capabilities", timeout: .seconds(5))
  }

  /// Runs one command. Throws `SoftHostError`; a command that timed out may still be carried out.
  @discardableResult
  func execute(
    _ command: String, _ arguments: JSONValue? = nil, timeout: Duration = .seconds(10)
  ) async throws -> JSONValue {
    do {
      return try await withTimeLimit(timeout) { try await self.send(command, arguments) }
    } catch is TimeLimitExceeded {
      throw SoftHostError(.timeout, operation: command, message: "QEMU did not answer within \(timeout)")
    } catch let error as SoftHostError {
      throw SoftHostError(error.code, operation: command, message: error.message, cause: error.cause)
    } catch let error as JSONRPCError {
      throw SoftHostError(.closed, operation: command, message: error.message, cause: error)
    }
  }

  private func send(_ command: String, _ arguments: JSONValue?) async throws -> JSONValue {
    let id = shared.state.withLock { state in
      defer { state.nextID += 1 }
      return state.nextID
    }
    var request: JSONValue = ["execute": .string(command), "id": .integer(id)]
    request["arguments"] = arguments
    let message = request
    return try await withTaskCancellationHandler {
      try await withCheckedThrowingContinuation { continuation in
        let refusal = shared.state.withLock { state -> (any Error)? in
          if state.cancelled.remove(id) != nil { return CancellationError() }
          if let closed = state.closed { return closed }
          guard state.pending.count < QMPClient.pendingMax else {
            return SoftHostError(.timeout, operation: command, message: "too many commands wait for QEMU")
          }
          state.pending[id] = continuation
          return nil
        }
        if let refusal { return continuation.resume(throwing: refusal) }
        do {
          try connection.send(message, operation: command)
        } catch {
          shared.state.withLock { $0.pending.removeValue(forKey: id) }?.resume(throwing: error)
        }
      }
    } onCancel: {
      let continuation = shared.state.withLock { state -> CheckedContinuation<JSONValue, any Error>? in
        guard let continuation = state.pending.removeValue(forKey: id) else {
          if state.closed == nil { state.cancelled.insert(id) }
          return nil
        }
        return continuation
      }
      continuation?.resume(throwing: CancellationError())
    }
  }
}
