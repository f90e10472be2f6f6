import Fleet
import FleetCloud
import IaaS
import Kubernetes
import TestSupport
import Testing

/// Small simulated fleets with real etcd, kube-apiserver, bm-controller and csi-controller.
@Suite("The life of a simulated fleet", .serialized)
struct FleetLifeTests {
  private func cloud() async throws -> FleetCloud {
    try await FleetCloud.start(
      ycloud: try TestEnvironment.builtProduct("ycloud"), repository: TestEnvironment.repository, logs: nil)
  }

  /// Writes that a machine may cost from apply to Running: what the API server counts, the volume binder's, csi-controller's
  /// and the events included. A change that needs more has to say why.
  private static let writesForEachMachine = 23.0

  @Test("A machine costs a bounded number of writes, and a fleet at rest costs none")
  func writes() async throws {
    let cloud = try await cloud()
    try cloud.startControllers()
    _ = try await cloud.enrol(hosts: 20)
    let before = try await cloud.writes()
    _ = try await cloud.startMachines(0..<20)
    try await cloud.rest()
    let writes = try await cloud.writes().subtracting(before)
    #expect(Double(writes.total) / 20 <= Self.writesForEachMachine, "\(writes.largest)")
    let atRest = try await cloud.writes()
    try await Task.sleep(for: .seconds(8))
    let idle = try await cloud.writes().subtracting(atRest)
    #expect(idle.total == 0, "nothing changes, nothing is written: \(idle.largest)")
    _ = try await cloud.deleteMachines()
    try await cloud.expectNothingLeft()
    try await cloud.stop()
    #expect(cloud.hosts.count == 0, "the simulation has removed its hosts")
  }

  @Test("With BMCs that hang, fail and lose answers, and DPUs that start anew, everything comes to its end")
  func faults() async throws {
    let cloud = try await cloud()
    try cloud.startControllers()
    _ = try await cloud.enrol(
      hosts: 20,
      arguments: ["--faults", "hang=0.01,hang-seconds=4,error=0.05,lost=0.05,reboot=20", "--seed", "7"])
    _ = try await cloud.startMachines(0..<16)
    _ = try await cloud.deleteMachines()
    try await cloud.expectNothingLeft()
    try await cloud.stop()
    #expect(cloud.hosts.count == 0)
  }
}

extension FleetCloud {
  /// Waits until nothing has been written for a while.
  func rest() async throws {
    var last = try await writes().total
    try await eventually(within: .seconds(60), every: .seconds(3), "the cloud is at rest") {
      let now = try await writes().total
      defer { last = now }
      return now == last
    }
  }

  func expectNothingLeft() async throws {
    try await eventually(within: .seconds(60), every: .milliseconds(200), "nothing of the machines is left") {
      let attachments = try await client.listAll(VolumeAttachment.self).items.count
      let claims = try await client.listAll(PersistentVolumeClaim.self).items.count
      let volumes = try await client.listAll(PersistentVolume.self).items.count
      let bootData = try await client.listAll(
        Secret.self, namespace: Names.systemNamespace, labelSelector: Names.hostLabel
      ).items.count
      let held = hosts.unordered().count { $0.status?.claim != nil }
      return attachments + claims + volumes + bootData + held == 0
    }
  }
}
