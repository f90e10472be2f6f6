package import Kubernetes

/// How a leader is elected.
public struct LeaderElection: Sendable {
  /// Name of the lease.
  public var name: String
  public var namespace: String
  /// Who this candidate is; unique among all processes that ever run.
  public var identity: String
  /// After how long without a renewal others may take over.
  public var leaseDuration: Duration = .seconds(15)
  /// After how long without a successful renewal the leader gives up. Less than `leaseDuration`: the difference is the
  /// time in which its work must have ended.
  public var renewDeadline: Duration = .seconds(10)
  /// How often the leader renews, and the others look.
  public var retryPeriod: Duration = .seconds(3)

  public init(name: String, namespace: String, identity: String = LeaderElection.uniqueIdentity()) {
    self.name = name
    self.namespace = namespace
    self.identity = identity
  }
}

/// What a candidate knows and what follows from it. Pure.
///
/// Times are those of the local clock only. A lease of somebody else counts as expired when it was *seen* unchanged
/// for its whole duration, whatever its timestamps say; the own one counts from before its renewal was *sent*. So two
/// candidates whose clocks run at about the same speed never lead at the same time, however wrong their clocks are.
package struct LeaderElectionState: Sendable {
  package typealias Instant = ContinuousClock.Instant

  package enum Action: Sendable, Equatable {
    /// Create the lease with this content.
    case create(Lease.Spec)
    /// Replace the lease that was seen last, at this version, by this content.
    case replace(Lease.Spec, resourceVersion: String)
    /// Read the lease again at this moment.
    case look(at: Instant)
  }

  private let settings: LeaderElection
  private var seen: Lease.Spec?
  private var seenVersion: String?
  private var seenSince: Instant?
  private var knowsLease = false
  private var renewedAt: Instant?

  package init(settings: LeaderElection) { self.settings = settings }

  /// Who holds the lease, as far as known.
  package var holder: String? { seen?.holderIdentity.flatMap { $0.isEmpty ? nil : $0 } }

  /// Takes in what the API server shows; nil where there is no lease.
  package mutating func observe(_ lease: Lease?, now: Instant) {
    knowsLease = true
    guard let lease else {
      (seen, seenVersion, seenSince) = (nil, nil, nil)
      renewedAt = nil
      return
    }
    let spec = lease.spec ?? Lease.Spec()
    // Only what its holder writes counts: a label that somebody adds is no sign of life.
    if seenSince == nil || seen != spec { seenSince = now }
    seen = spec
    seenVersion = lease.metadata.resourceVersion
    if spec.holderIdentity != settings.identity { renewedAt = nil }
  }

  /// The write of an action has succeeded.
  /// - Parameter sentAt: The moment before it was sent.
  package mutating func written(_ lease: Lease, sentAt: Instant, now: Instant) {
    observe(lease, now: now)
    if lease.spec?.holderIdentity == settings.identity { renewedAt = sentAt }
  }

  /// The last thing seen is not true any more: a write met a conflict.
  package mutating func invalidate() { knowsLease = false }

  /// Whether nobody else can lead at this moment.
  package func isLeader(now: Instant) -> Bool {
    guard let renewedAt else { return false }
    return now < renewedAt + settings.leaseDuration
  }

  /// When the work must be told to end, unless a renewal succeeds before.
  package var renewDeadline: Instant? { renewedAt.map { $0 + settings.renewDeadline } }

  /// When the next renewal is due.
  package var nextRenewal: Instant? { renewedAt.map { $0 + settings.retryPeriod } }

  /// The next thing to do for one who wants to become, or stay, the leader.
  package func decide(now: Instant, wallClock: MicroTimestamp) -> Action {
    guard knowsLease else { return .look(at: now) }
    guard let seen, let seenVersion else {
      return .create(ownSpec(acquired: wallClock, renewed: wallClock, transitions: 0))
    }
    let transitions = seen.leaseTransitions ?? 0
    if seen.holderIdentity == settings.identity {
      return .replace(
        ownSpec(acquired: seen.acquireTime ?? wallClock, renewed: wallClock, transitions: transitions),
        resourceVersion: seenVersion)
    }
    if let holder, !holder.isEmpty {
      let duration = seen.leaseDurationSeconds.map { Duration.seconds(max($0, 1)) } ?? settings.leaseDuration
      let expiry = (seenSince ?? now) + duration
      guard now >= expiry else { return .look(at: min(expiry, now + settings.retryPeriod)) }
    }
    return .replace(
      ownSpec(acquired: wallClock, renewed: wallClock, transitions: transitions + 1), resourceVersion: seenVersion)
  }

  /// The content that gives the lease away at once; nil where it is not ours.
  package func release(wallClock: MicroTimestamp) -> Action? {
    guard let seen, let seenVersion, seen.holderIdentity == settings.identity else { return nil }
    var spec = seen
    spec.holderIdentity = ""
    spec.leaseDurationSeconds = 1
    spec.renewTime = wallClock
    return .replace(spec, resourceVersion: seenVersion)
  }

  private func ownSpec(acquired: MicroTimestamp, renewed: MicroTimestamp, transitions: Int) -> Lease.Spec {
    Lease.Spec(
      holderIdentity: settings.identity,
      leaseDurationSeconds: max(1, Int(settings.leaseDuration.inSeconds.rounded(.up))),
      acquireTime: acquired, renewTime: renewed, leaseTransitions: transitions)
  }
}
