import BMC
import SoftHost

/// A chassis whose power is a real server's, reached through that server's own BMC: what is said of it can be wrong.
actor RelayChassis: ChassisControl {
  private let server: any BMC
  private var liesFor: Duration = .zero
  private var liesUntil: ContinuousClock.Instant?
  private var cut: Task<Void, Never>?

  init(server: any BMC) { self.server = server }

  /// From now on a command to cut the power is followed after this long; meanwhile the server is said to be off.
  func lie(for duration: Duration) { liesFor = duration }

  /// The server's power as it is.
  func truth() async throws -> PowerState { try await server.power() }

  func snapshot() async -> ChassisSnapshot {
    var power = Chassis.Power.off
    if liesUntil.map({ ContinuousClock.now >= $0 }) ?? true, (try? await server.power()) == .on { power = .on }
    return ChassisSnapshot(name: "relay", uuid: "4c4c4544-0000-4000-8000-000000000002", power: power)
  }

  func reset(_ type: Chassis.ResetType) async throws {
    switch type {
    case .on:
      cut?.cancel()
      liesUntil = nil
      try await server.setPower(.on)
    case .forceOff where liesFor > .zero:
      guard try await server.power() == .on else { return }
      let delay = liesFor
      liesUntil = .now + delay
      cut = Task { [server] in
        // The lie lasts this long: it is the fault under test.
        guard (try? await Task.sleep(for: delay)) != nil else { return }
        try? await server.setPower(.forceOff)
      }
    case .forceOff: try await server.setPower(.forceOff)
    case .gracefulShutdown: try await server.setPower(.gracefulShutdown)
    default: throw SoftHostError(.conflict, operation: type.rawValue, message: "not relayed")
    }
  }

  func setBoot(_ boot: BootSetting) {}
}
