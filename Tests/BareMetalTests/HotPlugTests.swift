import BareMetal
import DPU
import IaaS
import Kubernetes
import Reconciler
import Testing

/// What is decided for a machine whose disks and interfaces change while it runs.
extension PlannerTests {
  /// A machine that runs with the disk `root`, and, unless said otherwise, with a second one that is named `data`.
  private func running(data: Bool = true, _ change: (inout BareMetalMachine) -> Void = { _ in }) -> MachineView {
    let booted = machine {
      var status = BareMetalMachine.Status()
      status.host = "h"
      status.boot = 1
      status.bootedAt = now
      $0.status = status
      $0.metadata.generation = 3
      if data { $0.spec.disks.append(.init(name: "data", existingClaim: .init(claimName: "d"))) }
    }
    var view = prepared(booted, power: .on)
    view.attachments[0].metadata.annotations?[Names.diskAnnotation] = "root"
    view.claims["d"] = PersistentVolumeClaim(
      metadata: ObjectMeta(name: "d", namespace: "n"), spec: .init(volumeName: "pvc-d"),
      status: .init(phase: "Bound"))
    view.persistentVolumes["pvc-d"] = PersistentVolume(
      metadata: ObjectMeta(name: "pvc-d"), spec: .init(csi: .init(driver: Names.storageDriver, volumeHandle: "pvc-d")))
    if data { view.attachments.append(dataAttachment()) }
    change(&view.machine)
    return view
  }

  private func dataAttachment() -> VolumeAttachment {
    var attachment = attachment()
    attachment.metadata.name = "ycloud-pvc-d"
    attachment.metadata.uid = "b"
    attachment.metadata.annotations?[Names.bootOrderAnnotation] = "2"
    attachment.metadata.annotations?[Names.diskAnnotation] = "data"
    attachment.spec.source.persistentVolumeName = "pvc-d"
    return attachment
  }

  private func condition(_ view: MachineView, _ type: String) -> Condition? {
    plan(view).status.conditions?.condition(type)
  }

  private var unplugData: MachineStep {
    .whileCurrent(generation: 3, .deleteAttachment("ycloud-pvc-d", uid: "b"))
  }

  @Test("A disk that is removed from a running machine is unplugged, only while the spec is still that one")
  func unplugDisk() {
    var view = running()
    #expect(plan(view).steps == [])
    view.machine.spec.disks.removeLast()
    let removed = plan(view)
    #expect(removed.steps == [unplugData])
    #expect(removed.status.conditions?.condition("Unplugged")?.reason == "Unplugging")
    #expect(removed.status.conditions?.condition("RestartNeeded") == nil)
    #expect(!machineEvents(from: view.machine.status, to: removed.status).contains { $0.type == .warning })
    view.attachments.removeLast()
    #expect(condition(view, "Unplugged") == nil, "it is gone")
  }

  @Test(
    "What the machine booted from, what has no name, and everything under a spec that makes no sense stays plugged",
    arguments: ["the boot disk", "no name", "an invalid spec", "an exchanged claim"])
  func staysPlugged(_ what: String) {
    var view = running()
    switch what {
    case "the boot disk": view.machine.spec.disks.removeFirst()
    case "no name":
      view.machine.spec.disks.removeLast()
      view.attachments[1].metadata.annotations?[Names.diskAnnotation] = nil
    case "an invalid spec":
      view.machine.spec.disks.removeLast()
      view.machine.spec.disks[0].limits = .init(iops: 1)
    default:
      view.claims["d"]?.spec?.volumeName = "pvc-e"
      view.persistentVolumes["pvc-e"] = view.persistentVolumes["pvc-d"]
    }
    let plan = plan(view)
    #expect(!plan.steps.contains { $0.deletesAttachment("ycloud-pvc-d") || $0.deletesAttachment("ycloud-pvc-c") })
    #expect(plan.status.conditions?.isTrue("RestartNeeded") == true)
  }

