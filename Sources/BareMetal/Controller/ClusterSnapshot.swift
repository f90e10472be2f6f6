package import IaaS
package import Kubernetes

/// What plans are made from: the state of the cluster as far as it is known here, which may be behind.
package protocol ClusterSnapshot: Sendable {
  func machine(uid: String) -> BareMetalMachine?
  /// Machines whose specs ask for this MAC or IPv4 address.
  func machines(asking address: String) -> [BareMetalMachine]
  func host(_ name: String) -> BareMetalHost?
  /// In any order.
  func allHosts() -> [BareMetalHost]
  /// The names of the hosts that no machine holds, in any order.
  func unheldHosts() -> [String]
  func hosts(heldBy uid: String) -> [BareMetalHost]
  func claim(_ key: ObjectKey) -> PersistentVolumeClaim?
  /// Claims that carry the machine's UID as a label.
  func claims(ofMachine uid: String) -> [PersistentVolumeClaim]
  func persistentVolume(_ name: String) -> PersistentVolume?
  func attachment(_ name: String) -> VolumeAttachment?
  func attachments(ofMachine uid: String) -> [VolumeAttachment]
  func attachments(onHost host: String) -> [VolumeAttachment]
  /// Attachments that were made for a machine of this name, whatever its UID.
  func attachments(madeFor key: ObjectKey) -> [VolumeAttachment]
  func bootData(host: String) -> Secret?
  /// Migrations that name this machine.
  func migrations(of machine: ObjectKey) -> [BareMetalMachineMigration]
}

extension ClusterSnapshot {
  package func unheldHosts() -> [String] { allHosts().filter { $0.status?.claim == nil }.compactMap(\.metadata.name) }

  /// The hosts that a machine without one is planned with: the one that it should have, or all of them where none will
  /// do, to say why. In a fleet, to copy all hosts for each machine is most of what its start would cost.
  fileprivate func hosts(for machine: BareMetalMachine, target: String?) -> [BareMetalHost] {
    if let name = machine.spec.hostName { return Set([name, target ?? name]).sorted().compactMap(host) }
    guard let best = Scheduler.best(for: machine, among: unheldHosts(), host: host) else { return allHosts() }
    guard let target, target != best.metadata.name, let other = host(target) else { return [best] }
    return [best, other]
  }
}

extension ControllerCaches: ClusterSnapshot {
  package func machine(uid: String) -> BareMetalMachine? { machines.byIndex(Index.uid, uid).first }
  package func machines(asking address: String) -> [BareMetalMachine] { machines.byIndex(Index.address, address) }
  package func host(_ name: String) -> BareMetalHost? { hosts.get(name: name) }
  package func allHosts() -> [BareMetalHost] { hosts.unordered() }
  package func unheldHosts() -> [String] { hosts.keys(Index.unheld, Index.unheld).map(\.name) }
  package func hosts(heldBy uid: String) -> [BareMetalHost] { hosts.byIndex(Index.machineUID, uid) }
  package func claim(_ key: ObjectKey) -> PersistentVolumeClaim? { claims.get(key) }
  package func claims(ofMachine uid: String) -> [PersistentVolumeClaim] { claims.byIndex(Index.machineUID, uid) }
  package func persistentVolume(_ name: String) -> PersistentVolume? { persistentVolumes.get(name: name) }
  package func attachment(_ name: String) -> VolumeAttachment? { attachments.get(name: name) }
  package func attachments(ofMachine uid: String) -> [VolumeAttachment] { attachments.byIndex(Index.machineUID, uid) }
  package func attachments(onHost host: String) -> [VolumeAttachment] { attachments.byIndex(Index.host, host) }
  package func attachments(madeFor key: ObjectKey) -> [VolumeAttachment] {
    attachments.byIndex(Index.machine, key.description)
  }
  package func bootData(host: String) -> Secret? {
    bootData.get(name: Names.bootData(host: host), namespace: Names.systemNamespace)
  }
  package func migrations(of machine: ObjectKey) -> [BareMetalMachineMigration] {
    migrations.byIndex(Index.machine, machine.description)
  }
}

extension MachineView {
  /// Everything about a machine that a snapshot has.
  package init(
    of machine: BareMetalMachine, in snapshot: some ClusterSnapshot, power: (String) -> PowerView, userData: UserData,
    shutdownGrace: Duration, now: MicroTimestamp
  ) {
    self.init(machine: machine, now: now)
    self.userData = userData
    self.shutdownGrace = shutdownGrace
    let uid = machine.metadata.uid ?? ""
    for key in ControllerCaches.claims(of: machine) {
      guard let claim = snapshot.claim(key) else { continue }
      if key.namespace == machine.metadata.namespace { claims[key.name] = claim }
      sources[key] = claim
    }
    if machine.metadata.isBeingDeleted {
      // Disks that the spec named once have claims too.
      for claim in snapshot.claims(ofMachine: uid) { claims[claim.key.name] = claim }
    }
    attachments = snapshot.attachments(ofMachine: uid)
    for claim in claims.values {
      guard let volume = claim.spec?.volumeName else { continue }
      let persistentVolume = snapshot.persistentVolume(volume)
      persistentVolumes[volume] = persistentVolume
      let handle = persistentVolume?.spec?.csi?.volumeHandle ?? volume
      guard let attachment = snapshot.attachment(Names.attachment(volume: handle, machineUID: uid)),
        attachment.machineUID != uid
      else { continue }
      foreignAttachments[volume] = attachment
    }
    for address in machine.spec.askedAddresses {
      rivals[address] = snapshot.machines(asking: address).filter { $0.metadata.uid != uid }.map(\.key).sorted()
    }
    move = MachineMove(ofMachine: uid, among: snapshot.migrations(of: machine.key))
    let held = snapshot.hosts(heldBy: uid)
    if held.isEmpty, machine.status?.host == nil, !machine.metadata.isBeingDeleted {
      hosts = snapshot.hosts(for: machine, target: move?.target)
    } else {
      var names = Set(held.compactMap(\.metadata.name))
      names.formUnion(attachments.compactMap(\.host))
      if let name = machine.status?.host { names.insert(name) }
      if let target = move?.target { names.insert(target) }
      hosts = names.sorted().compactMap { snapshot.host($0) }
    }
    for host in Set(held.compactMap(\.metadata.name)).union(attachments.compactMap(\.host)) {
      self.power[host] = power(host)
      bootData[host] = snapshot.bootData(host: host)
    }
  }
}

extension BareMetalMachine.Spec {
  /// The MAC and IPv4 addresses that the spec asks for, in lower case.
  package var askedAddresses: [String] {
    interfaces.flatMap { [$0.macAddress?.lowercased(), $0.address].compactMap { $0 } }
  }
}
