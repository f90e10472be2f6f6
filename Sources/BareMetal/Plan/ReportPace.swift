package import IaaS

/// When bm-handler reports a change of its DPU: at once what somebody acts on; a device more on the bus, and a lease
/// before the first ping, wait a moment for what follows. Pure.
package struct ReportPace: Sendable {
  /// For how long a report may wait.
  package static let patience: Duration = .seconds(2)

  package enum Verdict: Sendable, Hashable {
    case nothing
    case write
    case wait(Duration)
  }

  private var since: Duration?

  package init() {}

  /// - Parameter time: Monotonic, from any beginning.
  package mutating func consider(
    old: BareMetalHost.DPUStatus?, new: BareMetalHost.DPUStatus, at time: Duration
  ) -> Verdict {
    guard new != old else {
      since = nil
      return .nothing
    }
    let begun = since ?? time
    guard let old, time - begun < Self.patience, !Self.isUrgent(from: old, to: new) else {
      since = nil
      return .write
    }
    since = begun
    return .wait(Self.patience - (time - begun))
  }

  private static func isUrgent(from old: BareMetalHost.DPUStatus, to new: BareMetalHost.DPUStatus) -> Bool {
    var same = new
    // A device that goes frees the host for others; one that comes is told to its machine by its attachment.
    if Set(old.slots ?? []).isSubset(of: new.slots ?? []) { same.slots = old.slots }
    if let before = old.interfaces, var after = new.interfaces, before.count == after.count {
      for index in after.indices where before[index].leasedAt == nil {
        after[index].leasedAt = nil
        after[index].address = before[index].address
      }
      same.interfaces = after
    }
    return same != old
  }
}
