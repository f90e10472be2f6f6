/// A condition that did not come true in time.
public struct TimedOut: Error, CustomStringConvertible {
  public let description: String

  public init(_ description: String) {
    self.description = description
  }
}

/// Waits until `condition` holds, looking again every `interval`; throws ``TimedOut`` after `limit`.
///
/// This is how a test waits: for the thing itself, with a limit, never for an amount of time. An error thrown by the
/// condition counts as "not yet"; the last one is part of the message.
public func eventually(
  within limit: Duration = .seconds(10), every interval: Duration = .milliseconds(20),
  _ what: @autoclosure @Sendable () -> String = "the condition",
  isolation: isolated (any Actor)? = #isolation,
  _ condition: () async throws -> Bool
) async throws {
  _ = try await eventualValue(within: limit, every: interval, what()) {
    try await condition() ? true : nil
  }
}

/// Waits until `produce` returns a value; throws ``TimedOut`` after `limit`.
public func eventualValue<Value>(
  within limit: Duration = .seconds(10), every interval: Duration = .milliseconds(20),
  _ what: @autoclosure @Sendable () -> String = "a value",
  isolation: isolated (any Actor)? = #isolation,
  _ produce: () async throws -> Value?
) async throws -> Value {
  let clock = ContinuousClock()
  let deadline = clock.now + limit
  var lastError: (any Error)?
  while true {
    do {
      if let value = try await produce() { return value }
      lastError = nil
    } catch let error as CancellationError {
      throw error
    } catch {
      lastError = error
    }
    guard clock.now < deadline else {
      let reason = lastError.map { "; last error: \($0)" } ?? ""
      throw TimedOut("\(what()) did not come true within \(limit)\(reason)")
    }
    try await Task.sleep(for: interval, clock: clock)
  }
}
