package import SoftHost
import Synchronization

/// The power of one server that is not there, as its BMC tells it. What the time does to it is worked out when somebody
/// looks, so that thousands of them cost nothing.
package final class SimulatedServer: ChassisControl {
  package typealias Instant = ContinuousClock.Instant

  /// How long a server takes.
  package struct Pace: Sendable {
    package var powerOn: TriangularDelay
    package var shutdown: TriangularDelay
    /// From power to the lease that the guest takes.
    package var guest: TriangularDelay

    package init(powerOn: TriangularDelay, shutdown: TriangularDelay, guest: TriangularDelay) {
      self.powerOn = powerOn
      self.shutdown = shutdown
      self.guest = guest
    }
  }

  private struct State {
    var random: SeededRandom
    var isOn = false
    /// What comes next, and when.
    var pending: (isOn: Bool, at: Instant)?
    /// When the guest of the present boot takes its lease.
    var guestAt: Instant?
    var boot = BootSetting()

    mutating func settle(_ now: Instant, pace: Pace) {
      guard let change = pending, change.at <= now else { return }
      pending = nil
      isOn = change.isOn
      guestAt = isOn ? change.at + pace.guest.sample(&random) : nil
    }
  }

  package let name: String
  private let number: Int
  private let pace: Pace
  private let state: Mutex<State>
  private let changed: @Sendable () -> Void

  /// - Parameter changed: Called when the power was switched.
  package init(name: String, number: Int, seed: UInt64, pace: Pace, changed: @escaping @Sendable () -> Void) {
    self.name = name
    self.number = number
    self.pace = pace
    self.changed = changed
    state = Mutex(State(random: SeededRandom(seed: seed, part: "server \(name)")))
  }

  /// When the guest of the present boot takes its lease; nil while the server is off.
  package func guestAt(_ now: Instant = .now) -> Instant? {
    state.withLock { state in
      state.settle(now, pace: pace)
      if let guestAt = state.guestAt { return guestAt }
      // The moment of power on is known before it comes.
      guard let pending = state.pending, pending.isOn else { return nil }
      return pending.at
    }
  }

  package func snapshot() async -> ChassisSnapshot {
    let (power, boot) = state.withLock { state -> (Chassis.Power, BootSetting) in
      state.settle(.now, pace: pace)
      guard let pending = state.pending, pending.isOn != state.isOn else {
        return (state.isOn ? .on : .off, state.boot)
      }
      return (pending.isOn ? .poweringOn : .poweringOff, state.boot)
    }
    return ChassisSnapshot(
      name: name, uuid: "5157c10d-0000-4000-8000-" + Self.hexadecimal(number, digits: 12), power: power, boot: boot,
      memoryMiB: 524_288, processors: 64, nics: [.init(id: "1", mac: mac(0)), .init(id: "2", mac: mac(1))])
  }

  /// A locally administered address, another one for each card of the fleet.
  private func mac(_ card: Int) -> String {
    let digits = Self.hexadecimal(number * 2 + card, digits: 8)
    var text = "06:51"
    for start in stride(from: 0, to: 8, by: 2) { text += ":" + digits.dropFirst(start).prefix(2) }
    return text
  }

  private static func hexadecimal(_ value: Int, digits: Int) -> String {
    let text = String(value, radix: 16)
    return String(repeating: "0", count: max(0, digits - text.count)) + text
  }

  package func reset(_ type: Chassis.ResetType) async throws {
    try state.withLock { state in
      let now = Instant.now
      state.settle(now, pace: pace)
      let isOn = state.pending?.isOn ?? state.isOn
      switch type {
      case .on:
        guard !isOn else { return }
        state.pending = (true, now + pace.powerOn.sample(&state.random))
      case .forceOff:
        state.pending = nil
        state.isOn = false
        state.guestAt = nil
      case .gracefulShutdown:
        try requirePower(state.isOn, type)
        state.pending = (false, now + pace.shutdown.sample(&state.random))
      case .forceRestart, .gracefulRestart, .powerCycle:
        try requirePower(state.isOn, type)
        state.pending = nil
        state.guestAt = now + pace.guest.sample(&state.random)
      case .nmi: try requirePower(state.isOn, type)
      }
    }
    changed()
  }

  private func requirePower(_ isOn: Bool, _ type: Chassis.ResetType) throws {
    guard !isOn else { return }
    throw SoftHostError(.conflict, operation: type.rawValue, message: "the server is off")
  }

  package func setBoot(_ boot: BootSetting) async throws { state.withLock { $0.boot = boot } }
}
