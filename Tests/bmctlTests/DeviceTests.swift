import JSON
import Testing
import bmctl

@Suite("Disks and interfaces of a machine")
struct DeviceTests {
  let machine: JSONValue = [
    "metadata": ["name": "bm-01", "generation": 4],
    "spec": [
      "disks": [
        ["name": "root", "future": 7],
        ["name": "data", "readOnly": false, "limits": ["iops": 5000, "bandwidth": "1Gi"]],
      ]
    ],
    "status": [
      "observedGeneration": 4, "host": "h", "phase": "Running",
      "volumes": [
        [
          "disk": "root", "claim": "bm-01-root", "attached": true, "capacity": "2Gi",
          "device": "/dev/disk/by-id/virtio-pvc-1",
        ],
        [
          "disk": "data", "claim": "bm-01-data", "attached": true,
          "limits": ["iops": 5000, "bandwidth": "1024Mi"],
        ],
      ], "addresses": [["interface": "eth0", "mac": "02:00:00:00:00:01"]],
    ],
  ]

  private func status(_ change: (inout JSONValue) -> Void) -> JSONValue {
    var machine = machine
    var status = machine["status"] ?? [:]
    change(&status)
    machine["status"] = status
    return machine
  }

  @Test("What is added stands at the end, and fields that are not known here stay")
  func adding() throws {
    let added = try MachineEdit.adding(["name": "more"], to: .disks, of: machine)
    #expect(added?.compactMap { $0["name"]?.stringValue } == ["root", "data", "more"])
    #expect(added?.first?["future"] == 7)
    // Asked for again, as after an answer that was lost, it is there; with other fields it is another disk.
    #expect(try MachineEdit.adding(["name": "data"], to: .disks, of: machine) == nil)
    #expect(throws: CommandError.self) {
      try MachineEdit.adding(["name": "data", "readOnly": true], to: .disks, of: machine)
    }
    let interfaces = try MachineEdit.adding(["name": "eth1"], to: .interfaces, of: machine)
    #expect(interfaces?.count == 2, "the one that the API server fills in stays")
  }

  @Test("What is removed is that one, and only if it is there")
  func removing() {
    let rest = MachineEdit.removing("data", from: .disks, of: machine)
    #expect(rest == [["name": "root", "future": 7]])
    #expect(MachineEdit.removing("datum", from: .disks, of: machine) == nil)
    let forced = MachineEdit.forcing("data", true, of: machine)
    #expect(forced == ["annotations": ["iaas.yusur.io/force-unplug": "data"]])
    #expect(MachineEdit.forcing("data", false, of: machine) == nil)
    #expect(
      MachineEdit.forcing("data", false, of: ["metadata": forced ?? [:]])
        == ["annotations": ["iaas.yusur.io/force-unplug": .null]])
    #expect(MachineEdit.missing(.disks, "datum", of: machine).description.contains("root, data"))
  }

  @Test("A limit is set, lifted, or stays")
  func limiting() throws {
    func limits(_ changes: [String: JSONValue]) throws -> JSONValue? {
      try MachineEdit.limiting("data", changes, of: machine)?[1]["limits"]
    }
    #expect(try limits(["iops": .integer(9000)]) == ["iops": 9000, "bandwidth": "1Gi"])
    #expect(try limits(["iops": .null]) == ["bandwidth": "1Gi"])
    let lifted = try MachineEdit.limiting("data", ["iops": .null, "bandwidth": .null], of: machine)
    #expect(lifted?[1]["limits"] == nil)
    #expect(try MachineEdit.limiting("data", ["iops": .integer(5000)], of: machine) == nil)
    #expect(throws: CommandError.self) { try MachineEdit.limiting("datum", [:], of: machine) }
    #expect(DiskText.normalized(["iops": 1000, "bandwidth": "1Gi"]) == ["iops": 1000, "bandwidth": "1024Mi"])
  }

  @Test("What is waited for is decided from a status that knows the latest spec")
  func goals() {
    #expect(DeviceGoal.diskAttached("data").outcome(machine) == .reached)
    #expect(DeviceGoal.diskLimited("data", ["iops": 5000, "bandwidth": "1024Mi"]).outcome(machine) == .reached)
    #expect(DeviceGoal.diskLimited("data", nil).outcome(machine) != .reached)
    #expect(DeviceGoal.diskGone("other").outcome(machine) == .reached)
    #expect(DeviceGoal.diskGone("data").outcome(machine) != .reached)
    #expect(DeviceGoal.interfacePlugged("eth0").outcome(machine) == .reached)
    #expect(DeviceGoal.interfacePlugged("eth1").outcome(machine) != .reached)
    #expect(DeviceGoal.interfaceGone("eth1").outcome(machine) == .reached)
    let old = status { $0["observedGeneration"] = 3 }
    for goal in [DeviceGoal.diskAttached("data"), .diskGone("other"), .interfaceGone("eth1")] {
      #expect(goal.outcome(old) == .waits("waits for bm-controller to see it"))
    }
    let held = status {
      $0["conditions"] = [["type": "Unplugged", "status": "False", "reason": "HeldByGuest", "message": "it holds on"]]
    }
    #expect(DeviceGoal.diskGone("other").outcome(held) == .waits("it holds on"))
    let later = status {
      $0["conditions"] = [
        ["type": "Attached", "status": "True", "reason": "RestartNeeded", "message": "at the next stop"]
      ]
    }
    #expect(DeviceGoal.diskGone("root").outcome(later) == .never("at the next stop"))
    let invalid = status { $0["conditions"] = [["type": "Valid", "status": "False", "message": "no such limit"]] }
    #expect(DeviceGoal.diskAttached("data").outcome(invalid) == .never("no such limit"))
    guard case .never = DeviceGoal.diskGone("data").outcome(status { $0["phase"] = "Stopped" }) else {
      Issue.record("a machine that is off unplugs nothing")
      return
    }
  }

  @Test("The table of disks tells what is there, and what is not yet")
  func table() {
    var machine = machine
    machine["spec"]?["disks"] = [["name": "root"], ["name": "new", "template": ["size": "3Gi"]]]
    #expect(
      DiskText.table(machine).lines() == [
        "DISK   CLAIM        SIZE   ATTACHED   DEVICE                         LIMITS",
        "root   bm-01-root    2Gi   yes        /dev/disk/by-id/virtio-pvc-1   -",
        "new    -             3Gi   no         -                              -",
      ])
  }
}
