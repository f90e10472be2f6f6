import IaaS
import Storage
import Testing

/// What is decided in every state that a volume can be in.
@Suite struct VolumePlanTests {
  @Test func anEmptyClaimGetsAVolume() {
    let view = makeView()
    #expect(
      plan(view) == [.create(sizeBytes: 10 * mebibyte), .publish(draft(view)), .announce(makeClaim())])
  }

  @Test func aMachinesDiskIsAnnouncedOnlyWhereItWasRefusedBefore() {
    var view = makeView()
    view.claim?.isOfMachine = true
    #expect(plan(view) == [.create(sizeBytes: 10 * mebibyte), .publish(draft(view))])
    view.claim?.annotations[StorageNames.provisioningMessage] = "PoolFull: no room"
    #expect(
      plan(view) == [.create(sizeBytes: 10 * mebibyte), .publish(draft(view)), .announce(view.claim!)])
  }

  @Test func aVolumeThatIsThereIsPublished() {
    var view = makeView()
    view.file = Volume(handle: view.handle, sizeBytes: 10 * mebibyte, allocatedBytes: 0)
    #expect(plan(view) == [.publish(draft(view)), .announce(makeClaim())])
  }

  @Test func sizesAreRoundedUpToWholeMiB() {
    #expect(roundedVolumeSize(1) == mebibyte)
    #expect(roundedVolumeSize(mebibyte) == mebibyte)
    #expect(roundedVolumeSize(mebibyte + 1) == 2 * mebibyte)
    #expect(roundedVolumeSize(0) == nil)
    #expect(roundedVolumeSize(-5) == nil)
    #expect(roundedVolumeSize(.max) == nil)
  }

  @Test func nothingIsDoneForClaimsThatAreNotOursOrNotReady() {
    let changes: [@Sendable (inout VolumeView) -> Void] = [
      { $0.claim?.annotations = [:] },
      { $0.claim?.isBeingDeleted = true },
      { $0.claim?.volumeName = "another" },
      { $0.storageClass = nil },
      { $0.storageClass?.provisioner = "other.example.com" },
      { $0.storageClass?.waitsForConsumer = true },
      { $0.claim = nil },
    ]
    for (index, change) in changes.enumerated() {
      var view = makeView()
      change(&view)
      #expect(plan(view) == [], "change \(index)")
    }
  }

  @Test func aConsumerThatHasBeenPlacedIsServed() {
    var view = makeView()
    view.storageClass?.waitsForConsumer = true
    view.claim?.annotations[StorageNames.selectedNode] = "dpu-01"
    #expect(plan(view).first == .create(sizeBytes: 10 * mebibyte))
  }

  @Test func whatCannotBeGivenIsRefusedWithTheReason() {
    let changes: [(String, @Sendable (inout ClaimView) -> Void)] = [
      ("UnsupportedVolumeMode", { $0.volumeMode = "Filesystem" }),
      ("UnsupportedVolumeMode", { $0.volumeMode = nil }),
      ("UnsupportedAccessMode", { $0.accessModes = ["ReadWriteOnce", "ReadOnlyMany"] }),
      ("UnsupportedVolumeMode", { ($0.accessModes, $0.volumeMode) = (["ReadWriteMany"], "Filesystem") }),
      (
        "UnsupportedUpload",
        { ($0.accessModes, $0.annotations[StorageNames.upload]) = (["ReadOnlyMany"], "true") }
      ),
      ("UnsupportedSelector", { $0.hasSelector = true }),
      ("InvalidSize", { $0.requestBytes = 0 }),
      ("InvalidSize", { $0.requestBytes = nil }),
      ("InvalidSize", { $0.requestBytes = .max }),
      (
        "UnsupportedSource",
        { $0.dataSource = .init(apiGroup: "populator.example.com", kind: "VolumeSnapshot", name: "s") }
      ),
      (
        "UnsupportedSource",
        { $0.dataSource = .init(apiGroup: nil, kind: "PersistentVolumeClaim", name: "s", namespace: "other") }
      ),
      (
        "InvalidSource",
        {
          $0.dataSource = .init(apiGroup: "snapshot.storage.k8s.io", kind: "VolumeSnapshot", name: "s")
          $0.annotations[StorageNames.cloneFrom] = "team/other"
        }
      ),
      ("InvalidSource", { $0.annotations[StorageNames.cloneFrom] = "no-slash" }),
      ("InvalidSource", { $0.annotations[StorageNames.cloneFrom] = "a/b/c" }),
      (
        "InvalidSource",
        {
          $0.dataSource = .init(apiGroup: nil, kind: "PersistentVolumeClaim", name: "one")
          $0.annotations[StorageNames.cloneFrom] = "team/other"
        }
      ),
    ]
    for (reason, change) in changes {
      var view = makeView()
      var claim = makeClaim()
      change(&claim)
      view.claim = claim
      let steps = plan(view)
      guard steps.count == 1, case .refuse(claim, let refusal) = steps[0] else {
        Issue.record("\(reason): \(steps)")
        continue
      }
      #expect(refusal.reason == reason)
      #expect(refusal.message.contains("team/disk"))
    }
  }

  @Test func aGoodSourceIsCloned() {
    var view = makeCloneView()
    #expect(
      plan(view).prefix(2) == [.clone(from: handle("pvc-image"), sizeBytes: 10 * mebibyte), .publish(draft(view))])
    view.source?.claim?.annotations = [StorageNames.upload: "true", StorageNames.uploadPhase: "Succeeded"]
    #expect(plan(view).first == .clone(from: handle("pvc-image"), sizeBytes: 10 * mebibyte))
  }

  @Test func sourcesOfOtherNamespacesMustBeShared() {
    var view = makeCloneView()
    view.claim?.dataSource = nil
    view.claim?.annotations[StorageNames.cloneFrom] = "images/debian"
    #expect(refusal(plan(view))?.reason == "SourceNotFound")
    // No telling whether it exists.
    let text = refusal(plan(view))?.message
    view.source = VolumeView.Source()
    #expect(refusal(plan(view))?.message == text)
    view = makeCloneView()
    view.claim?.dataSource = nil
    view.claim?.annotations[StorageNames.cloneFrom] = "images/debian"
    view.source?.claim?.annotations[StorageNames.shared] = "true"
    #expect(plan(view).first == .clone(from: handle("pvc-image"), sizeBytes: 10 * mebibyte))
  }

  @Test func badSourcesAreRefusedWithTheReason() {
    let changes: [(String, @Sendable (inout VolumeView.Source) -> Void)] = [
      ("SourceNotFound", { $0.claim = nil }),
      ("SourceBeingDeleted", { $0.claim?.isBeingDeleted = true }),
      ("SourceNotReady", { $0.claim?.isBound = false }),
      ("UnsupportedSource", { $0.persistentVolume = nil }),
      ("SourceNotReady", { $0.isUploading = true }),
      ("SourceNotReady", { $0.claim?.annotations[StorageNames.upload] = "true" }),
      (
        "SourceNotReady",
        { $0.claim?.annotations = [StorageNames.upload: "true", StorageNames.uploadPhase: "Failed"] }
      ),
      ("SourceMissing", { $0.file = nil }),
      (
        "RequestTooSmall",
        { $0.file = Volume(handle: handle("pvc-image"), sizeBytes: 11 * mebibyte, allocatedBytes: 0) }
      ),
    ]
    for (reason, change) in changes {
      var view = makeCloneView()
      change(&view.source!)
      #expect(refusal(plan(view))?.reason == reason)
    }
  }

  @Test func aBoundVolumeIsLeftInPeace() {
    #expect(plan(makeBoundView()) == [])
  }

  @Test func anOldMessageIsTakenBackOnceTheVolumeIsThere() {
    var view = makeBoundView()
    view.claim?.annotations[StorageNames.provisioningMessage] = "PoolFull: ..."
    #expect(plan(view) == [.announce(view.claim!)])
  }

  @Test func aReleasedVolumeIsDeletedOrKeptByItsPolicy() {
    var view = makeBoundView()
    view.claim = nil
    view.persistentVolumes[0].phase = "Released"
    let volume = view.persistentVolumes[0]
    #expect(plan(view) == [.delete(volume), .withdraw(volume)])
    view.persistentVolumes[0].reclaimPolicy = "Retain"
    #expect(plan(view) == [])
    view.persistentVolumes[0].isBeingDeleted = true
    #expect(plan(view) == [.retain, .withdraw(view.persistentVolumes[0])])
  }

  @Test func nothingIsRemovedWhileItIsAttached() {
    var view = makeBoundView()
    view.claim = nil
    view.persistentVolumes[0].phase = "Released"
    view.attachments = ["ycloud-pvc-1"]
    let steps = plan(view)
    guard steps.count == 1, case .warn(_, let refusal) = steps[0] else {
      Issue.record("\(steps)")
      return
    }
    #expect(refusal.reason == "VolumeInUse")
    #expect(refusal.message.contains("ycloud-pvc-1"))
  }

  @Test func aDeletionWaitsForTheClaim() {
    var view = makeBoundView()
    view.persistentVolumes[0].isBeingDeleted = true
    #expect(plan(view) == [])
  }

  @Test func aVolumeOfAnAdministratorIsProtectedAndNeverDeleted() {
    var view = makeBoundView()
    view.persistentVolumes[0].isProvisionedByUs = false
    view.persistentVolumes[0].hasFinalizer = false
    #expect(plan(view) == [.addFinalizer(view.persistentVolumes[0])])
    view.persistentVolumes[0].hasFinalizer = true
    view.persistentVolumes[0].phase = "Released"
    #expect(plan(view) == [])
    view.persistentVolumes[0].isBeingDeleted = true
    #expect(plan(view) == [.retain, .withdraw(view.persistentVolumes[0])])
  }

  @Test func oneVolumeWithTwoPersistentVolumesIsKept() {
    var view = makeBoundView()
    view.claim = nil
    var other = view.persistentVolumes[0]
    other.name = "static"
    view.persistentVolumes[0].phase = "Released"
    view.persistentVolumes.append(other)
    #expect(plan(view) == [.withdraw(view.persistentVolumes[0])])
  }

  @Test func aMissingVolumeIsLookedForAmongTheRetained() {
    var view = makeBoundView()
    view.file = nil
    #expect(plan(view) == [.restore(view.persistentVolumes[0])])
  }

  @Test func whatADeletedClaimLeftIsDiscarded() {
    var view = makeView()
    view.claim = nil
    view.file = Volume(handle: view.handle, sizeBytes: mebibyte, allocatedBytes: 0)
    #expect(plan(view) == [])
    view.claimWasDeleted = true
    #expect(plan(view) == [.discardUnclaimed])
  }

  @Test func thePhasesOfUploadsAreWhatOthersReadThemAs() {
    #expect(UploadPhase.succeeded.rawValue == Names.uploadSucceeded)
  }

  @Test func whatADeadUploadHeldIsLetGo() {
    var view = VolumeView(handle: handle("pvc-1"))
    let hold = UploadHold(name: "ycloud-pvc-1", uid: "a")
    view.uploadHold = hold
    #expect(plan(view) == [.release(hold)], "also where nothing else is left of the volume")
    view.isUploading = true
    #expect(plan(view) == [])
  }

  @Test func uploadsBeginPendingAndAreRepeatedAfterAnInterruption() {
    var view = makeBoundView()
    view.claim?.annotations[StorageNames.upload] = "true"
    #expect(phase(plan(view)) == .pending)
    view.claim?.annotations[StorageNames.uploadPhase] = "Uploading"
    #expect(phase(plan(view)) == .pending)
    view.isUploading = true
    #expect(plan(view) == [])
    view.isUploading = false
    for settled in ["Pending", "Succeeded", "Failed"] {
      view.claim?.annotations[StorageNames.uploadPhase] = settled
      #expect(plan(view) == [])
    }
  }

  @Test func bytesAreWrittenAsKubernetesDoes() {
    #expect(formatBytes(1 << 30) == "1Gi")
    #expect(formatBytes(1536 << 20) == "1536Mi")
    #expect(formatBytes(1000) == "1000")
    #expect(formatBytes(0) == "0")
  }
}

