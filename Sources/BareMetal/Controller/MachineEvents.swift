package import IaaS
package import Kubernetes
package import Reconciler

/// Something that a person who looks at a machine or host would ask about.
package struct PlannedEvent: Sendable, Hashable {
  package var type: EventType
  package var reason: String
  package var message: String

  package init(type: EventType, reason: String, message: String) {
    self.type = type
    self.reason = reason
    self.message = message
  }
}

/// The events of a change of status: one for each transition, none for what stays.
/// - Parameter isOneOfMany: Whether so many machines start that nobody follows each of them. Then a first start that goes
///   as it should has no events: its moments are in `status.timeline`, and each event is one write more.
package func machineEvents(
  from old: BareMetalMachine.Status?, to new: BareMetalMachine.Status, isOneOfMany: Bool = false
) -> [PlannedEvent] {
  var events: [PlannedEvent] = []
  let isDull = isOneOfMany && isOrderlyStart(from: old, to: new)
  if let phase = new.phase, phase != old?.phase, !isDull {
    var message: String
    switch phase {
    case .pending: message = new.message ?? "accepted"
    case .provisioning: message = "on host \(new.host ?? "?"): disks and network are being attached"
    case .starting: message = "the server \(new.host ?? "?") is being started (boot \(new.boot ?? 1))"
    case .running:
      message = "the machine runs on \(new.host ?? "?")"
      if let address = new.addresses?.compactMap(\.address).first { message += " at \(address)" }
    case .stopping: message = "the server \(new.host ?? "?") is being turned off"
    case .stopped: message = "the machine is off"
    case .deleting: message = "everything that the machine has is being given back"
    }
    events.append(PlannedEvent(type: .normal, reason: phase.rawValue, message: message))
  }
  for condition in new.conditions ?? [] where condition.isTrouble {
    let before = old?.conditions?.condition(condition.type)
    if before?.status == .false, before?.reason == condition.reason { continue }
    events.append(PlannedEvent(type: .warning, reason: condition.reason, message: condition.message))
  }
  let moving = new.conditions?.condition(BareMetalMachine.ConditionType.migrating)
  let moved = old?.conditions?.condition(BareMetalMachine.ConditionType.migrating)
  if let moving, moved?.message != moving.message {
    events.append(PlannedEvent(type: .normal, reason: "Migrating", message: moving.message))
  } else if let moved, moving == nil {
    let there = new.host.map { moved.message.contains(" to \($0) ") } ?? false
    events.append(
      PlannedEvent(
        type: .normal, reason: there ? "Migrated" : "MigrationEnded",
        message: "\(moved.message): " + (there ? "done" : "ended before; the host is \(new.host ?? "none")")))
  }
  // The one condition that is trouble while it is true.
  if let change = new.conditions?.condition(BareMetalMachine.ConditionType.restartNeeded), change.status == .true {
    let before = old?.conditions?.condition(change.type)
    if before?.message != change.message {
      events.append(PlannedEvent(type: .normal, reason: change.type, message: change.message))
    }
  }
  return events
}

/// Whether a machine goes on in its first start, and nothing was in the way of it before.
private func isOrderlyStart(from old: BareMetalMachine.Status?, to new: BareMetalMachine.Status) -> Bool {
  guard new.boot ?? 1 == 1, old?.conditions?.contains(where: { $0.isTrouble }) != true else { return false }
  let phases: Set<BareMetalMachine.Phase?> = [nil, .pending, .provisioning, .starting]
  return phases.contains(old?.phase) && (new.phase == .running || phases.contains(new.phase))
}

extension Condition {
  /// Whether it is false for a reason that somebody should look at.
  package var isTrouble: Bool { status == .false && !harmless.contains(reason) }
}

/// Reasons of conditions that are false because something is on its way, as it should be.
private let harmless: Set<String> = [
  "Waiting", "Migrating", "Claiming", "NotNeeded", "Attaching", "Preparing", "PoweringOn", "Off", "Stopping", "Stopped",
  "Deleting", "Pending", "Provisioning", "Starting", "Unclear", "Unplugging", "Reclaiming", "UploadPending",
  "UploadRunning",
]
