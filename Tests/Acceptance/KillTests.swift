import JSON
import TestSupport
import Testing

/// SIGKILL of every process in every phase: the end state is right, nothing is doubled, nothing is left over.
@Suite("Killing processes", .serialized, .cloud("yca1", hosts: 1, subnet: "192.168.92.1/24"))
struct KillTests {
  static let processes = [
    "csi-controller", "bm-controller", "bm-handler-host-01", "opi-bridge-host-01", "softdpu-host-01",
    "softhost-host-01",
    "kube-apiserver", "etcd",
  ]

  @Test("A create and a delete go on after each process was killed in each phase", arguments: processes)
  func kill(_ process: String) async throws {
    let cloud = try CloudUnderTest.running
    for moment in Moment.allCases {
      let name = "k-\(moment.rawValue)"
      try await cloud.apply(MachineManifest(name: name).json)
      if let reached = moment.duringCreate {
        try await eventually(within: .seconds(120), every: .milliseconds(200)) { try await cloud.has(reached, name) }
        try cloud.kill(process)
      }
      try await cloud.eventuallyRunning(name)
      #expect(try await cloud.objects("volumeattachment").count == 1, "\(process) killed at \(moment)")
      #expect(try await cloud.objects("pv").count == 2, "the image's volume and the machine's")

      try await cloud.kubectl("delete", "bmm", name, "--wait=false")
      if let reached = moment.duringDelete {
        try await eventually(within: .seconds(60), every: .milliseconds(200)) { try await cloud.has(reached, name) }
        try cloud.kill(process)
      }
      try await eventually(within: .seconds(150), every: .milliseconds(200)) {
        // The API server may be the process that was killed.
        ((try? await cloud.leftovers(of: name)) ?? ["?"]).isEmpty
      }
    }
  }
}

/// What can be seen of a machine on its way.
enum Milestone: Sendable {
  case applied, claimed, attached, poweredOn, running
  case deleting, poweredOff, detached
}

/// When a process is killed; each moment is one create and one delete.
enum Moment: String, CaseIterable, Sendable {
  case early, claimed, attached, booting

  var duringCreate: Milestone? {
    switch self {
    case .early: .applied
    case .claimed: .claimed
    case .attached: .attached
    case .booting: .poweredOn
    }
  }

  var duringDelete: Milestone? {
    switch self {
    case .early: .deleting
    case .claimed: .poweredOff
    case .attached: .detached
    case .booting: nil
    }
  }
}

extension CloudUnderTest {
  func has(_ milestone: Milestone, _ machine: String) async throws -> Bool {
    let object = try await object("bmm", machine)
    let host = try await self.object("bmh", "host-01")
    switch milestone {
    case .applied: return object != nil
    case .claimed: return host?["status"]?["claim"]?["name"]?.stringValue == machine
    case .attached:
      return try await objects("volumeattachment").contains { $0["status"]?["attached"]?.boolValue == true }
    case .poweredOn: return host?["status"]?["power"]?.stringValue == "On"
    case .running: return object?["status"]?["phase"]?.stringValue == "Running"
    case .deleting: return object == nil || object?["metadata"]?["deletionTimestamp"] != nil
    case .poweredOff: return object == nil || host?["status"]?["power"]?.stringValue == "Off"
    case .detached:
      let left = try await objects("volumeattachment").isEmpty
      return object == nil || left
    }
  }

  /// Running as bmctl sees it, through an API server that may be away for a while.
  func eventuallyRunning(_ machine: String) async throws {
    try await eventually(within: .seconds(180), every: .milliseconds(200)) {
      (try? await self.phase(machine)) == "Running"
    }
  }
}
