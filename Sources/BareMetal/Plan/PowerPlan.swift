package import BMC
package import IaaS

/// What shall become of a server's power.
package enum PowerWish: Sendable, Hashable {
  /// Look only.
  case observe
  case on
  /// Off; where `grace` is above zero, the operating system is asked first and given that long.
  case off(grace: Duration)
}

/// A server's power as it was read back.
package struct PowerView: Sendable, Hashable {
  package var power: BareMetalHost.Power
  /// Several readings in a row, far enough apart and the last one fresh, said off.
  package var confirmedOff: Bool
  /// Confirmed, and no earlier command can turn it on any more: the readings came after it was told to go off. Only
  /// this lets a disk or the server itself be taken away.
  package var fencedOff: Bool
  /// Whether it is wished to go on, and has not been seen on since.
  package var wantsOn: Bool
  /// Why the BMC cannot be asked or does not do as told, and what to do about it.
  package var problem: String?
  /// Whether the problem is that the BMC answers, but did not take the last command.
  package var refusesCommand: Bool

  package init(
    power: BareMetalHost.Power = .unknown, confirmedOff: Bool = false, fencedOff: Bool = false, wantsOn: Bool = false,
    problem: String? = nil, refusesCommand: Bool = false
  ) {
    self.power = power
    self.confirmedOff = confirmedOff
    self.fencedOff = fencedOff
    self.wantsOn = wantsOn
    self.problem = problem
    self.refusesCommand = refusesCommand
  }
}

extension PowerView {
  /// What counts where an operator says that the host's power is cut (`spec.powerCut`): the word stands in for a BMC that
  /// does not answer, or cannot prove it. It counts for nothing against a BMC that reads anything but off.
  package func trusting(_ host: BareMetalHost?) -> PowerView {
    guard let host, host.spec.powerCut, power == .off || power == .unknown else { return self }
    return PowerView(power: .off, confirmedOff: true, fencedOff: true, wantsOn: wantsOn)
  }
}

