package import IaaS
package import Kubernetes
package import Logging
package import Telemetry

/// What bm-controller watches.
package struct ControllerCaches: Sendable {
  package let machines: ObjectCache<BareMetalMachine>
  package let hosts: ObjectCache<BareMetalHost>
  package let claims: ObjectCache<PersistentVolumeClaim>
  package let persistentVolumes: ObjectCache<PersistentVolume>
  package let attachments: ObjectCache<VolumeAttachment>
  package let bootData: ObjectCache<Secret>
  package let migrations: ObjectCache<BareMetalMachineMigration>

  package enum Index {
    /// Machines by the UID of their own.
    package static let uid = "uid"
    /// Machines by the claims that they name, own or clone: `namespace/name`.
    package static let claim = "claim"
    /// Machines that wait for a host and for nothing else: one value, `waiting`.
    package static let waiting = "waiting"
    /// Machines by the MAC and IPv4 addresses that their specs ask for.
    package static let address = "address"
    /// Hosts that are to be emptied: one value, `drained`.
    package static let drained = "drained"
    /// Hosts that no machine holds: one value, `unheld`.
    package static let unheld = "unheld"
    /// Migrations that are not finished: one value, `open`.
    package static let open = "open"
    /// Attachments and migrations by the machine's name: `namespace/name`.
    package static let machine = "machine"
    /// Attachments by the machine's UID.
    package static let machineUID = "machineUID"
    /// Attachments and machines by host; hosts are found by the UID of their holder under `machineUID`.
    package static let host = "host"
  }

  package init(client: KubernetesClient, logger: Logger, registry: MetricsRegistry?) {
    machines = ObjectCache(
      client: client,
      indexers: [
        Index.uid: { [$0.metadata.uid ?? ""] },
        Index.host: { $0.status?.host.map { [$0] } ?? [] },
        Index.claim: { machine in Self.claims(of: machine).map(\.description) },
        Index.address: { $0.spec.askedAddresses },
        Index.waiting: { Self.waitsForHost($0) ? ["waiting"] : [] },
      ], logger: logger, registry: registry)
    hosts = ObjectCache(
      client: client,
      indexers: [
        Index.machineUID: { $0.status?.claim.map { [$0.uid] } ?? [] },
        Index.unheld: { $0.status?.claim == nil ? [Index.unheld] : [] },
        Index.drained: { $0.spec.drain || $0.spec.powerCut ? [Index.drained] : [] },
      ], logger: logger, registry: registry)
    claims = ObjectCache(
      client: client,
      indexers: [Index.machineUID: { $0.metadata.labels?[Names.machineUIDLabel].map { [$0] } ?? [] }], logger: logger,
      registry: registry)
    persistentVolumes = ObjectCache(client: client, logger: logger, registry: registry)
    attachments = ObjectCache(
      client: client,
      indexers: [
        Index.machineUID: { $0.machineUID.map { [$0] } ?? [] },
        Index.machine: { $0.machineKey.map { [$0.description] } ?? [] },
        Index.host: { $0.host.map { [$0] } ?? [] },
      ], logger: logger, registry: registry)
    bootData = ObjectCache(
      client: client, namespace: Names.systemNamespace, labelSelector: Names.hostLabel, logger: logger,
      registry: registry)
    migrations = ObjectCache(
      client: client,
      indexers: [
        Index.machine: { [$0.machineKey.description] },
        Index.open: { $0.isFinished ? [] : [Index.open] },
      ], logger: logger, registry: registry)
  }

  /// The migrations that are not finished: few, as a rule.
  package func openMigrations() -> [BareMetalMachineMigration] { migrations.byIndex(Index.open, Index.open) }

  private static func waitsForHost(_ machine: BareMetalMachine) -> Bool {
    guard machine.status?.host == nil, !machine.metadata.isBeingDeleted else { return false }
    let condition = machine.status?.conditions?.condition(BareMetalMachine.ConditionType.hostClaimed)
    return condition.map { Scheduler.waitReasons.contains($0.reason) } ?? false
  }

  /// Every claim that a machine has to do with.
  package static func claims(of machine: BareMetalMachine) -> [ObjectKey] {
    let namespace = machine.metadata.namespace
    var keys: [ObjectKey] = []
    for disk in machine.spec.disks {
      if let existing = disk.existingClaim {
        keys.append(ObjectKey(namespace: namespace, name: existing.claimName))
      } else {
        keys.append(
          ObjectKey(namespace: namespace, name: Names.claim(machine: machine.key.name, disk: disk.name)))
        if let source = disk.template?.source?.persistentVolumeClaim {
          keys.append(ObjectKey(namespace: source.namespace ?? namespace, name: source.name))
        }
      }
    }
    return keys
  }
}
