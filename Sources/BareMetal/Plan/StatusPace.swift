package import IaaS
package import Kubernetes
import Reconciler

/// When a machine's status is written: at once what somebody acts on or waits for; what only tells how far it is waits a
/// moment for more, so that a start that takes a second is not told in eight pieces. Pure.
///
/// Where many machines have such news at the same time, nobody follows each of them, and every write makes all wait for
/// longer: then it waits until there are about 20 a second.
///
/// That the server was seen on in a machine's first boot waits as well, mostly until the guest answers. Plans go on from
/// it meanwhile (`completed`). Who starts anew without knowing it finds the server on with everything in place, and says
/// the same.
package struct StatusPace: Sendable {
  /// For how long news may wait where few machines have any, and where a fleet starts.
  package static let patience: Duration = .seconds(1)
  package static let patienceMaximum: Duration = .seconds(60)
  package static let patienceForEach: Duration = .milliseconds(50)

  package enum Verdict: Sendable, Hashable {
    case nothing
    case write
    case wait(Duration)
  }

  private struct Draft: Sendable {
    var uid: String
    var since: Duration
    var timeline: BareMetalMachine.Timeline?
    /// The host of the first boot, and when its server was seen on.
    var host: String?
    var bootedAt: MicroTimestamp?
    /// It is being written. What is known of it stays until it is seen in the machine: a write may fail.
    var isHandedOver = false
  }

  private var drafts: [ObjectKey: Draft] = [:]

  package init() {}

  /// What becomes of a status that was planned.
  /// - Parameter time: Monotonic, from any beginning.
  package mutating func consider(
    _ key: ObjectKey, uid: String, old: BareMetalMachine.Status?, new: BareMetalMachine.Status, at time: Duration
  ) -> Verdict {
    guard old ?? BareMetalMachine.Status() != new else {
      drafts[key] = nil
      return .nothing
    }
    let since = drafts[key].flatMap { $0.uid == uid && !$0.isHandedOver ? $0.since : nil } ?? time
    let waited = time - since
    let patience = min(max(Self.patience, Self.patienceForEach * drafts.count), Self.patienceMaximum)
    // What was seen is kept for the time when it is written.
    var draft = Draft(uid: uid, since: since, timeline: new.timeline)
    if Self.isFirstBoot(new) { (draft.host, draft.bootedAt) = (new.host, new.bootedAt) }
    draft.isHandedOver = waited >= patience || Self.isUrgent(from: old, to: new)
    drafts[key] = draft
    return draft.isHandedOver ? .write : .wait(patience - waited)
  }

  /// Whether so many machines have news of progress that nobody follows each of them.
  package var isCrowded: Bool { Self.patienceForEach * drafts.count > Self.patience }

  package mutating func forget(_ key: ObjectKey) { drafts[key] = nil }

  /// The write did not come through: what waited has waited as long as before.
  package mutating func notWritten(_ key: ObjectKey) { drafts[key]?.isHandedOver = false }

  /// The machine with what was seen and is not written yet: the moments, and that its server was on in its first boot.
  package func completed(_ machine: BareMetalMachine) -> BareMetalMachine {
    guard let draft = drafts[machine.key], draft.uid == machine.metadata.uid, let seen = draft.timeline else {
      return machine
    }
    var machine = machine
    var status = machine.status ?? BareMetalMachine.Status()
    var timeline = status.timeline ?? BareMetalMachine.Timeline()
    timeline.applied = timeline.applied ?? seen.applied
    timeline.hostClaimed = timeline.hostClaimed ?? seen.hostClaimed
    timeline.volumesReady = timeline.volumesReady ?? seen.volumesReady
    timeline.disksAttached = timeline.disksAttached ?? seen.disksAttached
    timeline.leased = timeline.leased ?? seen.leased
    if let bootedAt = draft.bootedAt, status.bootedAt == nil, Self.isFirstBoot(status),
      status.host == nil || status.host == draft.host
    {
      status.host = draft.host
      status.boot = 1
      status.bootedAt = bootedAt
      timeline.poweredOn = timeline.poweredOn ?? seen.poweredOn
      timeline.ownSeconds = timeline.ownSeconds ?? seen.ownSeconds
    }
    status.timeline = timeline
    machine.status = status
    return machine
  }

  /// Whether the next plan, another machine or a person depends on the change.
  private static func isUrgent(from old: BareMetalMachine.Status?, to new: BareMetalMachine.Status) -> Bool {
    let before = old ?? BareMetalMachine.Status()
    guard before.boot ?? 1 == new.boot ?? 1, before.observedRestart == new.observedRestart else { return true }
    // The first host can wait for the boot there: claim and attachments name it as well. Another host cannot.
    guard before.host == new.host || before.host == nil else { return true }
    guard before.bootedAt == new.bootedAt || (before.bootedAt == nil && isFirstBoot(new)) else { return true }
    if let generation = before.observedGeneration, generation != new.observedGeneration { return true }
    if before.phase != new.phase {
      // Several steps may be told as one, where none was told yet.
      guard let from = progress(before.phase), let to = progress(new.phase), from < to else { return true }
    }
    typealias Kind = BareMetalMachine.ConditionType
    if before.conditions?.isTrue(Kind.ready) ?? false != new.conditions?.isTrue(Kind.ready) ?? false { return true }
    // Trouble, or the end of it.
    return trouble(before) != trouble(new) || machineEvents(from: old, to: new).contains { $0.type == .warning }
  }

  private static func isFirstBoot(_ status: BareMetalMachine.Status) -> Bool { status.boot ?? 1 == 1 }

  /// How far on the way to its first sign of life a machine is; nil for what is no part of that way.
  private static func progress(_ phase: BareMetalMachine.Phase?) -> Int? {
    switch phase {
    case nil: 0
    case .pending: 1
    case .provisioning: 2
    case .starting: 3
    case .running, .stopping, .stopped, .deleting: nil
    }
  }

  private static func trouble(_ status: BareMetalMachine.Status) -> Set<String> {
    Set((status.conditions ?? []).filter { $0.isTrouble }.map { "\($0.type)/\($0.reason)" })
  }
}
