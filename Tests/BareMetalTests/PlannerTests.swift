import BareMetal
import IaaS
import Kubernetes
import Testing
import Yams

/// What is decided for a machine in which situation.
@Suite("Machine plans")
struct PlannerTests {
  let now = MicroTimestamp(microseconds: 1_800_000_000_000_000)

  func machine(_ change: (inout BareMetalMachine) -> Void = { _ in }) -> BareMetalMachine {
    var machine = BareMetalMachine(
      metadata: ObjectMeta(name: "m", namespace: "n", finalizers: [Names.machineFinalizer], uid: "u"),
      spec: .init(disks: [.init(name: "root", template: .init(size: "1Gi"))]))
    change(&machine)
    return machine
  }

  func host(_ name: String = "h", claimedBy uid: String? = nil, boot: String? = nil) -> BareMetalHost {
    var host = BareMetalHost(
      metadata: ObjectMeta(name: name, finalizers: [Names.claimFinalizer]),
      spec: .init(bmc: .init(address: "ipmi://b", credentialsSecretRef: .init(name: "s")), dpu: .init(node: "d")))
    var status = BareMetalHost.Status()
    status.phase = .available
    status.claim = uid.map { .init(namespace: "n", name: "m", uid: $0) }
    status.conditions = [
      Condition(type: BareMetalHost.ConditionType.bmcReachable, status: .true, reason: "Answers", message: ""),
      Condition(type: BareMetalHost.ConditionType.dpuReady, status: .true, reason: "Ready", message: ""),
    ]
    var dpu = BareMetalHost.DPUStatus()
    dpu.ready = true
    dpu.boot = boot
    if boot != nil, let uid {
      dpu.interfaces = [.init(name: "eth0", mac: MACAddress.derived(uid: uid, index: 0))]
      dpu.slots = [.init(name: Names.networkFunction(index: 0, interface: "eth0"), kind: .nic)]
    }
    status.dpu = dpu
    host.status = status
    return host
  }

  func boundClaim(owner: String? = "u") -> PersistentVolumeClaim {
    var metadata = ObjectMeta(name: "m-root", namespace: "n", uid: "c")
    metadata.ownerReferences = owner.map {
      [OwnerReference(apiVersion: "iaas.yusur.io/v1", kind: "BareMetalMachine", name: "m", uid: $0)]
    }
    return PersistentVolumeClaim(metadata: metadata, spec: .init(volumeName: "pvc-c"), status: .init(phase: "Bound"))
  }

  func persistentVolume(driver: String = Names.storageDriver, handle: String = "pvc-c") -> PersistentVolume {
    PersistentVolume(
      metadata: ObjectMeta(name: "pvc-c"), spec: .init(csi: .init(driver: driver, volumeHandle: handle)))
  }

  func attachment(attached: Bool = true, uid: String = "u") -> VolumeAttachment {
    var metadata = ObjectMeta(name: "ycloud-pvc-c", uid: "a")
    metadata.labels = [Names.hostLabel: "h"]
    metadata.annotations = [
      Names.machineUIDAnnotation: uid, Names.machineAnnotation: "n/other", Names.bootOrderAnnotation: "1",
      Names.readOnlyAnnotation: "false", Names.diskAnnotation: "root",
    ]
    return VolumeAttachment(
      metadata: metadata,
      spec: .init(attacher: Names.storageDriver, nodeName: "d", source: .init(persistentVolumeName: "pvc-c")),
      status: .init(attached: attached))
  }

  func bootData(_ machine: BareMetalMachine, boot: Int64 = 1) -> Secret {
    let interfaces = GuestInterface.all(of: machine)
    var secret = BootData(
      machine: machine.key, machineUID: "u", boot: BootData.token(machineUID: "u", boot: boot), userData: "",
      metaData: CloudInit.metaData(machineUID: "u", name: "m"),
      networkConfig: CloudInit.networkConfig(interfaces: interfaces), interfaces: interfaces
    ).secret(host: "h")
    secret.metadata.uid = "s"
    return secret
  }

