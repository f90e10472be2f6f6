import JSON
import Kubernetes
import Testing
import bmctl

@Suite struct OverviewTests {
  private static let plain = Style(colors: false, unicode: true)

  @Test func aTreeShowsWhatBelongsToAMachine() {
    var tree = MachineTree(machine: [
      "metadata": ["name": "bm-01"],
      "status": [
        "phase": "Running", "host": "host-01", "volumes": [["disk": "root", "claim": "bm-01-root", "volume": "pvc-1"]],
        "addresses": [["interface": "eth0", "mac": "02:00:00:00:00:01", "address": "10.0.0.5"]],
      ],
    ])
    tree.claims["bm-01-root"] = ["status": ["phase": "Bound", "capacity": ["storage": "2Gi"]]]
    tree.attachments["pvc-1"] = [
      "metadata": ["name": "ycloud-pvc-1", "labels": ["iaas.yusur.io/host": "host-01"]], "status": ["attached": true],
    ]
    tree.host = [
      "spec": ["dpu": ["node": "dpu-01"]],
      "status": [
        "phase": "Claimed", "power": "On",
        "dpu": ["ready": true, "slots": [["name": "blk-01-pvc-1", "kind": "disk", "state": "Attached"]]],
      ],
    ]
    #expect(
      tree.lines(style: Self.plain) == [
        "machine bm-01  Running", "├─ disk root", "│  └─ claim bm-01-root  2Gi  Bound", "│     └─ volume pvc-1",
        "│        └─ attachment ycloud-pvc-1  attached to host-01", "├─ interface eth0  02:00:00:00:00:01  10.0.0.5",
        "└─ host host-01  Claimed  power On", "   └─ dpu dpu-01  ready", "      └─ slot blk-01-pvc-1  disk  Attached",
      ])
    tree.host = nil
    tree.hidden = ["baremetalhosts"]
    #expect(tree.lines(style: Self.plain).last == "Not shown, as you may not look at them: baremetalhosts")
  }

  @Test func aPlanShowsStepsAndWhatTheyRestOn() {
    let plan: JSONValue = [
      "metadata": ["name": "bm-01"], "phase": "Stopping", "message": "waits\u{1B}[2J",
      "steps": [["description": "power of host-01: off"]], "assumptions": ["the power of host host-01 is On"],
    ]
    #expect(
      PlanText.lines(plan, style: Self.plain) == [
        "bm-01  Stopping", "  waits [2J", "To be done now, in any order:", "  • power of host-01: off",
        "Provided that:",
        "  • the power of host host-01 is On",
      ])
  }

  @Test func aSilentHolderOfALeaseIsFound() {
    let now = MicroTimestamp.now()
    func lease(_ secondsAgo: Int64) -> JSONValue {
      let renewed = MicroTimestamp(microseconds: now.microseconds - secondsAgo * 1_000_000)
      return [
        "spec": [
          "holderIdentity": "a", "leaseDurationSeconds": 15, "renewTime": .string(renewed.description),
        ]
      ]
    }
    func state(_ lease: JSONValue?) -> Finding.State {
      Finding.lease("x", lease, now: now, silentAfter: 20, remedy: "look").state
    }
    #expect(state(lease(3)) == .fine)
    #expect(state(lease(30)) == .broken)
    #expect(state(nil) == .broken)
    #expect(state(["spec": ["holderIdentity": ""]]) == .broken)
  }

  @Test func eventsComeInTheirOrder() {
    let events: [JSONValue] = [
      ["reason": "B", "lastTimestamp": "2026-01-01T00:00:02Z"], ["reason": "A", "eventTime": "2026-01-01T00:00:01.5Z"],
      ["reason": "C", "metadata": ["creationTimestamp": "2026-01-01T00:00:03Z"]],
    ]
    #expect(EventText.sorted(events).compactMap { $0["reason"]?.stringValue } == ["A", "B", "C"])
  }
}
