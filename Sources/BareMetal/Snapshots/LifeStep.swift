package import IaaS
package import Kubernetes

/// Something to do for a snapshot, a restore or a clone of a machine. Every step may be repeated, after any crash.
package enum LifeStep: Sendable, Hashable {
  case addFinalizer
  /// Lets the object go. Comes alone.
  case removeFinalizer

  /// Has the disks of a host's server captured together.
  case ask(host: String, BareMetalHost.SnapshotRequest)
  /// Takes back what was asked of a host.
  case withdraw(host: String, token: String)
  case createVolumeSnapshot(VolumeSnapshot)
  case deleteVolumeSnapshot(ObjectKey, uid: String)
  /// Has it stay when its owner goes.
  case disownVolumeSnapshot(ObjectKey, uid: String)

  case createSnapshot(BareMetalMachineSnapshot)
  case createClaim(PersistentVolumeClaim)
  case deleteClaim(ObjectKey, uid: String)
  /// Has the machine stop or start; only this very version of it.
  case setRunning(ObjectKey, version: String, Bool)
  /// Gives the machine other disks, all with one change; only this very version of it.
  case switchDisks(ObjectKey, version: String, [BareMetalMachine.Disk], running: Bool)
  case createMachine(BareMetalMachine)
  case deleteMachine(ObjectKey, uid: String)

  /// For logs: what and to which object.
  package var summary: String {
    switch self {
    case .addFinalizer: "add the finalizer"
    case .removeFinalizer: "remove the finalizer"
    case .ask(let host, let request): "ask \(host) for the snapshot \(request.token)"
    case .withdraw(let host, let token): "withdraw the snapshot \(token) of \(host)"
    case .createVolumeSnapshot(let snapshot): "create volume snapshot \(snapshot.key)"
    case .deleteVolumeSnapshot(let key, _): "delete volume snapshot \(key)"
    case .disownVolumeSnapshot(let key, _): "keep volume snapshot \(key)"
    case .createSnapshot(let snapshot): "create machine snapshot \(snapshot.key)"
    case .createClaim(let claim): "create claim \(claim.key)"
    case .deleteClaim(let key, _): "delete claim \(key)"
    case .setRunning(let key, _, let running): "\(running ? "start" : "stop") machine \(key)"
    case .switchDisks(let key, _, _, _): "switch the disks of \(key)"
    case .createMachine(let machine): "create machine \(machine.key)"
    case .deleteMachine(let key, _): "delete machine \(key)"
    }
  }
}

/// What a plan says: what to do, what the status shall say, and when to look again without being told of a change.
package struct LifePlan<Status: Sendable>: Sendable {
  package var steps: [LifeStep] = []
  package var status: Status
  package var lookAgain: Duration?

  package init(status: Status) { self.status = status }
}

extension BareMetalMachine {
  /// Whether its server was seen off, and nothing has asked for it to go on since.
  package var isParked: Bool {
    !spec.running && status?.phase == .stopped && status?.bootedAt == nil
      && status?.observedGeneration == metadata.generation && !metadata.isBeingDeleted
  }
}
