/// The controllers of all subsystems. Their numbers are a subsystem's own (NVMe Base 1.4, section 7.1).
struct NVMfControllers {
  /// Those that a subsystem may give (NVMe-oF 1.1, section 4.2: the rest is reserved).
  static let allIDs: ClosedRange<UInt16> = 1...0xFFEF

  private struct OfSubsystem {
    var present: [UInt16: NVMfController] = [:]
    var last: UInt16?
  }

  private var subsystems: [String: OfSubsystem] = [:]

  var all: [NVMfController] { subsystems.values.flatMap(\.present.values) }

  subscript(nqn: String, id: UInt16) -> NVMfController? {
    get { subsystems[nqn]?.present[id] }
    set {
      guard newValue == nil else { return subsystems[nqn, default: OfSubsystem()].present[id] = newValue }
      subsystems[nqn]?.present[id] = nil
      removeIfEmpty(nqn)
    }
  }

  /// A number of the range that no controller of the subsystem has; those that were given last come last again. Nil
  /// where all are taken.
  mutating func takeFreeID(of nqn: String, in range: ClosedRange<UInt16>) -> UInt16? {
    let id = NVMfControllers.freeID(in: range, after: subsystems[nqn]?.last) { subsystems[nqn]?.present[$0] != nil }
    if let id { subsystems[nqn, default: OfSubsystem()].last = id }
    return id
  }

  /// The first free number behind `last`, going round at the end of the range.
  static func freeID(in range: ClosedRange<UInt16>, after last: UInt16?, isTaken: (UInt16) -> Bool) -> UInt16? {
    var id = last.flatMap { range.contains($0) ? $0 : nil } ?? range.upperBound
    for _ in range {
      id = id == range.upperBound ? range.lowerBound : id + 1
      if !isTaken(id) { return id }
    }
    return nil
  }

  /// The subsystem is no more: what was given last counts for nothing.
  mutating func forgetLast(of nqn: String) {
    subsystems[nqn]?.last = nil
    removeIfEmpty(nqn)
  }

  private mutating func removeIfEmpty(_ nqn: String) {
    if let entry = subsystems[nqn], entry.present.isEmpty, entry.last == nil { subsystems[nqn] = nil }
  }
}
