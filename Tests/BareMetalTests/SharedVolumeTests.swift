import BareMetal
import DPU
import IaaS
import Kubernetes
import Testing

/// What is decided about volumes that several machines may have.
@Suite("Shared volumes")
struct SharedVolumeTests {
  private let tests = PlannerTests()

  /// A machine that runs and names the claim `d` in its second disk, which is not attached yet.
  private func running(
    modes: [String], handle: String, readOnly: Bool = false, _ change: (inout MachineView) -> Void = { _ in }
  ) -> MachineView {
    let machine = tests.machine {
      var status = BareMetalMachine.Status()
      status.host = "h"
      status.boot = 1
      status.bootedAt = tests.now
      $0.status = status
      $0.metadata.generation = 3
      $0.spec.disks.append(.init(name: "data", readOnly: readOnly, existingClaim: .init(claimName: "d")))
    }
    var view = tests.prepared(machine, power: .on)
    view.claims["d"] = PersistentVolumeClaim(
      metadata: ObjectMeta(name: "d", namespace: "n"),
      spec: .init(accessModes: modes, volumeMode: "Block", volumeName: "pv-d"), status: .init(phase: "Bound"))
    view.persistentVolumes["pv-d"] = PersistentVolume(
      metadata: ObjectMeta(name: "pv-d"), spec: .init(csi: .init(driver: Names.storageDriver, volumeHandle: handle)))
    change(&view)
    return view
  }

  private func made(_ view: MachineView) -> [VolumeAttachment] {
    plan(view).steps.compactMap { if case .createAttachment(let attachment) = $0 { attachment } else { nil } }
  }

  private func problem(_ view: MachineView) -> Condition? {
    let condition = plan(view).status.conditions?.condition("VolumesReady")
    return condition?.status == .false ? condition : nil
  }

  @Test(
    "What the claim and its volume allow is attached, under a name that is right for it",
    arguments: [
      (["ReadWriteMany"], "pvc-1-rwx", false, "ycloud-pvc-1-rwx.u"),
      (["ReadWriteMany"], "pvc-1-rwx", true, "ycloud-pvc-1-rwx.u"),
      (["ReadWriteMany", "ReadOnlyMany"], "pvc-1-rwx", false, "ycloud-pvc-1-rwx.u"),
      (["ReadOnlyMany"], "pvc-1-rox", true, "ycloud-pvc-1-rox.u"),
      (["ReadWriteOnce"], "pvc-1", false, "ycloud-pvc-1"), (["ReadWriteOncePod"], "pvc-1", true, "ycloud-pvc-1"),
      (["ReadWriteMany"], "by-hand", false, "ycloud-by-hand"),
    ])
  func attached(_ modes: [String], _ handle: String, _ readOnly: Bool, _ name: String) {
    let view = running(modes: modes, handle: handle, readOnly: readOnly)
    let attachments = made(view)
    #expect(attachments.map(\.metadata.name) == [name])
    #expect(attachments.first?.machineUID == "u" && attachments.first?.isReadOnly == readOnly)
    #expect(problem(view) == nil)
  }

  @Test(
    "What the claim or its volume does not allow is refused before anything is attached, with the claim and the remedy",
    arguments: [
      (["ReadOnlyMany"], "pvc-1-rox", false, "ClaimReadOnly"),
      (["ReadWriteMany"], "pvc-1-rox", false, "VolumeReadOnly"),
      (["ReadWriteOnce"], "pvc-1-rwx", false, "AccessModeNotAllowed"),
      (["ReadWriteOnce", "ReadOnlyMany"], "pvc-1-rwx", false, "AccessModeNotAllowed"),
      (["ReadWriteOnce"], "pvc-1-rox", true, "AccessModeNotAllowed"),
      ([], "pvc-1-rwx", false, "AccessModeNotAllowed"),
    ])
  func refused(_ modes: [String], _ handle: String, _ readOnly: Bool, _ reason: String) throws {
    let view = running(modes: modes, handle: handle, readOnly: readOnly)
    let told = try #require(problem(view))
    #expect(told.reason == reason)
    #expect(told.message.contains("n/d") && told.message.contains("'data'"), "\(told.message)")
    #expect(told.message.contains("use a") || told.message.contains("set readOnly"), "\(told.message)")
    #expect(made(view).isEmpty)
    #expect(machineEvents(from: view.machine.status, to: plan(view).status).contains { $0.reason == reason })
  }

  @Test("A PersistentVolume whose spec.csi.readOnly is true is shown read-only or not at all")
  func readOnlySource() throws {
    var view = running(modes: ["ReadWriteOnce"], handle: "pvc-1") {
      $0.persistentVolumes["pv-d"]?.spec?.csi?.readOnly = true
    }
    let told = try #require(problem(view))
    #expect(told.reason == "VolumeReadOnly" && told.message.contains("spec.csi.readOnly"))
    #expect(told.message.contains("spec.disks[1].readOnly is false") && made(view).isEmpty)
    view.machine.spec.disks[1].readOnly = true
    #expect(made(view).first?.isReadOnly == true)
  }

