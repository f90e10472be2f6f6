import DPU
import IaaS
import Kubernetes

/// What changes while a machine runs: disks and interfaces that are added, removed and limited.
extension MachinePlanner {
  /// Plugs what was added, and asks the guest to let go of what was removed. Nothing is taken by force but on request,
  /// and the disk that the machine booted from stays until the next boot.
  mutating func planHotPlug(_ host: BareMetalHost, name: String, mayChange: Bool) {
    var message: String?
    for disk in machine.spec.disks {
      guard let volume = volumes[disk.name] else {
        message = message ?? "disk '\(disk.name)' has no volume yet"
        continue
      }
      guard let present = view.attachments.first(where: { $0.volume == volume }) else {
        if view.foreignAttachments[volume] != nil {
          message = message ?? "the volume of disk '\(disk.name)' is attached for another machine"
        } else if mayChange {
          steps.append(.createAttachment(attachment(disk: disk, volume: volume, host: host)))
          message = message ?? "attaches disk '\(disk.name)'"
        } else {
          message = message ?? "disk '\(disk.name)' is attached once the spec makes sense"
        }
        continue
      }
      if present.metadata.isBeingDeleted {
        message = message ?? "disk '\(disk.name)' is being unplugged; it is plugged anew after that"
        continue
      }
      if mayChange { annotate(present, for: disk) }
      if !present.isAttached {
        message =
          present.status?.attachError?.message.map { "disk '\(disk.name)': \($0)" }
          ?? "waits for bm-handler of \(name) to attach disk '\(disk.name)'"
      } else if let error = present.status?.attachError?.message {
        message = message ?? "disk '\(disk.name)': \(error)"
      }
    }
    let waiting = planUnplug(on: name, mayChange: mayChange)
    if let waiting {
      set(
        Kind.attached, true, "RestartNeeded",
        "the volume \(waiting.volume), which the spec does not name any more, is detached at the next stop or restart")
      return
    }
    set(Kind.attached, message == nil, message == nil ? "Attached" : "Attaching", message ?? "the DPU shows every disk")
  }

  /// Brings the annotations of an attachment, which its handler acts on, to what the spec says.
  mutating func annotate(_ attachment: VolumeAttachment, for disk: BareMetalMachine.Disk) {
    guard let name = attachment.metadata.name, let uid = attachment.metadata.uid,
      let limits = VolumeLimits(disk.limits)
    else { return }
    let wanted: [String: String?] = [Names.diskAnnotation: disk.name, Names.limitsAnnotation: limits.text]
    let changes = wanted.filter { attachment.metadata.annotations?[$0.key] != $0.value }
    guard !changes.isEmpty else { return }
    steps.append(.annotateAttachment(name, uid: uid, changes))
  }

  /// Plans the removal of disks that the spec does not name any more. Returns one that has to wait for the next boot.
  private mutating func planUnplug(on name: String, mayChange: Bool) -> VolumeAttachment? {
    let here = view.attachments.filter { $0.host == name }
    let named = Set(machine.spec.disks.map(\.name))
    let wanted = Set(volumes.values)
    let isKnown = volumes.count == machine.spec.disks.count
    let bootDisk = here.min { ($0.bootOrder ?? 0, $0.volume) < ($1.bootOrder ?? 0, $1.volume) }
    let forced = forcedDisks
    var waits: VolumeAttachment?
    for attachment in here {
      guard let attachmentName = attachment.metadata.name, let uid = attachment.metadata.uid else { continue }
      if attachment.metadata.isBeingDeleted {
        if let disk = attachment.disk, forced.contains(disk), !named.contains(disk), !attachment.isForced {
          steps.append(.annotateAttachment(attachmentName, uid: uid, [Names.forceAnnotation: "true"]))
        }
        continue
      }
      guard isKnown, !wanted.contains(attachment.volume) else { continue }
      // A disk of the same name with another volume is no removed one: somebody has exchanged the claim below it.
      guard mayChange, let disk = attachment.disk, !named.contains(disk), attachment.volume != bootDisk?.volume else {
        waits = waits ?? attachment
        continue
      }
      steps.append(
        .whileCurrent(generation: machine.metadata.generation, .deleteAttachment(attachmentName, uid: uid)))
    }
    return waits
  }

