/// Whether a guest that powers itself off is to be powered on again: what is left of a graceful restart. Pure.
package struct RestartWish: Sendable {
  /// How long a guest has to act on its power button. One that powers off later does so for a reason of its own.
  package static let patience = Duration.seconds(300)

  private var until: ContinuousClock.Instant?
  private var isDue = false

  package init() {}

  /// The guest was asked to restart.
  package mutating func ask(now: ContinuousClock.Instant) { until = now + RestartWish.patience }

  /// Power is wanted again as soon as what is ending has ended.
  package mutating func demand() { isDue = true }

  /// The guest has powered itself off; said again as long as it is not gone, which changes nothing.
  package mutating func poweredOff(now: ContinuousClock.Instant) {
    if let until, now < until { isDue = true }
    until = nil
  }

  /// Another wish has taken its place.
  package mutating func forget() { self = RestartWish() }

  /// Whether power is to come again, now that the server is off; said once.
  package mutating func take() -> Bool {
    defer { forget() }
    return isDue
  }
}