  func view(_ machine: BareMetalMachine, _ change: (inout MachineView) -> Void = { _ in }) -> MachineView {
    var view = MachineView(machine: machine, now: now)
    view.persistentVolumes = ["pvc-c": persistentVolume()]
    change(&view)
    return view
  }

  /// Everything in place for the first boot.
  func prepared(_ machine: BareMetalMachine, power: BareMetalHost.Power) -> MachineView {
    view(machine) {
      $0.hosts = [host(claimedBy: "u", boot: "u/1")]
      $0.claims = ["m-root": boundClaim()]
      $0.attachments = [attachment()]
      $0.bootData = ["h": bootData(machine)]
      $0.power = ["h": PowerView(power: power)]
    }
  }

  @Test("A new machine gets its finalizer before anything else")
  func finalizerFirst() {
    let plan = plan(view(machine { $0.metadata.finalizers = nil }) { $0.hosts = [host()] })
    #expect(plan.steps == [.addFinalizer])
  }

  @Test("The claim is made and the host is taken at the same time")
  func parallel() {
    let plan = plan(view(machine()) { $0.hosts = [host()] })
    #expect(plan.steps.count == 2)
    #expect(plan.steps.contains(.claimHost("h")))
    #expect(plan.status.phase == .pending)
    #expect(plan.status.timeline?.applied == now)
    let claims = plan.steps.compactMap { if case .createClaim(let claim) = $0 { claim } else { nil } }
    #expect(claims.count == 1)
    for annotation in ["volume.beta.kubernetes.io/storage-provisioner", "volume.kubernetes.io/storage-provisioner"] {
      #expect(
        claims.first?.metadata.annotations?[annotation] == "csi.ycloud.yusur.io",
        "the binder has nothing to write before the volume is made")
    }
  }

  @Test("Nothing is attached before the server is seen off")
  func attachOnlyWhenOff() {
    for power in [BareMetalHost.Power.on, .unknown, .off] {
      let plan = plan(
        view(machine()) {
          $0.hosts = [host(claimedBy: "u")]
          $0.claims = ["m-root": boundClaim()]
          $0.power = ["h": PowerView(power: power)]
        })
      let attaches = plan.steps.contains { if case .createAttachment = $0 { true } else { false } }
      #expect(attaches == (power == .off), "\(power)")
    }
  }

  @Test("Power comes when disks, seed and network are in place, and the boot counts when it is read back")
  func powerOn() {
    let off = plan(prepared(machine(), power: .off))
    #expect(off.steps == [.power(host: "h", .on)])
    #expect(off.status.bootedAt == nil)
    let on = plan(prepared(machine(), power: .on))
    #expect(on.status.bootedAt == now)
    #expect(on.status.phase == .starting)
    #expect(on.status.timeline?.ownSeconds == 0)
  }

  @Test("A machine that is stopped before its server went on takes the wish back, and tells the BMC the contrary")
  func stoppedBeforeOn() {
    var view = prepared(machine { $0.spec.running = false }, power: .off)
    #expect(plan(view).steps == [], "off, and nobody wants it on")
    view.power["h"]?.wantsOn = true
    #expect(plan(view).steps == [.power(host: "h", .off(grace: .zero))])
  }

  @Test("A server that went on before the spec turned invalid is said to be on")
  func onThoughInvalid() {
    let invalid = machine { $0.spec.disks.append($0.spec.disks[0]) }
    let plan = plan(prepared(invalid, power: .on))
    #expect(plan.status.bootedAt == now)
    #expect(plan.status.conditions?.isTrue("Powered") == true)
    #expect(plan.status.conditions?.isTrue("Valid") == false)
    var foreign = prepared(invalid, power: .on)
    foreign.attachments = []
    #expect(BareMetal.plan(foreign).steps == [.power(host: "h", .off(grace: .zero))])
  }

  @Test("A machine that is deleted while its server is about to go on takes that back first")
  func deletedBeforeOn() {
    var view = prepared(machine { $0.metadata.deletionTimestamp = .now() }, power: .off)
    view.attachments = []
    view.power["h"]?.wantsOn = true
    #expect(plan(view).steps.filter { $0.isPower(of: "h") } == [.power(host: "h", .off(grace: .zero))])
    view.bootData = [:]
    view.claims = [:]
    view.hosts[0].status?.dpu?.boot = nil
    #expect(plan(view).steps == [.power(host: "h", .off(grace: .zero))])
  }

  @Test("A server that nobody holds is not turned on by a wish of before")
  func unclaimedOn() {
    var view = HostView(host: host(), now: now)
    view.power = PowerView(power: .off, wantsOn: true)
    #expect(plan(view).steps == [.power(host: "h", .observe)])
    view.host = host(claimedBy: "u")
    view.claimantExists = true
    #expect(plan(view).steps == [])
  }

  @Test("A server that was on before its disks were attached is turned off first")
  func foreignPower() {
    var view = prepared(machine(), power: .on)
    view.attachments = [attachment(attached: false)]
    #expect(plan(view).steps.contains(.power(host: "h", .off(grace: .zero))))
    #expect(plan(view).status.bootedAt == nil)
  }

  @Test("A ping in this boot means running; one of another boot means nothing")
  func reachable() {
    let started = machine {
      var status = BareMetalMachine.Status()
      status.host = "h"
      status.boot = 2
      status.bootedAt = now
      $0.status = status
    }
    for (boot, phase) in [("u/2", BareMetalMachine.Phase.running), ("u/1", .starting)] {
      var view = prepared(started, power: .on)
      view.hosts[0].status?.dpu?.boot = boot
      view.hosts[0].status?.dpu?.interfaces = [
        .init(name: "eth0", mac: "m", address: "192.0.2.7", reachable: true, reachableAt: now)
      ]
      #expect(plan(view).status.phase == phase)
    }
  }

  @Test("Machines that ask for the same MAC or IPv4 address name each other, and may run")
  func rivals() {
    func asking(_ name: String) -> BareMetalMachine {
      machine {
        $0.metadata.name = name
        $0.metadata.uid = "uid-\(name)"
        $0.spec.interfaces = [.init(name: "eth0", macAddress: "02:00:00:00:00:AA", address: "192.0.2.9")]
      }
    }
    var snapshot = Snapshot()
    for name in ["a", "b"] { snapshot.machines[ObjectKey(namespace: "n", name: name)] = asking(name) }
    func conditions() -> [Condition] {
      let view = MachineView(
        of: asking("a"), in: snapshot, power: { _ in PowerView() }, userData: .text(""), shutdownGrace: .zero, now: now)
      return plan(view).status.conditions ?? []
    }
    let condition = conditions().condition("AddressesUnique")
    #expect(condition?.status == .false)
    for word in ["n/b", "02:00:00:00:00:aa", "192.0.2.9"] { #expect(condition?.message.contains(word) == true) }
    #expect(conditions().isTrue("Valid"))
    snapshot.machines[ObjectKey(namespace: "n", name: "b")] = nil
    #expect(conditions().condition("AddressesUnique") == nil)
  }

  @Test("An address that a guest shall get is not one that it has")
  func wantedAddress() {
    let started = machine {
      var status = BareMetalMachine.Status()
      status.host = "h"
      status.bootedAt = now
      $0.status = status
    }
    var view = prepared(started, power: .on)
    for (leasedAt, words) in [(nil, "take an address by DHCP"), (now, "has the address 192.0.2.7")] {
      view.hosts[0].status?.dpu?.interfaces = [
        .init(name: "eth0", mac: "m", address: "192.0.2.7", leasedAt: leasedAt)
      ]
      #expect(plan(view).status.conditions?.condition("Reachable")?.message.contains(words) == true)
    }
  }

  @Test("A machine at whose address something else answers is not running, and says so")
  func addressConflict() {
    let started = machine {
      var status = BareMetalMachine.Status()
      status.host = "h"
      status.bootedAt = now
      $0.status = status
    }
    var view = prepared(started, power: .on)
    view.hosts[0].status?.dpu?.interfaces = [.init(name: "eth0", mac: "m", address: "192.0.2.7", leasedAt: now)]
    view.hosts[0].status?.dpu?.conditions = [
      Condition(type: "Addresses", status: .false, reason: "Conflict", message: "something else answers")
    ]
    let condition = plan(view).status.conditions?.condition("Reachable")
    #expect(condition?.reason == "AddressConflict")
    #expect(condition?.message == "something else answers")
    #expect(plan(view).status.phase == .starting)
  }

  @Test("Stopping waits until off was read several times in a row, and keeps host and disks")
  func stop() {
    let running = machine {
      $0.spec.running = false
      var status = BareMetalMachine.Status()
      status.host = "h"
      status.bootedAt = now
      $0.status = status
    }
    let early = plan(prepared(running, power: .off))
    #expect(early.steps == [.power(host: "h", .off(grace: .seconds(30)))])
    #expect(early.status.phase == .stopping)
    var view = prepared(running, power: .off)
    view.power["h"]?.fencedOff = true
    let late = plan(view)
    #expect(late.steps == [])
    #expect(late.status.phase == .stopped)
    #expect(late.status.boot == 2)
    #expect(late.status.host == "h")
  }

  @Test("A deleted machine gives back in order: power, attachments, boot data, host, claims, itself")
  func deletionOrder() {
    let deleted = machine {
      $0.metadata.deletionTimestamp = .now()
      var status = BareMetalMachine.Status()
      status.host = "h"
      status.bootedAt = now
      $0.status = status
    }
    var view = prepared(deleted, power: .on)
    #expect(plan(view).steps == [.power(host: "h", .off(grace: .zero))])
    #expect(plan(view).status.conditions?.condition("Deleted")?.message.contains("h") == true)
    view.power["h"] = PowerView(power: .off)
    #expect(plan(view).steps == [.power(host: "h", .off(grace: .zero))], "one reading is no proof")
    view.power["h"] = PowerView(power: .off, confirmedOff: true, fencedOff: true)
    #expect(plan(view).steps == [.deleteAttachment("ycloud-pvc-c", uid: "a")])
    view.attachments[0].metadata.deletionTimestamp = .now()
    #expect(plan(view).steps == [])
    #expect(plan(view).status.message?.contains("bm-handler of h") == true)
    view.attachments = []
    let withdrawn = BootData.withdrawn(machine: deleted.key, machineUID: "u")
    #expect(
      Set(plan(view).steps) == [
        .writeBootData(host: "h", withdrawn), .deleteClaim(ObjectKey(namespace: "n", name: "m-root"), uid: "c"),
      ])
    view.claims = [:]
    view.bootData = [:]
    #expect(plan(view).steps == [.writeBootData(host: "h", withdrawn)], "that it is not there is told to nobody")
    var secret = withdrawn.secret(host: "h")
    secret.metadata.uid = "s"
    view.bootData = ["h": secret]
    #expect(plan(view).steps == [], "the handler has not removed the seed disk yet")
    view.hosts[0].status?.dpu?.boot = nil
    #expect(plan(view).steps == [.deleteBootData(host: "h", uid: "s")])
    view.bootData = [:]
    #expect(plan(view).steps == [.releaseHost("h")])
    view.hosts[0].status?.claim = nil
    #expect(plan(view).steps == [.removeFinalizer])
  }

  @Test("A BMC that does not answer holds a delete up, and the condition says so")
  func deletionWithDeadBMC() {
    let deleted = machine { $0.metadata.deletionTimestamp = .now() }
    var view = prepared(deleted, power: .unknown)
    view.power["h"] = PowerView(power: .unknown, problem: "cannot read power of ipmi://b: nothing answers")
    let message = plan(view).status.message ?? ""
    #expect(message.contains("nothing answers") && message.contains("stay attached"))
  }

  @Test("A host that disappears while claimed is told, and the machine can be deleted")
  func hostGone() {
    var status = BareMetalMachine.Status()
    status.host = "h"
    status.bootedAt = now
    let lost = machine { $0.status = status }
    let told = plan(
      view(lost) {
        $0.claims = ["m-root": boundClaim()]
        $0.attachments = [attachment()]
      })
    #expect(told.status.conditions?.condition("HostClaimed")?.reason == "HostGone")
    #expect(told.steps == [], "nothing is taken from a server that may be running")
    let deleted = machine {
      $0.status = status
      $0.metadata.deletionTimestamp = .now()
    }
    let deletion = plan(view(deleted) { $0.attachments = [attachment()] })
    #expect(deletion.steps == [.deleteAttachment("ycloud-pvc-c", uid: "a", unlessHeld: "h")])
  }

  @Test("A handler is silent when its lease was not seen to change, whatever the time on it")
  func handlerLeases() {
    func lease(_ host: String, renewed: Int64) -> Lease {
      var metadata = ObjectMeta(name: "bm-handler-\(host)")
      metadata.labels = [Names.hostLabel: host]
      return Lease(
        metadata: metadata, spec: .init(holderIdentity: host, renewTime: MicroTimestamp(microseconds: renewed)))
    }
    var leases = HandlerLeases()
    // The clock of one DPU is a year behind, that of the other a year ahead, and the latter's handler is dead.
    let year: Int64 = 31_536_000_000_000
    let dead = lease("dead", renewed: now.microseconds + year)
    var result: [String: Bool] = [:]
    for look in 0..<6 {
      let living = lease("alive", renewed: now.microseconds - year + Int64(look))
      result = leases.observe([living, dead], at: .seconds(20 * look))
      if look == 0 { #expect(result == [:], "nothing can be said yet") }
      if look == 1 { #expect(result == ["alive": true]) }
    }
    #expect(result == ["alive": true, "dead": false])
    let living = lease("alive", renewed: now.microseconds - year + 5)
    // For five minutes the API server was away: for the handlers as well.
    result = leases.observe([living, dead], at: .seconds(400))
    #expect(result == ["alive": true, "dead": false])
    result = leases.observe([living], at: .seconds(430))
    #expect(result == ["alive": true])
    result = leases.observe([living], at: .seconds(470))
    #expect(result == ["alive": false])
  }

  @Test("A handler that was found silent stays so until a new leader has seen a sign of life")
  func silentStays() {
    var view = HostView(host: host(), now: now)
    view.handlerAlive = false
    view.host.status = plan(view).status
    view.handlerAlive = nil
    #expect(plan(view).status.conditions?.condition("DPUReady")?.reason == "HandlerSilent")
    view.handlerAlive = true
    #expect(plan(view).status.conditions?.isTrue("DPUReady") == true)
  }

  @Test("A host that is deleted while a machine holds it names the machine")
  func deletedHostIsHeld() {
    var view = HostView(host: host(claimedBy: "u"), now: now)
    view.claimantExists = true
    #expect(plan(view).status.conditions?.condition("Deleted") == nil)
    view.host.metadata.deletionTimestamp = .now()
    let waiting = plan(view)
    #expect(!waiting.removeFinalizer)
    #expect(waiting.status.conditions?.condition("Deleted")?.message.contains("n/m") == true)
    #expect(hostEvents(from: view.host.status, to: waiting.status).contains { $0.message.contains("n/m") })
    view.host.status?.claim = nil
    #expect(plan(view).removeFinalizer)
  }

  @Test("Boot data of a machine that lost its host object stays until the machine claims it again, or is no more")
  func tornBootDataStays() {
    var view = HostView(host: host(), now: now)
    view.attachments = [attachment()]
    var secret = BootData(
      machine: ObjectKey(namespace: "n", name: "other"), machineUID: "u", boot: "u/1", userData: "", metaData: "",
      networkConfig: "", interfaces: []
    ).secret(host: "h")
    secret.metadata.uid = "s"
    view.bootData = secret
    #expect(!plan(view).steps.contains(.deleteBootData(host: "h", uid: "s")))
    view.orphans = ["a"]
    #expect(plan(view).steps.contains(.deleteBootData(host: "h", uid: "s")))
    view.orphans = []
    view.attachments = []
    #expect(plan(view).steps.contains(.deleteBootData(host: "h", uid: "s")))
  }

  @Test("A host whose machine was removed by force says what giving it back waits for")
  func forcedDeletionIsTold() {
    var view = HostView(host: host(claimedBy: "u"), now: now)
    view.claimantExists = false
    view.attachments = [attachment()]
    view.power = PowerView(power: .unknown, problem: "cannot read power of ipmi://b: nothing answers")
    let waiting = plan(view).status
    let message = waiting.conditions?.condition("Released")?.message ?? ""
    for word in ["n/m is no more", "nothing answers", "stay attached"] { #expect(message.contains(word), "\(message)") }
    view.host.status = waiting
    view.host.status?.claim = nil
    view.attachments = []
    #expect(plan(view).status.conditions?.condition("Released") == nil)
  }

  @Test("A volume that is attached for another machine is refused by name")
  func volumeInUse() {
    let other = machine { $0.spec.disks = [.init(name: "data", existingClaim: .init(claimName: "m-root"))] }
    let plan = plan(
      view(other) {
        $0.claims = ["m-root": boundClaim(owner: nil)]
        $0.foreignAttachments = ["pvc-c": attachment(uid: "x")]
        $0.hosts = [host()]
      })
    let condition = plan.status.conditions?.condition("VolumesReady")
    #expect(condition?.reason == "VolumeInUse")
    #expect(condition?.message.contains("n/other") == true)
    #expect(plan.steps == [])
  }

  @Test(
    "What a schema cannot say is refused with field and remedy",
    arguments: [
      ("DuplicateDisk", ["spec.disks[1]", "twice"]), ("DuplicateBootOrder", ["bootOrder 1"]),
      ("DiskWithoutVolume", ["neither"]), ("DiskAmbiguous", ["both"]), ("InvalidSize", ["'0'"]),
      ("DuplicateMAC", ["02:00:00:00:00:01"]), ("HostAmbiguous", ["spec.hostName"]),
      ("InvalidCloudInit", ["userData", "line 3"]),
    ])
  func invalid(_ reason: String, _ words: [String]) {
    let template = BareMetalMachine.Template(size: "1Gi")
    let broken = machine {
      switch reason {
      case "DuplicateDisk": $0.spec.disks.append($0.spec.disks[0])
      case "DuplicateBootOrder":
        $0.spec.disks = [
          .init(name: "a", bootOrder: 1, template: template), .init(name: "b", bootOrder: 1, template: template),
        ]
      case "DiskWithoutVolume": $0.spec.disks = [.init(name: "a")]
      case "DiskAmbiguous": $0.spec.disks[0].existingClaim = .init(claimName: "c")
      case "InvalidSize": $0.spec.disks[0].template?.size = "0"
      case "DuplicateMAC":
        $0.spec.interfaces = [
          .init(name: "a", macAddress: "02:00:00:00:00:01"), .init(name: "b", macAddress: "02:00:00:00:00:01"),
        ]
      case "HostAmbiguous":
        $0.spec.hostName = "h"
        $0.spec.hostSelector = .init(matchLabels: ["a": "b"])
      default: $0.spec.cloudInit = .init(userData: "#cloud-config\nusers: [unclosed\n")
      }
    }
    let plan = plan(view(broken) { $0.hosts = [host()] })
    let condition = plan.status.conditions?.condition("Valid")
    #expect(condition?.status == .false)
    #expect(condition?.reason == reason)
    for word in words { #expect(condition?.message.contains(word) == true, "\(condition?.message ?? "")") }
    #expect(!plan.steps.contains(.claimHost("h")))
    #expect(plan.status.phase == .pending)
  }

  @Test("A user data error never shows the user data")
  func noSecretInErrors() {
    let problem = CloudInit.problem(userData: "#cloud-config\npassword: [hunter2\n")
    #expect(problem != nil)
    #expect(problem?.contains("hunter2") == false)
  }

  @Test(
    "Names that YAML would take for something else reach cloud-init as texts", arguments: ["007", "null", "on", "1e3"])
  func yamlNames(_ name: String) throws {
    let metaData = try #require(try Yams.compose(yaml: CloudInit.metaData(machineUID: name, name: name)))
    for key in ["instance-id", "local-hostname"] {
      let scalar = try #require(metaData[key]?.scalar)
      #expect(scalar.string == name && scalar.style == .doubleQuoted)
    }
    let text = CloudInit.networkConfig(interfaces: [GuestInterface(name: name, mac: "02:00:00:00:00:01")])
    let config = try #require(try Yams.compose(yaml: text))
    let (key, interface) = try #require(config["ethernets"]?.mapping?.first)
    #expect(key.scalar?.string == name && key.scalar?.style == .doubleQuoted)
    #expect(interface["set-name"]?.scalar?.style == .doubleQuoted)
    #expect(interface["match"]?["macaddress"]?.string == "02:00:00:00:00:01")
    #expect(CloudInit.problem(networkData: text) == nil)
  }

  @Test("The scheduler honours claims, maintenance, taints, labels and readiness, and says why it waits")
  func scheduling() {
    let wanting = machine()
    #expect(Scheduler.decide(wanting, hosts: [host()]) == .place(host: "h"))
    var broken = [host("a", claimedBy: "x"), host("b"), host("c"), host("d"), host("e")]
    broken[1].spec.maintenance = true
    broken[2].spec.taints = [.init(key: "gpu", value: "yes")]
    broken[3].status?.dpu?.ready = false
    broken[4].status?.dpu?.slots = [.init(name: "blk-01-pvc-x", kind: .disk)]
    guard case .wait(let reason, let message) = Scheduler.decide(wanting, hosts: broken) else {
      Issue.record("a host was found")
      return
    }
    #expect(reason == "NoHostFree")
    for word in ["a is held by", "b is in maintenance", "c has the taint gpu=yes", "and 1 more"] {
      #expect(message.contains(word), "\(message)")
    }
    let tolerant = machine { $0.spec.tolerations = [.init(key: "gpu", operator: .exists)] }
    #expect(Scheduler.decide(tolerant, hosts: broken) == .place(host: "c"))
    let picky = machine { $0.spec.hostSelector = .init(matchLabels: ["rack": "a"]) }
    var labelled = host("r")
    labelled.metadata.labels = ["rack": "a"]
    #expect(Scheduler.decide(picky, hosts: [host(), labelled]) == .place(host: "r"))
  }

  @Test("A host whose handler has fallen silent takes no machine, whatever the handler wrote last")
  func silentHandler() {
    var silent = host()
    silent.status?.phase = .error
    silent.status?.conditions?.set(
      BareMetalHost.ConditionType.dpuReady, .false, reason: "HandlerSilent", message: "no sign of life")
    guard case .wait(_, let message) = Scheduler.decide(machine(), hosts: [silent]) else {
      Issue.record("a machine was placed")
      return
    }
    #expect(message.contains("h has a DPU that is not ready"), "\(message)")
    var broken = host()
    broken.status?.phase = .error
    #expect(Scheduler.objection(to: broken, for: machine()) != nil)
  }

  @Test("Machines spread over free hosts")
  func spread() {
    let hosts = (0..<8).map { host("h\($0)") }
    var chosen: [String: Int] = [:]
    for index in 0..<400 {
      let machine = machine { $0.metadata.uid = "uid-\(index)" }
      if case .place(let name) = Scheduler.decide(machine, hosts: hosts) { chosen[name, default: 0] += 1 }
    }
    #expect(chosen.count == 8)
    #expect(chosen.values.allSatisfy { $0 > 20 })
  }

  @Test("Disks without a boot order follow those with one")
  func bootOrder() {
    let orders = bootOrders([.init(name: "a"), .init(name: "b", bootOrder: 5), .init(name: "c")])
    #expect(orders == ["a": 6, "b": 5, "c": 7])
  }
}
