import Kubernetes
import Logging
import Reconciler

/// What happens to hosts by themselves: DPUs that start anew, and hosts that die. The seed says when and which.
struct FleetMisfortune: Sendable {
  let configuration: FleetConfiguration
  let hosts: [SimulatedHost]
  let queue: WorkQueue
  let logger: Logger

  /// For how long a DPU that starts anew is silent.
  private static let silence: Duration = .seconds(20)

  private enum Blow {
    case reboot
    case death
  }

  func run() async throws {
    var random = SeededRandom(seed: configuration.seed, part: "misfortune")
    let count = Double(hosts.count)
    while true {
      let reboot = Faults.next(rate: configuration.faults.reboot * count, &random)
      let death = Faults.next(rate: configuration.faults.death * count, &random)
      let blow: Blow
      switch (reboot, death) {
      case (let reboot?, let death?):
        blow = reboot < death ? .reboot : .death
        try await Task.sleep(for: min(reboot, death))
      case (let reboot?, nil):
        blow = .reboot
        try await Task.sleep(for: reboot)
      case (nil, let death?):
        blow = .death
        try await Task.sleep(for: death)
      case (nil, nil): return try await Gate().wait()
      }
      guard let host = hosts.randomElement(using: &random), host.isAlive else { continue }
      switch blow {
      case .reboot:
        logger.notice("a DPU starts anew", metadata: ["host": "\(host.name)"])
        host.dpu.reboot(silentFor: Self.silence)
        queue.add(ObjectKey(name: host.name))
      case .death:
        logger.notice("a host dies", metadata: ["host": "\(host.name)"])
        host.die()
      }
    }
  }
}
