package import IaaS
import Kubernetes

/// What a spec asks for by now, against what the machine was booted with and its disks were made from.
extension MachinePlanner {
  /// Notes the fields of the spec that come into effect at the next boot only. `data` is what the machine booted with.
  mutating func noteChanges(on name: String, booted data: BootData?) {
    for (index, disk) in machine.spec.disks.enumerated() {
      guard let volume = volumes[disk.name], let present = view.attachments.first(where: { $0.volume == volume }),
        present.host == name
      else { continue }
      if present.bootOrder != orders[disk.name] { changedFields.append("spec.disks[\(index)].bootOrder") }
      if present.isReadOnly != disk.readOnly { changedFields.append("spec.disks[\(index)].readOnly") }
    }
    let wanted = Set(volumes.values)
    let staying = view.attachments.filter { attachment in
      attachment.host == name && !wanted.contains(attachment.volume) && !attachment.metadata.isBeingDeleted
        && !steps.contains { $0.deletesAttachment(attachment.metadata.name) }
    }
    if volumes.count == machine.spec.disks.count, !staying.isEmpty {
      changedFields.append("spec.disks (one was removed)")
    }
    guard let data else { return }
    changedFields += BareMetal.changedFields(
      from: data, to: machine.spec, interfaces: GuestInterface.all(of: machine, booted: data.interfaces),
      userData: view.userData)
  }

  /// Sets the condition by what was noted.
  mutating func tellChanges() {
    guard !changedFields.isEmpty else {
      conditions.remove(Kind.restartNeeded)
      return
    }
    set(
      Kind.restartNeeded, true, "SpecChanged",
      "not what the machine was booted with: \(changedFields.joined(separator: ", ")); it takes effect at the next boot, "
        + "for example with 'bmctl restart \(key.name)'")
  }

  /// How a claim that was made from a template differs from what the template says by now; nil where it does not.
  func templateDifference(
    _ template: BareMetalMachine.Template, claim: PersistentVolumeClaim, field: String
  ) -> String? {
    let namespace = claim.key.namespace ?? ""
    var differences: [String] = []
    let asked = Quantity(template.size)?.bytes
    let present = claim.spec?.resources?.requests?["storage"]
    if let asked, let present, asked != present.bytes {
      var text = "\(field).template.size is \(template.size), but the claim \(claim.key.name) has \(present)"
      text +=
        asked < present.bytes
        ? " and disks do not shrink"
        : "; where its storage class allows expansion, grow the claim: kubectl -n \(namespace) patch pvc "
          + "\(claim.key.name) -p '{\"spec\":{\"resources\":{\"requests\":{\"storage\":\"\(template.size)\"}}}}'"
      differences.append(text)
    }
    if let name = template.storageClassName, let present = claim.spec?.storageClassName, name != present {
      differences.append(
        "\(field).template.storageClassName is '\(name)', but the claim \(claim.key.name) is of '\(present)'")
    }
    let source = template.source.map { source -> ObjectKey in
      guard let asked = source.persistentVolumeClaim else {
        return ObjectKey(namespace: namespace, name: source.volumeSnapshot?.name ?? "")
      }
      return ObjectKey(namespace: asked.namespace ?? namespace, name: asked.name)
    }
    let origin =
      claim.metadata.annotations?[Names.cloneFromAnnotation]
      ?? claim.spec?.dataSource.map { ObjectKey(namespace: namespace, name: $0.name).description }
    if source?.description != origin {
      differences.append(
        "\(field).template.source is \(source?.description ?? "none"), but the claim \(claim.key.name) was made from "
          + (origin ?? "none"))
    }
    return differences.isEmpty ? nil : differences.joined(separator: "; ")
  }
}

/// The fields of a spec that differ from the boot data of the boot that is under way.
package func changedFields(
  from data: BootData, to spec: BareMetalMachine.Spec, interfaces: [GuestInterface], userData: UserData
) -> [String] {
  var fields: [String] = []
  // Others are plugged and unplugged while it runs.
  if Set(interfaces.map(\.name)) != Set(data.interfaces.map(\.name)) { fields.append("spec.interfaces") }
  for (index, now) in interfaces.enumerated() {
    guard let before = data.interfaces.first(where: { $0.name == now.name }) else { continue }
    let field = "spec.interfaces[\(index)]"
    if before.mac != now.mac { fields.append("\(field).macAddress") }
    if before.address != now.address { fields.append("\(field).address") }
  }
  // What follows from the interfaces is told with them.
  let derivedBefore = CloudInit.networkConfig(interfaces: data.bootInterfaces ?? data.interfaces)
  let wasDerived = data.networkConfig == derivedBefore
  let isDerived = spec.cloudInit?.networkData == nil
  if wasDerived != isDerived || (!isDerived && spec.cloudInit?.networkData != data.networkConfig) {
    fields.append("spec.cloudInit.networkData")
  }
  let userDataField =
    spec.cloudInit?.userDataSecretRef == nil ? "spec.cloudInit.userData" : "spec.cloudInit.userDataSecretRef"
  switch userData {
  case .notRead: break
  case .text(let text): if text != data.userData { fields.append(userDataField) }
  case .problem(_, let message): fields.append("\(userDataField) (\(message))")
  }
  return fields
}
