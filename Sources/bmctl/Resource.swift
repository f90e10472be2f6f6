import ArgumentParser
import IaaS
package import JSON
import Kubernetes

/// The kinds of objects that `get` and `describe` show, under the names that people use.
package enum Resource: String, Sendable, Hashable, CaseIterable {
  case machines
  case hosts
  case images

  /// Accepts plural, singular, short and full names, as kubectl does.
  package init?(name: String) {
    switch name.lowercased() {
    case "machine", "machines", "bmm", "baremetalmachine", "baremetalmachines", "baremetalmachines.iaas.yusur.io",
      "baremetalmachine.iaas.yusur.io":
      self = .machines
    case "host", "hosts", "bmh", "baremetalhost", "baremetalhosts", "baremetalhosts.iaas.yusur.io",
      "baremetalhost.iaas.yusur.io":
      self = .hosts
    case "image", "images": self = .images
    default: return nil
    }
  }

  /// Splits `machine/bm-01`, as `-o name` prints it.
  package static func split(_ argument: String) -> (resource: String, name: String)? {
    let parts = argument.split(separator: "/", maxSplits: 1, omittingEmptySubsequences: false)
    guard parts.count == 2, !parts[0].isEmpty, !parts[1].isEmpty else { return nil }
    return (String(parts[0]), String(parts[1]))
  }

  var definition: ResourceDefinition {
    switch self {
    case .machines: BareMetalMachine.definition
    case .hosts: BareMetalHost.definition
    case .images: PersistentVolumeClaim.definition
    }
  }

  /// What `-o name` puts before the slash.
  var qualifiedName: String {
    let kind = definition.kind.lowercased()
    return definition.group.isEmpty ? kind : "\(kind).\(definition.group)"
  }

  /// Images are the claims that were made by `image import`.
  var labelSelector: String? { self == .images ? ImageNames.label : nil }
}

/// Labels and annotations of imported images.
enum ImageNames {
  /// On every claim that holds an image.
  static let label = "iaas.yusur.io/image"
  /// The digest of the file that the image came from.
  static let source = "iaas.yusur.io/image-source-sha256"
  static let sourceName = "iaas.yusur.io/image-source"
  static let upload = "csi.ycloud.yusur.io/upload"
  static let uploadTokenDigest = "csi.ycloud.yusur.io/upload-token-sha256"
  static let uploadChecksum = "csi.ycloud.yusur.io/upload-checksum"
  static let uploadPhase = "csi.ycloud.yusur.io/upload-phase"
  static let uploadMessage = "csi.ycloud.yusur.io/upload-message"
  static let provisioningMessage = "csi.ycloud.yusur.io/provisioning-message"
  /// Lets other namespaces clone it.
  static let shared = "csi.ycloud.yusur.io/shared"
}

