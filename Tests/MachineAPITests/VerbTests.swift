import IaaS
import JSON
import Kubernetes
import MachineAPI
import Testing

@Suite struct VerbTests {
  private static let now = MicroTimestamp.now()

  private func machine(
    running: Bool = true, restart: String? = nil, disks: JSONValue = []
  ) -> DynamicObject {
    var metadata: JSONValue = ["name": "bm-01", "namespace": "team", "uid": "u", "resourceVersion": "7"]
    if let restart { metadata["annotations"] = .object([Names.restartAnnotation: .string(restart)]) }
    return DynamicObject(content: ["metadata": metadata, "spec": ["running": .bool(running), "disks": disks]])
  }

  private func isUnchanged(_ decision: MachineStore.Decision) -> Bool {
    if case .unchanged = decision { true } else { false }
  }

  @Test func powerIsIdempotent() throws {
    let options = VerbOptions()
    #expect(isUnchanged(try PowerVerbs.decide(.start, machine(), options, now: Self.now)))
    #expect(isUnchanged(try PowerVerbs.decide(.stop, machine(running: false), options, now: Self.now)))
    guard case .patch(let patch, _) = try PowerVerbs.decide(.stop, machine(), options, now: Self.now) else {
      Issue.record("a running machine is stopped")
      return
    }
    #expect(patch == ["spec": ["running": false]])
  }

  @Test(arguments: [MachineVerb.restart, .reset, .softreboot]) func aRestartSaysHow(verb: MachineVerb) throws {
    var options = VerbOptions()
    options.requestID = "one"
    guard case .patch(let patch, _) = try PowerVerbs.decide(verb, machine(), options, now: Self.now) else {
      Issue.record("a running machine is restarted")
      return
    }
    let text = try #require(patch["metadata"]?["annotations"]?[Names.restartAnnotation]?.stringValue)
    #expect(RestartRequest(text).manner.rawValue == verb.rawValue)
    #expect(RestartRequest(text).token == "one")
    #expect(isUnchanged(try PowerVerbs.decide(verb, machine(restart: text), options, now: Self.now)))
    let failure = #expect(throws: APIFailure.self) {
      try PowerVerbs.decide(verb, machine(running: false), options, now: Self.now)
    }
    #expect(failure?.code == 409)
  }

  @Test func theMannerOfARestartIsTheGuestsTime() {
    #expect(RestartRequest("2026-01-01T00:00:00.000000Z").grace(usual: .seconds(30)) == .seconds(30))
    #expect(RestartRequest("reset:x").grace(usual: .seconds(30)) == .zero)
    #expect(RestartRequest("softreboot:x").grace(usual: .seconds(30)) == .seconds(600))
    #expect(RestartRequest("softreboot:x").grace(usual: .seconds(900)) == .seconds(900))
  }

  @Test func disksAreAddedAndRemovedOnce() throws {
    var options = VerbOptions()
    let disk: JSONValue = ["name": "data", "template": ["size": "1Gi"]]
    options.disk = disk
    let root: JSONValue = ["name": "root", "readOnly": false]
    guard case .patch(let patch, _) = try DiskVerbs.decide(.adddisk, machine(disks: [root]), options) else {
      Issue.record("the disk is added")
      return
    }
    #expect(patch["spec"]?["disks"] == [root, disk])
    var filled = disk
    filled["readOnly"] = false
    #expect(isUnchanged(try DiskVerbs.decide(.adddisk, machine(disks: [root, filled]), options)))
    filled["template"] = ["size": "2Gi"]
    #expect(throws: APIFailure.self) { try DiskVerbs.decide(.adddisk, machine(disks: [filled]), options) }

    options = VerbOptions()
    options.name = "data"
    guard case .patch(let removal, _) = try DiskVerbs.decide(.removedisk, machine(disks: [root, disk]), options)
    else {
      Issue.record("the disk is removed")
      return
    }
    #expect(removal["spec"]?["disks"] == [root])
    #expect(isUnchanged(try DiskVerbs.decide(.removedisk, machine(disks: [root]), options)))
  }
}
