import Storage
import Testing

/// What is decided in every state that a VolumeSnapshot and its content can be in.
@Suite struct SnapshotPlanTests {
  private let key = SnapshotKey(namespace: "team", name: "before-upgrade")
  private let ours = SnapshotClassView(name: "ycloud", driver: StorageNames.driver, deletionPolicy: "Delete")

  private func makeView() -> SnapshotSituation {
    var snapshot = SnapshotView(key: key, uid: "s1")
    snapshot.claimName = "disk"
    snapshot.className = "ycloud"
    var view = SnapshotSituation(snapshot: snapshot)
    var claim = ClaimView(key: ClaimKey(namespace: "team", name: "disk"), uid: "c1")
    claim.isBound = true
    claim.volumeName = "pvc-c1"
    view.claim = claim
    view.volume = PersistentVolumeView(
      name: "pvc-c1", uid: "v1", handle: "pvc-c1", phase: "Bound", reclaimPolicy: "Delete")
    view.volumeDriver = StorageNames.driver
    view.classes = [ours]
    return view
  }

  private func makeContent(taken: Bool = false) -> ContentView {
    var content = ContentView(
      name: "snapcontent-s1", uid: "k1", driver: StorageNames.driver, deletionPolicy: "Delete")
    content.volumeHandle = "pvc-c1"
    content.snapshotKey = key
    content.snapshotUID = "s1"
    if taken {
      guard let handle = try? SnapshotHandle("snapshot-s1") else { preconditionFailure() }
      content.status = ContentView.Status(
        Snapshot(handle: handle, sizeBytes: 10 * mebibyte, creationTime: 1_700_000_000_500_000_000))
    }
    return content
  }

  private func bound(taken: Bool) -> SnapshotSituation {
    var view = makeView()
    view.content = makeContent(taken: taken)
    view.snapshot.finalizers = [SnapshotNames.sourceFinalizer, SnapshotNames.boundFinalizer]
    view.claim?.finalizers = [SnapshotNames.claimFinalizer]
    return view
  }

  private var draft: ContentDraft {
    ContentDraft(
      snapshot: key, snapshotUID: "s1", volumeHandle: "pvc-c1", className: "ycloud", deletionPolicy: "Delete")
  }