// MARK: states

private func makeClaim() -> ClaimView {
  var claim = ClaimView(key: ClaimKey(namespace: "team", name: "disk"), uid: "1")
  claim.className = "ycloud"
  claim.volumeMode = "Block"
  claim.accessModes = ["ReadWriteOnce"]
  claim.requestBytes = 10_000_000
  claim.annotations["volume.beta.kubernetes.io/storage-provisioner"] = StorageNames.driver
  return claim
}

private func makeView() -> VolumeView {
  var view = VolumeView(handle: handle("pvc-1"))
  view.claim = makeClaim()
  view.storageClass = ClassView(name: "ycloud", provisioner: StorageNames.driver, reclaimPolicy: "Delete")
  return view
}

private func makeCloneView() -> VolumeView {
  var view = makeView()
  view.claim?.dataSource = .init(apiGroup: nil, kind: "PersistentVolumeClaim", name: "image")
  var image = ClaimView(key: ClaimKey(namespace: "team", name: "image"), uid: "image")
  image.isBound = true
  image.volumeName = "pvc-image"
  var volume = PersistentVolumeView(
    name: "pvc-image", uid: "u", handle: "pvc-image", phase: "Bound", reclaimPolicy: "Delete")
  volume.claimUID = "image"
  view.source = VolumeView.Source(
    claim: image, persistentVolume: volume,
    file: Volume(handle: handle("pvc-image"), sizeBytes: 10 * mebibyte, allocatedBytes: 0))
  return view
}

