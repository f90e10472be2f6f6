package import IaaS
package import Kubernetes

/// What is known of a host beside its object.
package struct HostView: Sendable {
  package var host: BareMetalHost
  package var power: PowerView
  /// Whether the BMC has ever answered since this controller started.
  package var bmcAnswered: Bool
  package var hardware: BareMetalHost.Hardware?
  /// Why the BMC's account in the secret is not the one that is used.
  package var credentialsProblem: String?
  /// False where the machine that holds the host is gone for sure, nil where that is not known.
  package var claimantExists: Bool?
  /// Attachments on this host, whoever's.
  package var attachments: [VolumeAttachment]
  /// UIDs of attachments whose machine is gone for sure.
  package var orphans: Set<String> = []
  package var bootData: Secret?
  /// Whether bm-handler has shown a sign of life lately; nil where it gives none.
  package var handlerAlive: Bool?
  package var now: MicroTimestamp

  package init(host: BareMetalHost, now: MicroTimestamp) {
    self.host = host
    self.now = now
    power = PowerView()
    bmcAnswered = false
    attachments = []
  }
}

/// What to do for a host, and what the controller's part of its status shall say.
package struct HostPlan: Sendable {
  package var addFinalizer = false
  /// Only valid for the version of the host that was looked at: a claim may be on its way.
  package var removeFinalizer = false
  /// Taking the host, or leftovers, from a machine that is no more.
  package var steps: [MachineStep] = []
  package var status: BareMetalHost.Status
}

/// Why the host's reference to its BMC's account is not followed, or nil where it is.
///
/// bm-controller can read secrets that who registers a host cannot. It sends none to the address that a host names but
/// those in the system's own namespace, where nobody but the operator puts any.
package func credentialsProblem(_ host: BareMetalHost) -> String? {
  let reference = host.spec.bmc.credentialsSecretRef
  guard reference.namespace != Names.systemNamespace else { return nil }
  return
    "spec.bmc.credentialsSecretRef names the secret \(reference.namespace)/\(reference.name), but a BMC's account is "
    + "read from the namespace \(Names.systemNamespace) only; make the secret there and set the namespace"
}

/// Decides for a host. It does not touch the claim of a living machine.
package func plan(_ view: HostView) -> HostPlan {
  typealias Kind = BareMetalHost.ConditionType
  let host = view.host
  let name = host.metadata.name ?? ""
  var status = host.status ?? BareMetalHost.Status()
  var conditions = status.conditions ?? []
  var result = HostPlan(status: status)

  func set(_ type: String, _ value: Condition.Status, _ reason: String, _ message: String) {
    conditions.set(
      type, value, reason: reason, message: message, observedGeneration: host.metadata.generation,
      now: Timestamp(view.now.date))
  }

  status.observedGeneration = host.metadata.generation
  if let problem = credentialsProblem(host) {
    set(Kind.bmcReachable, .false, "CredentialsNotAllowed", problem)
  } else if let problem = view.power.problem {
    set(Kind.bmcReachable, .false, view.power.refusesCommand ? "CommandRefused" : "BMCFailed", problem)
  } else if view.bmcAnswered {
    set(Kind.bmcReachable, .true, "Answers", "the BMC answers")
  } else if conditions.condition(Kind.bmcReachable) == nil {
    set(Kind.bmcReachable, .unknown, "NotAsked", "the BMC has not been asked yet")
  }
  if view.bmcAnswered || view.power.problem != nil, status.power != view.power.power {
    status.power = view.power.power
    status.powerReadAt = Timestamp(view.now.date)
  }
  if let hardware = view.hardware { status.hardware = hardware }

  // A controller that has just begun to lead cannot say yet whether a handler is alive: what was found before stands.
  let isSilent = view.handlerAlive == nil && conditions.condition(Kind.dpuReady)?.reason == "HandlerSilent"
  if view.handlerAlive == false || isSilent {
    set(
      Kind.dpuReady, .false, "HandlerSilent",
      "bm-handler of \(name) has not renewed its lease; is it running on \(host.spec.dpu.node)?")
  } else if status.dpu?.ready == true {
    set(Kind.dpuReady, .true, "Ready", "the DPU is ready")
  } else {
    let trouble = status.dpu?.conditions?.first { $0.status == .false }?.message
    set(
      Kind.dpuReady, .false, status.dpu == nil ? "HandlerMissing" : "NotReady",
      trouble ?? "bm-handler of \(name) has not reported yet; is it running on \(host.spec.dpu.node)?")
  }

  let bmc = conditions.condition(Kind.bmcReachable)
  let dpu = conditions.condition(Kind.dpuReady)
  let unmet = [bmc, dpu].compactMap { $0 }.first { $0.status != .true }
  set(
    Kind.ready, Condition.Status(unmet == nil), unmet?.reason ?? "Ready", unmet?.message ?? "BMC and DPU are ready")
  let wasRegistered = host.status?.phase != nil && host.status?.phase != .registering
  if status.claim != nil {
    status.phase = .claimed
  } else if unmet != nil {
    status.phase = wasRegistered ? .error : .registering
  } else {
    status.phase = host.spec.maintenance ? .maintenance : .available
  }
  for finding in findings(view, status: &status) {
    if let (holds, reason, message) = finding.says {
      set(finding.type, Condition.Status(holds), reason, message)
    } else {
      conditions.remove(finding.type)
    }
  }
  let cleanup = planCleanup(view, name: name, into: &result)
  if let cleanup {
    set(Kind.released, .false, "Waiting", cleanup)
  } else {
    conditions.remove(Kind.released)
  }
  // Nobody holds it, so nobody's wish to see it on counts: a claim can go by hand while the command is pending.
  if status.claim == nil, view.power.wantsOn { result.steps.append(.power(host: name, .observe)) }
  if host.metadata.isBeingDeleted {
    result.removeFinalizer =
      host.metadata.hasFinalizer(Names.claimFinalizer) && status.claim == nil && result.steps.isEmpty
      && view.attachments.isEmpty
    if !result.removeFinalizer { set(Kind.deleted, .false, "Waiting", deletionWait(view, cleanup: cleanup)) }
  } else {
    result.addFinalizer = !host.metadata.hasFinalizer(Names.claimFinalizer)
    conditions.remove(Kind.deleted)
  }
  status.conditions = conditions
  result.status = status
  return result
}

