import BareMetal
import IaaS
import JSON
import Kubernetes
import Synchronization

/// What others do meanwhile: servers that write to their disks, csi-controller, bm-handler.
extension LifeWorld {
  /// One thing that somebody does.
  func act() {
    state.withLock { state in
      state.now += Int64.random(in: 1000...400_000, using: &state.random)
      switch Int.random(in: 0..<4, using: &state.random) {
      case 0: Self.runServers(&state)
      case 1: Self.write(&state)
      case 2: Self.provide(&state)
      default: Self.capture(&state)
      }
    }
  }

  private static func claims(of machine: BareMetalMachine) -> [ObjectKey] {
    machine.spec.disks.map {
      key($0.existingClaim?.claimName ?? Names.claim(machine: machine.key.name, disk: $0.name))
    }
  }

  private static func volumes(of machine: BareMetalMachine, _ state: State) -> [String]? {
    let volumes = claims(of: machine).compactMap { key -> String? in
      guard let claim = state.truth.claims[key], claim.status?.phase == "Bound" else { return nil }
      return claim.spec?.volumeName
    }
    return volumes.count == machine.spec.disks.count ? volumes : nil
  }

  /// Makes claims, starts and stops machines, as bm-controller does.
  private static func runServers(_ state: inout State) {
    // The garbage collector: what belongs to machines that are gone goes.
    let machines = Set(state.truth.machines.values.compactMap(\.metadata.uid))
    state.truth.claims = state.truth.claims.filter { _, claim in
      claim.metadata.ownerReferences?.allSatisfy { machines.contains($0.uid) } ?? true
    }
    for var machine in state.truth.machines.values.sorted(by: { $0.key < $1.key }) {
      var status = machine.status ?? .init()
      status.observedGeneration = machine.metadata.generation
      for disk in machine.spec.disks where disk.template != nil {
        let key = key(Names.claim(machine: machine.key.name, disk: disk.name))
        guard state.truth.claims[key] == nil else { continue }
        var metadata = ObjectMeta(name: key.name, namespace: namespace)
        metadata.uid = "uid-\(state.next())"
        metadata.ownerReferences = OwnerReference(owner: machine).map { [$0] }
        state.truth.claims[key] = PersistentVolumeClaim(
          metadata: metadata,
          spec: .init(
            storageClassName: "c",
            dataSource: disk.template?.source?.volumeSnapshot.map {
              .init(apiGroup: "snapshot.storage.k8s.io", kind: "VolumeSnapshot", name: $0.name)
            }))
      }
      let volumes = volumes(of: machine, state)
      if volumes != nil, status.timeline?.volumesReady == nil {
        status.timeline = .init()
        status.timeline?.volumesReady = MicroTimestamp(microseconds: state.now)
      }
      let isOn = status.bootedAt != nil
      if machine.spec.running, !isOn, let volumes, machine.metadata.labels == nil {
        let numbers = volumes.map { state.disks[$0]?.number ?? -1 }
        // A write to the second follows one to the first, so any other picture is of two different moments.
        if let first = numbers.first, let last = numbers.last, !(last...last + 1).contains(first) {
          state.violations.append("\(machine.key) boots with \(numbers)")
        }
        // What was written to the first only is found there, and done again.
        state.halfWritten[machine.key] = numbers.first == numbers.last ? nil : numbers.first
        status.bootedAt = MicroTimestamp(microseconds: state.now)
        status.phase = .running
        state.truth.attachments = state.truth.attachments.filter { $0.value.machineUID != machine.metadata.uid }
        for volume in volumes { attach(volume, machine, &state) }
      } else if !machine.spec.running, isOn || status.phase == nil {
        if isOn { status.boot = (status.boot ?? 1) + 1 }
        status.bootedAt = nil
        status.phase = .stopped
      }
      guard status != machine.status else { continue }
      machine.status = status
      machine.metadata.resourceVersion = state.next()
      state.truth.machines[machine.key] = machine
    }
  }

  private static func attach(_ volume: String, _ machine: BareMetalMachine, _ state: inout State) {
    var metadata = ObjectMeta(name: Names.attachment(volume: volume))
    metadata.uid = "uid-\(state.next())"
    metadata.labels = [Names.hostLabel: "h"]
    metadata.annotations = [Names.machineUIDAnnotation: machine.metadata.uid ?? ""]
    var attachment = VolumeAttachment(
      metadata: metadata,
      spec: .init(attacher: Names.storageDriver, nodeName: "h", source: .init(persistentVolumeName: volume)))
    attachment.status = .init(attached: true)
    state.truth.attachments[volume] = attachment
  }

