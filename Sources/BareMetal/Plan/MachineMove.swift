package import IaaS
import Kubernetes

/// What a machine's plan needs to know of its migration. It is there from the moment that a target is chosen until the
/// migration is finished or deleted; the machine goes on from where it is when it is gone.
package struct MachineMove: Sendable, Hashable {
  package var migration: String
  package var target: String
  /// How long the guest gets to shut down; nil for the controller's own limit.
  package var grace: Duration?

  package init(migration: String, target: String, grace: Duration? = nil) {
    self.migration = migration
    self.target = target
    self.grace = grace
  }

  /// The move of the machine with `uid`: that of the migration whose turn it is.
  package init?(ofMachine uid: String, among migrations: [BareMetalMachineMigration]) {
    let active = migrations.filter { migration in
      migration.status?.machineUID == uid && migration.isUnderWay && migration.status?.targetHost != nil
        && !migration.metadata.isBeingDeleted
    }
    guard let first = active.min(by: { $0.goesBefore($1) }), let target = first.status?.targetHost else { return nil }
    self.init(
      migration: first.key.name, target: target, grace: first.spec.graceSeconds.map { .seconds($0) })
  }
}

extension BareMetalMachineMigration {
  /// Whether a target is chosen and the end not reached.
  package var isUnderWay: Bool {
    switch status?.phase {
    case .reserving, .stopping, .moving, .starting: true
    case nil, .pending, .succeeded, .failed: false
    }
  }

  /// Whether the target is held for it, so that no other migration of the machine may go before.
  private var holdsTarget: Bool { isUnderWay && status?.phase != .reserving }

  /// Whose turn it is of two migrations of one machine: one that holds a target, then the older one.
  package func goesBefore(_ other: BareMetalMachineMigration) -> Bool {
    if holdsTarget != other.holdsTarget { return holdsTarget }
    let (mine, others) = (metadata.creationTimestamp?.date, other.metadata.creationTimestamp?.date)
    if let mine, let others, mine != others { return mine < others }
    return key < other.key
  }
}
