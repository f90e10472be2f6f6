import IaaS
import Kubernetes

/// What is to be said of one side of a host; nil where there is nothing.
struct HostFinding {
  var type: String
  var says: (holds: Bool, reason: String, message: String)?
}

/// What differs between a host and what is known or was said of it: functions that nobody asked for, an operator's word
/// against what is read. Forgets leftovers that the DPU has shown to be gone.
func findings(_ view: HostView, status: inout BareMetalHost.Status) -> [HostFinding] {
  typealias Kind = BareMetalHost.ConditionType
  let host = view.host
  let name = host.key.name

  // Only a handler that is alive and says so itself proves that its DPU does not show them any more.
  if let leftovers = status.leftovers, !host.spec.powerCut, view.handlerAlive == true, status.dpu?.ready == true {
    let shown = Set(status.dpu?.slots?.compactMap(\.volume) ?? [])
    let left = leftovers.filter { shown.contains($0.volume) }
    status.leftovers = left.isEmpty ? nil : left
  }

  var drift = HostFinding(type: Kind.noDrift)
  let strange = (status.dpu?.slots ?? []).filter { $0.kind == .disk && !HandlerPlan.isOwn(function: $0.name) }
  if !strange.isEmpty {
    let names = strange.prefix(4).map { "'\($0.name)'" }.joined(separator: ", ")
    let more = strange.count > 4 ? " and \(strange.count - 4) more" : ""
    drift.says = (
      false, "StrangeFunction",
      "the server sees \(names)\(more), which nobody asked for: the host takes no new machine until it is gone. Find out "
        + "who made it, and remove it in the data plane of \(host.spec.dpu.node)"
    )
  }

  var cut = HostFinding(type: Kind.powerCut)
  if host.spec.powerCut {
    if view.power.power != .off, view.power.power != .unknown {
      cut.says = (
        false, "Contradicted",
        "spec.powerCut says that \(name) has no power, but its BMC reads \(view.power.power.rawValue); the word does not "
          + "count. Cut the power, or set spec.powerCut to false"
      )
    } else if view.handlerAlive == true {
      cut.says = (
        false, "DPUAlive",
        "spec.powerCut says that \(name) has no power, but its DPU gives signs of life: what it shows is asked of it"
      )
    } else {
      cut.says = (true, "Stated", "an operator says that neither the server nor its DPU has power")
    }
  }
  var account = HostFinding(type: Kind.credentials)
  if let problem = view.credentialsProblem { account.says = (false, "NewAccountRefused", problem) }
  return [drift, cut, account]
}
