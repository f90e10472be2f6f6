package import IaaS
package import Kubernetes

/// How many machines may leave their hosts at the same time without being asked for one by one.
package struct DrainLimits: Sendable, Hashable {
  /// Migrations under way at once that drains have made.
  package var parallelMax = 4
  /// Share of the hosts, in percent, beyond which hosts in trouble stop all new ones: what fails everywhere at once is
  /// more likely the network than the hosts.
  package var troublePercentMax = 25

  package init() {}
}

/// Everything that is looked at to empty a host.
package struct DrainView: Sendable {
  package var host: BareMetalHost
  /// The machine that holds the host; nil where it is not known or gone.
  package var machine: BareMetalMachine?
  /// The migration by which it was to leave, from this time or an earlier one.
  package var migration: BareMetalMachineMigration?
  /// Open migrations of all drains.
  package var underWay: Int
  package var hosts: Int
  /// Hosts that are not ready, but for those that an operator says to be without power.
  package var troubledHosts: Int
  package var limits: DrainLimits

  package init(host: BareMetalHost, limits: DrainLimits = DrainLimits()) {
    self.host = host
    self.limits = limits
    underWay = 0
    hosts = 1
    troubledHosts = 0
  }
}

package enum DrainStep: Sendable, Hashable {
  case create(BareMetalMachineMigration)
  case delete(ObjectKey, uid: String)
}

package struct DrainPlan: Sendable, Hashable {
  package var step: DrainStep?
  /// What the host's condition `Drained` is to say: holds, reason, message. Nil where there is nothing to say.
  package var condition: Finding?

  package struct Finding: Sendable, Hashable {
    package var holds: Bool
    package var reason: String
    package var message: String
  }

  fileprivate init(_ holds: Bool, _ reason: String, _ message: String, step: DrainStep? = nil) {
    condition = Finding(holds: holds, reason: reason, message: message)
    self.step = step
  }

  fileprivate init() {}
}

/// Decides how a host gives its machine to another one. The move itself is a migration's, with its fence.
package func plan(_ view: DrainView) -> DrainPlan {
  let host = view.host
  let name = host.key.name
  guard host.spec.drain || host.spec.powerCut else { return DrainPlan() }
  guard let claim = host.status?.claim else { return DrainPlan(true, "Drained", "no machine is on \(name)") }
  guard let machine = view.machine, machine.metadata.uid == claim.uid, !machine.metadata.isBeingDeleted else {
    return DrainPlan(false, "Leaving", "waits for \(claim.namespace)/\(claim.name), which is at its end, to be cleared")
  }
  if let migration = view.migration {
    let text = "\(migration.key): \(migration.status?.message ?? "waits for bm-controller")"
    if !migration.isFinished { return DrainPlan(false, "Evacuating", "migration \(text)") }
    let isCurrent =
      migration.metadata.annotations?[Names.hostGenerationAnnotation] == generation(of: host)
      && migration.status?.phase == .failed
    if isCurrent {
      return DrainPlan(
        false, migration.status?.reason ?? "Failed",
        "the machine \(machine.key) stays: migration \(text). To try again, delete the migration")
    }
    guard let uid = migration.metadata.uid, !migration.metadata.isBeingDeleted else {
      return DrainPlan(false, "Evacuating", "waits for the old migration \(migration.key) to go")
    }
    return DrainPlan(
      false, "Evacuating", "removes the old migration \(migration.key)", step: .delete(migration.key, uid: uid))
  }
  let allowed = max(1, view.hosts * view.limits.troublePercentMax / 100)
  guard view.troubledHosts <= allowed else {
    return DrainPlan(
      false, "FleetTroubled",
      "\(view.troubledHosts) of \(view.hosts) hosts are not ready, and beyond \(allowed) no machine is moved: look at the "
        + "network and at bm-controller first. A machine is moved all the same by 'bmctl migrate \(machine.key.name)'")
  }
  guard view.underWay < view.limits.parallelMax else {
    return DrainPlan(
      false, "WaitsForTurn", "\(view.underWay) machines are leaving their hosts, and more do not at a time")
  }
  return DrainPlan(
    false, "Evacuating", "the machine \(machine.key) leaves", step: .create(migration(of: machine, from: host)))
}

/// The name of the migration by which a machine leaves a host when that is drained: the same each time.
package func drainMigration(of machine: ObjectKey, from host: String) -> ObjectKey {
  ObjectKey(namespace: machine.namespace, name: "\(machine.name)-leaves-\(host)")
}

private func generation(of host: BareMetalHost) -> String { "\(host.metadata.generation ?? 0)" }

private func migration(of machine: BareMetalMachine, from host: BareMetalHost) -> BareMetalMachineMigration {
  let key = drainMigration(of: machine.key, from: host.key.name)
  var metadata = ObjectMeta(name: key.name, namespace: key.namespace)
  metadata.labels = [Names.evacuatedHostLabel: host.key.name]
  metadata.annotations = [Names.hostGenerationAnnotation: generation(of: host)]
  // It goes with its machine.
  metadata.ownerReferences = OwnerReference(owner: machine, controller: false).map { [$0] }
  // A server without power has nobody to ask.
  return BareMetalMachineMigration(
    metadata: metadata, spec: .init(machineName: machine.key.name, graceSeconds: host.spec.powerCut ? 0 : nil))
}
