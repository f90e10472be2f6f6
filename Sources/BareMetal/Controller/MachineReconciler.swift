import IaaS
import JSON
package import Kubernetes
import Logging
package import Reconciler
import Synchronization

/// Brings machines to what they ask for: gathers what there is, plans, executes, writes the status.
package struct MachineReconciler: Reconcile {
  let caches: ControllerCaches
  let cluster: any Cluster
  let client: KubernetesClient
  let executor: StepExecutor
  let power: @Sendable (String) -> PowerView
  let events: EventRecorder?
  let metrics: MachineMetrics?
  let shutdownGrace: Duration
  let logger: Logger
  private let memory = Memory()

  init(
    caches: ControllerCaches, cluster: any Cluster, client: KubernetesClient, executor: StepExecutor,
    power: @escaping @Sendable (String) -> PowerView, events: EventRecorder?, metrics: MachineMetrics?,
    shutdownGrace: Duration, logger: Logger
  ) {
    self.caches = caches
    self.cluster = cluster
    self.client = client
    self.executor = executor
    self.power = power
    self.events = events
    self.metrics = metrics
    self.shutdownGrace = shutdownGrace
    self.logger = logger
  }

  /// What it remembers from one look to the next; nothing depends on it but how often a status is written.
  private final class Memory: Sendable {
    let pace = Mutex(StatusPace())
    let start = ContinuousClock.now
  }

  package func reconcile(_ key: ObjectKey) async throws -> ReconcileResult {
    guard var machine = caches.machines.get(key) else {
      metrics?.forget(key)
      memory.pace.withLock { $0.forget(key) }
      try await collect(key, uid: nil)
      return .done
    }
    guard let uid = machine.metadata.uid else { return .done }
    try await collect(key, uid: uid)
    var plan = plan(try await view(of: machine))
    if plan.steps == [.addFinalizer] {
      machine = try await cluster.addFinalizer(to: machine)
      plan = BareMetal.plan(try await view(of: machine))
    }
    if plan.steps == [.removeFinalizer] {
      let end = plan.status.conditions?.condition(BareMetalMachine.ConditionType.deleted)
      logger.info("the machine goes", metadata: ["object": "\(key)", "message": "\(end?.message ?? "")"])
      if let end, end.reason == "Forced" { tellForced(machine, message: end.message) }
      try await cluster.removeFinalizer(from: machine)
      return .done
    }
    let steps = plan.steps
    let status = plan.status
    let current = machine
    let (verdict, isOneOfMany) = memory.pace.withLock { pace in
      let verdict = pace.consider(
        key, uid: uid, old: current.status, new: status, at: memory.start.duration(to: .now))
      return (verdict, pace.isCrowded)
    }
    // The steps are independent of each other and of the status, which tells what was seen before them.
    let failures = await withTaskGroup(of: (any Error)?.self) { group in
      for step in steps {
        group.addTask {
          do {
            try await executor.execute(step, key: key, uid: uid)
            return nil
          } catch {
            return error
          }
        }
      }
      if verdict == .write {
        group.addTask {
          do {
            try await writeStatus(status, of: current, isOneOfMany: isOneOfMany)
            return nil
          } catch {
            memory.pace.withLock { $0.notWritten(key) }
            return error
          }
        }
      }
      var failures: [any Error] = []
      for await failure in group { if let failure { failures.append(failure) } }
      return failures
    }
    try Task.checkCancellation()
    // Losing a race is no failure: the winner's change comes by the watch, or has come already.
    if let failure = failures.first(where: { !isRace($0) }) { throw failure }
    if !failures.isEmpty { return .requeue(after: .milliseconds(50)) }
    if case .wait(let time) = verdict { return .requeue(after: time) }
    // Everything else comes by watches; this is for what no watch tells, such as a secret in a tenant's namespace.
    switch status.phase {
    // When the guest's time is over, nobody else tells.
    case .running where status.conditions?.condition(BareMetalMachine.ConditionType.unplugged)?.reason == "Unplugging":
      return .requeue(after: .seconds(5))
    case .running, .stopped: return .requeue(after: .seconds(600))
    default: return .requeue(after: machine.spec.cloudInit?.userDataSecretRef == nil ? .seconds(120) : .seconds(5))
    }
  }

  /// What remains of a machine that goes by force is told where people look for it, also when the machine is gone.
  private func tellForced(_ machine: BareMetalMachine, message: String) {
    events?.event(regarding: machine, type: .warning, reason: "DeletedByForce", message: message)
    for host in caches.hosts(heldBy: machine.metadata.uid ?? "") {
      events?.event(
        regarding: host, type: .warning, reason: "DeletedByForce", message: "the machine \(machine.key) was \(message)")
    }
  }

  /// Removes what an earlier machine of this name has left where nobody else looks.
  private func collect(_ key: ObjectKey, uid: String?) async throws {
    let attachments = caches.attachments(madeFor: key)
    for step in try await leftBehind(by: key, uid: uid, attachments: attachments, cluster: cluster) {
      try await executor.execute(step, key: key, uid: "")
    }
  }

  private func isRace(_ error: any Error) -> Bool {
    if let error = error as? BareMetalError { return error.code == .stale }
    if let error = error as? KubernetesError { return error.code == .conflict }
    return false
  }

  private func writeStatus(
    _ status: BareMetalMachine.Status, of machine: BareMetalMachine, isOneOfMany: Bool
  ) async throws {
    let old = try MergePatch.json(machine.status)
    guard let patch = MergePatch.difference(from: old, to: try MergePatch.json(status)) else { return }
    do {
      try await cluster.patchStatus(of: machine, patch)
    } catch let error as KubernetesError where error.code == .notFound {
      return
    }
    for event in machineEvents(from: machine.status, to: status, isOneOfMany: isOneOfMany) {
      events?.event(regarding: machine, type: event.type, reason: event.reason, message: event.message)
    }
    metrics?.observe(from: machine.status, to: status)
  }

  /// What there is, from the caches; only a secret with user data is read from the API server, where it is needed.
  private func view(of machine: BareMetalMachine) async throws -> MachineView {
    var view = MachineView(
      of: memory.pace.withLock { $0.completed(machine) }, in: caches, power: power, userData: .notRead,
      shutdownGrace: shutdownGrace, now: .now())
    if needsUserData(view) { view.userData = try await userData(of: machine) }
    return view
  }

  private func userData(of machine: BareMetalMachine) async throws -> UserData {
    guard let reference = machine.spec.cloudInit?.userDataSecretRef else {
      return .text(machine.spec.cloudInit?.userData ?? "")
    }
    let name = "\(machine.metadata.namespace ?? "")/\(reference.name)"
    let field = "spec.cloudInit.userDataSecretRef"
    let secret: Secret
    do {
      secret = try await client.get(Secret.self, name: reference.name, namespace: machine.metadata.namespace)
    } catch let error as KubernetesError where error.code == .notFound {
      return .problem(
        reason: "UserDataNotFound", message: "\(field).name: there is no secret \(name); make it or name another")
    } catch let error as KubernetesError where error.code == .forbidden {
      return .problem(
        reason: "UserDataForbidden",
        message: "\(field).name: bm-controller may not read secrets in the namespace of \(name); bind the ClusterRole "
          + "ycloud:user-data-reader to it there")
    }
    guard secret.data?[reference.key] != nil else {
      return .problem(
        reason: "UserDataNotFound",
        message: "\(field).key: the secret \(name) has no key '\(reference.key)'; add it or name another")
    }
    guard let text = secret.string(reference.key) else {
      return .problem(
        reason: "InvalidCloudInit", message: "\(field): the key '\(reference.key)' of the secret \(name) is not UTF-8")
    }
    if let problem = CloudInit.problem(userData: text) {
      return .problem(
        reason: "InvalidCloudInit",
        message: "\(field): the user data in the secret \(name), key '\(reference.key)', cannot be used: \(problem)")
    }
    return .text(text)
  }
}
