import Deadlines
import JSON
public import Kubernetes
public import Logging
import Synchronization
public import Telemetry

/// Tells people what happens to objects, as events that `kubectl describe` shows.
///
/// The same event again raises the count of the first one. Recording never waits and never fails: events are written
/// by `run()`, as far as the API server and the limits per object allow.
public struct EventRecorder: Sendable {
  private let sink: EventSink

  /// - Parameter component: Who reports, such as `bm-controller`.
  public init(client: KubernetesClient, component: String, logger: Logger, registry: MetricsRegistry? = nil) {
    sink = EventSink(client: client, component: component, logger: logger, registry: registry)
  }

  /// Records that something happened to an object.
  /// - Parameters:
  ///   - reason: A word in CamelCase.
  ///   - message: A sentence for people; no secrets.
  ///   - action: What was tried or done, in CamelCase.
  public func event(
    regarding object: some KubernetesObject, type: EventType, reason: String, message: String, action: String? = nil
  ) {
    event(regarding: ObjectReference(object), type: type, reason: reason, message: message, action: action)
  }

  public func event(
    regarding object: ObjectReference, type: EventType, reason: String, message: String, action: String? = nil
  ) {
    var object = object
    // Two versions of one object are one object.
    object.resourceVersion = nil
    sink.record(.init(regarding: object, type: type, reason: reason, message: message, action: action))
  }

  /// Writes events until the task is cancelled, then those that are left for a moment more. A `Manager` runs this.
  public func run() async { await sink.run() }
}

private final class EventSink: Sendable {
  private struct State {
    var correlator: EventCorrelator
    /// The latest state of each record that waits to be written, in the order of their first occurrence.
    var pending: [String: EventCorrelator.Record] = [:]
    var order: [String] = []
  }

  private static let capacity = 1024

  private let client: KubernetesClient
  private let component: String
  private let logger: Logger
  private let state: Mutex<State>
  private let signal = Signal()
  private let written: CounterFamily?
  private let dropped: CounterFamily?

  init(client: KubernetesClient, component: String, logger: Logger, registry: MetricsRegistry?) {
    self.client = client
    self.component = component
    self.logger = logger
    state = Mutex(State(correlator: EventCorrelator(component: component)))
    written = registry?.counter("events_written_total", help: "Events written to the API server.")
    dropped = registry?.counter("events_dropped_total", help: "Events that were not written.")
  }

  func record(_ occurrence: EventCorrelator.Occurrence) {
    let accepted = state.withLock { state -> Bool in
      guard let record = state.correlator.correlate(occurrence, now: .now, wallClock: .now()) else { return false }
      if state.pending[record.name] == nil {
        guard state.order.count < Self.capacity else { return false }
        state.order.append(record.name)
      }
      state.pending[record.name] = record
      return true
    }
    if accepted { signal.signal() } else { dropped?.increment() }
  }

  func run() async {
    while !Task.isCancelled {
      while !Task.isCancelled, let record = take() { await write(record) }
      await signal.wait()
    }
    // The last words are often the most interesting ones. This task is cancelled and cannot send: one that is not,
    // and is waited for here, can.
    let rest = Task {
      try? await withTimeLimit(.seconds(2)) {
        while !Task.isCancelled, let record = self.take() { await self.write(record) }
      }
    }
    await rest.value
  }

  private func take() -> EventCorrelator.Record? {
    state.withLock { state in
      guard !state.order.isEmpty else { return nil }
      return state.pending.removeValue(forKey: state.order.removeFirst())
    }
  }

  private func write(_ record: EventCorrelator.Record) async {
    var backoff = Backoff(initial: .milliseconds(500), maximum: .seconds(10))
    for attempt in 1...5 {
      do {
        let count = try await send(record)
        state.withLock { $0.correlator.written(record.name, count: count, wrote: record.new) }
        written?.increment()
        return
      } catch {
        let transient = (error as? KubernetesError)?.isTransient ?? false
        guard transient, attempt < 5, !Task.isCancelled else {
          dropped?.increment()
          logger.debug("an event was not written", metadata: ["event": "\(record.name)", "error": "\(error)"])
          return
        }
        do { try await Task.sleep(for: backoff.next()) } catch { return }
      }
    }
  }

  /// Returns the count that the record has on the server now.
  private func send(_ record: EventCorrelator.Record) async throws -> Int {
    if record.count > record.new {
      do {
        return try await raise(record, to: record.count)
      } catch let error as KubernetesError where error.code == .notFound {
        // The server forgets events after a while.
      }
    }
    do {
      return try await client.create(makeEvent(record)).count ?? record.new
    } catch let error as KubernetesError where error.code == .alreadyExists {
      // Written by a former run of this process.
      let present = try await client.get(Event.self, name: record.name, namespace: record.namespace)
      return try await raise(record, to: (present.count ?? 1) + record.new)
    }
  }

  private func raise(_ record: EventCorrelator.Record, to count: Int) async throws -> Int {
    let patch: JSONValue = [
      "count": .integer(Int64(count)), "lastTimestamp": .string(record.last.description),
      "message": .string(record.occurrence.message),
    ]
    _ = try await client.mergePatch(Event.self, name: record.name, namespace: record.namespace, patch: patch)
    return count
  }

  private func makeEvent(_ record: EventCorrelator.Record) -> Event {
    var event = Event(
      metadata: ObjectMeta(name: record.name, namespace: record.namespace),
      involvedObject: record.occurrence.regarding)
    event.reason = record.occurrence.reason
    event.message = record.occurrence.message
    event.type = record.occurrence.type.rawValue
    event.action = record.occurrence.action
    event.source = Event.Source(component: component)
    event.reportingComponent = component
    event.firstTimestamp = record.first
    event.lastTimestamp = record.last
    event.count = record.new
    return event
  }
}
