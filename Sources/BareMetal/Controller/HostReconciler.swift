package import IaaS
import JSON
package import Kubernetes
import Logging
package import Reconciler
import Synchronization

/// Keeps hosts' status and takes hosts back from machines that are no more.
package struct HostReconciler: Reconcile {
  let caches: ControllerCaches
  let cluster: any Cluster
  let executor: StepExecutor
  let power: PowerService
  let liveness: HandlerLiveness
  let events: EventRecorder?
  let logger: Logger

  package func reconcile(_ key: ObjectKey) async throws -> ReconcileResult {
    guard let host = caches.hosts.get(key) else { return .done }
    let plan = plan(try await view(of: host))
    if plan.addFinalizer { try await cluster.addFinalizer(to: host) }
    if plan.removeFinalizer {
      // Only at the very version that was looked at: a claim may be on its way.
      try await cluster.removeFinalizer(from: host)
      return .done
    }
    let uid = host.status?.claim?.uid ?? ""
    for step in plan.steps { try await executor.execute(step, key: key, uid: uid) }
    try await writeStatus(plan.status, of: host)
    // Readings, claims and reports come by themselves; a claim without a machine is looked at again and again.
    return plan.steps.isEmpty ? .done : .requeue(after: .seconds(2))
  }

  private func view(of host: BareMetalHost) async throws -> HostView {
    let name = host.metadata.name ?? ""
    var view = HostView(host: host, now: .now())
    view.power = power.view(name)
    let facts = power.facts(name)
    view.bmcAnswered = facts.answered
    view.hardware = facts.hardware
    view.credentialsProblem = power.accountProblem(name)
    view.attachments = caches.attachments(onHost: name)
    view.bootData = caches.bootData(host: name)
    view.handlerAlive = liveness.isAlive(name)
    if let claim = host.status?.claim {
      view.claimantExists = try await exists(
        uid: claim.uid, key: ObjectKey(namespace: claim.namespace, name: claim.name))
    }
    for attachment in view.attachments where attachment.machineUID != host.status?.claim?.uid {
      guard let attachmentUID = attachment.metadata.uid, let machineUID = attachment.machineUID,
        let key = attachment.machineKey
      else { continue }
      if try await !exists(uid: machineUID, key: key) { view.orphans.insert(attachmentUID) }
    }
    return view
  }

  /// Whether a machine exists. The cache may be behind, so that it is missing there proves nothing.
  private func exists(uid: String, key: ObjectKey) async throws -> Bool {
    if caches.machine(uid: uid) != nil { return true }
    do {
      return try await cluster.machine(key).metadata.uid == uid
    } catch let error as KubernetesError where error.code == .notFound {
      return false
    }
  }

  private func writeStatus(_ status: BareMetalHost.Status, of host: BareMetalHost) async throws {
    guard status != host.status else { return }
    var old = try MergePatch.json(host.status)
    var new = try MergePatch.json(status)
    // The DPU's part is bm-handler's, the claim is set and released by steps.
    for member in ["dpu", "claim"] {
      old[member] = nil
      new[member] = nil
    }
    guard let patch = MergePatch.difference(from: old, to: new) else { return }
    do {
      // Locked, because the phase is derived from the claim and from the DPU's part.
      try await cluster.patchStatus(of: host, patch, locked: true)
    } catch let error as KubernetesError where error.code == .notFound || error.code == .conflict {
      // The newer version comes by the watch.
      return
    }
    for event in hostEvents(from: host.status, to: status) {
      events?.event(regarding: host, type: event.type, reason: event.reason, message: event.message)
    }
  }
}

extension VolumeAttachment {
  /// The machine that it was made for.
  package var machineKey: ObjectKey? {
    let parts = (metadata.annotations?[Names.machineAnnotation] ?? "").split(separator: "/", maxSplits: 1)
    return parts.count == 2 ? ObjectKey(namespace: String(parts[0]), name: String(parts[1])) : nil
  }
}

/// The events of a change of a host's status.
package func hostEvents(from old: BareMetalHost.Status?, to new: BareMetalHost.Status) -> [PlannedEvent] {
  var events: [PlannedEvent] = []
  if let phase = new.phase, phase != old?.phase, phase != .error {
    let message =
      switch phase {
      case .registering: "waits for the BMC and the DPU to answer"
      case .available: "the host can take a machine"
      case .claimed: "the host is held by \(new.claim.map { "\($0.namespace)/\($0.name)" } ?? "a machine")"
      case .maintenance: "the host takes no machine"
      case .error: ""
      }
    events.append(PlannedEvent(type: .normal, reason: phase.rawValue, message: message))
  }
  for condition in new.conditions ?? [] where condition.status == .false && condition.type != "Ready" {
    let before = old?.conditions?.condition(condition.type)
    if before?.status == .false, before?.reason == condition.reason { continue }
    if condition.reason == "HandlerMissing", old == nil { continue }
    events.append(PlannedEvent(type: .warning, reason: condition.reason, message: condition.message))
  }
  return events
}
