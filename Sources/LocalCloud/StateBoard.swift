import Glibc
import JSON
import Synchronization

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// The supervisor's knowledge, shared by the tasks that look after the parts, and written to disk at every change.
final class StateBoard: Sendable {
  private struct State {
    var cloud: CloudState
    var everReady: Set<String> = []
    var waiting: [Int: (name: String, continuation: CheckedContinuation<Void, Never>)] = [:]
    var cancelled: Set<Int> = []
    var nextTicket = 0
  }

  private let state: Mutex<State>
  private let path: String

  /// - Parameter names: the parts in the order in which they are started.
  init(names: [String], path: String) {
    let parts = names.map { CloudState.Part(name: $0, phase: .waiting, restarts: 0) }
    state = Mutex(State(cloud: CloudState(supervisor: getpid(), updatedAt: Self.now, parts: parts)))
    self.path = path
  }

  /// Changes one part's record; wakes those who wait for it when it is ready.
  func update(_ name: String, _ change: @Sendable (inout CloudState.Part) -> Void) {
    let woken = state.withLock { state -> [CheckedContinuation<Void, Never>] in
      guard let index = state.cloud.parts.firstIndex(where: { $0.name == name }) else { return [] }
      change(&state.cloud.parts[index])
      state.cloud.updatedAt = Self.now
      // Inside the lock, so that an older state never replaces a newer one. A full disk must not end the supervisor.
      try? Self.write(state.cloud, to: path)
      guard state.cloud.parts[index].phase == .ready, state.everReady.insert(name).inserted else { return [] }
      let ready = state.waiting.filter { $0.value.name == name }
      for ticket in ready.keys { state.waiting[ticket] = nil }
      return ready.values.map(\.continuation)
    }
    for continuation in woken { continuation.resume() }
  }

  /// Returns when the part has been ready once, or the task is cancelled.
  func waitUntilReady(_ name: String) async {
    let ticket = state.withLock { state in
      state.nextTicket += 1
      return state.nextTicket
    }
    await withTaskCancellationHandler {
      await withCheckedContinuation { continuation in
        let isOver = state.withLock { state in
          if state.everReady.contains(name) || state.cancelled.remove(ticket) != nil { return true }
          state.waiting[ticket] = (name, continuation)
          return false
        }
        if isOver { continuation.resume() }
      }
    } onCancel: {
      let continuation = state.withLock { state in
        let entry = state.waiting.removeValue(forKey: ticket)
        if entry == nil { state.cancelled.insert(ticket) }
        return entry?.continuation
      }
      continuation?.resume()
    }
  }

  private static var now: Double {
    Date().timeIntervalSince1970
  }

  private static func write(_ cloud: CloudState, to path: String) throws {
    try Files.write(path, try JSONFile.encode(cloud), isDurable: false)
  }
}

/// JSON files that people read too: indented, with their members in order.
enum JSONFile {
  static func encode(_ value: some Encodable) throws -> String {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
    return String(decoding: try encoder.encode(value), as: UTF8.self) + "\n"
  }

  /// Nil when the file does not exist.
  static func read<Value: Decodable>(_ type: Value.Type, from path: String) throws -> Value? {
    guard let text = try Files.read(path) else { return nil }
    do {
      return try JSONDecoder().decode(type, from: Data(text.utf8))
    } catch {
      throw LocalCloudError(
        .fileSystem, operation: "read \(path)", "the file is damaged; 'ycloud down --purge' removes the whole cloud",
        cause: error)
    }
  }
}
