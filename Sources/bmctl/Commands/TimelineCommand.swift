import ArgumentParser
package import IaaS
package import JSON
import Kubernetes

struct TimelineCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "timeline", abstract: "Show where the time of a machine's start went.",
    discussion: """
      The stretches of the first start, from the moment the machine was applied to its first answered ping. This system's
      own share is kept apart from firmware and guest boot.
      """)

  enum Format: String, CaseIterable, ExpressibleByArgument { case json, yaml }

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "The machine.", completion: Completions.machines)
  var name: String

  @Option(name: .shortAndLong, help: "json or yaml: the times as they are in the machine's status.")
  var output: Format?

  func run() async throws {
    try await withConnection(connection) { connection in
      let object = try await connection.client.get(
        BareMetalMachine.definition, name: name, namespace: connection.namespace
      ).content
      if let output {
        let timeline = object["status"]?["timeline"] ?? [:]
        Output.write(output == .json ? DocumentText.json(timeline) + "\n" : DocumentText.yaml(timeline), to: 1)
        return
      }
      for line in Self.lines(of: object) { Output.line(line) }
    }
  }

  static func lines(of object: JSONValue) -> [String] {
    let name = object["metadata"]?["name"]?.stringValue ?? ""
    let status = object["status"]
    let phase = ResourceTable.phase(object)?.stringValue ?? "not seen yet"
    let style = Style.standardOutput()
    var title = "\(style.paint(name, .bold))  \(style.state(phase))"
    if let host = status?["host"]?.stringValue { title += " on \(TextWidth.printable(host))" }
    let underWay = ["Pending", "Provisioning", "Starting"].contains(phase)
    guard
      let chart = TimelineChart(
        BareMetalMachine.Timeline(json: status?["timeline"]), now: underWay ? .now() : nil)
    else {
      return [title, "", "  Nothing happened yet: bm-controller has not seen the machine."]
    }
    var lines = [title, ""] + chart.lines(width: Output.columns(), style: style)
    if !chart.isComplete, let message = status?["message"]?.stringValue, !message.isEmpty {
      lines.append("  \(TextWidth.printable(message))")
    }
    return lines
  }
}

extension BareMetalMachine.Timeline {
  /// The points that can be read; one that cannot is left out rather than hiding the others.
  package init?(json: JSONValue?) {
    guard let json, json.objectValue != nil else { return nil }
    func moment(_ name: String) -> MicroTimestamp? { json[name]?.stringValue.flatMap { MicroTimestamp($0) } }
    self.init()
    applied = moment("applied")
    hostClaimed = moment("hostClaimed")
    volumesReady = moment("volumesReady")
    disksAttached = moment("disksAttached")
    poweredOn = moment("poweredOn")
    leased = moment("leased")
    reachable = moment("reachable")
    ownSeconds = json["ownSeconds"]?.doubleValue
    guestSeconds = json["guestSeconds"]?.doubleValue
    totalSeconds = json["totalSeconds"]?.doubleValue
  }
}