/// The decisions about one server's power: fed with readings, it says what to command and when to look again.
///
/// Times are monotonic, from any beginning.
package struct PowerTracker: Sendable, Hashable {
  package enum Move: Sendable, Hashable {
    /// Give the command, then look again after a while.
    case command(PowerAction, thenReadAfter: Duration)
    case read(after: Duration)
    /// The wish is fulfilled; look again at leisure.
    case settled
  }

  package struct Limits: Sendable, Hashable {
    /// Readings of off in a row, and the least time between them.
    package var offReadings = 3
    package var offInterval: Duration = .seconds(3)
    /// The least time between two equal commands.
    package var repeatCommand: Duration = .seconds(10)
    /// How often a BMC must have refused to turn off a server that reads off already, because it is off.
    package var fenceAttempts = 3
    /// How long a command is not repeated that failed: doubled with each failure in a row, up to the maximum.
    package var commandRetry: Duration = .seconds(1)
    package var commandRetryMaximum: Duration = .seconds(60)
    /// The longest time between two readings while a failed command waits to be repeated.
    package var commandRetryReading: Duration = .seconds(10)

    package init() {}
  }

  package private(set) var wish: PowerWish = .observe
  package private(set) var power: PowerState = .unknown
  private let limits: Limits
  private var confirmation: PowerOffConfirmation
  private var confirmed = false
  private var readAt: Duration?
  private var onCommandAt: Duration?
  private var offCommandAt: Duration?
  private var graceEndsAt: Duration?
  private var unknownReadings = 0
  private var readsSinceCommand = 0

  package init(limits: Limits = Limits()) {
    self.limits = limits
    confirmation = PowerOffConfirmation(readings: limits.offReadings, interval: limits.offInterval)
  }

  /// Takes a wish; the same one again changes nothing. Returns whether it is another than before.
  package mutating func want(_ wish: PowerWish) -> Bool {
    guard wish != self.wish else { return false }
    if case .off = wish, case .off = self.wish {
      // A shorter grace is another wish, but what was commanded stays commanded.
    } else {
      graceEndsAt = nil
      isGracefulDoubtful = false
      offCommandAt = nil
      readsSinceCommand = 0
      isFenced = false
      fenceRefusals = 0
      commandFailures = 0
      retryCommandAt = nil
    }
    self.wish = wish
    return true
  }

  /// Whether the server is off for sure, by readings of which the last is younger than `freshness`.
  package func isConfirmedOff(at time: Duration, freshness: Duration) -> Bool {
    guard confirmed, let readAt else { return false }
    return time - readAt <= freshness
  }

  /// Whether the server is off for sure, and stays so by all that this tracker knows.
  package func isFencedOff(at time: Duration, freshness: Duration) -> Bool {
    isFenced && isConfirmedOff(at: time, freshness: freshness)
  }

  /// How old the last reading is; nil where there is none.
  package func age(at time: Duration) -> Duration? { readAt.map { time - $0 } }

  /// Takes a reading and says what to do next.
  package mutating func observe(_ state: PowerState, at time: Duration) -> Move {
    power = state
    readAt = time
    unknownReadings = state == .unknown ? unknownReadings + 1 : 0
    var again: Duration?
    switch confirmation.observe(state, at: time) {
    case .confirmed: confirmed = true
    case .refuted: confirmed = false
    case .readAgain(let wait): if !confirmed { again = wait }
    }
    readsSinceCommand += 1

    switch wish {
    case .observe:
      // Somebody else turned it on: what was said before holds no more.
      if state == .on || state == .poweringOn { isFenced = false }
      return again.map { .read(after: $0) } ?? .settled
    case .on:
      if state == .on {
        wish = .observe
        return .settled
      }
      if state == .poweringOn { return .read(after: .milliseconds(200)) }
      if let onCommandAt, time - onCommandAt < limits.repeatCommand { return .read(after: backoff) }
      if let pause = pause(at: time) { return .read(after: pause) }
      return command(.on, at: time)
    case .off(let grace):
      if state == .off {
        // Somebody, perhaps this controller before it died, may have told it to go on and the BMC not have done so yet.
        // The contrary command puts an end to that; only readings after it count.
        if !isFenced {
          if let pause = pause(at: time) { return .read(after: pause) }
          return command(.forceOff, at: time)
        }
        if confirmed {
          wish = .observe
          return .settled
        }
        return .read(after: again ?? limits.offInterval)
      }
      // A server that is on has nothing pending that would turn it on.
      if state == .on { isFenced = true }
      if state == .unknown, unknownReadings < 3 { return .read(after: .seconds(1)) }
      if grace > .zero {
        guard let graceEndsAt else {
          self.graceEndsAt = time + grace
          return command(.gracefulShutdown, at: time)
        }
        if time < graceEndsAt {
          if isGracefulDoubtful, pause(at: time) == nil {
            // Whether the BMC passed the button on is not known; pressed twice it does no harm.
            isGracefulDoubtful = false
            return command(.gracefulShutdown, at: time)
          }
          return .read(after: min(.milliseconds(500), graceEndsAt - time))
        }
      }
      if let offCommandAt, offForced, time - offCommandAt < limits.repeatCommand { return .read(after: backoff) }
      if let pause = pause(at: time) { return .read(after: pause) }
      return command(.forceOff, at: time)
    }
  }

  private var offForced = false
  /// The graceful command failed in a way that does not tell whether it came through.
  private var isGracefulDoubtful = false
  /// Whether a server that reads off cannot go on by a command from before.
  private var isFenced = false
  /// Refusals to turn off what is off already.
  private var fenceRefusals = 0
  /// Commands in a row that failed, and when the next one may be given.
  private var commandFailures = 0
  private var retryCommandAt: Duration?

  /// How long to go on reading only, because a command failed a moment ago.
  private func pause(at time: Duration) -> Duration? {
    guard let retryCommandAt, time < retryCommandAt else { return nil }
    return min(retryCommandAt - time, limits.commandRetryReading)
  }

  /// The BMC took a command.
  package mutating func accepted() {
    commandFailures = 0
    retryCommandAt = nil
  }

  /// A command failed: it is repeated more and more seldom. A graceful one that the BMC does not have is followed by the
  /// hard one at the next reading; where the BMC was only slow or busy, the guest keeps its time.
  /// - Parameters:
  ///   - isTransient: Whether the same command may be taken later.
  ///   - isStateRefusal: Whether the BMC took the command and found it needless; see `BMCError.isStateRefusal`.
  ///   - atLeast: How long the BMC asks to wait.
  package mutating func failed(
    _ action: PowerAction, at time: Duration, isStateRefusal: Bool = false, isTransient: Bool = false,
    atLeast: Duration = .zero
  ) {
    if action == .gracefulShutdown, !isTransient {
      graceEndsAt = .zero
      return
    }
    commandFailures += 1
    let wait = limits.commandRetry * (1 << min(commandFailures - 1, 10))
    retryCommandAt = time + min(max(wait, atLeast), limits.commandRetryMaximum)
    if action == .gracefulShutdown {
      isGracefulDoubtful = true
      return
    }
    if action == .on {
      onCommandAt = nil
      return
    }
    offCommandAt = nil
    offForced = false
    // Whether the command came through is not known: it protects from nothing. But there are BMCs that refuse to turn
    // off what is off; one that says so again and again has nothing under way.
    isFenced = false
    guard isStateRefusal, power == .off else { return }
    fenceRefusals += 1
    isFenced = fenceRefusals >= limits.fenceAttempts
  }

  private mutating func command(_ action: PowerAction, at time: Duration) -> Move {
    readsSinceCommand = 0
    confirmed = false
    confirmation = PowerOffConfirmation(readings: limits.offReadings, interval: limits.offInterval)
    switch action {
    case .on:
      onCommandAt = time
      isFenced = false
    default:
      offCommandAt = time
      offForced = action == .forceOff
      if offForced { isFenced = true }
    }
    return .command(action, thenReadAfter: .milliseconds(100))
  }

  /// 100, 200, 400, ... milliseconds, at most 2 s.
  private var backoff: Duration { min(.milliseconds(100 << min(readsSinceCommand, 5)), .seconds(2)) }
}

extension BareMetalHost.Power {
  package init(_ state: PowerState) {
    switch state {
    case .on: self = .on
    case .off: self = .off
    case .poweringOn: self = .poweringOn
    case .poweringOff: self = .poweringOff
    case .unknown: self = .unknown
    }
  }
}
