import BareMetal
import DPU
import IaaS
import Kubernetes
import Testing

@Suite("What a handler captures for bm-controller")
struct HandlerSnapshotTests {
  private let tests = HandlerTests()

  private func view() -> HandlerView {
    var view = HandlerView(host: tests.host(), volumesDirectory: "/p")
    var second = tests.attachment(volume: "pvc-2")
    second.metadata.annotations?[Names.volumeHandleAnnotation] = "vol-2"
    second.metadata.name = "ycloud-vol-2"
    view.attachments = [tests.attachment(), second]
    view.functions = [tests.shown.1, BlockFunction(name: "blk-01-pvc-2", volume: "pvc-2", readOnly: false)]
    return view
  }

  private func request(
    token: String = "t-1", machine: String = "u", _ volumes: [String] = ["pvc-1", "pvc-2"]
  ) -> BareMetalHost.SnapshotRequest {
    .init(token: token, machineUID: machine, volumes: volumes)
  }

  @Test("The files are called like the volumes' handles")
  func files() throws {
    let files = try HandlerPlan.snapshotFiles(request(), view()).get()
    #expect(files == ["pvc-1": "pvc-1.img", "pvc-2": "vol-2.img"])
  }

  @Test("What does not fit to the machine that holds the host, or to what the DPU shows, is refused")
  func refusals() {
    func refusal(_ request: BareMetalHost.SnapshotRequest, _ change: (inout HandlerView) -> Void = { _ in }) -> String {
      var view = view()
      change(&view)
      if case .failure(let refusal) = HandlerPlan.snapshotFiles(request, view) { return refusal.message }
      return ""
    }
    #expect(refusal(request(machine: "other")).contains("does not hold"))
    #expect(refusal(request()) { $0.host = tests.host(claim: nil) }.contains("does not hold"))
    for token in ["", "../volumes", ".hidden", "a/b", "A", String(repeating: "a", count: 129)] {
      #expect(refusal(request(token: token)).contains("cannot be a folder's"), "\(token)")
    }
    #expect(refusal(request(["pvc-1", "pvc-3"])).contains("pvc-3 has no attachment"))
    #expect(refusal(request([])).contains("no volume"))
    #expect(refusal(request()) { $0.attachments[1].metadata.deletionTimestamp = .now() }.contains("pvc-2"))
    #expect(refusal(request()) { $0.functions.removeLast() }.contains("does not show the volume pvc-2"))
    let foreign = refusal(request()) {
      $0.attachments[1].metadata.annotations?[Names.machineUIDAnnotation] = "other"
    }
    #expect(foreign.contains("pvc-2"))
    let damaged = refusal(request()) {
      $0.attachments[1].metadata.annotations?[Names.volumeHandleAnnotation] = "../../etc/passwd"
    }
    #expect(damaged.contains("handle"))
  }
}
