import IaaS
import Kubernetes

extension MachinePlanner {
  /// Plans on the host that the machine holds: stop, prepare the boot, power on, watch the guest.
  mutating func planOnHost(_ host: BareMetalHost, name: String, mayStart: Bool) {
    let power = view.power[name] ?? PowerView()
    planPower(host, name: name, power: power, mayStart: mayStart)
    // A wish holds until it is fulfilled. Where this plan does not have it any more, it must not come true later.
    guard power.wantsOn, !steps.contains(where: { $0.isPower(of: name) }) else { return }
    steps.append(.power(host: name, .observe))
  }

  private mutating func planPower(_ host: BareMetalHost, name: String, power: PowerView, mayStart: Bool) {
    if stopWanted, status.bootedAt != nil {
      planStop(name, power)
      return
    }
    if status.bootedAt != nil {
      planBooted(host, name: name, power: power, mayChange: mayStart)
      return
    }
    // A restart that was asked for before the first boot is this boot.
    if restartWanted { status.observedRestart = machine.metadata.annotations?[Names.restartAnnotation] }
    guard machine.spec.running else {
      planParked(host, name: name, power: power)
      return
    }
    planBoot(host, name: name, power: power, mayStart: mayStart)
  }

  /// Off, as wanted: the host and the attachments stay.
  private mutating func planParked(_ host: BareMetalHost, name: String, power: PowerView) {
    set(Kind.reachable, false, "Off", "the machine is off")
    // A command to go on may be under way while it reads off: only the contrary command ends that.
    if power.power == .off, !power.wantsOn {
      set(Kind.powered, false, "Off", "the server is off")
      return
    }
    steps.append(.power(host: name, .off(grace: .zero)))
    set(Kind.powered, false, "Stopping", power.problem ?? "the server reads \(power.power.rawValue)")
  }

  private mutating func planStop(_ name: String, _ power: PowerView) {
    set(Kind.reachable, false, "Stopping", "the machine is being stopped")
    guard power.fencedOff else {
      steps.append(.power(host: name, .off(grace: grace)))
      set(
        Kind.powered, power.power == .on, "Stopping",
        power.problem ?? "waits for the server to be seen off several times in a row (it reads \(power.power.rawValue))"
      )
      return
    }
    set(Kind.powered, false, "Off", "the server is off")
    if restartWanted { status.observedRestart = machine.metadata.annotations?[Names.restartAnnotation] }
    nextBoot()
  }

  /// The boot is over; the next one is another one.
  mutating func nextBoot() {
    status.boot = boot + 1
    status.bootedAt = nil
    conditions.remove(Kind.unplugged)
    status.addresses = status.addresses?.map { .init(interface: $0.interface, mac: $0.mac) }
  }

  // MARK: Before power on

  private mutating func planBoot(_ host: BareMetalHost, name: String, power: PowerView, mayStart: Bool) {
    if status.boot == nil { status.boot = 1 }
    set(Kind.reachable, false, "Off", "the machine is not on yet")
    // With a spec that is not valid nothing is prepared, but the server may have started with what was there before.
    // Nor is a server taken from a guest because the spec has changed since it was powered on: those changes are plugged.
    let isPrepared =
      mayStart && !isOnWithBootDisk(host, name: name, power: power)
      ? prepareBoot(host, name: name, power: power) : isInPlace(host, name: name)
    if isPrepared {
      if status.timeline?.disksAttached == nil { status.timeline?.disksAttached = view.now }
    }
    if power.power == .on {
      if isPrepared {
        status.bootedAt = view.now
        if status.timeline?.poweredOn == nil { stampPoweredOn() }
        planBooted(host, name: name, power: power, mayChange: mayStart)
        return
      }
      // Nobody but this machine may have it on, and with other disks than these it must not run.
      set(Kind.powered, false, "Foreign", "the server \(name) was on before its disks were attached; turns it off")
      steps.append(.power(host: name, .off(grace: .zero)))
      return
    }
    guard mayStart else {
      set(Kind.powered, false, "Invalid", "the machine is not started while its spec is not valid")
      return
    }
    guard isPrepared else {
      set(
        Kind.powered, false, "Waiting",
        power.problem ?? (power.power == .off ? "power on waits for disks and network" : "the power is not known yet"))
      return
    }
    steps.append(.power(host: name, .on))
    set(Kind.powered, false, "PoweringOn", power.problem ?? "the BMC was told to power on")
  }