/// What a host that is being deleted waits for.
private func deletionWait(_ view: HostView, cleanup: String?) -> String {
  if let cleanup { return cleanup }
  if let claim = view.host.status?.claim {
    return "the machine \(claim.namespace)/\(claim.name) holds the host; delete the machine, then the host goes"
  }
  if let attachment = view.attachments.first {
    return "waits for the volumeattachment \(attachment.metadata.name ?? "") to go"
  }
  return "removes what is left"
}

/// Whether boot data is of a machine that is still there and has disks here: the host was torn away from it and registered
/// again, and it is about to claim it.
private func isAwaited(_ bootData: Secret, _ view: HostView) -> Bool {
  guard let data = try? BootData(bootData), !data.isWithdrawn else { return false }
  return view.attachments.contains { attachment in
    attachment.machineUID == data.machineUID && !view.orphans.contains(attachment.metadata.uid ?? "")
  }
}

/// What machines left behind that are no more: their claim is the record of it. Returns what its removal waits for.
private func planCleanup(_ view: HostView, name: String, into result: inout HostPlan) -> String? {
  let claim = view.host.status?.claim
  var wait: String?
  if let claim, view.claimantExists == false {
    let evacuation = evacuate(
      hostName: name, host: view.host, uid: claim.uid,
      attachments: view.attachments.filter { $0.machineUID == claim.uid }, bootData: view.bootData, power: view.power,
      grace: .zero)
    result.steps += evacuation.steps
    wait = evacuation.waitsFor.map { "the machine \(claim.namespace)/\(claim.name) is no more; \($0)" }
  }
  // Attachments of others than the holder never came into effect: the handler refuses them.
  for attachment in view.attachments
  where attachment.machineUID != claim?.uid && !attachment.metadata.isBeingDeleted
    && view.orphans.contains(attachment.metadata.uid ?? "")
  {
    guard let attachmentName = attachment.metadata.name, let uid = attachment.metadata.uid else { continue }
    result.steps.append(.deleteAttachment(attachmentName, uid: uid))
  }
  if claim == nil, let secret = view.bootData, let uid = secret.metadata.uid, !isAwaited(secret, view) {
    result.steps.append(.deleteBootData(host: name, uid: uid))
  }
  return wait
}
