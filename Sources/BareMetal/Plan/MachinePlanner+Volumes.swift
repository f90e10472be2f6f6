import IaaS
import Kubernetes

extension MachinePlanner {
  /// Plans the claims of the disks and fills `volumes`. Returns whether every disk's volume is there or on its way.
  mutating func planVolumes(mayCreate: Bool) -> Bool {
    var waits: [String] = []
    var problem: SpecProblem?
    var shown: [BareMetalMachine.Volume] = []
    for (index, disk) in machine.spec.disks.enumerated() {
      let (claimName, finding) = look(at: disk, index: index)
      var entry = BareMetalMachine.Volume(disk: disk.name, claim: claimName, bootOrder: orders[disk.name])
      switch finding {
      case .bound(let volume):
        volumes[disk.name] = volume
        entry.volume = volume
        entry.attached = view.attachments.contains { $0.volume == volume && $0.isAttached }
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

  private enum Finding {
    case bound(volume: String)
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
        return (name, .problem(inUse(other, by: other, disk: disk.name, claim: name)))
      }
      return (name, bound(claim, disk: disk.name))
    }

    let name = Names.claim(machine: key.name, disk: disk.name)
    guard let template = disk.template, let size = Quantity(template.size), size.bytes > 0 else {
      return (name, .waits("disk '\(disk.name)' has no usable template"))
    }
    if let claim = view.claims[name] {
      guard claim.metadata.ownerReferences?.contains(where: { $0.uid == uid }) == true else {
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

  private func inUse(_ attachment: VolumeAttachment, by other: VolumeAttachment, disk: String, claim: String)
    -> SpecProblem
  {
    let owner = other.metadata.annotations?[Names.machineAnnotation] ?? "something else"
    return SpecProblem(
      "VolumeInUse",
      "the volume of claim \(claim) (disk '\(disk)') is attached to \(other.host ?? other.spec.nodeName) for \(owner); "
        + "remove it there first")
  }

  private func bound(_ claim: PersistentVolumeClaim, disk: String) -> Finding {
    guard claim.status?.phase == "Bound", let volume = claim.spec?.volumeName, !volume.isEmpty else {
      if claim.status?.phase == "Lost" {
        return .problem(
          SpecProblem(
            "VolumeLost", "the volume of claim \(claim.key) (disk '\(disk)') is gone; restore it or delete the machine")
        )
      }
      return .waits(
        "disk '\(disk)': the claim \(claim.key.name) is not bound yet; see 'kubectl -n \(claim.key.namespace ?? "") "
          + "describe pvc \(claim.key.name)' where it lasts")
    }
    return .bound(volume: volume)
  }

  private func claimToMake(
    _ name: String, disk: BareMetalMachine.Disk, template: BareMetalMachine.Template, size: Quantity, field: String
  ) -> Finding {
    let namespace = key.namespace ?? ""
    var metadata = ObjectMeta(name: name, namespace: namespace)
    metadata.labels = [Names.machineUIDLabel: uid]
    metadata.ownerReferences = OwnerReference(owner: machine).map { [$0] }
    var spec = PersistentVolumeClaim.Spec(
      accessModes: ["ReadWriteOnce"], resources: .init(requests: ["storage": size]),
      storageClassName: template.storageClassName, volumeMode: "Block")

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
        metadata.annotations = [Names.cloneFromAnnotation: sourceKey.description]
      }
    }
    return .create(PersistentVolumeClaim(metadata: metadata, spec: spec))
  }

  /// The attachment that a disk needs on a host.
  func attachment(disk: BareMetalMachine.Disk, volume: String, host: BareMetalHost) -> VolumeAttachment {
    var metadata = ObjectMeta(name: Names.attachment(volume: volume))
    metadata.labels = [Names.hostLabel: host.metadata.name ?? ""]
    metadata.annotations = [
      Names.machineUIDAnnotation: uid, Names.machineAnnotation: key.description,
      Names.bootOrderAnnotation: "\(orders[disk.name] ?? 98)",
      Names.readOnlyAnnotation: disk.readOnly ? "true" : "false",
    ]
    metadata.finalizers = [Names.attachmentFinalizer]
    return VolumeAttachment(
      metadata: metadata,
      spec: .init(
        attacher: Names.storageDriver, nodeName: host.spec.dpu.node, source: .init(persistentVolumeName: volume)))
  }
}