  private mutating func prepareBoot(_ host: BareMetalHost, name: String, power: PowerView) -> Bool {
    let disksReady = planAttachments(host, name: name, power: power, mayAttach: power.power == .off)
    // A server that is on with this boot has it in effect; interfaces that changed meanwhile are plugged as in any boot.
    if power.power == .on, host.status?.dpu?.boot == token { return disksReady }
    let bootReady = planBootData(host, name: name)
    return disksReady && bootReady
  }

  /// Whether the server shows everything that was prepared for this boot, whatever the spec says by now.
  private func isInPlace(_ host: BareMetalHost, name: String) -> Bool {
    host.status?.dpu?.boot == token && !view.attachments.isEmpty
      && view.attachments.allSatisfy { $0.host == name && $0.isAttached && !$0.metadata.isBeingDeleted }
  }

  /// Whether the server is on with this boot and with the disk that the spec boots from, so that its guest may be at work.
  private func isOnWithBootDisk(_ host: BareMetalHost, name: String, power: PowerView) -> Bool {
    guard power.power == .on, isInPlace(host, name: name),
      let disk = machine.spec.disks.min(by: { orders[$0.name] ?? .max < orders[$1.name] ?? .max }),
      let volume = volumes[disk.name]
    else { return false }
    return view.attachments.contains { $0.volume == volume && matches($0, disk) }
  }

  private mutating func stampPoweredOn() {
    guard var timeline = status.timeline else { return }
    timeline.poweredOn = view.now
    timeline.ownSeconds = timeline.applied.map { seconds($0, view.now) }
    status.timeline = timeline
  }

  /// Whether every disk is attached; plans what is missing.
  private mutating func planAttachments(
    _ host: BareMetalHost, name: String, power: PowerView, mayAttach: Bool
  ) -> Bool {
    var message: String?
    var reason = "Attaching"
    for disk in machine.spec.disks {
      guard let volume = volumes[disk.name] else {
        message = message ?? "disk '\(disk.name)' has no volume yet"
        continue
      }
      guard let present = view.attachments.first(where: { $0.volume == volume }) else {
        if view.foreignAttachments[volume] != nil {
          (reason, message) = (
            "VolumeInUse", "the volume \(volume) of disk '\(disk.name)' is attached for another machine"
          )
        } else if mayAttach {
          steps.append(.createAttachment(attachment(disk: disk, volume: volume, host: host)))
          message = message ?? "attaches disk '\(disk.name)'"
        } else {
          message = message ?? "disk '\(disk.name)' is attached once the server is seen off"
        }
        continue
      }
      if present.host == name, !present.metadata.isBeingDeleted { annotate(present, for: disk) }
      if present.metadata.isBeingDeleted || present.host != name || !matches(present, disk) {
        message = message ?? "disk '\(disk.name)' is detached first, to be attached anew"
        if present.host == name, !present.metadata.isBeingDeleted { detach(present, name: name, power: power) }
      } else if !present.isAttached {
        let error = present.status?.attachError?.message
        if error != nil { reason = "AttachFailed" }
        message =
          error.map { "disk '\(disk.name)': \($0)" } ?? message
          ?? "waits for bm-handler of \(name) to attach disk '\(disk.name)'; is it running?"
      }
    }
    // Disks that the spec does not name any more.
    let wanted = Set(volumes.values)
    for attachment in view.attachments
    where attachment.host == name && !wanted.contains(attachment.volume) && !attachment.metadata.isBeingDeleted {
      message = message ?? "detaches the volume \(attachment.volume), which the spec does not name any more"
      detach(attachment, name: name, power: power)
    }
    set(Kind.attached, message == nil, message == nil ? "Attached" : reason, message ?? "the DPU shows every disk")
    return message == nil
  }