  @Test("A guest that holds on to a disk gets its time; then it is told once, with the remedy, and nothing is forced")
  func heldDisk() throws {
    var view = running { $0.spec.disks.removeLast() }
    view.attachments[1].metadata.deletionTimestamp = Timestamp(now.date)
    view.attachments[1].status?.detachError = .init(message: "the server has not let go of it yet")
    view.now = MicroTimestamp(microseconds: now.microseconds + 59_000_000)
    let asked = plan(view)
    #expect(asked.steps == [])
    #expect(asked.status.conditions?.condition("Unplugged")?.reason == "Unplugging")
    view.now = MicroTimestamp(microseconds: now.microseconds + 60_000_000)
    let held = plan(view)
    #expect(held.steps == [], "never by force unless asked")
    let told = try #require(held.status.conditions?.condition("Unplugged"))
    #expect(told.status == .false && told.reason == "HeldByGuest")
    for word in ["'data'", "pvc-d", "60 s", "has not let go", "bmctl stop m", "bmctl disk remove m data --force"] {
      #expect(told.message.contains(word), "\(word)")
    }
    let events = machineEvents(from: asked.status, to: held.status)
    #expect(events.count { $0.reason == "HeldByGuest" && $0.type == .warning } == 1)
    #expect(machineEvents(from: held.status, to: held.status).isEmpty)

    // Asked for, by the name of the disk, it is cut off, once; a name that the spec still has says nothing.
    view.machine.metadata.annotations = [Names.forceUnplugAnnotation: "other, data"]
    #expect(
      plan(view).steps == [.annotateAttachment("ycloud-pvc-d", uid: "b", [Names.forceAnnotation: "true"])])
    view.attachments[1].metadata.annotations?[Names.forceAnnotation] = "true"
    #expect(plan(view).steps == [])
    view = running()
    view.machine.metadata.annotations = [Names.forceUnplugAnnotation: "data"]
    #expect(plan(view).steps == [])
  }

  @Test("A disk that comes back while the guest still lets go of it is plugged anew after that")
  func plugAgain() {
    var view = running()
    view.attachments[1].metadata.deletionTimestamp = Timestamp(now.date)
    let waiting = plan(view)
    #expect(waiting.steps == [])
    #expect(waiting.status.conditions?.condition("Attached")?.message.contains("plugged anew") == true)
    view.attachments.removeLast()
    let again = plan(view)
    #expect(again.steps.count == 1)
    if case .createAttachment(let made) = again.steps.first {
      #expect(made.disk == "data" && made.metadata.name == "ycloud-pvc-d")
    } else {
      Issue.record("it is not attached again")
    }
  }

  // MARK: Limits and what is seen

  @Test("Limits are carried by the attachment, changed while it stands, and shown as they were read back")
  func limits() throws {
    var view = running { $0.spec.disks[1].limits = .init(iops: 5000, bandwidth: "1Gi", writeBandwidth: "50Mi") }
    let text = "iops=5000,bandwidth=1024Mi,writeBandwidth=50Mi"
    #expect(
      plan(view).steps == [.annotateAttachment("ycloud-pvc-d", uid: "b", [Names.limitsAnnotation: text])])
    view.attachments[1].metadata.annotations?[Names.limitsAnnotation] = text
    #expect(plan(view).steps == [])
    #expect(plan(view).status.volumes?[1].limits == nil, "asked for is not in effect")
    view.attachments[1].status?.attachmentMetadata = [
      Names.shownLimits: text, Names.shownSerial: "pvc-d", Names.shownCapacity: "1073741824",
      Names.shownFunction: "blk-02-pvc-d",
    ]
    let shown = try #require(plan(view).status.volumes?[1])
    #expect(shown.limits == .init(iops: 5000, bandwidth: "1024Mi", writeBandwidth: "50Mi"))
    #expect(shown.device == "/dev/disk/by-id/virtio-pvc-d" && shown.capacity == "1Gi")
    view.machine.spec.disks[1].limits = nil
    #expect(
      plan(view).steps == [.annotateAttachment("ycloud-pvc-d", uid: "b", [Names.limitsAnnotation: nil])])
  }

  @Test(
    "Limits that no data plane can keep are refused with the field, the value and the remedy",
    arguments: ["999", "1500", "-1", "0.5Mi", "3M", "x"])
  func badLimits(_ value: String) throws {
    var machine = machine()
    let isCount = Int64(value) != nil
    machine.spec.disks[0].limits =
      isCount ? .init(iops: Int64(value)) : .init(readBandwidth: value)
    let problem = try #require(specProblems(machine).first)
    #expect(problem.reason == "InvalidLimit")
    #expect(problem.message.contains(isCount ? "spec.disks[0].limits.iops" : "spec.disks[0].limits.readBandwidth"))
    #expect(problem.message.contains(value) && problem.message.contains("write"))
  }

  @Test(
    "Limits are read from an annotation only as they were written",
    arguments: [
      "", "iops", "iops=", "iops=0", "iops=-5", "iops=1,iops=2", "bandwidth=5", "bandwidth=5Mi,iops=1", "x=1Mi",
      "iops=99999999999999999999", "iops=1,", "readBandwidth=+5Mi",
    ])
  func damagedLimits(_ text: String) {
    #expect(VolumeLimits(text: text) == nil)
    var damaged = HandlerTests().attachment()
    damaged.metadata.annotations?[Names.limitsAnnotation] = text
    #expect(HandlerPlan.objection(to: damaged, host: HandlerTests().host())?.contains("limits") == true)
  }

  @Test("A claim that says that it is only read is not shown to a server that may write")
  func readOnlyClaim() {
    var view = running()
    view.claims["d"]?.spec?.accessModes = ["ReadOnlyMany"]
    view.attachments.removeLast()
    #expect(condition(view, "VolumesReady")?.reason == "ClaimReadOnly")
    #expect(plan(view).steps == [])
    view.machine.spec.disks[1].readOnly = true
    #expect(plan(view).steps.count == 1)
  }

  // MARK: Interfaces

  /// The boot data that a plan writes for a machine that runs.
  private func written(_ view: MachineView) -> BootData? {
    plan(view).steps.lazy.compactMap { step in
      if case .whileCurrent(3, .writeBootData("h", let data)) = step { data } else { nil }
    }.first
  }

  @Test("Interfaces come and go by name; those that stay keep their place and their address")
  func interfaces() throws {
    var view = running()
    let first = GuestInterface.all(of: view.machine)[0]
    view.machine.spec.interfaces.insert(.init(name: "eth1", macAddress: "02:00:00:00:00:AB"), at: 0)
    let added = try #require(written(view))
    #expect(added.interfaces == [first, GuestInterface(name: "eth1", mac: "02:00:00:00:00:ab")])
    #expect(added.boot == "u/1" && added.networkConfig == CloudInit.networkConfig(interfaces: [first]))
    #expect(condition(view, "RestartNeeded") == nil)

    view.bootData["h"] = added.secret(host: "h")
    #expect(plan(view).steps == [])
    #expect(condition(view, "RestartNeeded") == nil, "the network configuration is of the boot's interfaces")
    view.machine.spec.interfaces.removeAll { $0.name == "eth0" }
    let removed = try #require(written(view))
    #expect(removed.interfaces == [GuestInterface(name: "eth1", mac: "02:00:00:00:00:ab", index: 1)])
    #expect(try BootData(removed.secret(host: "h")) == removed)

    // A new one takes no place, and no address, that may still be occupied in the server.
    view.bootData["h"] = added.secret(host: "h")
    view.machine.spec.interfaces.append(.init(name: "eth2"))
    let exchanged = try #require(written(view))
    #expect(exchanged.interfaces.map(\.name) == ["eth1", "eth2"])
    #expect(exchanged.interfaces.map(\.index) == [1, 2])
    #expect(exchanged.interfaces[1].mac != first.mac)
  }

  @Test("A derived MAC address stays its interface's, wherever the list has it by now")
  func stickyAddress() {
    var machine = machine { $0.spec.interfaces = [.init(name: "a"), .init(name: "b")] }
    let before = GuestInterface.all(of: machine)
    var status = BareMetalMachine.Status()
    status.addresses = before.map { .init(interface: $0.name, mac: $0.mac) }
    machine.status = status
    machine.spec.interfaces = [.init(name: "b"), .init(name: "c")]
    let after = GuestInterface.all(of: machine)
    #expect(after[0] == before[1])
    #expect(!before.map(\.mac).contains(after[1].mac) || after[1].mac == before[0].mac)
    #expect(Set(after.map(\.mac)).count == 2)
    // What was asked for once is nothing to keep.
    machine.status?.addresses = [.init(interface: "b", mac: "02:00:00:00:00:99")]
    #expect(GuestInterface.all(of: machine)[0].mac == before[0].mac)
  }

  @Test("A card that a guest holds on to is told like a disk, from the moment on that it was seen")
  func heldCard() throws {
    var view = running(data: false)
    view.hosts[0].status?.dpu?.slots = [
      .init(name: "nic-00-eth0", kind: .nic), .init(name: "nic-01-", kind: .nic, state: "it was left halfway"),
    ]
    let asked = plan(view)
    #expect(asked.status.conditions?.condition("Unplugged")?.reason == "Unplugging")
    view.machine.status = asked.status
    view.now = MicroTimestamp(microseconds: now.microseconds + 61_000_000)
    let held = plan(view)
    #expect(held.status.conditions?.condition("Unplugged")?.reason == "HeldByGuest")
    #expect(held.status.conditions?.condition("Unplugged")?.message.contains("nic-01-") == true)
    #expect(held.steps == [])
  }
}