  /// The disks that somebody asked to be cut off.
  private var forcedDisks: Set<String> {
    let text = machine.metadata.annotations?[Names.forceUnplugAnnotation] ?? ""
    return Set(text.split(separator: ",").map { String($0.drop { $0 == " " }).trimmingSpaces() })
  }

  /// Says what a running server still has of what was removed.
  mutating func tellUnplugging(_ host: BareMetalHost, name: String, interfaces: [GuestInterface]?) {
    var asked: [String] = []
    var held: [String] = []
    let seconds = "\(view.unplugLimit.components.seconds) s"
    for attachment in view.attachments where attachment.host == name {
      let disk = attachment.disk ?? "?"
      let text = "disk '\(disk)' (volume \(attachment.volume))"
      guard let since = attachment.metadata.deletionTimestamp else {
        guard steps.contains(where: { $0.deletesAttachment(attachment.metadata.name) }) else { continue }
        asked.append("the guest is asked to let go of \(text)")
        continue
      }
      let error = attachment.status?.detachError?.message.map { ": \($0)" } ?? ""
      guard isOver(since) else {
        asked.append("the guest is asked to let go of \(text)")
        continue
      }
      held.append(
        "\(text) is still plugged \(seconds) after it was removed\(error); stop what uses it in the guest. It also goes "
          + "when the machine is off ('bmctl stop \(key.name)', 'bmctl restart \(key.name)'). To cut the guest off, "
          + "whatever it has not written yet: 'bmctl disk remove \(key.name) \(disk) --force'")
    }
    if let interfaces, host.status?.dpu?.boot == token {
      let wanted = Set(GuestInterface.slots(interfaces).keys)
      let before = conditions.condition(Kind.unplugged)
      // Nothing else tells since when: the condition itself does.
      let since = before?.status == .false ? before?.lastTransitionTime : nil
      for slot in host.status?.dpu?.slots ?? [] where slot.kind == .nic {
        guard let index = GuestInterface.index(ofFunction: slot.name), !wanted.contains(index) else { continue }
        if let since, isOver(since) {
          held.append(
            "the network card \(slot.name) is still plugged \(seconds) after it was removed, without a network; it goes "
              + "when the guest lets go of it, or with the machine's next boot ('bmctl restart \(key.name)')")
        } else {
          asked.append("the guest is asked to let go of the network card \(slot.name)")
        }
      }
    }
    if !held.isEmpty {
      set(Kind.unplugged, false, "HeldByGuest", (held + asked).joined(separator: "; "))
    } else if !asked.isEmpty {
      set(Kind.unplugged, false, "Unplugging", asked.joined(separator: "; "))
    } else {
      conditions.remove(Kind.unplugged)
    }
  }

  /// Whether the guest has had its time since a moment.
  private func isOver(_ since: Timestamp) -> Bool {
    view.now.microseconds - MicroTimestamp(since.date).microseconds >= view.unplugLimit.components.seconds * 1_000_000
  }

  /// Plugs and unplugs interfaces by name. Those that stay keep the addresses that the guest knows. Returns the boot data
  /// that is to be in effect.
  mutating func planInterfaces(on name: String, booted data: BootData?, mayChange: Bool) -> BootData? {
    guard let data, data.boot == token, mayChange else { return data }
    let interfaces = GuestInterface.running(machine, booted: data.interfaces)
    guard interfaces != data.interfaces else { return data }
    var changed = data
    changed.interfaces = interfaces
    changed.bootInterfaces = data.bootInterfaces ?? data.interfaces
    steps.append(.whileCurrent(generation: machine.metadata.generation, .writeBootData(host: name, changed)))
    return changed
  }
}
