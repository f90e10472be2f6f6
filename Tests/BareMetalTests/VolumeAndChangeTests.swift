import BareMetal
import IaaS
import Kubernetes
import Testing

/// Which volumes a machine gets, and what is told about a spec that changes under a running machine.
extension PlannerTests {
  private func dataMachine(_ claims: [String] = ["m-root"]) -> BareMetalMachine {
    machine {
      $0.spec.disks = claims.enumerated().map { index, claim in
        .init(name: "d\(index)", bootOrder: index + 1, existingClaim: .init(claimName: claim))
      }
    }
  }

  private func attachments(_ plan: MachinePlan) -> [VolumeAttachment] {
    plan.steps.compactMap { if case .createAttachment(let attachment) = $0 { attachment } else { nil } }
  }

  @Test("A volume made by hand is attached by its handle, whatever the PersistentVolume is called")
  func handmadeVolume() {
    let plan = plan(
      view(dataMachine()) {
        $0.hosts = [host(claimedBy: "u")]
        $0.claims = ["m-root": boundClaim(owner: nil)]
        $0.persistentVolumes = ["pvc-c": persistentVolume(handle: "old-disk")]
        $0.power = ["h": PowerView(power: .off)]
      })
    #expect(attachments(plan).map(\.volumeHandle) == ["old-disk"])
    #expect(attachments(plan).map(\.metadata.name) == ["ycloud-old-disk"], "one attachment for one volume")
    #expect(attachments(plan).map(\.volume) == ["pvc-c"])
  }

  @Test("A claim without a class is told apart from one whose volume is being made", arguments: [nil, "", "ycloud"])
  func unboundClaim(_ storageClassName: String?) throws {
    let plan = plan(
      view(dataMachine()) {
        $0.hosts = [host(claimedBy: "u")]
        $0.power = ["h": PowerView(power: .off)]
        var claim = boundClaim(owner: nil)
        claim.status?.phase = "Pending"
        claim.spec?.volumeName = nil
        claim.spec?.storageClassName = storageClassName
        $0.claims = ["m-root": claim]
      })
    #expect(attachments(plan) == [])
    let condition = try #require(plan.status.conditions?.condition("VolumesReady"))
    #expect(condition.status != .true)
    #expect(condition.message.contains("kubectl get storageclass") == (storageClassName != "ycloud"), "\(condition)")
    #expect(condition.message.contains("describe pvc m-root") == (storageClassName == "ycloud"), "\(condition)")
  }

