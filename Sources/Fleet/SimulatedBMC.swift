import JSON
package import Logging
package import SoftHost
import Synchronization
import Telemetry

/// The BMC of one simulated server: Redfish as softhost speaks it, with delays and faults.
package final class SimulatedBMC: Sendable {
  /// What goes back over the wire.
  package enum Outcome: Sendable {
    case reply(RedfishReply)
    /// The connection is closed without an answer.
    case hangUp
  }

  private struct State {
    var random: SeededRandom
    var isDead = false
    var isStuck = false
  }

  private let service: RedfishService
  private let delay: TriangularDelay
  private let faults: Faults
  private let state: Mutex<State>
  private static let deathSentence: Duration = .seconds(600)

  package init(
    server: SimulatedServer, seed: UInt64, accounts: Accounts, delay: TriangularDelay, faults: Faults,
    metrics: SoftHostMetrics, logger: Logger
  ) {
    service = RedfishService(chassis: server, accounts: accounts, metrics: metrics, logger: logger)
    self.delay = delay
    self.faults = faults
    state = Mutex(State(random: SeededRandom(seed: seed, part: "bmc \(server.name)")))
  }

  /// From now on nothing is answered.
  package func die() { state.withLock { $0.isDead = true } }

  /// Whether it answers nothing, from the beginning or until told otherwise.
  package func setStuck(_ isStuck: Bool) { state.withLock { $0.isStuck = isStuck } }

  /// Answers one request, as well as it can.
  package func respond(to request: RedfishRequest) async throws -> Outcome {
    let (time, verdict, isSilent) = state.withLock { state in
      (delay.sample(&state.random), faults.verdict(&state.random), state.isDead || state.isStuck)
    }
    if isSilent {
      // Longer than anybody waits: a card without power does not even refuse.
      try await Task.sleep(for: Self.deathSentence)
      return .hangUp
    }
    if time > .zero { try await Task.sleep(for: time) }
    switch verdict {
    case .answer: return .reply(await service.respond(to: request))
    case .hang:
      try await Task.sleep(for: .seconds(faults.hangSeconds))
      return .reply(await service.respond(to: request))
    case .fail: return .reply(.simulatedFailure)
    case .lose:
      _ = await service.respond(to: request)
      return .hangUp
    }
  }
}

extension RedfishReply {
  /// What a BMC says that has lost its way.
  fileprivate static let simulatedFailure = RedfishReply(
    status: 500,
    body: [
      "error": [
        "code": "Base.1.18.InternalError", "message": "A fault of the simulation.",
        "@Message.ExtendedInfo": [
          ["MessageId": "Base.1.18.InternalError", "Message": "A fault of the simulation.", "Severity": "Critical"]
        ],
      ]
    ])
}
