import JSON
import Kubernetes
import Logging
import Synchronization
import Telemetry
import TestSupport
import Testing

@Suite(.timeLimit(.minutes(3))) struct WatchTests {
  @Test func aWatchShowsWhatHappensAfterTheList() async throws {
    let cluster = try await Cluster.shared()
    let client = cluster.client
    let list = try await client.listAll(ConfigMap.self, namespace: cluster.namespace)
    var iterator = client.watch(
      ConfigMap.self, namespace: cluster.namespace, resourceVersion: list.resourceVersion
    ).makeAsyncIterator()
    _ = try await client.create(cluster.configMap("a", ["k": "1"]))
    _ = try await client.mergePatch(
      ConfigMap.self, name: "a", namespace: cluster.namespace, patch: ["data": ["k": "2"]])
    try await client.delete(ConfigMap.self, name: "a", namespace: cluster.namespace)
    var seen: [String] = []
    while seen.count < 3, let event = try await iterator.next() {
      switch event {
      case .added(let object): seen.append("added \(object.data?["k"] ?? "")")
      case .modified(let object): seen.append("modified \(object.data?["k"] ?? "")")
      case .deleted(let object): seen.append("deleted \(object.data?["k"] ?? "")")
      case .bookmark, .error: break
      }
    }
    #expect(seen == ["added 1", "modified 2", "deleted 2"])
  }

  @Test func aWatchEndsAtItsTimeout() async throws {
    let cluster = try await Cluster.shared()
    let list = try await cluster.client.listAll(ConfigMap.self, namespace: cluster.namespace)
    let start = ContinuousClock.now
    for try await event in cluster.client.watch(
      ConfigMap.self, namespace: cluster.namespace, resourceVersion: list.resourceVersion, timeout: .seconds(1))
    {
      if case .error(let error) = event { throw error }
    }
    #expect((ContinuousClock.now - start).inSeconds < 10)
  }

  @Test func cancellingEndsAWatch() async throws {
    let cluster = try await Cluster.shared()
    let (client, namespace) = (cluster.client, cluster.namespace)
    let list = try await client.listAll(ConfigMap.self, namespace: namespace)
    let events = Mutex(0)
    let task = Task {
      for try await _ in client.watch(ConfigMap.self, namespace: namespace, resourceVersion: list.resourceVersion) {
        events.withLock { $0 += 1 }
      }
    }
    _ = try await client.create(cluster.configMap("watched-until-cancelled", ["k": "1"]))
    try await eventually("the watch delivers") { events.withLock { $0 } > 0 }
    let start = ContinuousClock.now
    task.cancel()
    await #expect(throws: CancellationError.self) { try await task.value }
    #expect((ContinuousClock.now - start).inSeconds < 2)
  }
}

