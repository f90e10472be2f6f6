import JSON
import Kubernetes
import Logging
import Reconciler
import Synchronization
import Telemetry
import TestSupport
import Testing

@Suite(.timeLimit(.minutes(3))) struct LeaderElectionTests {
  /// Who leads, and whether anybody ever led together with another one.
  private final class Election: Sendable {
    let leaders = Mutex<[String]>([])
    let together = Mutex(0)
    private let leading = Mutex<Set<String>>([])

    func lead(_ identity: String) async throws {
      let count = leading.withLock {
        $0.insert(identity)
        return $0.count
      }
      if count > 1 { together.withLock { $0 += 1 } }
      leaders.withLock { $0.append(identity) }
      defer { leading.withLock { _ = $0.remove(identity) } }
      try await Task.sleep(for: .seconds(1000))
    }
  }

  private func makeClient(_ plane: TestControlPlane) throws -> KubernetesClient {
    try KubernetesClient(
      configuration: ClientConfiguration.load(kubeconfigPath: plane.kubeconfig), logger: Logger(label: "test"))
  }

  private func settings(_ name: String, _ identity: String) -> LeaderElection {
    var settings = LeaderElection(name: name, namespace: "default", identity: identity)
    settings.leaseDuration = .seconds(3)
    settings.renewDeadline = .seconds(2)
    settings.retryPeriod = .milliseconds(400)
    return settings
  }

  @Test func aReleasedLeaseIsTakenAtOnceAndACrashedLeadersAfterItsTime() async throws {
    let plane = try await TestControlPlane.shared()
    let client = try makeClient(plane)
    let name = "election-\(UInt64.random(in: .min ... .max))"
    let election = Election()

    func candidate(_ identity: String) -> (task: Task<Void, any Error>, elector: LeaderElector) {
      let elector = LeaderElector(
        client: client, settings: settings(name, identity), logger: Logger(label: identity))
      return (Task { try await elector.run { try await election.lead(identity) } }, elector)
    }

    let first = candidate("first")
    try await eventually { election.leaders.withLock { $0 } == ["first"] }
    let second = candidate("second")
    // The leader renews well beyond the duration of its lease, which is 3 s.
    try await eventually(within: .seconds(30), every: .milliseconds(100), "the lease is renewed") {
      let lease = try await client.get(Lease.self, name: name, namespace: "default").spec
      guard let acquired = lease?.acquireTime, let renewed = lease?.renewTime else { return false }
      return renewed.microseconds - acquired.microseconds >= 4_000_000
    }
    #expect(election.leaders.withLock { $0 } == ["first"])
    #expect(first.elector.isLeader)

    let released = ContinuousClock.now
    first.task.cancel()
    await #expect(throws: CancellationError.self) { try await first.task.value }
    try await eventually { election.leaders.withLock { $0 } == ["first", "second"] }
    #expect((ContinuousClock.now - released).inSeconds < 2.5, "without waiting for the end of the lease")

    // A holder that never comes back: somebody writes its name into the lease.
    _ = try await client.mergePatch(
      Lease.self, name: name, namespace: "default",
      patch: ["spec": ["holderIdentity": "crashed", "renewTime": "2001-01-01T00:00:00.000000Z"]])
    await #expect(throws: LeadershipLost.self) { try await second.task.value }
    let third = candidate("third")
    let seen = ContinuousClock.now
    try await eventually { election.leaders.withLock { $0 }.last == "third" }
    #expect(
      (ContinuousClock.now - seen).inSeconds >= 2.9, "by the time it was seen, not by the old time that it carries")
    third.task.cancel()
    _ = await third.task.result
    #expect(election.together.withLock { $0 } == 0)
    let lease = try await client.get(Lease.self, name: name, namespace: "default")
    #expect(lease.spec?.holderIdentity == "")
    #expect((lease.spec?.leaseTransitions ?? 0) >= 2)
  }

  @Test func aLeaderThatCannotRenewStopsBeforeItsLeaseEnds() async throws {
    let plane = try await TestControlPlane.start()
    let client = try makeClient(plane)
    let elector = LeaderElector(client: client, settings: settings("lonely", "one"), logger: Logger(label: "one"))
    let started = Mutex<ContinuousClock.Instant?>(nil)
    let wasLeaderAtEnd = Mutex<Bool?>(nil)
    let task = Task {
      try await elector.run {
        started.withLock { $0 = .now }
        defer { wasLeaderAtEnd.withLock { $0 = elector.isLeader } }
        try await Task.sleep(for: .seconds(1000))
      }
    }
    try await eventually { started.withLock { $0 } != nil }
    plane.freezeAPIServer(true)
    let frozen = ContinuousClock.now
    await #expect(throws: LeadershipLost.self) { try await task.value }
    #expect(wasLeaderAtEnd.withLock { $0 } == true, "the work ended while nobody else could lead")
    #expect((ContinuousClock.now - frozen).inSeconds < 7)
    plane.freezeAPIServer(false)
  }
}
