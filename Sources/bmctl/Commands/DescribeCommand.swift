import ArgumentParser
import IaaS
package import JSON
import Kubernetes

struct DescribeCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "describe", abstract: "Show everything about a machine, a host or an image, with its events.",
    discussion: "  bmctl describe machine bm-01")

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "machine, host or image; or KIND/NAME.", completion: .list(["machine", "host", "image"]))
  var kind: String

  @Argument(help: "Its name.", completion: Completions.names)
  var name: String?

  func validate() throws { _ = try target() }

  private func target() throws -> (Resource, String) {
    let (kind, name) = Resource.split(kind) ?? (kind, name ?? "")
    guard let resource = Resource(name: kind) else { throw GetCommand.unknown(kind) }
    guard !name.isEmpty else { throw ValidationError("Name the \(resource.rawValue.dropLast()) to describe.") }
    return (resource, name)
  }

  func run() async throws {
    let (resource, name) = try target()
    try await withConnection(connection) { connection in
      let namespace = resource == .hosts ? nil : connection.namespace
      let object = try await connection.client.get(resource.definition, name: name, namespace: namespace).content
      let events = try await events(connection.client, object, resource)
      for line in Description.lines(resource, object, events: events, style: .standardOutput()) { Output.line(line) }
      if resource == .machines, object["status"]?["timeline"] != nil {
        Output.line("\nTimeline:")
        for line in TimelineCommand.lines(of: object).dropFirst(2) { Output.line(line) }
      }
    }
  }

  /// The object's events, oldest first; what an earlier object of the same name did is left out.
  private func events(_ client: KubernetesClient, _ object: JSONValue, _ resource: Resource) async throws -> [JSONValue]
  {
    guard let uid = object["metadata"]?["uid"]?.stringValue else { return [] }
    do {
      let list = try await client.list(
        Event.definition, namespace: object["metadata"]?["namespace"]?.stringValue,
        fieldSelector: "involvedObject.uid=\(uid)", limit: 500)
      return list.items.map(\.content).sorted { Description.eventTime($0) < Description.eventTime($1) }
    } catch let error as KubernetesError where error.code == .forbidden {
      Output.error("The events are not shown: \(error.message)")
      return []
    }
  }
}

