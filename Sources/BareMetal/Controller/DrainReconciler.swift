package import IaaS
import JSON
package import Kubernetes
import Logging
package import Reconciler

/// Empties hosts that are to be drained: makes a migration for the machine that is there. One host at a time is looked at,
/// so that the limits hold.
package struct DrainReconciler: Reconcile {
  let caches: ControllerCaches
  let cluster: any Cluster
  let events: EventRecorder?
  let limits: DrainLimits
  let logger: Logger

  package func reconcile(_ key: ObjectKey) async throws -> ReconcileResult {
    guard let host = caches.hosts.get(key) else { return .done }
    let view = DrainView(of: host, in: caches, open: caches.openMigrations(), limits: limits)
    let plan = plan(view)
    switch plan.step {
    case .create(let migration):
      do {
        try await cluster.create(migration)
      } catch let error as KubernetesError where error.code == .alreadyExists {
        return .requeue(after: .seconds(1))
      }
      logger.info("a host is drained", metadata: ["host": "\(key)", "migration": "\(migration.key)"])
      let cause = host.spec.powerCut ? "has no power, as an operator said" : "is being drained"
      if let machine = view.machine {
        events?.event(
          regarding: machine, type: .normal, reason: "Evacuating", message: "leaves \(key.name), which \(cause)")
      }
      events?.event(regarding: host, type: .normal, reason: "Evacuating", message: "\(migration.key) begins")
    case .delete(let migration, let uid):
      do {
        try await cluster.deleteMigration(migration, uid: uid)
      } catch let error as KubernetesError where error.code == .notFound || error.code == .conflict {
        // It is gone or another one: the watch tells.
      }
    case nil: break
    }
    try await write(plan.condition, on: host)
    guard let condition = plan.condition, !condition.holds else { return .done }
    return .requeue(after: .seconds(15))
  }

  private func write(_ finding: DrainPlan.Finding?, on host: BareMetalHost) async throws {
    var conditions = host.status?.conditions ?? []
    let type = BareMetalHost.ConditionType.drained
    let before = conditions.condition(type)
    if let finding {
      conditions.set(
        type, Condition.Status(finding.holds), reason: finding.reason, message: finding.message,
        observedGeneration: host.metadata.generation)
    } else {
      conditions.remove(type)
    }
    guard conditions != host.status?.conditions ?? [] else { return }
    do {
      try await cluster.patchStatus(
        of: host, ["conditions": try MergePatch.json(["list": conditions])["list"] ?? []], locked: true)
    } catch let error as KubernetesError where error.code == .notFound || error.code == .conflict {
      return
    }
    guard let finding, before?.reason != finding.reason, finding.reason != "Evacuating" else { return }
    events?.event(
      regarding: host, type: finding.holds || finding.reason == "Leaving" ? .normal : .warning, reason: finding.reason,
      message: finding.message)
  }
}

extension DrainView {
  /// Everything about a host to be emptied that a snapshot has.
  package init(
    of host: BareMetalHost, in snapshot: some ClusterSnapshot, open: [BareMetalMachineMigration], limits: DrainLimits
  ) {
    self.init(host: host, limits: limits)
    guard host.spec.drain || host.spec.powerCut, let claim = host.status?.claim else { return }
    machine = snapshot.machine(uid: claim.uid)
    let name = drainMigration(of: ObjectKey(namespace: claim.namespace, name: claim.name), from: host.key.name)
    migration = snapshot.migrations(of: ObjectKey(namespace: claim.namespace, name: claim.name)).first {
      $0.key == name
    }
    underWay = open.count { $0.metadata.labels?[Names.evacuatedHostLabel] != nil }
    let all = snapshot.allHosts()
    hosts = all.count
    troubledHosts = all.count { host in
      let ready = host.status?.conditions?.condition(BareMetalHost.ConditionType.ready)
      return ready?.status == .false && !host.spec.powerCut
    }
  }
}