/// What bm-handler does with them.
extension HandlerTests {
  @Test("What a guest has to let go of is asked for at the end, so that nothing else waits for it")
  func partingLast() {
    var view = HandlerView(host: host(), volumesDirectory: "/p")
    var leaving = attachment()
    leaving.metadata.deletionTimestamp = .now()
    view.attachments = [leaving, attachment(volume: "pvc-2")]
    view.volumes = [shown.0]
    view.functions = [shown.1]
    let plugs: [HandlerStep] = [
      .createVolume(name: "pvc-2", file: "/p/pvc-2.img", readOnly: false),
      .plug(function: "blk-01-pvc-2", volume: "pvc-2", readOnly: false),
    ]
    #expect(HandlerPlan.steps(view) == plugs + [.unplug(function: "blk-01-pvc-1"), .deleteVolume("pvc-1")])
    view.attachments[0].metadata.annotations?[Names.forceAnnotation] = "true"
    #expect(
      HandlerPlan.steps(view) == plugs + [.unplug(function: "blk-01-pvc-1", force: true), .deleteVolume("pvc-1")])
    #expect(HandlerStep.unplug(function: "blk-01-pvc-1").volume == "pvc-1", "the volume waits for its function")
  }

  @Test("A limit is set before the server sees the disk, changed while it does, and lifted")
  func limits() {
    var view = HandlerView(host: host(), volumesDirectory: "/p")
    var limited = attachment()
    limited.metadata.annotations?[Names.limitsAnnotation] = "iops=5000"
    view.attachments = [limited]
    let step = HandlerStep.limitVolume("pvc-1", VolumeLimits(iops: 5000))
    #expect(HandlerPlan.steps(view).dropFirst().first == step)
    view.volumes = [shown.0]
    view.functions = [shown.1]
    #expect(HandlerPlan.steps(view) == [step])
    view.volumes[0].limits = VolumeLimits(iops: 5000)
    #expect(HandlerPlan.steps(view) == [])
    view.attachments = [attachment()]
    #expect(HandlerPlan.steps(view) == [.limitVolume("pvc-1", VolumeLimits())])
  }

  @Test("Interfaces change under a boot that stays in effect, and its seed disk is not exchanged")
  func interfacesWhileOn() throws {
    var view = HandlerView(host: host(), volumesDirectory: "/p")
    view.seedDirectory = "/s"
    view.seedFile = "/s/seed-2.img"
    view.host?.status?.power = .on
    var dpu = BareMetalHost.DPUStatus()
    dpu.boot = "u/1"
    view.host?.status?.dpu = dpu
    view.bootData = BootData(
      machine: ObjectKey(namespace: "n", name: "m"), machineUID: "u", boot: "u/1", userData: "", metaData: "",
      networkConfig: "",
      interfaces: [
        GuestInterface(name: "eth0", mac: "02:00:00:00:00:01"),
        GuestInterface(name: "eth2", mac: "02:00:00:00:00:03", index: 2),
      ])
    view.volumes = [
      BlockVolume(name: "blk-99-seed", file: "/s/seed-1.img", blockSize: 512, blockCount: 8, readOnly: true)
    ]
    view.functions = [BlockFunction(name: "blk-99-seed", volume: "blk-99-seed", readOnly: true)]
    let old = PluggedInterface(index: 1, name: "eth1", mac: "02:00:00:00:00:02", tap: "t1")
    view.interfaces = [PluggedInterface(index: 0, name: "eth0", mac: "02:00:00:00:00:01", tap: "t0"), old]
    #expect(
      HandlerPlan.steps(view) == [
        .plugInterface(index: 2, GuestInterface(name: "eth2", mac: "02:00:00:00:00:03", index: 2)),
        .unplugInterface(old),
      ])
    #expect(!HandlerPlan.isBootReady(view))
    #expect(HandlerPlan.bootInEffect(view) == "u/1")
    view.host?.status?.power = .off
    #expect(HandlerPlan.bootInEffect(view) == nil, "before it is on, everything has to be in place")
    #expect(HandlerPlan.steps(view).contains(.unplug(function: "blk-99-seed")))
  }
}
