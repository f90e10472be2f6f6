package import BareMetal
package import IaaS
import Kubernetes
import Synchronization

/// A guest that is not there: it takes a lease when its server has been on for long enough, and answers ping from then.
package final class SimulatedGuest: GuestSight {
  private struct State {
    var boot: String?
    var interfaces: [BareMetalHost.Interface] = []
    /// When the server was first seen off although the guest was up.
    var offSince: ContinuousClock.Instant?
  }

  /// From the lease to the first answered ping.
  private static let pingAfter: Duration = .milliseconds(300)
  /// As long as bm-handler waits until it believes that a guest is silent.
  private static let silentAfter: Duration = .seconds(90)

  private let number: Int
  private let guestAt: @Sendable () -> ContinuousClock.Instant?
  private let wake: @Sendable (Duration) -> Void
  private let state = Mutex(State())

  /// - Parameters:
  ///   - number: Of the host; the addresses of its guest are made of it.
  ///   - guestAt: When the guest of the present boot takes its lease; nil while the server is off.
  ///   - wake: Asks for a look after this time.
  package init(
    number: Int, guestAt: @escaping @Sendable () -> ContinuousClock.Instant?,
    wake: @escaping @Sendable (Duration) -> Void
  ) {
    self.number = number
    self.guestAt = guestAt
    self.wake = wake
  }

  package var conflicts: [String] { [] }

  package func follow(
    boot: String?, isOn: Bool, interfaces: [GuestInterface],
    known: (boot: String?, interfaces: [BareMetalHost.Interface])
  ) {
    state.withLock { state in
      guard state.boot != boot else { return }
      let reported = known.boot == boot ? known.interfaces : []
      state = State(boot: boot)
      state.interfaces = interfaces.map { interface in
        reported.first { $0.name == interface.name && $0.mac == interface.mac }
          ?? BareMetalHost.Interface(name: interface.name, mac: interface.mac, address: interface.address)
      }
    }
  }

  package var interfaces: [BareMetalHost.Interface] {
    let guestAt = guestAt()
    let now = ContinuousClock.now
    let (interfaces, next) = state.withLock { state -> ([BareMetalHost.Interface], Duration?) in
      guard state.boot != nil, !state.interfaces.isEmpty else { return (state.interfaces, nil) }
      let next =
        guestAt.map { Self.advance(&state, guestAt: $0, now: now, number: number) } ?? Self.silence(&state, now)
      return (state.interfaces, next)
    }
    if let next { wake(next) }
    return interfaces
  }

  /// Returns after how long there is something new to see.
  private static func advance(
    _ state: inout State, guestAt: ContinuousClock.Instant, now: ContinuousClock.Instant, number: Int
  ) -> Duration? {
    state.offSince = nil
    guard now >= guestAt else { return guestAt - now }
    let answers = now >= guestAt + pingAfter
    for index in state.interfaces.indices {
      if state.interfaces[index].leasedAt == nil {
        state.interfaces[index].address =
          state.interfaces[index].address ?? "10.\(64 + index % 64).\(number / 250 % 250).\(number % 250 + 1)"
        state.interfaces[index].leasedAt = .now()
      }
      guard answers, state.interfaces[index].reachable != true else { continue }
      state.interfaces[index].reachable = true
      if state.interfaces[index].reachableAt == nil { state.interfaces[index].reachableAt = .now() }
    }
    return answers ? nil : guestAt + pingAfter - now
  }

  private static func silence(_ state: inout State, _ now: ContinuousClock.Instant) -> Duration? {
    guard state.interfaces.contains(where: { $0.reachable == true }) else { return nil }
    let since = state.offSince ?? now
    state.offSince = since
    guard now - since >= silentAfter else { return nil }
    for index in state.interfaces.indices where state.interfaces[index].reachable == true {
      state.interfaces[index].reachable = false
    }
    return nil
  }
}
