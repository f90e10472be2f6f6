package import IaaS
package import Kubernetes
import Reconciler

/// When a machine's status is written: at once what somebody acts on or waits for; what only tells how far it is waits a
/// moment for more, so that a start that takes a second is not told in eight pieces. Pure.
///
/// Where many machines have such news at the same time, nobody follows each of them, and every write makes all wait for
/// longer: then it waits until there are about 20 a second.
package struct StatusPace: Sendable {
  /// For how long news may wait where few machines have any, and where a fleet starts.
  package static let patience: Duration = .seconds(1)
  package static let patienceMaximum: Duration = .seconds(10)
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
    let since = drafts[key].flatMap { $0.uid == uid ? $0.since : nil } ?? time
    let waited = time - since
    let patience = min(max(Self.patience, Self.patienceForEach * drafts.count), Self.patienceMaximum)
    guard waited < patience, !Self.isUrgent(from: old, to: new) else {
      drafts[key] = nil
      return .write
    }
    // The moments that were seen are kept for the time when they are written.
    drafts[key] = Draft(uid: uid, since: since, timeline: new.timeline)
    return .wait(patience - waited)
  }

  package mutating func forget(_ key: ObjectKey) { drafts[key] = nil }

  /// The machine with the moments that were seen and are not written yet.
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
    status.timeline = timeline
    machine.status = status
    return machine
  }

  /// Whether the next plan, another machine or a person depends on the change.
  private static func isUrgent(from old: BareMetalMachine.Status?, to new: BareMetalMachine.Status) -> Bool {
    let before = old ?? BareMetalMachine.Status()
    // The first host can wait for the boot there: claim and attachments name it as well. Another host cannot.
    guard before.host == new.host || (before.host == nil && before.boot ?? 1 == new.boot ?? 1),
      before.bootedAt == new.bootedAt, before.observedRestart == new.observedRestart
    else { return true }
    if let boot = before.boot, boot != new.boot { return true }
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