/// Tests that stop parts of the control plane and so have one of their own.
@Suite(.serialized, .timeLimit(.minutes(5))) struct FaultTests {
  /// What a cache told its handlers, replayed: must always equal what the cache holds.
  private final class Mirror: Sendable {
    let objects = Mutex<[ObjectKey: UInt64]>([:])
    let problems = Mutex<[String]>([])

    func apply(_ change: ObjectChange<ConfigMap>) {
      objects.withLock { objects in
        switch change {
        case .added(let object), .updated(_, let object):
          let version = UInt64(object.metadata.resourceVersion ?? "") ?? 0
          if let before = objects[object.key], before > version {
            problems.withLock { $0.append("\(object.key) went back from \(before) to \(version)") }
          }
          objects[object.key] = version
        case .deleted(let object): objects[object.key] = nil
        }
      }
    }
  }

  @Test func aCacheSurvivesTheEndOfTheAPIServer() async throws {
    let plane = try await TestControlPlane.start()
    let cluster = try await Cluster.on(plane)
    let (client, namespace) = (cluster.client, cluster.namespace)
    let registry = MetricsRegistry()
    let cache = ObjectCache<ConfigMap>(
      client: client, namespace: namespace, indexers: ["k": { $0.data?["k"].map { [$0] } ?? [] }],
      logger: Logger(label: "test"), registry: registry)
    let mirror = Mirror()
    cache.onChange { mirror.apply($0) }

    func matches() async throws -> Bool {
      let server = try await client.listAll(ConfigMap.self, namespace: namespace).items
      let expected = Dictionary(
        uniqueKeysWithValues: server.map { ($0.key, UInt64($0.metadata.resourceVersion ?? "") ?? 0) })
      let held = Dictionary(
        uniqueKeysWithValues: cache.all().map { ($0.key, UInt64($0.metadata.resourceVersion ?? "") ?? 0) })
      return held == expected && mirror.objects.withLock { $0 } == expected
    }

    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask { try await cache.run() }
      try await cache.waitUntilSynced()
      for index in 0..<20 { _ = try await client.create(cluster.configMap("m\(index)", ["k": "\(index % 3)"])) }
      try await eventually { try await matches() }

      for round in 0..<2 {
        plane.killAPIServer()
        // While the server is away, nothing is lost and nobody runs hot.
        let watchesBefore = registry.counter("kubernetes_cache_watches_total", help: "", labels: ["resource"])
          .value("configmaps")
        try await Task.sleep(for: .seconds(3))
        let watches =
          registry.counter("kubernetes_cache_watches_total", help: "", labels: ["resource"]).value("configmaps")
          - watchesBefore
        #expect(watches < 12, "\(watches) attempts in 3 s")
        #expect(cache.count == 20)
        try await plane.startAPIServer()
        // Before the cache is back, change things behind its back with a client of its own.
        try await client.delete(ConfigMap.self, name: "m\(round)", namespace: namespace)
        _ = try await client.create(cluster.configMap("n\(round)", ["k": "new"]))
        _ = try await client.mergePatch(
          ConfigMap.self, name: "m9", namespace: namespace, patch: ["data": ["k": .string("round\(round)")]])
        try await eventually(within: .seconds(60), "the cache is up to date again") { try await matches() }
        #expect(cache.byIndex("k", "round\(round)").map(\.metadata.name) == ["m9"])
      }
      group.cancelAll()
      while let result = await group.nextResult() {
        if case .failure(let error) = result, !(error is CancellationError) { throw error }
      }
    }
    #expect(mirror.problems.withLock { $0 } == [])
  }

  @Test func aForgottenVersionLeadsToANewList() async throws {
    let plane = try await TestControlPlane.start()
    let cluster = try await Cluster.on(plane)
    let (client, namespace) = (cluster.client, cluster.namespace)
    for index in 0..<10 { _ = try await client.create(cluster.configMap("m\(index)")) }
    let old = try await client.list(ConfigMap.self, namespace: namespace, limit: 4)
    let token = try #require(old.continueToken)
    let registry = MetricsRegistry()
    let cache = ObjectCache<ConfigMap>(
      client: client, namespace: namespace, logger: Logger(label: "test"), registry: registry)
    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask { try await cache.run() }
      try await cache.waitUntilSynced()
      #expect(cache.count == 10)

      // Many changes while the server is away and the cache blind, then etcd forgets how they came about.
      let writer = try Cluster.makeClient(plane)
      plane.freezeAPIServer(false)
      for index in 0..<5 {
        try await writer.delete(ConfigMap.self, name: "m\(index)", namespace: namespace)
      }
      plane.killAPIServer()
      try await plane.compactEtcd()
      try await plane.startAPIServer()
      _ = try await writer.create(cluster.configMap("after"))
      try await plane.compactEtcd()
      try await eventually(within: .seconds(60)) {
        cache.count == 6 && cache.get(name: "after", namespace: namespace) != nil
      }

      // The raw watch from the old version: the server says 410 inside the stream, or as the answer.
      var isGone = false
      do {
        for try await event in client.watch(
          ConfigMap.self, namespace: namespace, resourceVersion: old.resourceVersion, timeout: .seconds(5))
        {
          if case .error(let error) = event { isGone = error.code == .gone }
        }
      } catch let error as KubernetesError {
        isGone = error.code == .gone
      }
      #expect(isGone)

      // A page of the forgotten version cannot be read any more; a whole list is read anew instead.
      let page = try await failure {
        _ = try await client.list(ConfigMap.self, namespace: namespace, limit: 4, continueToken: token)
      }
      #expect(page.code == .gone)
      group.cancelAll()
      while let result = await group.nextResult() {
        if case .failure(let error) = result, !(error is CancellationError) { throw error }
      }
    }
  }

  @Test func aServerThatHangsIsATimeout() async throws {
    let plane = try await TestControlPlane.start()
    let client = try Cluster.makeClient(plane) { $0.requestTimeout = .milliseconds(500) }
    _ = try await client.version()
    plane.freezeAPIServer(true)
    let error = try await failure { _ = try await client.get(Namespace.self, name: "default") }
    #expect(error.code == .timeout)
    #expect(error.isTransient)
    plane.freezeAPIServer(false)
    try await eventually { try await client.get(Namespace.self, name: "default").metadata.name == "default" }
    plane.killAPIServer()
    let down = try await failure { _ = try await client.get(Namespace.self, name: "default") }
    #expect(down.code == .unavailable)
    #expect(down.message.contains("\(plane.server) cannot be reached"))
    // A connection that was open told of its own end; a new one says what is wrong.
    try await eventually {
      let down = try await failure { _ = try await client.get(Namespace.self, name: "default") }
      return down.message.contains("\(plane.server) cannot be reached: connection refused")
    }
  }

  @Test func aServerThatLostItsHistoryIsFollowed() async throws {
    let plane = try await TestControlPlane.start()
    let cluster = try await Cluster.on(plane)
    let (client, namespace) = (cluster.client, cluster.namespace)
    for index in 0..<200 {
      _ = try await client.create(cluster.configMap("m\(index)"))
      if index >= 3 { try await client.delete(ConfigMap.self, name: "m\(index)", namespace: namespace) }
    }
    let cache = ObjectCache<ConfigMap>(client: client, namespace: namespace, logger: Logger(label: "test"))
    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask { try await cache.run() }
      try await cache.waitUntilSynced()
      #expect(cache.count == 3)
      try await plane.startOver()
      _ = try await client.create(Namespace(metadata: ObjectMeta(name: namespace)))
      let fresh = try await client.create(cluster.configMap("m0", ["fresh": "yes"]))
      #expect(UInt64(fresh.metadata.resourceVersion ?? "") ?? .max < 500, "the versions start over")
      try await eventually(within: .seconds(60)) {
        cache.all().map(\.metadata.uid) == [fresh.metadata.uid]
      }
      // And from there on the watch goes on as ever.
      _ = try await client.create(cluster.configMap("next"))
      try await eventually { cache.count == 2 }
      group.cancelAll()
      while let result = await group.nextResult() {
        if case .failure(let error) = result, !(error is CancellationError) { throw error }
      }
    }
  }

  @Test func aWatchThatFallsSilentIsResumed() async throws {
    let plane = try await TestControlPlane.start()
    let cluster = try await Cluster.on(plane)
    let writer = cluster.client
    let namespace = cluster.namespace
    // The kernel keeps the connection of a frozen server alive; only the silence tells.
    let client = try Cluster.makeClient(plane) {
      $0.watchIdleTimeout = .seconds(2)
      $0.requestTimeout = .seconds(2)
    }
    let cache = ObjectCache<ConfigMap>(client: client, namespace: namespace, logger: Logger(label: "test"))
    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask { try await cache.run() }
      try await cache.waitUntilSynced()
      plane.freezeAPIServer(true)
      try await Task.sleep(for: .seconds(5))
      plane.freezeAPIServer(false)
      _ = try await writer.create(cluster.configMap("late"))
      try await eventually(within: .seconds(30)) { cache.get(name: "late", namespace: namespace) != nil }
      group.cancelAll()
      while let result = await group.nextResult() {
        if case .failure(let error) = result, !(error is CancellationError) { throw error }
      }
    }
  }

  /// The cut comes between two pages of one list: what is returned must be one state of the collection.
  @Test func pagesThatAreForgottenOnTheWayAreReadAgain() async throws {
    let plane = try await TestControlPlane.start()
    let cluster = try await Cluster.on(plane)
    let (client, namespace) = (cluster.client, cluster.namespace)
    for index in 0..<30 { _ = try await client.create(cluster.configMap("m\(index)")) }
    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask {
        var round = 0
        while !Task.isCancelled {
          round += 1
          _ = try await client.mergePatch(
            ConfigMap.self, name: "m\(round % 30)", namespace: namespace, patch: ["data": ["r": .string("\(round)")]])
          try await plane.compactEtcd()
        }
      }
      for _ in 0..<15 {
        let list = try await client.listAll(ConfigMap.self, namespace: namespace, pageSize: 1)
        #expect(list.items.count == 30)
      }
      group.cancelAll()
      while let result = await group.nextResult() {
        if case .failure(let error) = result, !(error is CancellationError) { throw error }
      }
    }
  }
}
