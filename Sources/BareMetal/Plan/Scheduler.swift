package import IaaS
package import Kubernetes

/// Which host a machine gets: pure, and the same for the same input.
package enum Scheduler {
  package enum Decision: Sendable, Hashable {
    case place(host: String)
    /// No host will do now; why, for people.
    case wait(reason: String, message: String)
  }

  /// Reasons of the condition HostClaimed of machines that wait for a host, and for nothing else.
  package static let waitReasons: Set<String> = ["HostNotFound", "NoHostMatches", "NoHosts", "NoHostFree"]

  /// Machines told of one host that has become free. One of them gets it; more than one, because another host may have
  /// come first for some.
  package static let invitedMax = 8

  /// Whether a change of a host may let somebody have it who could not before.
  package static func isInviting(_ new: BareMetalHost, before old: BareMetalHost?) -> Bool {
    guard objection(to: new) == nil else { return false }
    guard let old, objection(to: old) == nil else { return true }
    return old.spec.taints != new.spec.taints || old.metadata.labels != new.metadata.labels
  }

  /// Who of those that wait is told that a host may be had: the few that would choose it first.
  ///
  /// Were all told of each, a fleet that is being enrolled, or emptied, would have every waiting machine look at all
  /// hosts for each of them.
  package static func invited(_ waiting: [BareMetalMachine], to host: BareMetalHost) -> [ObjectKey] {
    let name = host.metadata.name ?? ""
    let fitting = waiting.filter { machine in
      if let wanted = machine.spec.hostName {
        guard wanted == name else { return false }
      } else if !matches(host, machine.spec.hostSelector?.matchLabels) {
        return false
      }
      return objection(to: host, for: machine) == nil
    }
    guard fitting.count > invitedMax else { return fitting.map(\.key) }
    let weighed = fitting.map { (weight: hash($0.metadata.uid ?? "", name), key: $0.key) }
    return weighed.sorted { ($0.weight, $0.key) > ($1.weight, $1.key) }.prefix(invitedMax).map(\.key)
  }

  private static func matches(_ host: BareMetalHost, _ selector: [String: String]?) -> Bool {
    (selector ?? [:]).allSatisfy { host.metadata.labels?[$0.key] == $0.value }
  }

  /// Why a host will not do, or nil where it will.
  package static func objection(to host: BareMetalHost, for machine: BareMetalMachine) -> String? {
    objection(to: host, tolerations: machine.spec.tolerations)
  }

  /// - Parameter tolerations: Nil leaves taints out of account.
  private static func objection(to host: BareMetalHost, tolerations: [BareMetalMachine.Toleration]? = nil) -> String? {
    if host.metadata.isBeingDeleted { return "is being removed" }
    if let claim = host.status?.claim { return "is held by \(claim.namespace)/\(claim.name)" }
    if host.spec.maintenance { return "is in maintenance" }
    if host.spec.powerCut { return "has no power, as an operator said" }
    if host.spec.drain { return "is being drained" }
    if let leftover = host.status?.leftovers?.first {
      return "may still show the volume \(leftover.volume) of \(leftover.machine)"
    }
    if let tolerations,
      let taint = host.spec.taints.first(where: { taint in !tolerations.contains { tolerates($0, taint) } })
    {
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

  /// The host that `decide` would place the machine on, found without a look at most of the others.
  ///
  /// - Parameter names: Hosts that may be free; which are, `host` says.
  package static func best(
    for machine: BareMetalMachine, among names: [String], host: (String) -> BareMetalHost?
  ) -> BareMetalHost? {
    let uid = machine.metadata.uid ?? ""
    func fitting(_ name: String) -> BareMetalHost? {
      guard let host = host(name), matches(host, machine.spec.hostSelector?.matchLabels),
        objection(to: host, for: machine) == nil
      else { return nil }
      return host
    }
    var ranked = names.map { (weight: hash(uid, $0), name: $0) }
    // Mostly the first one will do.
    guard let first = ranked.max(by: <) else { return nil }
    if let host = fitting(first.name) { return host }
    ranked.sort(by: >)
    for candidate in ranked {
      if let host = fitting(candidate.name) { return host }
    }
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
      candidates = hosts.filter { matches($0, selector) }
      if candidates.isEmpty {
        let text = selector.sorted { $0.key < $1.key }.map { "\($0.key)=\($0.value)" }.joined(separator: ",")
        return .wait(
          reason: "NoHostMatches", message: "no host has the labels of spec.hostSelector.matchLabels (\(text))")
      }
    }
    var best: (weight: UInt64, name: String)?
    for host in candidates {
      // Most hosts of a busy fleet are held; that is seen without making a sentence of it.
      guard host.status?.claim == nil, let name = host.metadata.name, objection(to: host, for: machine) == nil else {
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
    // The first by name, so that the text does not change with the order in which hosts are looked at.
    let named = candidates.sorted { ($0.metadata.name ?? "") < ($1.metadata.name ?? "") }
    let shown = named.prefix(4).compactMap { host in
      objection(to: host, for: machine).map { "\(host.metadata.name ?? "") \($0)" }
    }.joined(separator: "; ")
    let more = candidates.count > 4 ? "; and \(candidates.count - 4) more" : ""
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
