import IaaS
import Kubernetes
import Reconciler

/// Decides which volumes have to be looked at when an object of the cluster changes.
struct VolumeFeed: Sendable {
  let cluster: KubernetesCluster
  let queue: WorkQueue

  /// Claims that wait to be made from this VolumeSnapshot.
  func snapshotChanged(_ key: SnapshotKey) {
    for claim in cluster.claims.byIndex("snapshot", key.description) where claim.spec?.volumeName ?? "" == "" {
      add(handles(of: claim))
    }
  }

  func start(claimDeleted: @escaping @Sendable (VolumeHandle, ClaimKey) -> Void) {
    cluster.claims.onChange { change in
      switch change {
      case .added(let claim), .updated(_, let claim): claimChanged(claim)
      case .deleted(let claim):
        if let view = ClaimView(claim), view.isHandedOver, let handle = view.ownHandle {
          claimDeleted(handle, view.key)
        }
        claimChanged(claim)
      }
    }
    cluster.persistentVolumes.onChange { change in
      switch change {
      case .added(let volume), .updated(_, let volume), .deleted(let volume):
        guard let view = PersistentVolumeView(volume) else { return }
        add(view.handle)
        if let key = view.claimKey { addClones(of: key) }
      }
    }
    cluster.attachments.onChange { change in
      switch change {
      case .added(let attachment), .updated(_, let attachment), .deleted(let attachment):
        if let handle = heldVolume(attachment) { add(handle) }
        guard let name = KubernetesCluster.volumeName(of: attachment) else { return }
        if let view = cluster.persistentVolumes.get(name: name).flatMap(PersistentVolumeView.init) { add(view.handle) }
      }
    }
    cluster.storageClasses.onChange { change in
      switch change {
      case .added(let storageClass), .updated(_, let storageClass), .deleted(let storageClass):
        guard let name = storageClass.metadata.name else { return }
        for claim in cluster.claims.byIndex("class", name) { add(handles(of: claim)) }
      }
    }
    queue.addSource {
      cluster.claims.all().flatMap { handles(of: $0) }.map { ObjectKey(namespace: nil, name: $0) }
        + cluster.persistentVolumes.all().compactMap { PersistentVolumeView($0)?.handle }.map {
          ObjectKey(namespace: nil, name: $0)
        } + cluster.attachments.all().compactMap { heldVolume($0) }.map { ObjectKey(namespace: nil, name: $0) }
    }
  }

  /// The volume that an upload holds by this attachment.
  private func heldVolume(_ attachment: VolumeAttachment) -> String? {
    guard let hold = KubernetesCluster.uploadHold(attachment), hold.name.hasPrefix(Names.attachmentPrefix) else {
      return nil
    }
    return String(hold.name.dropFirst(Names.attachmentPrefix.count))
  }

  /// Something that is not in the cluster changed about a volume and its claim.
  func changed(_ handle: VolumeHandle, claim: ClaimKey) {
    add(handle.name)
    addClones(of: claim)
  }

  private func claimChanged(_ claim: PersistentVolumeClaim) {
    add(handles(of: claim))
    if let key = ClaimView(claim)?.key { addClones(of: key) }
  }

  /// Claims that wait to be a clone of this one.
  private func addClones(of key: ClaimKey) {
    for clone in cluster.claims.byIndex("source", key.description) where clone.spec?.volumeName ?? "" == "" {
      add(handles(of: clone))
    }
  }

  private func handles(of claim: PersistentVolumeClaim) -> [String] {
    guard let view = ClaimView(claim) else { return [] }
    var handles: [String] = []
    // One that cannot be made is looked at all the same, so that its owner is told.
    if view.isHandedOver { handles.append(view.ownHandle?.name ?? VolumeSharing.exclusive.handle(claimUID: view.uid)) }
    if let name = view.volumeName,
      let volume = cluster.persistentVolumes.get(name: name).flatMap(PersistentVolumeView.init),
      !handles.contains(volume.handle)
    {
      handles.append(volume.handle)
    }
    return handles
  }

  private func add(_ handles: [String]) { for handle in handles { add(handle) } }

  private func add(_ handle: String) { queue.add(ObjectKey(namespace: nil, name: handle)) }
}
