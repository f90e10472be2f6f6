import Storage
import Testing

/// What is decided about a volume whose claim asks for more than it has.
@Suite struct GrowthPlanTests {
  private let target = 20 * mebibyte

  private func makeView(request: Int64 = 20_000_000, attached: AttachmentView? = nil) -> VolumeView {
    var view = VolumeView(handle: handle("pvc-1"))
    var claim = ClaimView(key: ClaimKey(namespace: "team", name: "disk"), uid: "1")
    claim.requestBytes = request
    claim.capacityBytes = 10 * mebibyte
    claim.volumeName = "pvc-1"
    claim.isBound = true
    view.claim = claim
    var volume = PersistentVolumeView(
      name: "pvc-1", uid: "u1", handle: "pvc-1", phase: "Bound", reclaimPolicy: "Delete")
    volume.claimUID = "1"
    volume.capacityBytes = 10 * mebibyte
    view.persistentVolumes = [volume]
    view.file = Volume(handle: view.handle, sizeBytes: 10 * mebibyte, allocatedBytes: 0)
    view.attached = attached.map { [$0] } ?? []
    return view
  }

  private func resize(_ view: inout VolumeView, file: Int64, volume: Int64) {
    view.file = Volume(handle: view.handle, sizeBytes: file, allocatedBytes: 0)
    view.persistentVolumes[0].capacityBytes = volume
  }

  /// The steps, without what they carry.
  private func names(_ view: VolumeView) -> [String] {
    plan(view).map { step in
      switch step {
      case .setGrowth(_, let conditions): "set \(conditions.keys.map(\.rawValue).sorted().joined(separator: "+"))"
      case .grow(_, let bytes): "grow \(formatBytes(bytes))"
      case .raiseCapacity(_, let bytes): "capacity \(formatBytes(bytes))"
      case .askForRescan(let attachment, let bytes): "ask \(attachment.name) \(formatBytes(bytes))"
      case .finishGrowth(_, _, let bytes): "finish \(formatBytes(bytes))"
      default: "\(step)"
      }
    }
  }

  @Test func aDetachedVolumeGrowsInTheOrderOfTheSpecification() {
    #expect(names(makeView()) == ["set Resizing", "grow 20Mi", "capacity 20Mi", "finish 20Mi"])
  }

  @Test func whatIsDoneIsNotDoneAgain() {
    var view = makeView()
    view.claim?.growth = [.resizing: "growing"]
    #expect(names(view) == ["grow 20Mi", "capacity 20Mi", "finish 20Mi"])
    // Killed after the file was grown: once more, because it may not have been durable.
    resize(&view, file: target, volume: 10 * mebibyte)
    #expect(names(view) == ["grow 20Mi", "capacity 20Mi", "finish 20Mi"])
    resize(&view, file: target, volume: target)
    #expect(names(view) == ["finish 20Mi"])
    view.claim?.capacityBytes = target
    #expect(names(view) == ["set "])
    view.claim?.growth = [:]
    #expect(names(view) == [])
  }

  @Test func aServerThatHasTheVolumeSeesItBeforeTheClaimSaysSo() {
    var attachment = AttachmentView(name: "ycloud-pvc-1", node: "dpu-01")
    attachment.shownBytes = 10 * mebibyte
    var view = makeView(attached: attachment)
    #expect(
      names(view) == [
        "set Resizing", "grow 20Mi", "capacity 20Mi", "ask ycloud-pvc-1 20Mi", "set FileSystemResizePending",
      ])
    resize(&view, file: target, volume: target)
    view.attached[0].wantedBytes = target
    view.claim?.growth = [
      .fileSystemResizePending: "waits until the server sees 20Mi: VolumeAttachment ycloud-pvc-1 on dpu-01"
    ]
    #expect(names(view) == [], "it waits for the handler")
    view.attached[0].shownBytes = target
    #expect(names(view) == ["finish 20Mi"])
    view.attached[0].shownBytes = 10 * mebibyte
    view.attached[0].isBeingDeleted = true
    #expect(names(view) == ["finish 20Mi"], "what is being detached comes back with the new size")
  }

  @Test func allServersThatShareAVolumeSeeItBeforeTheClaimSaysSo() {
    var first = AttachmentView(name: "ycloud-pvc-1-rwx.a", node: "dpu-01")
    first.shownBytes = 10 * mebibyte
    var view = makeView(attached: first)
    view.attached.append(AttachmentView(name: "ycloud-pvc-1-rwx.b", node: "dpu-02"))
    resize(&view, file: target, volume: target)
    #expect(
      names(view) == ["ask ycloud-pvc-1-rwx.a 20Mi", "ask ycloud-pvc-1-rwx.b 20Mi", "set FileSystemResizePending"])
    view.attached[0].wantedBytes = target
    view.attached[1].wantedBytes = target
    view.attached[1].shownBytes = target
    #expect(names(view) == ["set FileSystemResizePending"], "one does not see it yet")
    view.attached[0].shownBytes = target
    #expect(names(view) == ["finish 20Mi"])
  }

  @Test func aHandlerThatReportsNoSizeIsWaitedFor() {
    let view = makeView(attached: AttachmentView(name: "a", node: "n"))
    #expect(names(view).last == "set FileSystemResizePending")
  }

  @Test func nothingGrowsThatIsNotOursToGrowNow() {
    let changes: [(String, @Sendable (inout VolumeView) -> Void)] = [
      ("satisfied", { $0.claim?.requestBytes = 10 * mebibyte }),
      ("not bound", { $0.claim?.isBound = false }),
      ("capacity unknown", { $0.claim?.capacityBytes = nil }),
      ("deleted", { $0.claim?.isBeingDeleted = true }),
      ("another claim", { $0.claim?.uid = "2" }),
      ("another volume", { $0.claim?.volumeName = "other" }),
      ("uploading", { $0.isUploading = true }),
      ("no size", { $0.claim?.requestBytes = nil }),
      ("no file has it", { $0.claim?.requestBytes = .max }),
    ]
    for (name, change) in changes {
      var view = makeView()
      change(&view)
      #expect(names(view) == [], "\(name)")
    }
  }

  @Test func aVolumeThatIsLargerAlreadyKeepsItsSize() {
    var view = makeView(request: 12 * mebibyte)
    resize(&view, file: target, volume: target)
    #expect(names(view) == ["finish 20Mi"], "the wish was lowered after the volume had grown")
  }
}