/// An object as a page of text.
package enum Description {
  package static func lines(
    _ resource: Resource, _ object: JSONValue, events: [JSONValue], style: Style
  ) -> [String] {
    var fields: [(String, String)] = [("Name", text(object["metadata"]?["name"]))]
    if resource != .hosts { fields.append(("Namespace", text(object["metadata"]?["namespace"]))) }
    fields.append(("Labels", pairs(object["metadata"]?["labels"])))
    fields.append(("Created", text(object["metadata"]?["creationTimestamp"])))
    var sections: [[String]] = []
    switch resource {
    case .machines:
      fields += machine(object, style)
      sections += [disks(object), addresses(object)]
    case .hosts:
      fields += host(object, style)
      sections += [slots(object), guestInterfaces(object)]
    case .images: fields += image(object, style)
    }
    sections.append(conditions(object, style))
    let width = fields.reduce(0) { max($0, TextWidth.columns($1.0)) } + 1
    var lines = fields.map { TextWidth.padded("\($0.0):", to: width) + "  " + $0.1 }
    for section in sections where !section.isEmpty { lines += [""] + section }
    return lines + [""] + self.events(events, style)
  }

  private static func machine(_ object: JSONValue, _ style: Style) -> [(String, String)] {
    let status = object["status"]
    let wanted = object["spec"]?["running"]?.boolValue ?? true
    var fields = [
      ("Phase", style.state(text(ResourceTable.phase(object), none: "not seen yet"))),
      ("Wanted", wanted ? "running" : "stopped"), ("Host", text(status?["host"])),
    ]
    if let message = status?["message"]?.stringValue, !message.isEmpty {
      fields.append(("Message", printable(message)))
    }
    if let boot = status?["boot"]?.int64Value { fields.append(("Boot", "\(boot), since \(text(status?["bootedAt"]))")) }
    return fields
  }

  private static func host(_ object: JSONValue, _ style: Style) -> [(String, String)] {
    let spec = object["spec"]
    let status = object["status"]
    let hardware = status?["hardware"]
    let claim = status?["claim"]
    var fields = [
      ("Phase", style.state(text(ResourceTable.phase(object), none: "not seen yet"))),
      ("Power", "\(style.state(text(status?["power"]))) (read at \(text(status?["powerReadAt"])))"),
      ("Machine", claim.map { "\(text($0["namespace"]))/\(text($0["name"]))" } ?? "none"),
      ("Maintenance", spec?["maintenance"]?.boolValue == true ? "yes" : "no"),
      ("BMC", text(spec?["bmc"]?["address"])), ("DPU", text(spec?["dpu"]?["node"])),
      ("Data plane", text(status?["dpu"]?["version"])),
    ]
    if let taints = spec?["taints"]?.arrayValue, !taints.isEmpty {
      let list = taints.map { taint in
        let value = taint["value"]?.stringValue.map { "=\($0)" } ?? ""
        return printable("\(taint["key"]?.stringValue ?? "?")\(value):\(taint["effect"]?.stringValue ?? "NoSchedule")")
      }
      fields.append(("Taints", list.joined(separator: ", ")))
    }
    if let hardware {
      let name = [hardware["manufacturer"], hardware["model"]].compactMap { $0?.stringValue }.joined(separator: " ")
      let cpu = hardware["cpu"]
      fields += [
        ("Model", name.isEmpty ? "-" : printable(name)), ("Serial", text(hardware["serialNumber"])),
        ("Processor", "\(text(cpu?["model"])), \(text(cpu?["cores"])) cores, \(text(cpu?["architecture"]))"),
        ("Memory", hardware["memoryMiB"]?.int64Value.map { "\($0) MiB" } ?? "-"),
        ("Firmware", "BIOS \(text(hardware["biosVersion"])), BMC \(text(hardware["bmcFirmwareVersion"]))"),
      ]
    }
    return fields
  }

  private static func image(_ object: JSONValue, _ style: Style) -> [(String, String)] {
    let annotations = object["metadata"]?["annotations"]
    return [
      ("Phase", style.state(printable(ResourceTable.imagePhase(object)))),
      ("Message", text(annotations?[ImageNames.uploadMessage])),
      ("Size", text(object["status"]?["capacity"]?["storage"])), ("Volume", text(object["spec"]?["volumeName"])),
      ("Source", text(annotations?[ImageNames.sourceName])), ("SHA-256", text(annotations?[ImageNames.source])),
      ("Shared", annotations?[ImageNames.shared]?.stringValue == "true" ? "yes" : "no"),
    ]
  }

  private static func disks(_ object: JSONValue) -> [String] {
    let volumes = object["status"]?["volumes"]?.arrayValue ?? []
    guard !volumes.isEmpty else { return [] }
    let table = Table(
      [.init("DISK"), .init("CLAIM"), .init("VOLUME"), .init("ATTACHED"), .init("BOOT", right: true)],
      rows: volumes.map {
        [
          text($0["disk"]), text($0["claim"]), text($0["volume"]), $0["attached"]?.boolValue == true ? "yes" : "no",
          text($0["bootOrder"]),
        ]
      })
    return ["Disks:"] + table.lines().map { "  \($0)" }
  }

  private static func addresses(_ object: JSONValue) -> [String] {
    let addresses = object["status"]?["addresses"]?.arrayValue ?? []
    guard !addresses.isEmpty else { return [] }
    let table = Table(
      [.init("INTERFACE"), .init("MAC"), .init("ADDRESS")],
      rows: addresses.map { [text($0["interface"]), text($0["mac"]), text($0["address"])] })
    return ["Interfaces:"] + table.lines().map { "  \($0)" }
  }

  private static func slots(_ object: JSONValue) -> [String] {
    let slots = object["status"]?["dpu"]?["slots"]?.arrayValue ?? []
    guard !slots.isEmpty else { return [] }
    let table = Table(
      [.init("FUNCTION"), .init("KIND"), .init("DEVICE"), .init("STATE")],
      rows: slots.map { [text($0["name"]), text($0["kind"]), text($0["device"]), text($0["state"])] })
    return ["PCIe functions:"] + table.lines().map { "  \($0)" }
  }

  private static func guestInterfaces(_ object: JSONValue) -> [String] {
    let interfaces = object["status"]?["dpu"]?["interfaces"]?.arrayValue ?? []
    guard !interfaces.isEmpty else { return [] }
    let table = Table(
      [.init("INTERFACE"), .init("MAC"), .init("ADDRESS"), .init("REACHABLE")],
      rows: interfaces.map {
        [text($0["name"]), text($0["mac"]), text($0["address"]), $0["reachable"]?.boolValue == true ? "yes" : "no"]
      })
    return ["Guest:"] + table.lines().map { "  \($0)" }
  }

  private static func conditions(_ object: JSONValue, _ style: Style) -> [String] {
    let all =
      (object["status"]?["conditions"]?.arrayValue ?? []) + (object["status"]?["dpu"]?["conditions"]?.arrayValue ?? [])
    guard !all.isEmpty else { return [] }
    let table = Table(
      [.init("CONDITION"), .init("STATUS"), .init("REASON"), .init("MESSAGE")],
      rows: all.map {
        [text($0["type"]), text($0["status"]), text($0["reason"]), text($0["message"], none: "")]
      })
    let lines = table.lines { index, cell in
      guard index == 1 else { return cell }
      return cell == "True" ? style.paint(cell, .green) : style.paint(cell, .yellow)
    }
    return ["Conditions:"] + lines.map { "  \($0)" }
  }

  private static func events(_ events: [JSONValue], _ style: Style) -> [String] {
    guard !events.isEmpty else { return ["Events:  none"] }
    let table = Table(
      [.init("TIME"), .init("TYPE"), .init("REASON"), .init("COUNT", right: true), .init("MESSAGE")],
      rows: events.map {
        [
          eventTime($0), text($0["type"]), text($0["reason"]), text($0["count"] ?? $0["series"]?["count"], none: "1"),
          text($0["message"], none: ""),
        ]
      })
    let lines = table.lines { index, cell in index == 1 && cell == "Warning" ? style.paint(cell, .yellow) : cell }
    return ["Events:"] + lines.map { "  \($0)" }
  }

  /// When an event was last seen, as text that sorts by time.
  package static func eventTime(_ event: JSONValue) -> String {
    for name in ["lastTimestamp", "eventTime", "firstTimestamp"] {
      if let time = event[name]?.stringValue, !time.isEmpty { return String(time.prefix(19)) + "Z" }
    }
    return text(event["metadata"]?["creationTimestamp"])
  }

  private static func pairs(_ value: JSONValue?) -> String {
    let members = value?.objectValue ?? [:]
    if members.isEmpty { return "none" }
    return members.sorted { $0.key < $1.key }.map { printable("\($0.key)=\(text($0.value, none: ""))") }
      .joined(separator: ", ")
  }

  private static func printable(_ text: String) -> String { TextWidth.printable(text) }

  private static func text(_ value: JSONValue?, none: String = "-") -> String {
    printable(ResourceTable.text(value, none: none))
  }
}