/// The rows of `get`. They are made from JSON rather than from typed objects, so that an object with a field that is
/// newer or older than this program is shown all the same.
package enum ResourceTable {
  /// - Parameters:
  ///   - namespaces: Whether a first column tells the namespace.
  ///   - now: Seconds since 1970.
  package static func table(
    _ resource: Resource, _ objects: [JSONValue], wide: Bool, namespaces: Bool, now: Double
  ) -> Table {
    var columns = columns(resource, wide: wide)
    let withNamespace = namespaces && resource != .hosts
    if withNamespace { columns.insert(.init("NAMESPACE"), at: 0) }
    return Table(
      columns,
      rows: objects.map { object in
        let cells = cells(resource, object, wide: wide, now: now)
        return withNamespace ? [text(object["metadata"]?["namespace"])] + cells : cells
      })
  }

  /// Room for usual content, in the order of the columns.
  package static func usualWidths(_ resource: Resource) -> [Int] {
    switch resource {
    case .machines: [12, 12, 10, 15, 6, 6, 5]
    case .hosts: [12, 11, 11, 20, 9, 5]
    case .images: [16, 6, 9, 5]
    }
  }

  private static func columns(_ resource: Resource, wide: Bool) -> [Table.Column] {
    switch resource {
    case .machines:
      var columns: [Table.Column] = [
        .init("NAME"), .init("PHASE"), .init("HOST"), .init("ADDRESS"), .init("OWN", right: true),
        .init("TOTAL", right: true), .init("AGE", right: true),
      ]
      if wide { columns += [.init("MESSAGE")] }
      return columns
    case .hosts:
      var columns: [Table.Column] = [
        .init("NAME"), .init("PHASE"), .init("POWER"), .init("MACHINE"), .init("DPU"), .init("AGE", right: true),
      ]
      if wide {
        columns += [
          .init("BMC"), .init("MODEL"), .init("CORES", right: true), .init("MEMORY", right: true), .init("MESSAGE"),
        ]
      }
      return columns
    case .images:
      var columns: [Table.Column] = [
        .init("NAME"), .init("SIZE", right: true), .init("PHASE"), .init("AGE", right: true),
      ]
      if wide { columns += [.init("VOLUME"), .init("SOURCE")] }
      return columns
    }
  }

  private static func cells(_ resource: Resource, _ object: JSONValue, wide: Bool, now: Double) -> [String] {
    let name = text(object["metadata"]?["name"])
    let age = age(object, now: now)
    let status = object["status"]
    switch resource {
    case .machines:
      let timeline = status?["timeline"]
      let addresses = status?["addresses"]?.arrayValue ?? []
      let address = addresses.lazy.compactMap { $0["address"]?.stringValue }.first
      let cells = [
        name, text(phase(object)), text(status?["host"]), address ?? "-", seconds(timeline?["ownSeconds"]),
        seconds(timeline?["totalSeconds"]), age,
      ]
      return wide ? cells + [text(status?["message"], none: "")] : cells
    case .hosts:
      let claim = status?["claim"]
      let machine = claim.flatMap { claim in claim["name"]?.stringValue.map { "\(text(claim["namespace"]))/\($0)" } }
      let ready = status?["dpu"]?["ready"]?.boolValue
      let cells = [
        name, text(phase(object)), text(status?["power"]), machine ?? "-",
        ready.map { $0 ? "ready" : "not ready" } ?? "-", age,
      ]
      guard wide else { return cells }
      let hardware = status?["hardware"]
      let memory = hardware?["memoryMiB"]?.int64Value.map { DurationText.bytes($0.multipliedOrMax(by: 1 << 20)) }
      let trouble = status?["conditions"]?.arrayValue?.first { $0["status"]?.stringValue == "False" }
      return cells + [
        text(object["spec"]?["bmc"]?["address"]), text(hardware?["model"]),
        hardware?["cpu"]?["cores"]?.intValue.map(String.init) ?? "-", memory ?? "-",
        text(trouble?["message"], none: ""),
      ]
    case .images:
      let annotations = object["metadata"]?["annotations"]
      let capacity = status?["capacity"]?["storage"] ?? object["spec"]?["resources"]?["requests"]?["storage"]
      let cells = [name, text(capacity), imagePhase(object), age]
      return wide ? cells + [text(object["spec"]?["volumeName"]), text(annotations?[ImageNames.sourceName])] : cells
    }
  }

  /// An object that is being deleted says so, whatever its status says.
  package static func phase(_ object: JSONValue) -> JSONValue? {
    if object["metadata"]?["deletionTimestamp"]?.stringValue != nil { return "Deleting" }
    return object["status"]?["phase"]
  }

  static func imagePhase(_ object: JSONValue) -> String {
    if object["metadata"]?["deletionTimestamp"]?.stringValue != nil { return "Deleting" }
    if let phase = object["metadata"]?["annotations"]?[ImageNames.uploadPhase]?.stringValue { return phase }
    return text(object["status"]?["phase"])
  }

  static func text(_ value: JSONValue?, none: String = "-") -> String {
    switch value {
    case nil, .null: none
    case .string(let text): text.isEmpty ? none : text
    case .some(let other): other.text
    }
  }

  private static func seconds(_ value: JSONValue?) -> String {
    value?.doubleValue.map { DurationText.fixed($0, digits: $0 < 10 ? 2 : 1) + "s" } ?? "-"
  }

  private static func age(_ object: JSONValue, now: Double) -> String {
    guard let created = object["metadata"]?["creationTimestamp"]?.stringValue, let moment = MicroTimestamp(created)
    else { return "<unknown>" }
    return DurationText.age(seconds: now - Double(moment.microseconds) / 1_000_000)
  }
}

extension Int64 {
  fileprivate func multipliedOrMax(by factor: Int64) -> Int64 {
    let (product, overflow) = multipliedReportingOverflow(by: factor)
    return overflow ? .max : product
  }
}
