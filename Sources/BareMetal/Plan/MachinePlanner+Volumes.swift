import DPU
import IaaS
import Kubernetes

extension MachinePlanner {
  /// Plans the claims of the disks and fills `volumes`. Returns whether every disk's volume is there or on its way.
  mutating func planVolumes(mayCreate: Bool) -> Bool {
    var waits: [String] = []
    var problem: SpecProblem?
    var shown: [BareMetalMachine.Volume] = []
    var differences: [String] = []
    for (index, disk) in machine.spec.disks.enumerated() {
      let (claimName, finding) = look(at: disk, index: index)
      if let template = disk.template, let claim = view.claims[claimName], isOwn(claim),
        let difference = templateDifference(template, claim: claim, field: "spec.disks[\(index)]")
      {
        differences.append(difference)
      }
      var entry = BareMetalMachine.Volume(disk: disk.name, claim: claimName, bootOrder: orders[disk.name])
      switch finding {
      case .bound(let volume, let handle):
        if let other = handles.first(where: { $0.value == handle })?.key {
          let owner = volumes.first { $0.value == other }?.key ?? other
          problem = problem ?? twice(disk: disk.name, other: owner, handle: handle)
        } else {
          volumes[disk.name] = volume
          handles[volume] = handle
        }
        entry.volume = volume
        let attachment = view.attachments.first { $0.volume == volume }
        entry.attached = attachment?.isAttached == true
        if let attachment, attachment.isAttached { describe(attachment, in: &entry) }
      case .waits(let message):
        waits.append(message)
      case .create(let claim):
        waits.append("disk '\(disk.name)': the claim \(claimName) is being made")
        if mayCreate { steps.append(.createClaim(claim)) }
      case .problem(let found):
        problem = problem ?? found
      }
      shown.append(entry)
    }
    status.volumes = shown
    if differences.isEmpty {
      conditions.remove(Kind.templatesApplied)
    } else {
      set(
        Kind.templatesApplied, false, "TemplateChanged",
        differences.joined(separator: "; ") + ". A template counts when its claim is made")
    }
    if let problem {
      set(Kind.volumesReady, false, problem.reason, problem.message)
      return false
    }
    if waits.isEmpty {
      if status.timeline?.volumesReady == nil { status.timeline?.volumesReady = view.now }
      set(Kind.volumesReady, true, "Bound", "every disk has its volume")
    } else {
      set(Kind.volumesReady, false, "Waiting", waits.joined(separator: "; "))
    }
    return true
  }

  /// What bm-handler saw of a disk.
  private func describe(_ attachment: VolumeAttachment, in entry: inout BareMetalMachine.Volume) {
    entry.function = attachment.shown(Names.shownFunction)
    entry.serial = attachment.shown(Names.shownSerial)
    entry.device = entry.serial.map { "/dev/disk/by-id/virtio-\($0)" }
    entry.capacity = attachment.shownCapacity.map { Quantity(bytes: Int64(clamping: $0)).description }
    entry.limits = attachment.shown(Names.shownLimits).flatMap { VolumeLimits(text: $0) }?.shown
  }

  private func isOwn(_ claim: PersistentVolumeClaim) -> Bool {
    claim.metadata.ownerReferences?.contains { $0.uid == uid } == true
  }

  private enum Finding {
    case bound(volume: String, handle: String)
    case waits(String)
    case create(PersistentVolumeClaim)
    case problem(SpecProblem)
  }

  private func look(at disk: BareMetalMachine.Disk, index: Int) -> (claim: String, Finding) {
    let field = "spec.disks[\(index)]"
    let namespace = key.namespace ?? ""
    if let existing = disk.existingClaim {
      let name = existing.claimName
      guard let claim = view.claims[name] else {
        return (
          name,
          .problem(
            SpecProblem(
              "ClaimNotFound",
              "\(field).existingClaim.claimName: there is no claim \(namespace)/\(name) for disk '\(disk.name)'; "
                + "make it or name another"))
        )
      }
      if claim.metadata.isBeingDeleted, claim.spec?.volumeName.flatMap({ ours($0) }) == nil {
        return (
          name,
          .problem(
            SpecProblem("ClaimBeingDeleted", "the claim \(namespace)/\(name) of disk '\(disk.name)' is being deleted"))
        )
      }
      if let other = claim.spec?.volumeName.flatMap({ view.foreignAttachments[$0] }) {
        return (name, .problem(inUse(by: other, disk: disk.name, claim: claim)))
      }
      if let problem = accessProblem(claim, disk: disk, field: field) { return (name, .problem(problem)) }
      return (name, bound(claim, disk: disk.name))
    }

    let name = Names.claim(machine: key.name, disk: disk.name)
    guard let template = disk.template, let size = Quantity(template.size), size.bytes > 0 else {
      return (name, .waits("disk '\(disk.name)' has no usable template"))
    }
    if let claim = view.claims[name] {
      guard isOwn(claim) else {
        return (
          name,
          .problem(
            SpecProblem(
              "ClaimNotOurs",
              "\(field): the claim \(namespace)/\(name) is there already and does not belong to this machine; use it "
                + "as existingClaim, or rename the disk or the machine"))
        )
      }
      if claim.metadata.isBeingDeleted {
        return (
          name, .problem(SpecProblem("ClaimBeingDeleted", "the claim \(namespace)/\(name) is being deleted"))
        )
      }
      return (name, bound(claim, disk: disk.name))
    }
    return (name, claimToMake(name, disk: disk, template: template, size: size, field: field))
  }

