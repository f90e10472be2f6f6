package import JSON
import Kubernetes

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// A fleet at a glance: what `bmctl top` shows, made of the objects as the API server has them.
package struct FleetSummary: Sendable, Hashable {
  package struct Share: Sendable, Hashable {
    package var name: String
    package var count: Int
  }

  /// A machine that is longer in a phase than it should be, or a host with trouble, or a warning.
  package struct Note: Sendable, Hashable {
    /// `host/NAME`, or `NAMESPACE/NAME` of a machine.
    package var subject: String
    package var word: String
    package var message: String
    /// For how long, or since when, in seconds.
    package var age: Double
  }

  /// Nil where hosts may not be listed.
  package var hosts: [Share]?
  package var power: [Share] = []
  package var machines: [Share] = []
  /// Seconds from apply to power on of the machines that have started, in rising order.
  package var ownSeconds: [Double] = []
  package var totalSeconds: [Double] = []
  package var late: [Note] = []
  package var trouble: [Note] = []
  package var warnings: [Note] = []

  package static let hostPhases = ["Available", "Claimed", "Registering", "Maintenance", "Error"]
  package static let machinePhases = [
    "Running", "Starting", "Provisioning", "Pending", "Stopping", "Stopped", "Deleting",
  ]

  /// Seconds that a machine may be in a phase before somebody should look.
  package static let limits: [String: Double] = [
    "Pending": 120, "Provisioning": 60, "Starting": 600, "Stopping": 180, "Deleting": 180,
  ]

  /// - Parameters:
  ///   - hosts: Nil where they may not be listed.
  ///   - events: Of any kind; those about hosts and machines that are warnings of the last hour are taken.
  ///   - now: Seconds since 1970.
  package init(hosts: [JSONValue]?, machines: [JSONValue], events: [JSONValue], now: Double) {
    self.hosts = hosts.map { hosts in
      Self.shares(hosts.map { $0["status"]?["phase"]?.stringValue ?? "Registering" }, order: Self.hostPhases)
    }
    power = Self.shares(
      (hosts ?? []).map { $0["status"]?["power"]?.stringValue ?? "Unknown" },
      order: ["On", "Off", "PoweringOn", "PoweringOff", "Unknown"])
    self.machines = Self.shares(
      machines.map { $0["status"]?["phase"]?.stringValue ?? "Pending" }, order: Self.machinePhases)
    let timelines = machines.compactMap { $0["status"]?["timeline"] }
    ownSeconds = timelines.compactMap { $0["ownSeconds"]?.doubleValue }.sorted()
    totalSeconds = timelines.compactMap { $0["totalSeconds"]?.doubleValue }.sorted()
    late = machines.compactMap { Self.lateness(of: $0, now: now) }.sorted { $0.age > $1.age }
    trouble = (hosts ?? []).compactMap { Self.trouble(of: $0, now: now) }.sorted { $0.age < $1.age }
    warnings = events.compactMap { Self.warning($0, now: now) }.sorted { $0.age < $1.age }
  }

  /// Known names in their order, then others by name. Those of which there is none are left out.
  private static func shares(_ values: [String], order: [String]) -> [Share] {
    var counts: [String: Int] = [:]
    for value in values { counts[value, default: 0] += 1 }
    let others = counts.keys.filter { !order.contains($0) }.sorted()
    return (order + others).compactMap { name in counts[name].map { Share(name: name, count: $0) } }
  }

  /// The value below which this share of sorted values is.
  package static func quantile(_ share: Double, of sorted: [Double]) -> Double? {
    guard !sorted.isEmpty else { return nil }
    return sorted[min(sorted.count - 1, max(0, Int((share * Double(sorted.count)).rounded(.up)) - 1))]
  }

  private static func seconds(_ value: JSONValue?) -> Double? {
    value?.stringValue.flatMap { Timestamp($0) }.map { $0.date.timeIntervalSince1970 }
  }

  private static func condition(_ type: String, of object: JSONValue) -> JSONValue? {
    object["status"]?["conditions"]?.arrayValue?.first { $0["type"]?.stringValue == type }
  }

  private static func lateness(of machine: JSONValue, now: Double) -> Note? {
    let phase = machine["status"]?["phase"]?.stringValue ?? "Pending"
    guard let limit = limits[phase] else { return nil }
    let metadata = machine["metadata"]
    // The phase has no time of its own; what made the machine leave the former one has.
    let ready = condition("Ready", of: machine)
    let since =
      seconds(metadata?["deletionTimestamp"])
      ?? (ready?["status"]?.stringValue == "False"
        ? seconds(ready?["lastTransitionTime"]) : nil) ?? seconds(metadata?["creationTimestamp"])
    guard let since, now - since > limit else { return nil }
    return Note(
      subject: name(metadata), word: phase, message: machine["status"]?["message"]?.stringValue ?? "", age: now - since)
  }

  private static func trouble(of host: JSONValue, now: Double) -> Note? {
    let phase = host["status"]?["phase"]?.stringValue
    guard let ready = condition("Ready", of: host), ready["status"]?.stringValue == "False", phase != "Registering"
    else { return nil }
    return Note(
      subject: "host/" + (host["metadata"]?["name"]?.stringValue ?? "?"), word: ready["reason"]?.stringValue ?? "",
      message: ready["message"]?.stringValue ?? "", age: now - (seconds(ready["lastTransitionTime"]) ?? now))
  }

  private static func warning(_ event: JSONValue, now: Double) -> Note? {
    let object = event["involvedObject"]
    guard event["type"]?.stringValue == "Warning", let kind = object?["kind"]?.stringValue,
      kind == "BareMetalHost" || kind == "BareMetalMachine",
      let last = seconds(event["lastTimestamp"]) ?? seconds(event["firstTimestamp"]), now - last < 3600
    else { return nil }
    return Note(
      subject: kind == "BareMetalHost" ? "host/" + (object?["name"]?.stringValue ?? "?") : name(object),
      word: event["reason"]?.stringValue ?? "", message: event["message"]?.stringValue ?? "", age: now - last)
  }

  private static func name(_ metadata: JSONValue?) -> String {
    let name = metadata?["name"]?.stringValue ?? "?"
    return metadata?["namespace"]?.stringValue.map { "\($0)/\(name)" } ?? name
  }
}