private func makeBoundView() -> VolumeView {
  var view = makeView()
  view.claim?.volumeName = "pvc-1"
  view.claim?.isBound = true
  var volume = PersistentVolumeView(name: "pvc-1", uid: "u1", handle: "pvc-1", phase: "Bound", reclaimPolicy: "Delete")
  volume.claimUID = "1"
  view.persistentVolumes = [volume]
  view.file = Volume(handle: view.handle, sizeBytes: 10 * mebibyte, allocatedBytes: 0)
  return view
}

private func draft(_ view: VolumeView) -> PersistentVolumeDraft {
  PersistentVolumeDraft(
    name: "pvc-1", handle: view.handle, sizeBytes: 10 * mebibyte, accessModes: ["ReadWriteOnce"], className: "ycloud",
    reclaimPolicy: "Delete", claim: ClaimKey(namespace: "team", name: "disk"), claimUID: "1")
}

private func refusal(_ steps: [VolumeStep]) -> Refusal? {
  guard steps.count == 1, case .refuse(_, let refusal) = steps[0] else { return nil }
  return refusal
}

private func phase(_ steps: [VolumeStep]) -> UploadPhase? {
  guard steps.count == 1, case .setUploadPhase(_, let phase, _) = steps[0] else { return nil }
  return phase
}