  /// A machine that is on writes a number to its first disk, and then to its last.
  private static func write(_ state: inout State) {
    for machine in state.truth.machines.values.sorted(by: { $0.key < $1.key }) where machine.status?.bootedAt != nil {
      let attached = state.truth.attachments.values.filter { $0.machineUID == machine.metadata.uid }.map(\.volume)
      guard let volumes = volumes(of: machine, state), let first = volumes.first, let last = volumes.last,
        attached.contains(first), attached.contains(last)
      else { continue }
      if let number = state.halfWritten[machine.key] {
        state.disks[last]?.number = number
        state.halfWritten[machine.key] = nil
      } else {
        let number = (state.disks[first]?.number ?? 0) + 1
        state.disks[first]?.number = number
        state.halfWritten[machine.key] = number
      }
    }
  }

  /// csi-controller.
  private static func provide(_ state: inout State) {
    let open = state.truth.claims.values.filter { $0.status?.phase != "Bound" }
    if let claim = open.sorted(by: { $0.key < $1.key }).randomElement(using: &state.random) {
      bind(claim, &state)
    }
    let waiting = state.truth.volumeSnapshots.values.filter { $0.status?.readyToUse != true }
    guard var snapshot = waiting.sorted(by: { $0.key < $1.key }).randomElement(using: &state.random),
      let uid = snapshot.metadata.uid, let name = snapshot.spec.source.persistentVolumeClaimName
    else { return }
    let volume = state.truth.claims[key(name)]?.spec?.volumeName
    var status = VolumeSnapshot.Status()
    if let group = snapshot.metadata.annotations?[Names.snapshotGroupAnnotation] {
      guard let disk = volume.flatMap({ state.groups[group]?[$0] }) else {
        status.error = SnapshotError(message: "the pool has no content of it")
        snapshot.status = status
        state.truth.volumeSnapshots[snapshot.key] = snapshot
        return
      }
      state.captured[uid] = disk
    } else if let disk = volume.flatMap({ state.disks[$0] }) {
      state.captured[uid] = disk
    } else {
      return
    }
    status.readyToUse = true
    status.restoreSize = Quantity("1Gi")
    status.creationTime = Timestamp(secondsSince1970: state.now / 1_000_000)
    snapshot.status = status
    state.truth.volumeSnapshots[snapshot.key] = snapshot
  }

  private static func bind(_ claim: PersistentVolumeClaim, _ state: inout State) {
    var claim = claim
    let volume = "pvc-\(claim.metadata.uid ?? "")"
    guard state.truth.claims.values.count(where: { $0.status?.phase == "Bound" }) < state.volumesMax else {
      claim.metadata.annotations = [Names.provisioningMessageAnnotation: "PoolFull: the pool is full"]
      state.truth.claims[claim.key] = claim
      return
    }
    var disk = Disk()
    if let source = claim.spec?.dataSource {
      guard let snapshot = state.truth.volumeSnapshots[key(source.name)], let uid = snapshot.metadata.uid,
        let content = state.captured[uid]
      else { return }
      disk = content
    }
    state.disks[volume] = disk
    claim.spec?.volumeName = volume
    claim.status = .init(phase: "Bound")
    claim.metadata.annotations = nil
    state.truth.claims[claim.key] = claim
  }

  /// bm-handler and its data plane.
  private static func capture(_ state: inout State) {
    guard let request = state.truth.hosts["h"]?.status?.snapshot else {
      state.truth.hosts["h"]?.status?.dpu?.snapshot = nil
      return
    }
    guard state.truth.hosts["h"]?.status?.dpu?.snapshot?.token != request.token else { return }
    var answer = BareMetalHost.SnapshotAnswer(token: request.token)
    if state.isUnsupported {
      answer.error = "no such method"
      answer.unsupported = true
    } else if state.groups[request.token] != nil || state.random.chance(10) {
      answer.error = "it was taken, but its answer was lost"
    } else {
      state.groups[request.token] = state.disks.filter { request.volumes.contains($0.key) }
      // Killed before it could tell.
      if state.random.chance(state.failures) { return }
      answer.takenAt = MicroTimestamp(microseconds: state.now)
      answer.pauseMicroseconds = 1500
    }
    state.truth.hosts["h"]?.status?.dpu?.snapshot = answer
  }
}