  private func ours(_ volume: String) -> VolumeAttachment? { view.attachments.first { $0.volume == volume } }

  private func inUse(by other: VolumeAttachment, disk: String, claim: PersistentVolumeClaim) -> SpecProblem {
    if let target = other.uploadHold {
      return SpecProblem(
        "UploadRunning",
        "the content of the claim \(target) is being uploaded into the volume of disk '\(disk)'; it is attached when "
          + "that is complete")
    }
    let owner = other.metadata.annotations?[Names.machineAnnotation] ?? "something else"
    let modes = claim.spec?.accessModes ?? []
    let remedy =
      VolumeSharing(accessModes: modes) == .exclusive
      ? "remove it there first; several machines can have a claim with ReadWriteMany or ReadOnlyMany only"
      : "the claim allows more (\(modes.joined(separator: ", "))), but its volume was not made for that: make the claim "
        + "anew, or remove the disk there first"
    return SpecProblem(
      "VolumeInUse",
      "the volume of claim \(claim.key.name) (disk '\(disk)') is attached to \(other.host ?? other.spec.nodeName) for "
        + "\(owner); \(remedy)")
  }

  private func bound(_ claim: PersistentVolumeClaim, disk: String) -> Finding {
    guard claim.status?.phase == "Bound", let volume = claim.spec?.volumeName, !volume.isEmpty else {
      if claim.status?.phase == "Lost" {
        return .problem(
          SpecProblem(
            "VolumeLost", "the volume of claim \(claim.key) (disk '\(disk)') is gone; restore it or delete the machine")
        )
      }
      // A claim keeps the class that it was made with, so nothing will make a volume for one that has none.
      let why =
        claim.spec?.storageClassName ?? "" == ""
        ? "has no storage class (it names none, and the cluster had no default one when it was made) and is not bound; "
          + "name one of 'kubectl get storageclass' in a new claim or disk, or bind a volume to this one by hand"
        : "is not bound yet; see 'kubectl -n \(claim.key.namespace ?? "") describe pvc \(claim.key.name)' where it lasts"
      return .waits("disk '\(disk)': the claim \(claim.key.name) \(why)")
    }
    // What is attached was looked at before that.
    if let present = ours(volume) { return .bound(volume: volume, handle: present.volumeHandle) }
    return usable(volume, of: claim, disk: disk)
  }

  /// Whether a bound volume is one that the DPU can show, with its content in it.
  private func usable(_ volume: String, of claim: PersistentVolumeClaim, disk: String) -> Finding {
    guard let object = view.persistentVolumes[volume] else {
      return .waits("disk '\(disk)': the PersistentVolume \(volume) of claim \(claim.key.name) is not known here yet")
    }
    guard let source = object.spec?.csi, source.driver == Names.storageDriver else {
      let driver = object.spec?.csi.map { "is one of the CSI driver '\($0.driver)'" } ?? "is none of a CSI driver"
      return .problem(
        SpecProblem(
          "UnsupportedDriver",
          "the volume \(volume) of claim \(claim.key) (disk '\(disk)') \(driver), but servers are shown volumes of "
            + "\(Names.storageDriver) only; use a claim of its storage class, and copy the content by an image import"))
    }
    guard Names.isVolumeHandle(source.volumeHandle) else {
      return .problem(
        SpecProblem(
          "InvalidVolumeHandle",
          "the PersistentVolume \(volume) of claim \(claim.key) (disk '\(disk)') has the volumeHandle "
            + "'\(source.volumeHandle.prefix(140))', which no volume in the pool can have: it takes 1 to 128 of a-z, "
            + "0-9 and '-', with a letter or digit at both ends; make the PersistentVolume again with the right one"))
    }
    let annotations = claim.metadata.annotations ?? [:]
    let phase = annotations[Names.uploadPhaseAnnotation]
    if annotations[Names.uploadAnnotation] == "true", phase != Names.uploadSucceeded {
      return .problem(
        SpecProblem(
          "UploadPending",
          "the content of claim \(claim.key) (disk '\(disk)') is not uploaded yet (\(phase ?? "not begun")); it is "
            + "attached when that is complete. To use the volume as it is, remove the claim's annotation "
            + "\(Names.uploadAnnotation)"))
    }
    return .bound(volume: volume, handle: source.volumeHandle)
  }