  @Test func aSnapshotOfABoundClaimGetsAContent() throws {
    let view = makeView()
    #expect(
      plan(view) == [.addFinalizers, .protectClaim(try #require(view.claim)), .createContent(draft)])
    #expect(draft.name == "snapcontent-s1")
  }

  @Test func theDefaultClassOfTheDriverCountsWhereNoneIsNamed() {
    var view = makeView()
    view.snapshot.className = nil
    #expect(failure(plan(view))?.reason == "GetSnapshotClassFailed")
    view.classes = [
      ours, SnapshotClassView(name: "foreign", driver: "other", deletionPolicy: "Delete", isDefault: true),
      SnapshotClassView(name: "kept", driver: StorageNames.driver, deletionPolicy: "Retain", isDefault: true),
    ]
    #expect(plan(view).first == .chooseClass("kept"))
    guard case .createContent(let draft) = plan(view).last else {
      Issue.record("\(plan(view))")
      return
    }
    #expect(draft.className == "kept" && draft.deletionPolicy == "Retain")
    view.classes.append(
      SnapshotClassView(name: "second", driver: StorageNames.driver, deletionPolicy: "Delete", isDefault: true))
    #expect(failure(plan(view))?.message.contains("kept, second") == true)
  }

  @Test func whatCannotBeTakenIsToldWithTheReason() {
    let changes: [(String, @Sendable (inout SnapshotSituation) -> Void)] = [
      ("no VolumeSnapshotClass missing", { $0.snapshot.className = "missing" }),
      (
        "is for the driver other",
        { $0.classes = [SnapshotClassView(name: "ycloud", driver: "other", deletionPolicy: "Delete")] }
      ),
      ("names neither", { $0.snapshot.claimName = nil }),
      ("does not exist", { $0.claim = nil }),
      ("being deleted", { $0.claim?.isBeingDeleted = true }),
      ("not bound", { $0.claim?.isBound = false }),
      (
        "of the driver other",
        {
          $0.volume = nil
          $0.volumeDriver = "other"
        }
      ),
      ("not uploaded completely", { $0.isUploading = true }),
      ("not uploaded completely", { $0.claim?.annotations = [StorageNames.upload: "true"] }),
      ("is gone", { $0.snapshot.status.contentName = "snapcontent-s1" }),
      ("there is no VolumeSnapshotContent old", { $0.snapshot.contentName = "old" }),
    ]
    for (text, change) in changes {
      var view = makeView()
      change(&view)
      let steps = plan(view)
      #expect(steps.count == 1 && failure(steps)?.message.contains(text) == true, "\(text): \(steps)")
    }
  }

  @Test func snapshotsOfOtherDriversAreLeftAlone() {
    var view = makeView()
    view.classes = [SnapshotClassView(name: "ycloud", driver: "other", deletionPolicy: "Delete")]
    view.volume = nil
    view.volumeDriver = "other"
    #expect(plan(view) == [])
    view.snapshot.className = nil
    #expect(plan(view) == [])
    view = bound(taken: true)
    view.content?.driver = "other"
    #expect(plan(view) == [])
  }

  @Test func theStatusShowsHowFarTheContentIs() throws {
    var view = bound(taken: false)
    var status = SnapshotView.Status()
    status.contentName = "snapcontent-s1"
    status.isReady = false
    #expect(plan(view) == [.setStatus(status)])
    view.snapshot.status = status
    #expect(plan(view) == [])
    view.content?.status.error = "PoolFull: no room"
    status.error = "PoolFull: no room"
    #expect(plan(view) == [.setStatus(status)])

    view.content = makeContent(taken: true)
    status.isReady = true
    status.creationSeconds = 1_700_000_000
    status.restoreBytes = 10 * mebibyte
    status.error = nil
    #expect(plan(view) == [.unprotectClaim(try #require(view.claim)), .setStatus(status)])
    view.snapshot.status = status
    view.claim?.finalizers = []
    #expect(plan(view) == [])
  }

  @Test func aClaimIsKeptWhileAnotherSnapshotOfItIsBeingTaken() {
    var view = bound(taken: true)
    view.hasSiblings = true
    #expect(!plan(view).contains { if case .unprotectClaim = $0 { true } else { false } })
  }

  @Test func aClaimThatHasTheNameOfOneThatIsGoneIsNotKept() throws {
    var view = bound(taken: false)
    view.volume?.handle = "pvc-c2"
    #expect(plan(view).first == .unprotectClaim(try #require(view.claim)))
    view.claim?.finalizers = []
    #expect(!plan(view).contains { if case .protectClaim = $0 { true } else { false } })
  }

  @Test func aClaimThatIsDeletedMeanwhileStaysUntilTheSnapshotIsTaken() {
    var view = bound(taken: false)
    view.claim?.isBeingDeleted = true
    #expect(!plan(view).contains { if case .unprotectClaim = $0 { true } else { false } })
  }

  @Test func aContentOfSomebodyElseIsNotTaken() {
    for change: (inout ContentView) -> Void in [
      { $0.snapshotUID = "s2" }, { $0.snapshotKey = SnapshotKey(namespace: "other", name: "before-upgrade") },
      { $0.snapshotUID = nil },
    ] {
      var view = makeView()
      var content = makeContent(taken: true)
      change(&content)
      view.content = content
      #expect(failure(plan(view))?.reason == "SnapshotContentMisbound")
    }
  }

  @Test func aContentOfAnAdministratorIsBound() throws {
    var view = SnapshotSituation(snapshot: SnapshotView(key: key, uid: "s1"))
    view.snapshot.contentName = "snapcontent-s1"
    var content = makeContent(taken: true)
    content.volumeHandle = nil
    content.snapshotHandle = "snapshot-old"
    content.snapshotUID = nil
    view.content = content
    #expect(plan(view).prefix(2) == [.addFinalizers, .adopt(content)])
  }

  @Test func aDeletedSnapshotGoesAfterItsContent() throws {
    var view = bound(taken: true)
    view.snapshot.isBeingDeleted = true
    let content = try #require(view.content)
    let claim = try #require(view.claim)
    #expect(plan(view) == [.unprotectClaim(claim), .markContent(content), .deleteContent(content)])
    view.claim?.finalizers = []
    view.content?.isMarked = true
    view.content?.isBeingDeleted = true
    #expect(plan(view) == [], "it waits for the content")
    view.content = nil
    #expect(plan(view) == [.removeFinalizers])
    view.snapshot.finalizers = []
    #expect(plan(view) == [])
  }

  @Test func aRetainedContentStays() throws {
    var view = bound(taken: true)
    view.claim = nil
    view.snapshot.isBeingDeleted = true
    view.content?.deletionPolicy = "Retain"
    #expect(plan(view) == [.markContent(try #require(view.content)), .removeFinalizers])
  }

  @Test func aSnapshotThatAClaimIsMadeFromWaits() {
    var view = bound(taken: true)
    view.snapshot.isBeingDeleted = true
    view.restoring = [ClaimKey(namespace: "team", name: "restored")]
    guard case .tell(let refusal) = plan(view).first else {
      Issue.record("\(plan(view))")
      return
    }
    #expect(plan(view).count == 1 && refusal.reason == "SnapshotDeletePending")
    #expect(refusal.message.contains("team/restored"))
  }

  // MARK: contents

  @Test func aContentIsTakenOnce() throws {
    var view = ContentSituation(content: makeContent())
    view.content.hasFinalizer = false
    let handle = try SnapshotHandle("snapshot-s1")
    #expect(plan(view) == [.addFinalizer, .take(of: try VolumeHandle("pvc-c1"), as: handle)])
    view.content = makeContent(taken: true)
    #expect(plan(view) == [])
    view.content.driver = "other"
    view.content.isBeingDeleted = true
    #expect(plan(view) == [])
  }

  @Test func hostileHandlesAreRefused() {
    for text in ["../../etc/shadow", "", "UPPER", String(repeating: "a", count: 200)] {
      var view = ContentSituation(content: makeContent())
      view.content.volumeHandle = text
      guard case .fail = plan(view).last else {
        Issue.record("\(text): \(plan(view))")
        continue
      }
      view.content = makeContent(taken: true)
      view.content.status.handle = text
      view.content.isBeingDeleted = true
      view.content.isMarked = true
      #expect(plan(view) == [.removeFinalizer], "\(text)")
    }
  }

  @Test func aSnapshotThatExistsIsLookedUp() throws {
    var view = ContentSituation(content: makeContent())
    view.content.volumeHandle = nil
    view.content.snapshotHandle = "snapshot-old"
    guard case .fail(let refusal) = plan(view).last else {
      Issue.record("\(plan(view))")
      return
    }
    #expect(refusal.message.contains("snapshot-old"))
    let file = Snapshot(handle: try SnapshotHandle("snapshot-old"), sizeBytes: mebibyte, creationTime: 5)
    view.file = file
    #expect(plan(view) == [.setStatus(ContentView.Status(file))])
  }

  @Test func aContentGoesWithItsSnapshotAndByItsPolicy() throws {
    var view = ContentSituation(content: makeContent(taken: true))
    view.content.isBeingDeleted = true
    guard case .tell = plan(view).first else {
      Issue.record("its VolumeSnapshot is there: \(plan(view))")
      return
    }
    let removal: [ContentStep] = [.remove(try SnapshotHandle("snapshot-s1")), .removeFinalizer]
    view.content.isMarked = true
    #expect(plan(view) == removal)
    view.content.isMarked = false
    view.hasSnapshot = false
    #expect(plan(view) == removal)
    // It may have been taken without anybody having written that down.
    view.content.status = .init()
    #expect(plan(view) == removal)
    view.isShared = true
    #expect(plan(view) == [.removeFinalizer])
    view.isShared = false
    view.content.deletionPolicy = "Retain"
    #expect(plan(view) == [.removeFinalizer])
    view.content.hasFinalizer = false
    #expect(plan(view) == [])
  }

  // MARK: volumes from snapshots

  private func restoring() -> VolumeView {
    var view = VolumeView(handle: handle("pvc-r1"))
    var claim = ClaimView(key: ClaimKey(namespace: "team", name: "restored"), uid: "r1")
    claim.className = "ycloud"
    claim.volumeMode = "Block"
    claim.accessModes = ["ReadWriteOnce"]
    claim.requestBytes = 20 * mebibyte
    claim.annotations["volume.kubernetes.io/storage-provisioner"] = StorageNames.driver
    claim.dataSource = .init(apiGroup: SnapshotNames.group, kind: "VolumeSnapshot", name: "before-upgrade")
    view.claim = claim
    view.storageClass = ClassView(name: "ycloud", provisioner: StorageNames.driver, reclaimPolicy: "Delete")
    var snapshot = SnapshotView(key: key, uid: "s1")
    snapshot.status.isReady = true
    let content = makeContent(taken: true)
    let file = (try? SnapshotHandle("snapshot-s1")).map {
      Snapshot(handle: $0, sizeBytes: 10 * mebibyte, creationTime: 1)
    }
    view.snapshotSource = VolumeView.SnapshotSource(snapshot: snapshot, content: content, file: file)
    return view
  }

  @Test func aVolumeIsMadeFromASnapshot() throws {
    var view = restoring()
    let step = VolumeStep.cloneSnapshot(from: try SnapshotHandle("snapshot-s1"), sizeBytes: 20 * mebibyte)
    #expect(plan(view).first == step)
    view.snapshotSource?.snapshot?.isBeingDeleted = true
    #expect(plan(view).first == step, "its deletion waits for the claim")
  }

  @Test func snapshotsThatCannotBeUsedAreRefusedWithTheReason() {
    let changes: [(String, @Sendable (inout VolumeView.SnapshotSource) -> Void)] = [
      ("SourceNotFound", { $0.snapshot = nil }),
      ("SourceNotReady", { $0.snapshot?.status.isReady = false }),
      ("SourceNotReady", { $0.content = nil }),
      ("SourceNotReady", { $0.content?.status.isReady = false }),
      // A status that was written by hand names the content of another namespace.
      ("SourceNotReady", { $0.content?.snapshotKey = SnapshotKey(namespace: "other", name: "secret") }),
      ("SourceNotReady", { $0.content?.snapshotUID = "s2" }),
      ("UnsupportedSource", { $0.content?.driver = "other" }),
      ("SourceMissing", { $0.file = nil }),
      (
        "RequestTooSmall",
        { $0.file = $0.file.map { Snapshot(handle: $0.handle, sizeBytes: 1 << 30, creationTime: 1) } }
      ),
    ]
    for (reason, change) in changes {
      var view = restoring()
      var source = view.snapshotSource ?? .init()
      change(&source)
      view.snapshotSource = source
      guard case .refuse(_, let refusal) = plan(view).first, plan(view).count == 1 else {
        Issue.record("\(reason): \(plan(view))")
        continue
      }
      #expect(refusal.reason == reason)
    }
  }

  private func failure(_ steps: [SnapshotStep]) -> Refusal? {
    guard steps.count == 1, case .fail(let refusal) = steps[0] else { return nil }
    return refusal
  }
}
