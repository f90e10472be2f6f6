import JSON
import Kubernetes
import Logging
import Reconciler
import Synchronization
import Telemetry
import TestSupport
import Testing

/// A controller under an API server and an etcd that die, freeze and come back, while objects come, change and go: in
/// the end everything is as the objects ask for, nothing is doubled, nothing is left over, and nobody ran hot.
@Suite(.timeLimit(.minutes(5))) struct ChaosTests {
  /// Keeps one secret for each config map, with its value; a finalizer guards the secret's end.
  private struct Keeper: Reconcile {
    static let finalizer = "test.ycloud/keeper"

    let client: KubernetesClient
    let cache: ObjectCache<ConfigMap>
    let runs: Counter

    func reconcile(_ key: ObjectKey) async throws -> ReconcileResult {
      runs.value.withLock { $0 += 1 }
      guard var object = cache.get(key) else { return .done }
      let name = "kept-\(object.metadata.uid ?? "")"
      if object.metadata.isBeingDeleted {
        guard object.metadata.hasFinalizer(Self.finalizer) else { return .done }
        do {
          try await client.delete(Secret.self, name: name, namespace: key.namespace)
        } catch let error as KubernetesError where error.code == .notFound {
        }
        cache.store(try await client.removeFinalizer(Self.finalizer, from: object))
        return .done
      }
      object = try await client.addFinalizer(Self.finalizer, to: object)
      cache.store(object)
      // The owner lets the garbage collector take what a request leaves that a frozen server carries out too late.
      let owner: JSONValue = [
        "apiVersion": "v1", "kind": "ConfigMap", "name": .string(key.name), "uid": .string(object.metadata.uid ?? ""),
      ]
      _ = try await client.apply(
        Secret.self, name: name, namespace: key.namespace,
        configuration: [
          "metadata": ["ownerReferences": [owner]], "stringData": ["value": .string(object.data?["in"] ?? "")],
        ], fieldManager: "keeper")
      return .done
    }
  }

  private final class Mismatch: Sendable {
    let text = Mutex("")
  }

  private final class Counter: Sendable {
    let value = Mutex(0)
  }

  private func runController(_ plane: TestControlPlane, _ namespace: String, _ runs: Counter) async throws {
    let logger = Logger(label: "chaos")
    let client = try KubernetesClient(
      configuration: ClientConfiguration.load(kubeconfigPath: plane.kubeconfig), logger: logger)
    var election = LeaderElection(name: "keeper", namespace: namespace)
    election.leaseDuration = .seconds(5)
    election.renewDeadline = .seconds(4)
    election.retryPeriod = .milliseconds(500)
    var configuration = Manager.Configuration(leaderElection: election)
    configuration.handlesSignals = false
    let manager = Manager(client: client, configuration: configuration, registry: MetricsRegistry(), logger: logger)
    let cache = ObjectCache<ConfigMap>(
      client: client, namespace: namespace, labelSelector: "test=chaos", logger: logger)
    let queue = WorkQueue(name: "keeper")
    cache.feed(queue)
    manager.add(cache)
    manager.add(
      Controller(
        name: "keeper", reconciler: Keeper(client: client, cache: cache, runs: runs), queue: queue, logger: logger))
    defer { withExtendedLifetime(client) {} }
    try await manager.run()
  }

  /// Tries until it works: users do so too.
  ///
  /// A try that got no answer may still be carried out much later, when a frozen server wakes up. So each one names the
  /// version or the UID that it is meant for.
  private func insist(_ body: () async throws -> Void) async throws {
    try await eventually(within: .seconds(60), every: .milliseconds(100)) {
      do {
        try await body()
      } catch let error as KubernetesError where [.notFound, .alreadyExists].contains(error.code) {
      }
      return true
    }
  }

  @Test func theEndStateIsRightWhateverDies() async throws {
    let plane = try await TestControlPlane.start(controllers: ["garbagecollector"])
    var settings = try ClientConfiguration.load(kubeconfigPath: plane.kubeconfig)
    settings.requestTimeout = .seconds(3)
    let user = try KubernetesClient(configuration: settings, logger: Logger(label: "user"))
    let namespace = "chaos"
    _ = try await user.create(Namespace(metadata: ObjectMeta(name: namespace)))
    let runs = Counter()
    var random = SeededGenerator(seed: 42)
    var wanted: [String: String] = [:]
    var changes = 0

    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask {
        // Nothing of this is a reason for the process to end.
        do {
          try await self.runController(plane, namespace, runs)
        } catch is CancellationError {
        }
      }
      for round in 0..<6 {
        for _ in 0..<12 {
          let name = "o\(random.next() % 10)"
          changes += 1
          if wanted[name] == nil {
            let value = "v\(changes)"
            let object = ConfigMap(
              metadata: ObjectMeta(name: name, namespace: namespace, labels: ["test": "chaos"]), data: ["in": value])
            // A predecessor of the same name may still be on its way out.
            try await eventually(within: .seconds(90), every: .milliseconds(100), "\(name) can be created") {
              do {
                _ = try await user.create(object)
              } catch let error as KubernetesError where error.code == .alreadyExists {
                return try await user.get(ConfigMap.self, name: name, namespace: namespace).data?["in"] == value
              }
              return true
            }
            wanted[name] = value
          } else if random.next() % 2 == 0 {
            try await insist {
              let uid = try await user.get(ConfigMap.self, name: name, namespace: namespace).metadata.uid
              try await user.delete(ConfigMap.self, name: name, namespace: namespace, uid: uid)
            }
            wanted[name] = nil
          } else {
            let value = "v\(changes)"
            try await insist {
              let version = try await user.get(ConfigMap.self, name: name, namespace: namespace).metadata
                .resourceVersion
              _ = try await user.mergePatch(
                ConfigMap.self, name: name, namespace: namespace,
                patch: [
                  "metadata": ["resourceVersion": .string(version ?? "")], "data": ["in": .string(value)],
                ])
            }
            wanted[name] = value
          }
          if random.next() % 6 == 0 {
            switch random.next() % 3 {
            case 0:
              plane.killAPIServer()
              try plane.launchAPIServer()
            case 1:
              plane.killEtcd()
              try plane.startEtcd()
            default:
              plane.freezeAPIServer(true)
              try await Task.sleep(for: .seconds(1 + Int(random.next() % 6)))
              plane.freezeAPIServer(false)
            }
          }
        }
        let expected = wanted
        let state = Mismatch()
        try await eventually(
          within: .seconds(90), every: .milliseconds(200),
          "round \(round) settles at \(expected): \(state.text.withLock { $0 })"
        ) {
          let objects = try await user.listAll(ConfigMap.self, namespace: namespace, labelSelector: "test=chaos").items
          let secrets = try await user.listAll(Secret.self, namespace: namespace).items
            .filter { $0.metadata.name?.hasPrefix("kept-") ?? false }
          let values = Dictionary(
            secrets.map { ($0.metadata.name ?? "", $0.string("value") ?? "") }, uniquingKeysWith: { $1 })
          let shown = objects.map { object in
            "\(object.metadata.name ?? ""): \(object.data?["in"] ?? "") \(values["kept-\(object.metadata.uid ?? "")"] ?? "none") "
              + "deleting: \(object.metadata.isBeingDeleted)"
          }
          state.text.withLock { $0 = "\(shown), \(secrets.count) secrets" }
          return objects.count == expected.count && secrets.count == expected.count
            && objects.allSatisfy { object in
              let value = expected[object.metadata.name ?? ""]
              return object.data?["in"] == value && values["kept-\(object.metadata.uid ?? "")"] == value
            }
        }
      }
      // Settled: it comes to rest, which is when many looks in a row find nothing new.
      var last = -1
      var quiet = 0
      try await eventually(within: .seconds(30), every: .milliseconds(100), "nothing runs any more") {
        let now = runs.value.withLock { $0 }
        quiet = now == last ? quiet + 1 : 0
        last = now
        return quiet >= 20
      }
      group.cancelAll()
      try await group.waitForAll()
    }
    let total = runs.value.withLock { $0 }
    #expect(total < changes * 30, "\(total) reconciliations for \(changes) changes")
  }
}
