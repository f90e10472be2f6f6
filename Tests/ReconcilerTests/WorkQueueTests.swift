import Kubernetes
import Logging
import Reconciler
import Synchronization
import Telemetry
import TestSupport
import Testing

@Suite(.timeLimit(.minutes(1))) struct WorkQueueTests {
  private struct Recorder: Reconcile {
    let body: @Sendable (ObjectKey) async throws -> ReconcileResult
    func reconcile(_ key: ObjectKey) async throws -> ReconcileResult { try await body(key) }
  }

  private struct Broken: Error {}

  private let logger = Logger(label: "test")

  @Test func everyKeyIsReconciledByOneWorkerAtATime() async throws {
    let queue = WorkQueue(name: "t")
    let running = Mutex<Set<ObjectKey>>([])
    let counts = Mutex<[ObjectKey: Int]>([:])
    let clashes = Mutex(0)
    let controller = Controller(
      name: "t",
      reconciler: Recorder { key in
        if !running.withLock({ $0.insert(key).inserted }) { clashes.withLock { $0 += 1 } }
        await Task.yield()
        running.withLock { _ = $0.remove(key) }
        counts.withLock { $0[key, default: 0] += 1 }
        return .done
      }, queue: queue, workers: 8, logger: logger)
    let keys = (0..<50).map { ObjectKey(namespace: "n", name: "o\($0)") }
    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask { try await controller.run() }
      for _ in 0..<20 {
        for key in keys { queue.add(key) }
        await Task.yield()
      }
      try await eventually { queue.isIdle && counts.withLock { $0.count } == keys.count }
      queue.shutDown()
      try await group.waitForAll()
    }
    #expect(clashes.withLock { $0 } == 0)
  }

  @Test func failuresAreRetriedAndRequeuesHappen() async throws {
    let registry = MetricsRegistry()
    let queue = WorkQueue(name: "t", registry: registry)
    let runs = Mutex(0)
    let controller = Controller(
      name: "t",
      reconciler: Recorder { _ in
        let run = runs.withLock {
          $0 += 1
          return $0
        }
        if run <= 2 { throw Broken() }
        return run < 5 ? .requeue(after: .milliseconds(20)) : .done
      }, queue: queue, workers: 2, logger: logger, registry: registry)
    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask { try await controller.run() }
      queue.add(ObjectKey(name: "a"))
      try await eventually { runs.withLock { $0 } == 5 && queue.isIdle }
      queue.shutDown()
      try await group.waitForAll()
    }
    let text = registry.render()
    #expect(text.contains(#"controller_reconcile_total{controller="t",result="error"} 2"#))
    #expect(text.contains(#"controller_reconcile_total{controller="t",result="requeue"} 2"#))
    #expect(text.contains(#"workqueue_retries_total{name="t"} 2"#))
  }

  @Test func aPermanentFailureIsNotRetried() async throws {
    let queue = WorkQueue(name: "t")
    let runs = Mutex(0)
    let controller = Controller(
      name: "t",
      reconciler: Recorder { _ in
        runs.withLock { $0 += 1 }
        throw PermanentFailure(Broken())
      }, queue: queue, logger: logger)
    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask { try await controller.run() }
      queue.add(ObjectKey(name: "a"))
      try await eventually { runs.withLock { $0 } == 1 && queue.isIdle }
      queue.shutDown()
      try await group.waitForAll()
    }
    #expect(runs.withLock { $0 } == 1)
  }

  @Test func aReconciliationThatHangsIsCancelledAndRetried() async throws {
    let queue = WorkQueue(name: "t")
    let runs = Mutex(0)
    let controller = Controller(
      name: "t",
      reconciler: Recorder { _ in
        let run = runs.withLock {
          $0 += 1
          return $0
        }
        if run == 1 { try await Task.sleep(for: .seconds(1000)) }
        return .done
      }, queue: queue, timeLimit: .milliseconds(50), logger: logger)
    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask { try await controller.run() }
      queue.add(ObjectKey(name: "a"))
      try await eventually { runs.withLock { $0 } == 2 && queue.isIdle }
      queue.shutDown()
      try await group.waitForAll()
    }
  }

  @Test func shuttingDownLetsWorkAtHandFinish() async throws {
    let queue = WorkQueue(name: "t")
    let started = Mutex(false)
    let finished = Mutex(false)
    let release = Mutex(false)
    let controller = Controller(
      name: "t",
      reconciler: Recorder { _ in
        started.withLock { $0 = true }
        try await eventually { release.withLock { $0 } }
        finished.withLock { $0 = true }
        return .done
      }, queue: queue, logger: logger)
    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask { try await controller.run() }
      queue.add(ObjectKey(name: "a"))
      try await eventually { started.withLock { $0 } }
      queue.shutDown()
      release.withLock { $0 = true }
      try await group.waitForAll()
    }
    #expect(finished.withLock { $0 })
  }

  @Test func cancellingEndsTheController() async throws {
    let queue = WorkQueue(name: "t")
    let controller = Controller(
      name: "t", reconciler: Recorder { _ in .done }, queue: queue, workers: 3, logger: logger)
    let task = Task { try await controller.run() }
    queue.add(ObjectKey(name: "a"))
    try await eventually { queue.isIdle }
    task.cancel()
    await #expect(throws: CancellationError.self) { try await task.value }
  }

  @Test func whatAFullQueueRefusedComesFromItsSources() async throws {
    var limits = WorkQueueLimits()
    limits.capacity = 8
    let queue = WorkQueue(name: "t", limits: limits)
    let keys = (0..<100).map { ObjectKey(name: "o\($0)") }
    queue.addSource { keys }
    let seen = Mutex<Set<ObjectKey>>([])
    for key in keys { queue.add(key) }
    let controller = Controller(
      name: "t",
      reconciler: Recorder { key in
        seen.withLock { _ = $0.insert(key) }
        return .done
      }, queue: queue, logger: logger)
    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask { try await controller.run() }
      try await eventually { seen.withLock { $0.count } == keys.count }
      queue.shutDown()
      try await group.waitForAll()
    }
  }
}