  @Test("A claim for many with a file system is refused with the field, the value and the remedy")
  func fileSystem() throws {
    let view = running(modes: ["ReadWriteMany"], handle: "pvc-1-rwx") {
      $0.claims["d"]?.spec?.volumeMode = "Filesystem"
    }
    let told = try #require(problem(view))
    #expect(told.reason == "SharedFilesystem" && made(view).isEmpty)
    for word in ["n/d", "spec.volumeMode Filesystem", "volumeMode: Block"] { #expect(told.message.contains(word)) }
  }

  @Test("Who waits for a volume that another machine has is told whose it is, and by which claims machines share")
  func inUse() throws {
    var other = tests.attachment(uid: "other")
    other.metadata.name = "ycloud-pvc-1"
    for (modes, remedy) in [(["ReadWriteOnce"], "ReadWriteMany"), (["ReadWriteMany"], "make the claim anew")] {
      let view = running(modes: modes, handle: "pvc-1") { $0.foreignAttachments["pv-d"] = other }
      let told = try #require(problem(view))
      #expect(told.reason == "VolumeInUse" && made(view).isEmpty)
      for word in ["claim d", "'data'", "h for n/other", remedy] { #expect(told.message.contains(word), "\(word)") }
    }
  }

  @Test("A view finds the record of its own machine among those of a shared volume, and no other's")
  func ownRecord() {
    let wish = running(modes: ["ReadWriteMany"], handle: "pvc-1-rwx")
    var snapshot = Snapshot()
    snapshot.volumeHandles["pv-d"] = "pvc-1-rwx"
    snapshot.claimObjects[ObjectKey(namespace: "n", name: "d")] = wish.claims["d"]
    for uid in ["u", "other"] {
      var record = tests.attachment(uid: uid)
      record.metadata.name = "ycloud-pvc-1-rwx.\(uid)"
      record.spec.source.persistentVolumeName = "pv-d"
      snapshot.attachmentObjects[record.key.name] = record
    }
    let view = MachineView(
      of: wish.machine, in: snapshot, power: { _ in PowerView() }, userData: .notRead, shutdownGrace: .zero,
      now: tests.now)
    #expect(view.attachments.map(\.metadata.name) == ["ycloud-pvc-1-rwx.u"])
    #expect(view.foreignAttachments.isEmpty)
  }

  // MARK: bm-handler

  private func record(_ handle: String, name: String, readOnly: Bool) -> VolumeAttachment {
    var record = HandlerTests().attachment(volume: handle)
    record.metadata.name = name
    record.metadata.annotations?[Names.volumeHandleAnnotation] = handle
    record.metadata.annotations?[Names.readOnlyAnnotation] = "\(readOnly)"
    return record
  }

  @Test("The handler opens as shared what several may write, and nothing else")
  func opensShared() {
    for (handle, name, readOnly, shared) in [
      ("pvc-1", "ycloud-pvc-1", false, false), ("pvc-1-rwx", "ycloud-pvc-1-rwx.u", false, true),
      ("pvc-1-rwx", "ycloud-pvc-1-rwx.u", true, true), ("pvc-1-rox", "ycloud-pvc-1-rox.u", true, false),
    ] {
      var view = HandlerView(host: HandlerTests().host(), volumesDirectory: "/p")
      view.attachments = [record(handle, name: name, readOnly: readOnly)]
      #expect(
        HandlerPlan.steps(view) == [
          .createVolume(name: handle, file: "/p/\(handle).img", readOnly: readOnly, shared: shared),
          .plug(function: "blk-01-\(handle)", volume: handle, readOnly: readOnly),
        ])
    }
  }

  @Test(
    "A record that the API server could have beside another one, or that writes what is only read, has no effect",
    arguments: [
      ("pvc-1", "ycloud-pvc-1.u", false), ("pvc-1", "anything", false), ("pvc-1-rwx", "ycloud-pvc-1-rwx", false),
      ("pvc-1-rwx", "ycloud-pvc-1-rwx.v", false), ("pvc-1-rox", "ycloud-pvc-1-rox.u", false),
    ])
  func objections(_ handle: String, _ name: String, _ readOnly: Bool) {
    var view = HandlerView(host: HandlerTests().host(), volumesDirectory: "/p")
    view.attachments = [record(handle, name: name, readOnly: readOnly)]
    #expect(HandlerPlan.steps(view) == [])
    #expect(HandlerPlan.objection(to: view.attachments[0], host: view.host)?.contains(handle) == true)
  }

  // MARK: Snapshots of machines

  @Test("A snapshot of a machine that has a shared disk fails and says why; the handler would refuse it as well")
  func snapshots() throws {
    let machine = running(modes: ["ReadWriteMany"], handle: "pvc-1-rwx")
    var snapshot = BareMetalMachineSnapshot(
      metadata: ObjectMeta(name: "s", namespace: "n", finalizers: [Names.lifeFinalizer], uid: "x"),
      spec: .init(machineName: "m"))
    snapshot.status = .init()
    var view = MachineSnapshotView(snapshot: snapshot, now: tests.now)
    view.machine = machine.machine
    view.claims = machine.claims
    view.persistentVolumes = machine.persistentVolumes
    view.attachments = machine.attachments
    let refused = plan(view)
    #expect(refused.steps.isEmpty && refused.status.phase == .failed)
    let told = try #require(refused.status.conditions?.condition(BareMetalMachineSnapshot.ConditionType.captured))
    #expect(told.reason == "SharedDisk" && told.message.contains("'data'") && told.message.contains("VolumeSnapshot"))

    var handler = HandlerView(host: HandlerTests().host(), volumesDirectory: "/p")
    handler.attachments = [record("pvc-1-rwx", name: "ycloud-pvc-1-rwx.u", readOnly: false)]
    handler.functions = [BlockFunction(name: "blk-01-pvc-1-rwx", volume: "pvc-1-rwx", readOnly: false)]
    let request = BareMetalHost.SnapshotRequest(token: "x-1", machineUID: "u", volumes: ["pvc-1-rwx"])
    guard case .failure(let refusal) = HandlerPlan.snapshotFiles(request, handler) else {
      Issue.record("it would be captured")
      return
    }
    #expect(refusal.message.contains("shared"))
  }
}
