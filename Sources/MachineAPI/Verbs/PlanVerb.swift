package import BareMetal
package import IaaS
package import JSON
package import Kubernetes

/// The objects that one machine's plan looks at, read from the API server at the moment.
struct LiveSnapshot: ClusterSnapshot {
  private var hostsByName: [String: BareMetalHost] = [:]
  private var claimsByKey: [ObjectKey: PersistentVolumeClaim] = [:]
  private var volumesByName: [String: PersistentVolume] = [:]
  private var attachmentsByName: [String: VolumeAttachment] = [:]
  private var bootDataByHost: [String: Secret] = [:]
  private var migrations: [BareMetalMachineMigration] = []

  static func read(_ machine: BareMetalMachine, from client: KubernetesClient) async throws -> LiveSnapshot {
    var snapshot = LiveSnapshot()
    let uid = machine.metadata.uid ?? ""
    for claim in try await client.listAll(PersistentVolumeClaim.self, namespace: machine.metadata.namespace).items {
      snapshot.claimsByKey[claim.key] = claim
    }
    let named = ControllerCaches.claims(of: machine)
    for key in named where snapshot.claimsByKey[key] == nil && key.namespace != machine.metadata.namespace {
      snapshot.claimsByKey[key] = try await optional {
        try await client.get(PersistentVolumeClaim.self, name: key.name, namespace: key.namespace)
      }
    }
    let own = snapshot.claimsByKey.values.filter { claim in
      named.contains(claim.key) || claim.metadata.labels?[Names.machineUIDLabel] == uid
    }
    for name in own.compactMap({ $0.spec?.volumeName }) where !name.isEmpty {
      let volume = try await optional { try await client.get(PersistentVolume.self, name: name) }
      snapshot.volumesByName[name] = volume
      let attachment = Names.attachment(volume: volume?.spec?.csi?.volumeHandle ?? name, machineUID: uid)
      snapshot.attachmentsByName[attachment] = try await optional {
        try await client.get(VolumeAttachment.self, name: attachment)
      }
    }
    if let name = machine.status?.host {
      snapshot.hostsByName[name] = try await optional { try await client.get(BareMetalHost.self, name: name) }
      let selector = "\(Names.hostLabel)=\(name)"
      for attachment in try await client.listAll(VolumeAttachment.self, labelSelector: selector).items {
        snapshot.attachmentsByName[attachment.metadata.name ?? ""] = attachment
      }
      snapshot.bootDataByHost[name] = try await optional {
        try await client.get(Secret.self, name: Names.bootData(host: name), namespace: Names.systemNamespace)
      }
    }
    let migrations = try await client.listAll(
      BareMetalMachineMigration.self, namespace: machine.metadata.namespace
    ).items
    snapshot.migrations = migrations.filter { $0.machineKey == machine.key }
    let isMoving = snapshot.migrations.contains { !$0.isFinished }
    if isMoving || (machine.status?.host == nil && !machine.metadata.isBeingDeleted) {
      for host in try await client.listAll(BareMetalHost.self).items {
        snapshot.hostsByName[host.metadata.name ?? ""] = host
      }
    }
    return snapshot
  }

  private static func optional<T>(_ body: () async throws -> T) async throws -> T? {
    do {
      return try await body()
    } catch let error as KubernetesError {
      if error.code == .notFound { return nil }
      throw error
    }
  }

  func machine(uid: String) -> BareMetalMachine? { nil }
  /// Who asks for the same address changes no step, and only bm-controller may look at everybody's machines.
  func machines(asking address: String) -> [BareMetalMachine] { [] }
  func host(_ name: String) -> BareMetalHost? { hostsByName[name] }
  func allHosts() -> [BareMetalHost] { hostsByName.values.sorted { $0.key < $1.key } }
  func hosts(heldBy uid: String) -> [BareMetalHost] { allHosts().filter { $0.status?.claim?.uid == uid } }
  func claim(_ key: ObjectKey) -> PersistentVolumeClaim? { claimsByKey[key] }
  func claims(ofMachine uid: String) -> [PersistentVolumeClaim] {
    claimsByKey.values.filter { $0.metadata.labels?[Names.machineUIDLabel] == uid }.sorted { $0.key < $1.key }
  }
  func persistentVolume(_ name: String) -> PersistentVolume? { volumesByName[name] }
  func attachment(_ name: String) -> VolumeAttachment? { attachmentsByName[name] }
  func attachments(ofMachine uid: String) -> [VolumeAttachment] { sorted { $0.machineUID == uid } }
  func attachments(onHost host: String) -> [VolumeAttachment] { sorted { $0.host == host } }
  func attachments(madeFor key: ObjectKey) -> [VolumeAttachment] { [] }
  func bootData(host: String) -> Secret? { bootDataByHost[host] }
  func migrations(of machine: ObjectKey) -> [BareMetalMachineMigration] { migrations }

