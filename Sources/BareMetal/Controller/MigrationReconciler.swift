package import IaaS
import JSON
package import Kubernetes
import Logging
package import Reconciler

/// Keeps migrations' status. What is to be done for them is done for their machines: see `MachinePlanner.planMove`.
package struct MigrationReconciler: Reconcile {
  let caches: ControllerCaches
  let cluster: any Cluster
  let power: @Sendable (String) -> PowerView
  let events: EventRecorder?
  let metrics: MigrationMetrics?
  let logger: Logger

  package func reconcile(_ key: ObjectKey) async throws -> ReconcileResult {
    guard let migration = caches.migrations.get(key), migration.isOpen else { return .done }
    let machineKey = ObjectKey(namespace: key.namespace, name: migration.spec.machineName)
    let view = MigrationView(
      of: migration, machine: try await machine(machineKey), in: caches, power: power, now: .now())
    let status = plan(view)
    let old = try MergePatch.json(migration.status)
    guard let patch = MergePatch.difference(from: old, to: try MergePatch.json(status)) else {
      return .requeue(after: .seconds(30))
    }
    do {
      try await cluster.patchStatus(of: migration, patch)
    } catch let error as KubernetesError where error.code == .notFound || error.code == .conflict {
      // The newer version comes by the watch.
      return .done
    }
    logger.info(
      "migration",
      metadata: ["object": "\(key)", "phase": "\(status.phase?.rawValue ?? "")", "message": "\(status.message ?? "")"])
    for event in migrationEvents(from: migration.status, to: status) {
      events?.event(regarding: migration, type: event.type, reason: event.reason, message: event.message)
    }
    metrics?.observe(from: migration.status, to: status)
    return .requeue(after: .seconds(30))
  }

  /// The cache may be behind, so that a machine is missing there proves nothing.
  private func machine(_ key: ObjectKey) async throws -> BareMetalMachine? {
    if let machine = caches.machines.get(key) { return machine }
    do {
      return try await cluster.machine(key)
    } catch let error as KubernetesError where error.code == .notFound {
      return nil
    }
  }
}

extension MigrationView {
  /// Everything about a migration that a snapshot has.
  package init(
    of migration: BareMetalMachineMigration, machine: BareMetalMachine?, in snapshot: some ClusterSnapshot,
    power: (String) -> PowerView, now: MicroTimestamp
  ) {
    self.init(migration: migration, now: now)
    self.machine = machine
    let key = ObjectKey(namespace: migration.metadata.namespace, name: migration.spec.machineName)
    others = snapshot.migrations(of: key).filter { $0.key != migration.key }
    if migration.isUnderWay {
      let names = [migration.status?.sourceHost, migration.status?.targetHost, machine?.status?.host]
      hosts = Set(names.compactMap { $0 }).sorted().compactMap { snapshot.host($0) }
    }
    if !migration.isUnderWay || migration.status?.phase == .reserving { hosts = snapshot.allHosts() }
    if let source = migration.status?.sourceHost ?? machine?.status?.host {
      sourcePower = power(source).trusting(snapshot.host(source))
    }
  }
}