  @Test(
    "A volume of another driver, with a handle that is a path, or without its content is refused with the reason",
    arguments: [
      ("UnsupportedDriver", ["ebs.csi.aws.com", "disk 'd0'"]), ("InvalidVolumeHandle", ["../../etc/shadow"]),
      ("UploadPending", ["Uploading", "m-root"]), ("UploadRunning", ["n/m-root"]),
    ])
  func refusedVolume(_ reason: String, _ words: [String]) {
    let plan = plan(
      view(dataMachine()) {
        $0.hosts = [host(claimedBy: "u")]
        $0.power = ["h": PowerView(power: .off)]
        var claim = boundClaim(owner: nil)
        switch reason {
        case "UnsupportedDriver": $0.persistentVolumes = ["pvc-c": persistentVolume(driver: "ebs.csi.aws.com")]
        case "InvalidVolumeHandle": $0.persistentVolumes = ["pvc-c": persistentVolume(handle: "../../etc/shadow")]
        case "UploadPending":
          claim.metadata.annotations = [Names.uploadAnnotation: "true", Names.uploadPhaseAnnotation: "Uploading"]
        default:
          // The claim says nothing yet: the upload's attachment is what counts.
          var hold = attachment(uid: "")
          hold.metadata.annotations = [Names.uploadHoldAnnotation: "n/m-root"]
          $0.foreignAttachments = ["pvc-c": hold]
        }
        $0.claims = ["m-root": claim]
      })
    #expect(attachments(plan) == [])
    let condition = plan.status.conditions?.condition("VolumesReady")
    #expect(condition?.reason == reason)
    for word in words { #expect(condition?.message.contains(word) == true, "\(condition?.message ?? "")") }
  }

  @Test("A volume whose upload is complete is attached, and so is one that is not known to be uploaded")
  func uploadedVolume() {
    for annotations in [
      nil, [Names.uploadAnnotation: "true", Names.uploadPhaseAnnotation: "Succeeded"],
      [Names.uploadPhaseAnnotation: "Pending"],
    ] {
      let plan = plan(
        view(dataMachine()) {
          $0.hosts = [host(claimedBy: "u")]
          $0.power = ["h": PowerView(power: .off)]
          var claim = boundClaim(owner: nil)
          claim.metadata.annotations = annotations
          $0.claims = ["m-root": claim]
        })
      #expect(attachments(plan).count == 1)
    }
  }

  @Test("One volume behind two claims is not attached twice")
  func aliasedVolume() {
    var other = boundClaim(owner: nil)
    other.metadata.name = "alias"
    other.spec?.volumeName = "pv-alias"
    let plan = plan(
      view(dataMachine(["m-root", "alias"])) {
        $0.hosts = [host(claimedBy: "u")]
        $0.claims = ["m-root": boundClaim(owner: nil), "alias": other]
        $0.persistentVolumes["pv-alias"] = persistentVolume()
        $0.power = ["h": PowerView(power: .off)]
      })
    #expect(attachments(plan).map(\.volume) == ["pvc-c"])
    #expect(plan.status.conditions?.condition("VolumesReady")?.reason == "DuplicateVolume")
  }

  @Test("A volume behind two PersistentVolumes is another machine's, whichever of them that one names")
  func foreignAlias() {
    var snapshot = Snapshot()
    var claim = boundClaim(owner: nil)
    claim.spec?.volumeName = "pv-alias"
    snapshot.claimObjects[claim.key] = claim
    snapshot.volumeHandles["pv-alias"] = "pvc-c"
    snapshot.attachmentObjects["ycloud-pvc-c"] = attachment(uid: "x")
    let view = MachineView(
      of: dataMachine(), in: snapshot, power: { _ in PowerView() }, userData: .notRead, shutdownGrace: .zero, now: now)
    #expect(plan(view).status.conditions?.condition("VolumesReady")?.reason == "VolumeInUse")
  }

  // MARK: Changes

  private func running(_ change: (inout BareMetalMachine) -> Void = { _ in }) -> MachineView {
    let booted = machine {
      var status = BareMetalMachine.Status()
      status.host = "h"
      status.boot = 1
      status.bootedAt = now
      $0.status = status
    }
    var view = prepared(booted, power: .on)
    change(&view.machine)
    return view
  }

  @Test("A machine that runs with what its spec asks for needs no restart")
  func unchanged() {
    var view = running()
    #expect(plan(view).status.conditions?.condition("RestartNeeded") == nil)
    view.userData = .notRead
    #expect(plan(view).status.conditions?.condition("RestartNeeded") == nil)
    #expect(plan(view).steps == [])
  }

  @Test(
    "A change that a running machine does not see is told by the field, and no more once it has booted with it",
    arguments: [
      "spec.disks[0].bootOrder", "spec.disks[0].readOnly", "spec.interfaces[0].macAddress",
      "spec.interfaces[0].address", "spec.cloudInit.networkData", "spec.cloudInit.userData",
      "spec.cloudInit.userDataSecretRef",
    ])
  func changed(_ field: String) throws {
    var view = running { machine in
      switch field {
      case "spec.disks[0].bootOrder": machine.spec.disks[0].bootOrder = 4
      case "spec.disks[0].readOnly": machine.spec.disks[0].readOnly = true
      case "spec.interfaces[0].macAddress": machine.spec.interfaces[0].macAddress = "02:00:00:00:00:0f"
      case "spec.interfaces[0].address": machine.spec.interfaces[0].address = "192.0.2.9"
      case "spec.cloudInit.networkData": machine.spec.cloudInit = .init(networkData: "version: 2\n")
      case "spec.cloudInit.userData": machine.spec.cloudInit = .init(userData: "#cloud-config\n{}\n")
      default: machine.spec.cloudInit = .init(userDataSecretRef: .init(name: "s"))
      }
    }
    if field.contains("userData") { view.userData = .text("#cloud-config\n{}\n") }
    let told = plan(view)
    #expect(told.steps == [], "nothing is taken from a running machine")
    let condition = try #require(told.status.conditions?.condition("RestartNeeded"))
    #expect(condition.status == .true)
    let fields = condition.message.split(separator: ";")[0].split(separator: ": ")[1].split(separator: ", ")
    #expect(fields == [Substring(field)])
    #expect(condition.message.contains("bmctl restart m"))
    #expect(machineEvents(from: view.machine.status, to: told.status).contains { $0.message.contains(field) })
    #expect(!machineEvents(from: told.status, to: told.status).contains { $0.reason == "RestartNeeded" })

    // Booted with it.
    view.machine.status = told.status
    let interfaces = GuestInterface.all(of: view.machine)
    let userData: String = if case .text(let text) = view.userData { text } else { "" }
    view.bootData["h"] = BootData(
      machine: view.machine.key, machineUID: "u", boot: "u/1", userData: userData, metaData: "",
      networkConfig: view.machine.spec.cloudInit?.networkData ?? CloudInit.networkConfig(interfaces: interfaces),
      interfaces: interfaces
    ).secret(host: "h")
    view.attachments[0].metadata.annotations?[Names.bootOrderAnnotation] =
      "\(bootOrders(view.machine.spec.disks)["root"] ?? 0)"
    view.attachments[0].metadata.annotations?[Names.readOnlyAnnotation] = "\(view.machine.spec.disks[0].readOnly)"
    #expect(plan(view).status.conditions?.condition("RestartNeeded") == nil)
  }

  @Test("A machine that is off needs no restart, and the user data's secret is read only where it matters")
  func secretReads() {
    var view = running { $0.spec.cloudInit = .init(userDataSecretRef: .init(name: "s")) }
    view.machine.metadata.generation = 7
    view.machine.status?.observedGeneration = 7
    #expect(!needsUserData(view))
    view.machine.metadata.generation = 8
    #expect(needsUserData(view), "the spec has changed")
    view.machine.metadata.generation = 7
    view.bootData = [:]
    #expect(needsUserData(view), "the boot data is to be written again")
    view = running { $0.spec.disks[0].readOnly = true }
    view.machine.status = plan(view).status
    view.machine.status?.bootedAt = nil
    view.power = ["h": PowerView(power: .off)]
    #expect(plan(view).status.conditions?.condition("RestartNeeded") == nil)
  }

  @Test("Boot data that somebody removed is written again for the boot that is under way, with its interfaces")
  func bootDataRestored() throws {
    var view = running { $0.spec.interfaces[0].macAddress = "02:00:00:00:00:0f" }
    let mac = MACAddress.derived(uid: "u", index: 0)
    view.hosts[0].status?.dpu?.interfaces = [.init(name: "eth0", mac: mac)]
    for secret in [nil, Optional(BootData.withdrawn(machine: view.machine.key, machineUID: "u").secret(host: "h"))] {
      view.bootData["h"] = secret
      let written = plan(view).steps.compactMap { step in
        if case .whileCurrent(_, .writeBootData("h", let data)) = step { data } else { nil }
      }
      #expect(written.map(\.boot) == ["u/1"])
      #expect(written.first?.interfaces == [GuestInterface(name: "eth0", mac: mac)], "as the server shows them")
    }
    view.userData = .notRead
    #expect(plan(view).steps == [], "never without the user data")
  }

  @Test("A template that is not what its disk was made from is told, with the way to grow the disk")
  func templates() throws {
    func condition(_ change: (inout BareMetalMachine) -> Void) -> Condition? {
      var view = running(change)
      view.claims["m-root"]?.spec?.resources = .init(requests: ["storage": Quantity(bytes: 1 << 30)])
      view.claims["m-root"]?.spec?.storageClassName = "ycloud"
      view.claims["m-root"]?.spec?.dataSource = .init(kind: "PersistentVolumeClaim", name: "debian")
      return plan(view).status.conditions?.condition("TemplatesApplied")
    }
    let source = BareMetalMachine.Source(persistentVolumeClaim: .init(name: "debian"))
    #expect(condition { $0.spec.disks[0].template = .init(size: "1Gi", source: source) } == nil)
    #expect(
      condition { $0.spec.disks[0].template = .init(size: "1024Mi", storageClassName: "ycloud", source: source) } == nil
    )
    let larger = try #require(condition { $0.spec.disks[0].template = .init(size: "2Gi", source: source) })
    #expect(larger.status == .false && larger.reason == "TemplateChanged")
    for word in ["template.size is 2Gi", "m-root has 1Gi", "kubectl -n n patch pvc m-root", "\"storage\":\"2Gi\""] {
      #expect(larger.message.contains(word), "\(larger.message)")
    }
    let smaller = condition { $0.spec.disks[0].template = .init(size: "512Mi", source: source) }
    #expect(smaller?.message.contains("do not shrink") == true)
    let other = condition { $0.spec.disks[0].template = .init(size: "1Gi", storageClassName: "fast") }
    #expect(other?.message.contains("'fast'") == true && other?.message.contains("n/debian") == true)
  }
}