  private func sorted(_ isWanted: (VolumeAttachment) -> Bool) -> [VolumeAttachment] {
    attachmentsByName.values.filter(isWanted).sorted { $0.key < $1.key }
  }
}

/// GET plan: the steps that bm-controller would take now.
struct PlanVerb: Sendable {
  let client: KubernetesClient

  func answer(_ machine: BareMetalMachine, running: Bool?) async throws -> JSONValue {
    var machine = machine
    var assumptions: [String] = []
    if let running, running != machine.spec.running {
      machine.spec.running = running
      assumptions.append("spec.running is \(running)")
    }
    let snapshot: LiveSnapshot
    do {
      snapshot = try await LiveSnapshot.read(machine, from: client)
    } catch let error as KubernetesError {
      throw APIFailure(error, machine: machine.key.name)
    }
    var view = MachineView(
      of: machine, in: snapshot, power: { Self.power(of: snapshot.host($0)) }, userData: .notRead,
      shutdownGrace: .seconds(30), now: .now())
    // Nobody's secrets are read for a look at a plan.
    if machine.spec.cloudInit?.userDataSecretRef == nil {
      view.userData = .text(machine.spec.cloudInit?.userData ?? "")
    } else {
      assumptions.append("the user data in the secret is as it was")
    }
    for host in view.hosts where view.power[host.key.name] != nil {
      let power = host.status?.power?.rawValue ?? "Unknown"
      assumptions.append("the power of host \(host.key.name) is \(power), as last read by bm-controller")
    }
    let plan = plan(view)
    let asks = plan.steps.contains { step in
      if case .power(_, .off(let grace)) = step { grace > .zero } else { false }
    }
    if asks { assumptions.append("bm-controller's --shutdown-grace is its default") }
    return PlanDocument.body(machine, plan, assumptions: assumptions)
  }

  /// bm-controller reads the power from the BMC; what it read is in the host's status.
  private static func power(of host: BareMetalHost?) -> PowerView {
    let power = host?.status?.power ?? .unknown
    return PowerView(power: power, confirmedOff: power == .off, fencedOff: power == .off)
  }
}

/// What a plan looks like to those who ask for it. Pure.
package enum PlanDocument {
  package static func body(_ machine: BareMetalMachine, _ plan: MachinePlan, assumptions: [String]) -> JSONValue {
    var conditions: [JSONValue] = []
    for condition in plan.status.conditions ?? [] {
      conditions.append([
        "type": .string(condition.type), "status": .string(condition.status.rawValue),
        "reason": .string(condition.reason), "message": .string(condition.message),
      ])
    }
    return [
      "apiVersion": .string(APIGroup.groupVersion), "kind": .string(MachineVerb.plan.kind),
      "metadata": TimelineDocument.metadata(
        name: machine.metadata.name, namespace: machine.metadata.namespace, uid: machine.metadata.uid),
      "steps": .array(plan.steps.map { ["description": .string($0.summary)] }),
      "assumptions": .array(assumptions.map { .string($0) }),
      "phase": .string(plan.status.phase?.rawValue ?? "Pending"), "message": .string(plan.status.message ?? ""),
      "conditions": .array(conditions),
    ]
  }
}

/// GET timeline. Pure.
package enum TimelineDocument {
  package static func body(_ machine: DynamicObject) -> JSONValue {
    let status = machine["status"]
    return [
      "apiVersion": .string(APIGroup.groupVersion), "kind": .string(MachineVerb.timeline.kind),
      "metadata": metadata(name: machine.name, namespace: machine.namespace, uid: machine.uid),
      "phase": status?["phase"] ?? "Pending", "boot": status?["boot"] ?? 0, "timeline": status?["timeline"] ?? [:],
    ]
  }

  static func metadata(name: String?, namespace: String?, uid: String?) -> JSONValue {
    ["name": .string(name ?? ""), "namespace": .string(namespace ?? ""), "uid": .string(uid ?? "")]
  }
}
