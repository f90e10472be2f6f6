import IaaS
import Kubernetes

extension MachinePlanner {
  /// Gives everything back: hosts first, then volumes, then the machine itself.
  mutating func planDeletion() {
    guard machine.metadata.hasFinalizer(Names.machineFinalizer) else { return }
    status.observedGeneration = machine.metadata.generation
    status.phase = .deleting

    var names = Set(view.attachments.compactMap(\.host))
    names.formUnion(heldHosts.compactMap(\.metadata.name))
    // Disks that live on afterwards deserve that the system writes back what it holds.
    let keepsData = machine.spec.disks.contains { $0.existingClaim != nil }
    var waits: [String] = []
    var stillAttached = false
    for name in names.sorted() {
      let evacuation = evacuation(of: name, grace: keepsData && status.bootedAt != nil ? grace : .zero)
      steps += evacuation.steps
      if let wait = evacuation.waitsFor { waits.append(wait) }
      stillAttached = stillAttached || view.attachments.contains { $0.host == name }
    }
    // An attachment without the label of a host: nothing to wait for but its own end.
    for attachment in view.attachments where attachment.host == nil {
      stillAttached = true
      waits.append("waits for the volumeattachment \(attachment.metadata.name ?? "") to go")
      if !attachment.metadata.isBeingDeleted, let name = attachment.metadata.name, let uid = attachment.metadata.uid {
        steps.append(.deleteAttachment(name, uid: uid))
      }
    }
    if !stillAttached {
      for claim in view.claims.values.sorted(by: { $0.key < $1.key })
      where claim.metadata.ownerReferences?.contains(where: { $0.uid == uid }) == true {
        waits.append("waits for the claim \(claim.key) to be deleted")
        if !claim.metadata.isBeingDeleted, let claimUID = claim.metadata.uid {
          steps.append(.deleteClaim(claim.key, uid: claimUID))
        }
      }
    }
    if !waits.isEmpty, machine.metadata.annotations?[Names.forceDeleteAnnotation] == "true" {
      forceDeletion(leaving: waits)
    } else if waits.isEmpty, steps.isEmpty {
      steps = [.removeFinalizer]
      status.message = nil
      set(Kind.deleted, true, "Done", "everything is given back")
    } else {
      let message = waits.joined(separator: "; ")
      status.message = message
      set(
        Kind.deleted, false, "Waiting",
        message + ". To delete it by force: bmctl delete \(key.name) --force; what is left then is cleaned up, and its "
          + "host freed, when that becomes possible")
    }
    set(Kind.ready, false, "Deleting", "the machine is being deleted")
    status.conditions = conditions
  }
}

extension MachinePlanner {
  /// Lets the machine go with what could not be given back. Nothing of it becomes free by that: the host stays claimed and
  /// its attachments stay, so that no volume gets a second writer; the host's own plan gives them back when it can.
  private mutating func forceDeletion(leaving waits: [String]) {
    let hosts = heldHosts.compactMap(\.metadata.name)
    let volumes = view.attachments.map(\.volume).sorted()
    var left: [String] = []
    if !hosts.isEmpty { left.append("the claim of \(hosts.joined(separator: ", "))") }
    if !volumes.isEmpty { left.append("the attachments of \(volumes.joined(separator: ", "))") }
    if left.isEmpty { left.append("what the claims of its disks wait for") }
    let message =
      "deleted by force; what remains: \(left.joined(separator: " and ")). It was waited for: "
      + waits.joined(separator: "; ")
    steps = [.removeFinalizer]
    status.message = message
    set(Kind.deleted, false, "Forced", message)
    set(Kind.ready, false, "Deleting", "the machine is being deleted")
    status.conditions = conditions
  }
}