  private func matches(_ attachment: VolumeAttachment, _ disk: BareMetalMachine.Disk) -> Bool {
    attachment.bootOrder == orders[disk.name] && attachment.isReadOnly == disk.readOnly
  }

  private mutating func detach(_ attachment: VolumeAttachment, name: String, power: PowerView) {
    guard power.fencedOff else {
      steps.append(.power(host: name, .off(grace: .zero)))
      return
    }
    guard let attachmentName = attachment.metadata.name, let uid = attachment.metadata.uid else { return }
    steps.append(.deleteAttachment(attachmentName, uid: uid))
  }

  /// Whether seed disk and interfaces of this boot are in place; plans what is missing.
  private mutating func planBootData(_ host: BareMetalHost, name: String) -> Bool {
    let present = view.bootData[name].flatMap { secret in try? BootData(secret) }
    // The handler may have made it so already, and said that the boot is ready: what the server may run with stays in
    // its place, also where somebody has removed the boot data.
    let prepared = present.flatMap { $0.boot == token && $0.machineUID == uid ? $0.interfaces : nil }
    let interfaces =
      (prepared ?? shownInterfaces(host)).map { GuestInterface.running(machine, booted: $0) }
      ?? GuestInterface.all(of: machine)
    status.addresses = interfaces.map { interface in
      .init(interface: interface.name, mac: interface.mac, address: nil)
    }
    let userData: String
    switch view.userData {
    case .text(let text): userData = text
    case .notRead: return false
    case .problem(let reason, let message):
      set(Kind.attached, false, reason, message)
      return false
    }
    let wanted = bootData(userData: userData, interfaces: interfaces)
    guard present == wanted else {
      steps.append(.writeBootData(host: name, wanted))
      if conditions.isTrue(Kind.attached) { set(Kind.attached, false, "Preparing", "writes the boot data") }
      return false
    }
    // What is there may be from boot data of the same boot that somebody has removed or changed since.
    guard host.status?.dpu?.boot == token,
      GuestInterface.places(shownInterfaces(host) ?? []) == GuestInterface.places(interfaces)
    else {
      if conditions.isTrue(Kind.attached) {
        let trouble = host.status?.dpu?.conditions?.first { $0.status == .false }?.message
        set(
          Kind.attached, false, "Preparing",
          trouble ?? "waits for bm-handler of \(name) to make the seed disk and the network; is it running?")
      }
      return false
    }
    return true
  }

  private func bootData(userData: String, interfaces: [GuestInterface]) -> BootData {
    BootData(
      machine: key, machineUID: uid, boot: token, userData: userData,
      metaData: CloudInit.metaData(machineUID: uid, name: key.name),
      networkConfig: machine.spec.cloudInit?.networkData ?? CloudInit.networkConfig(interfaces: interfaces),
      interfaces: interfaces)
  }

  // MARK: After power on

  private mutating func planBooted(_ host: BareMetalHost, name: String, power: PowerView, mayChange: Bool) {
    switch power.power {
    case .on, .poweringOn, .unknown, .poweringOff:
      let isOn = power.power == .on || (power.power != .poweringOff && conditions.isTrue(Kind.powered))
      set(
        Kind.powered, isOn, power.power == .on ? "On" : "Unclear",
        power.problem ?? (power.power == .on ? "the server is on" : "the server reads \(power.power.rawValue)"))
    case .off:
      set(Kind.powered, false, "Off", power.problem ?? "the server went off by itself; starts it again")
      // One reading may be a mistake; a new boot replaces the seed disk.
      if power.confirmedOff { nextBoot() }
      return
    }
    planHotPlug(host, name: name, mayChange: mayChange)
    let booted = planInterfaces(on: name, booted: bootDataInEffect(host, name: name), mayChange: mayChange)
    tellUnplugging(host, name: name, interfaces: booted?.interfaces)
    noteChanges(on: name, booted: booted)
    readGuest(host)
  }

