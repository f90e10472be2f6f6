import NIOCore

/// Somebody who has something of a machine open, and the right by which they have.
struct Holding: Sendable {
  var line: ConsoleLineKey
  var identity: Identity
  var access: AccessRequest
}

/// Looks again and again whether those who have something open still may.
struct RightsWatch: Sendable {
  var every: Duration
  var loop: any EventLoop

  init(every: Duration, loop: any EventLoop) {
    self.every = every
    self.loop = loop
  }

  /// Runs until cancelled.
  ///
  /// - Parameters:
  ///   - objections: why the holders must not keep what they have, in the holdings' order; nil for those who may, and where
  ///     it cannot be found out now.
  ///   - open: what is open now; called on the loop.
  ///   - end: ends one of them; called on the loop.
  func run(
    objections: @Sendable ([Holding]) async -> [ConsoleObjection?],
    open: @escaping @Sendable () -> [(holding: Holding, id: Int)],
    end: @escaping @Sendable (Holding, Int, ConsoleObjection) -> Void
  ) async throws {
    while true {
      try await Task.sleep(for: every)
      let present = try await loop.submit(open).get()
      let found = await objections(present.map(\.holding))
      for (one, objection) in zip(present, found) {
        guard let objection else { continue }
        try await loop.submit { end(one.holding, one.id, objection) }.get()
      }
    }
  }
}
