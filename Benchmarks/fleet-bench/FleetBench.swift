import ArgumentParser
import FleetCloud
import Foundation
import IaaS
import JSON
import Kubernetes
import Logging
import TestSupport

/// A fleet of simulated hosts against a real control plane: what enrolment and starts take, and what the controllers
/// cost. Everything runs on this machine; what depends on its speed is shown beside what a plain client takes for the
/// same number of writes in the same run.
@main
struct FleetBench: AsyncParsableCommand {
  @Option(help: "The ycloud program.") var ycloud = ".build/release/ycloud"
  @Option(help: "The repository, for deploy/.") var repository = "."
  @Option(help: "Machines that are started together.") var machines = 1000
  @Option(help: "Machines that are started one after the other beside them.") var singles = 40
  @Option(help: "Writes for each machine of the plain client.") var plainWrites = 12
  @Option(help: "Where logs are kept; by default nowhere.") var logs: String?
  @Flag(help: "Show who wrote what, from the API server's audit log, which costs it time.") var authors = false
  @Option(help: "Seconds over which it is measured what the controllers cost while nothing changes.") var idle = 20.0

  func run() async throws {
    print("load \(try String(contentsOfFile: "/proc/loadavg", encoding: .utf8).prefix(14)); \(machines) machines")
    let cloud = try await FleetCloud.start(ycloud: ycloud, repository: repository, logs: logs, isAudited: authors)
    let plain = try await PlainClient(client: cloud.client).run(objects: machines, writesEach: plainWrites)
    row("plain client, \(machines * plainWrites) writes (s)", seconds(plain), "")

    try cloud.startControllers()
    let enrolment = try await cloud.enrol(hosts: machines + singles + 10)
    row("\(machines + singles + 10) hosts enrolled (s)", seconds(enrolment), "<= 60")
    try await rest(cloud, "no machines")

    let before = try await cloud.writes()
    let authorsBefore = authors ? try cloud.authors() : Writes()
    let start = try await cloud.startMachines(0..<machines)
    let writes = try await cloud.writes().subtracting(before)
    let each = Double(writes.total) / Double(machines)
    let limit = plain / Double(machines * plainWrites) * Double(writes.total)
    row("\(machines) machines, apply to Running (s)", seconds(start), "<= \(seconds(2 * limit))")
    row("  as often as a plain client's \(writes.total) writes", fixed(start / limit, 2), "<= 2")
    row("  writes for each machine", fixed(each, 1), "<= 12")
    for (name, count) in writes.largest { print("    \(fixed(Double(count) / Double(machines), 2))  \(name)") }
    if authors {
      print("  by author:")
      for (name, count) in try cloud.authors().subtracting(authorsBefore).largest {
        print("    \(fixed(Double(count) / Double(machines), 2))  \(name)")
      }
    }
    try await rest(cloud, "\(machines) machines")

    let alone = try await cloud.singles(singles / 2, from: machines)
    row("one machine more, own share, 95 % (s)", fixed(alone, 2), "<= 1")
    try cloud.startStuckHosts(1)
    let beside = try await cloud.singles(singles / 2, from: machines + singles / 2)
    row("the same while a BMC hangs (s)", fixed(beside, 2), "<= \(fixed(alone + 1, 2))")

    let end = try await cloud.deleteMachines()
    row("\(machines + singles / 2 * 2) machines deleted (s)", seconds(end), "")
    try await cloud.stop()
  }

  /// What the controllers cost while nothing changes.
  private func rest(_ cloud: FleetCloud, _ what: String) async throws {
    let cost = try await cloud.idle(for: idle)
    row("idle with \(what): bm-controller (% of a core)", fixed(cost.bmController, 2), "<= 2")
    row("idle with \(what): csi-controller (% of a core)", fixed(cost.csiController, 2), "")
    row("idle with \(what): bm-controller's memory (MiB)", fixed(cost.memory, 0), "<= 95 (100 MB)")
    row("idle with \(what): writes but leases", "\(cost.writes)", "0")
  }

  private func row(_ figure: String, _ measured: String, _ target: String) {
    print(figure.padding(toLength: 52, withPad: " ", startingAt: 0), terminator: " ")
    print(String(repeating: " ", count: max(0, 14 - measured.count)) + measured + "   " + target)
    fflush(nil)
  }

  private func seconds(_ value: Double) -> String { fixed(value, 1) }
  private func fixed(_ value: Double, _ digits: Int) -> String { String(format: "%.\(digits)f", value) }
}

/// A client that only writes, as fast as the API server takes it: objects like ours, created and patched.
struct PlainClient: Sendable {
  let client: KubernetesClient

  func run(objects: Int, writesEach: Int) async throws -> Double {
    _ = try? await client.create(Namespace(metadata: ObjectMeta(name: "plain")))
    let start = ContinuousClock.now
    try await concurrently(objects, workers: FleetCloud.workers) { number in
      let name = "plain-\(number)"
      _ = try await client.create(
        BareMetalMachine(
          metadata: ObjectMeta(name: name, namespace: "plain"),
          spec: .init(disks: [.init(name: "root", bootOrder: 1, template: .init(size: "1Mi"))])))
      for turn in 1..<writesEach {
        let conditions: [Condition] = ["Valid", "VolumesReady", "HostClaimed", "Attached", "Powered", "Ready"].map {
          Condition(
            type: $0, status: .false, reason: "Turn\(turn)", message: "turn \(turn)", lastTransitionTime: .now())
        }
        _ = try await client.mergePatch(
          BareMetalMachine.self, name: name, namespace: "plain",
          patch: ["status": ["message": .string("turn \(turn)"), "conditions": try json(conditions)]],
          subresource: "status")
      }
    }
    let time = start.duration(to: .now) / .seconds(1)
    try await concurrently(objects, workers: FleetCloud.workers) { number in
      try await client.delete(BareMetalMachine.self, name: "plain-\(number)", namespace: "plain")
    }
    return time
  }
}
