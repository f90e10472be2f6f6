import JSON
import Kubernetes
import Logging
import Reconciler
import Synchronization
import Telemetry
import TestSupport
import Testing

@Suite(.timeLimit(.minutes(3))) struct ManagerTests {
  /// Copies `data.in` of a config map to `data.out`, with a finalizer and an event.
  private struct Copier: Reconcile {
    let client: KubernetesClient
    let cache: ObjectCache<ConfigMap>
    let recorder: EventRecorder

    func reconcile(_ key: ObjectKey) async throws -> ReconcileResult {
      guard var object = cache.get(key) else { return .done }
      if object.metadata.isBeingDeleted {
        cache.store(try await client.removeFinalizer("test.ycloud/copier", from: object))
        return .done
      }
      object = try await client.addFinalizer("test.ycloud/copier", to: object)
      guard let value = object.data?["in"], object.data?["out"] != value else { return .done }
      cache.store(
        try await client.mergePatch(
          ConfigMap.self, name: key.name, namespace: key.namespace,
          patch: ["data": ["out": .string(value)]]))
      recorder.event(regarding: object, type: .normal, reason: "Copied", message: "copied the value")
      return .done
    }
  }

  @Test func aControllerWorksFromStartToGracefulEnd() async throws {
    let plane = try await TestControlPlane.shared()
    let logger = Logger(label: "test")
    var settings = try ClientConfiguration.load(kubeconfigPath: plane.kubeconfig)
    settings.queriesPerSecond = 200
    settings.burst = 200
    let registry = MetricsRegistry()
    let client = try KubernetesClient(configuration: settings, logger: logger, registry: registry)
    let namespace = "m-" + String(UInt64.random(in: .min ... .max), radix: 36)
    _ = try await client.create(Namespace(metadata: ObjectMeta(name: namespace)))

    var configuration = Manager.Configuration()
    configuration.leaderElection = LeaderElection(name: "copier", namespace: namespace)
    let port = try TestEnvironment.freePort()
    configuration.metricsAddress = "127.0.0.1:\(port)"
    configuration.handlesSignals = false
    let manager = Manager(client: client, configuration: configuration, registry: registry, logger: logger)
    let cache = ObjectCache<ConfigMap>(client: client, namespace: namespace, logger: logger, registry: registry)
    let queue = WorkQueue(name: "copier", registry: registry)
    let recorder = EventRecorder(client: client, component: "copier", logger: logger, registry: registry)
    cache.feed(queue)
    manager.add(cache)
    manager.add(recorder)
    manager.add(
      Controller(
        name: "copier", reconciler: Copier(client: client, cache: cache, recorder: recorder), queue: queue,
        logger: logger, registry: registry))
    let starts = Mutex(0)
    manager.beforeLeading { starts.withLock { $0 += 1 } }
    let task = Task { try await manager.run() }

    func http(_ path: String) async throws -> String {
      try await ChildProcess.run("curl", ["-s", "-i", "http://127.0.0.1:\(port)\(path)"])
    }
    try await eventually(within: .seconds(20)) { try await http("/readyz").contains("200 OK") }
    for index in 0..<10 {
      _ = try await client.create(
        ConfigMap(metadata: ObjectMeta(name: "c\(index)", namespace: namespace), data: ["in": "v\(index)"]))
    }
    try await eventually(within: .seconds(20)) {
      let all = try await client.listAll(ConfigMap.self, namespace: namespace).items.filter { $0.data?["in"] != nil }
      return all.count == 10 && all.allSatisfy { $0.data?["out"] == $0.data?["in"] }
    }
    _ = try await client.mergePatch(
      ConfigMap.self, name: "c1", namespace: namespace, patch: ["data": ["in": "again"]])
    try await eventually(within: .seconds(20)) {
      let events = try await client.listAll(Event.self, namespace: namespace, fieldSelector: "involvedObject.name=c1")
      return events.items.map(\.count) == [2] && events.items.first?.reason == "Copied"
    }
    try await client.delete(ConfigMap.self, name: "c2", namespace: namespace)
    try await eventually(within: .seconds(20)) {
      let names = try await client.listAll(ConfigMap.self, namespace: namespace).items.map(\.metadata.name)
      return !names.contains("c2")
    }

    #expect(starts.withLock { $0 } == 1, "it began to lead once")
    let metrics = try await http("/metrics")
    #expect(metrics.contains(#"leader_election_leading{name="copier"} 1"#))
    #expect(metrics.contains("kubernetes_client_requests_total{"))
    #expect(try await http("/healthz").contains("200 OK"))

    // Nothing changes: nothing is written but the lease.
    try await eventually { queue.isIdle }
    func writes() -> Double {
      let requests = registry.counter(
        "kubernetes_client_requests_total", help: "", labels: ["verb", "resource", "code"])
      return requests.value("patch", "configmaps", "200") + requests.value("create", "events", "200")
        + requests.value("patch", "events", "200")
    }
    let before = writes()
    func renewal() async throws -> MicroTimestamp? {
      try await client.get(Lease.self, name: "copier", namespace: namespace).spec?.renewTime
    }
    for _ in 0..<2 {
      let last = try await renewal()
      try await eventually(within: .seconds(30), every: .milliseconds(100), "the lease is renewed") {
        try await renewal() != last
      }
    }
    #expect(writes() == before)

    task.cancel()
    _ = await task.result
    let lease = try await client.get(Lease.self, name: "copier", namespace: namespace)
    #expect(lease.spec?.holderIdentity == "", "the lease was given away")
    try await client.shutdown()
  }
}