  private func twice(disk: String, other: String, handle: String) -> SpecProblem {
    SpecProblem(
      "DuplicateVolume",
      "the claims of the disks '\(other)' and '\(disk)' have the same volume '\(handle)' behind two "
        + "PersistentVolumes; remove one of the disks")
  }

  private func claimToMake(
    _ name: String, disk: BareMetalMachine.Disk, template: BareMetalMachine.Template, size: Quantity, field: String
  ) -> Finding {
    let namespace = key.namespace ?? ""
    var metadata = ObjectMeta(name: name, namespace: namespace)
    metadata.labels = [Names.machineUIDLabel: uid]
    metadata.ownerReferences = OwnerReference(owner: machine).map { [$0] }
    // Servers are shown volumes of this provisioner only, so the binder need not say whose turn it is: a write less, and
    // the volume is made while the binder looks for one. Where the class is another's, it writes the right one.
    metadata.annotations = Dictionary(
      uniqueKeysWithValues: Names.storageProvisionerAnnotations.map { ($0, Names.storageDriver) })
    var spec = PersistentVolumeClaim.Spec(
      accessModes: ["ReadWriteOnce"], resources: .init(requests: ["storage": size]),
      storageClassName: template.storageClassName, volumeMode: "Block")

    if let snapshot = template.source?.volumeSnapshot {
      // Whether it is there and ready is told at the claim, by csi-controller.
      spec.dataSource = TypedLocalObjectReference(
        apiGroup: VolumeSnapshot.definition.group, kind: VolumeSnapshot.definition.kind, name: snapshot.name)
    }
    if let source = template.source?.persistentVolumeClaim {
      let sourceKey = ObjectKey(namespace: source.namespace ?? namespace, name: source.name)
      let sourceField = "\(field).template.source.persistentVolumeClaim"
      guard let image = view.sources[sourceKey] else {
        return .problem(
          SpecProblem(
            "SourceNotFound",
            "\(sourceField): there is no claim \(sourceKey) to clone for disk '\(disk.name)'; import the image (bmctl "
              + "image import) or name another"))
      }
      if image.metadata.isBeingDeleted {
        return .problem(
          SpecProblem("SourceBeingDeleted", "\(sourceField): the claim \(sourceKey) is being deleted; name another"))
      }
      let needed = image.status?.capacity?["storage"] ?? image.spec?.resources?.requests?["storage"]
      if let needed, size < needed {
        return .problem(
          SpecProblem(
            "DiskTooSmall",
            "\(field).template.size is \(template.size), but \(sourceKey) has \(needed); ask for at least that much"))
      }
      if sourceKey.namespace == namespace {
        spec.dataSource = TypedLocalObjectReference(kind: "PersistentVolumeClaim", name: source.name)
      } else {
        metadata.annotations?[Names.cloneFromAnnotation] = sourceKey.description
      }
    }
    return .create(PersistentVolumeClaim(metadata: metadata, spec: spec))
  }

  /// The attachment that a disk needs on a host.
  func attachment(disk: BareMetalMachine.Disk, volume: String, host: BareMetalHost) -> VolumeAttachment {
    let handle = handles[volume] ?? volume
    var metadata = ObjectMeta(name: Names.attachment(volume: handle, machineUID: uid))
    metadata.labels = [Names.hostLabel: host.metadata.name ?? ""]
    metadata.annotations = [
      Names.machineUIDAnnotation: uid, Names.machineAnnotation: key.description,
      Names.bootOrderAnnotation: "\(orders[disk.name] ?? 98)",
      Names.readOnlyAnnotation: disk.readOnly ? "true" : "false", Names.volumeHandleAnnotation: handle,
      Names.diskAnnotation: disk.name,
    ]
    metadata.annotations?[Names.limitsAnnotation] = VolumeLimits(disk.limits)?.text
    metadata.finalizers = [Names.attachmentFinalizer]
    return VolumeAttachment(
      metadata: metadata,
      spec: .init(
        attacher: Names.storageDriver, nodeName: host.spec.dpu.node, source: .init(persistentVolumeName: volume)))
  }
}
