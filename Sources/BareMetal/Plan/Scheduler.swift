package import IaaS
import Kubernetes

/// Which host a machine gets: pure, and the same for the same input.
package enum Scheduler {
  package enum Decision: Sendable, Hashable {
    case place(host: String)
    /// No host will do now; why, for people.
    case wait(reason: String, message: String)
  }

  /// Why a host will not do, or nil where it will.
  package static func objection(to host: BareMetalHost, for machine: BareMetalMachine) -> String? {
    if host.metadata.isBeingDeleted { return "is being removed" }
    if let claim = host.status?.claim { return "is held by \(claim.namespace)/\(claim.name)" }
    if host.spec.maintenance { return "is in maintenance" }
    if host.spec.powerCut { return "has no power, as an operator said" }
    if host.spec.drain { return "is being drained" }
    if let leftover = host.status?.leftovers?.first {
      return "may still show the volume \(leftover.volume) of \(leftover.machine)"
    }
    for taint in host.spec.taints
    where !machine.spec.tolerations.contains(where: { tolerates($0, taint) }) {
      return "has the taint \(taint.key)\(taint.value.map { "=\($0)" } ?? "")"
    }
    guard host.metadata.hasFinalizer(Names.claimFinalizer), host.status?.phase != .registering,
      host.status?.phase != nil
    else { return "is not registered yet" }
    let conditions = host.status?.conditions ?? []
    if !conditions.isTrue(BareMetalHost.ConditionType.bmcReachable) { return "has a BMC that does not answer" }
    // The DPU's own word may be the last one of a handler that has died since: only the condition takes its silence
    // into account. The word itself may be newer than the condition.
    if host.status?.dpu?.ready != true || !conditions.isTrue(BareMetalHost.ConditionType.dpuReady) {
      return "has a DPU that is not ready"
    }
    if host.status?.phase == .error { return "is in error" }
    // What a machine before left behind must be gone from the bus, or the next machine would see it.
    if let slot = host.status?.dpu?.slots?.first { return "still shows the device \(slot.name)" }
    return nil
  }

  package static func decide(_ machine: BareMetalMachine, hosts: [BareMetalHost]) -> Decision {
    var candidates = hosts
    if let name = machine.spec.hostName {
      candidates = hosts.filter { $0.metadata.name == name }
      if candidates.isEmpty {
        return .wait(
          reason: "HostNotFound",
          message: "spec.hostName is '\(name)', but there is no such host; see 'kubectl get baremetalhosts'")
      }
    } else if let selector = machine.spec.hostSelector?.matchLabels, !selector.isEmpty {
      candidates = hosts.filter { host in
        selector.allSatisfy { host.metadata.labels?[$0.key] == $0.value }
      }
      if candidates.isEmpty {
        let text = selector.sorted { $0.key < $1.key }.map { "\($0.key)=\($0.value)" }.joined(separator: ",")
        return .wait(
          reason: "NoHostMatches", message: "no host has the labels of spec.hostSelector.matchLabels (\(text))")
      }
    }
    var objections: [String] = []
    var best: (weight: UInt64, name: String)?
    for host in candidates {
      guard let name = host.metadata.name else { continue }
      if let objection = objection(to: host, for: machine) {
        objections.append("\(name) \(objection)")
        continue
      }
      // Rendezvous hashing: machines that look at the same moment spread over the hosts, without a common counter.
      let weight = hash(machine.metadata.uid ?? "", name)
      if let present = best, (present.weight, present.name) >= (weight, name) { continue }
      best = (weight, name)
    }
    if let best { return .place(host: best.name) }
    if candidates.isEmpty {
      return .wait(reason: "NoHosts", message: "there are no hosts yet; register one as a BareMetalHost")
    }
    let shown = objections.sorted().prefix(4).joined(separator: "; ")
    let more = objections.count > 4 ? "; and \(objections.count - 4) more" : ""
    return .wait(
      reason: "NoHostFree", message: "waits for a host; of \(candidates.count) that match none is free: \(shown)\(more)"
    )
  }

  private static func tolerates(_ toleration: BareMetalMachine.Toleration, _ taint: BareMetalHost.Taint) -> Bool {
    if let effect = toleration.effect, !effect.isEmpty, effect != (taint.effect ?? "NoSchedule") { return false }
    let key = toleration.key ?? ""
    switch toleration.operator ?? .equal {
    case .exists: return key.isEmpty || key == taint.key
    case .equal: return key == taint.key && (toleration.value ?? "") == (taint.value ?? "")
    }
  }

  private static func hash(_ uid: String, _ name: String) -> UInt64 {
    var hash: UInt64 = 0xcbf2_9ce4_8422_2325
    for byte in uid.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
    hash = (hash ^ 0xff) &* 0x100_0000_01b3
    for byte in name.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
    hash ^= hash >> 33
    hash = hash &* 0xff51_afd7_ed55_8ccd
    return hash ^ (hash >> 33)
  }
}