  /// The boot data of this boot. Where somebody has removed it, it is written again with the interfaces that the server
  /// shows: they must not change under a running system.
  private mutating func bootDataInEffect(_ host: BareMetalHost, name: String) -> BootData? {
    let present = view.bootData[name].flatMap { secret in try? BootData(secret) }
    if let present, present.machineUID == uid, !present.isWithdrawn { return present }
    guard case .text(let userData) = view.userData else { return nil }
    // What was plugged and unplugged since counts as well, by the spec as it is at this moment.
    var data = bootData(userData: userData, interfaces: shownInterfaces(host) ?? GuestInterface.all(of: machine))
    let running = GuestInterface.running(machine, booted: data.interfaces)
    if running != data.interfaces { data.bootInterfaces = data.interfaces }
    data.interfaces = running
    steps.append(.whileCurrent(generation: machine.metadata.generation, .writeBootData(host: name, data)))
    return nil
  }

  /// The interfaces that the DPU shows in this boot, each at its place; nil where this boot is not in effect there.
  /// Those that are not plugged yet are left out: they have no place so far.
  private func shownInterfaces(_ host: BareMetalHost) -> [GuestInterface]? {
    guard let dpu = host.status?.dpu, dpu.boot == token, let shown = dpu.interfaces else { return nil }
    let wanted = GuestInterface.all(of: machine)
    var interfaces: [GuestInterface] = []
    for interface in shown {
      let place = dpu.slots?.lazy.compactMap { slot in
        GuestInterface.index(ofFunction: slot.name).flatMap {
          slot.name == Names.networkFunction(index: $0, interface: interface.name) ? $0 : nil
        }
      }.first
      guard let place else { continue }
      var result =
        wanted.first { $0.name == interface.name && $0.mac == interface.mac }
        ?? GuestInterface(name: interface.name, mac: interface.mac)
      result.index = place == interfaces.count ? nil : place
      interfaces.append(result)
    }
    return interfaces
  }

  /// What bm-handler saw of the guest in this boot.
  private mutating func readGuest(_ host: BareMetalHost) {
    guard !machine.spec.interfaces.isEmpty else {
      set(Kind.reachable, true, "NoInterface", "the machine has no interface by which it could be reached")
      return
    }
    let seen = host.status?.dpu?.boot == token ? host.status?.dpu?.interfaces ?? [] : []
    if !seen.isEmpty {
      status.addresses = seen.map { .init(interface: $0.name, mac: $0.mac, address: $0.address) }
    }
    let leased = seen.compactMap(\.leasedAt).min()
    let reachable = seen.compactMap(\.reachableAt).min()
    if boot == 1, var timeline = status.timeline {
      timeline.leased = timeline.leased ?? leased
      if timeline.reachable == nil, let reachable {
        timeline.reachable = reachable
        timeline.guestSeconds = timeline.poweredOn.map { seconds($0, reachable) }
        timeline.totalSeconds = timeline.applied.map { seconds($0, reachable) }
      }
      status.timeline = timeline
    }
    let conflict = seen.isEmpty ? nil : host.status?.dpu?.conditions?.condition(HandlerPlan.addressesCondition)
    let intruder = conflict?.status == .false ? conflict?.message : nil
    if let answering = seen.first(where: { $0.reachable == true }) {
      set(
        Kind.reachable, true, "Answers",
        "the guest answers ping at \(answering.address ?? "its address")" + (intruder.map { "; but \($0)" } ?? ""))
    } else if let intruder {
      set(Kind.reachable, false, "AddressConflict", intruder)
    } else if reachable != nil {
      set(Kind.reachable, false, "Silent", "the guest does not answer ping any more; see its console")
    } else if let address = seen.first(where: { $0.leasedAt != nil })?.address {
      set(Kind.reachable, false, "Waiting", "the guest has the address \(address), but does not answer ping yet")
    } else {
      set(
        Kind.reachable, false, "Waiting",
        "waits for the guest to boot and take an address by DHCP; where it lasts, see its console")
    }
  }

  private func seconds(_ from: MicroTimestamp, _ to: MicroTimestamp) -> Double {
    // Milliseconds are as exact as the clocks of two machines are.
    (Double(max(0, to.microseconds - from.microseconds)) / 1000).rounded() / 1000
  }
}
