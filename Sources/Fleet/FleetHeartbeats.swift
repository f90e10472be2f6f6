import BareMetal
import Kubernetes
import Logging

/// The signs of life of all handlers of a fleet, evenly spread over the time in which each is due once.
struct FleetHeartbeats: Sendable {
  let client: KubernetesClient
  let hosts: [SimulatedHost]
  let logger: Logger

  static func leaseName(_ host: String) -> String { HandlerLiveness.leaseName(host: host) }

  /// Requests at the same time: a slow API server must not make handlers look dead that would each wait for it alone.
  private static let workers = 16

  func run() async throws {
    try await withThrowingTaskGroup(of: Void.self) { group in
      for worker in 0..<Self.workers {
        let share = stride(from: worker, to: hosts.count, by: Self.workers).map { hosts[$0] }
        group.addTask { try await renew(share) }
      }
      try await group.waitForAll()
    }
    try await Gate().wait()
  }

  private func renew(_ hosts: [SimulatedHost]) async throws {
    guard !hosts.isEmpty else { return }
    let step = HandlerLiveness.renewEvery / hosts.count
    var due = ContinuousClock.now
    while true {
      for host in hosts {
        due += step
        if due > .now { try await Task.sleep(until: due, clock: .continuous) }
        guard host.isAlive, host.dpu.answers else { continue }
        do {
          try await Heartbeat(client: client, host: host.name, logger: logger).renew()
        } catch let error as KubernetesError {
          logger.debug("cannot renew a lease", metadata: ["host": "\(host.name)", "error": "\(error)"])
        }
      }
      // After a pause of the API server, the missed rounds are not made up for.
      due = max(due, .now - HandlerLiveness.renewEvery)
    }
  }
}
