import ArgumentParser
import IaaS
package import JSON
import Kubernetes

struct EventsCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "events", abstract: "Show what happened to machines.",
    discussion: """
        bmctl events
        bmctl events bm-01 --watch
      """)

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "Only those of this machine.", completion: Completions.machines)
  var name: String?

  @Flag(name: .shortAndLong, help: "Go on with what happens from now on.")
  var watch = false

  func run() async throws {
    try await withConnection(connection) { connection in
      var selector = "involvedObject.kind=\(BareMetalMachine.definition.kind)"
      if let name { selector += ",involvedObject.name=\(name)" }
      let list = try await connection.client.listAll(
        Event.definition, namespace: connection.namespace, fieldSelector: selector)
      let rows = EventText.sorted(list.items.map(\.content))
      if rows.isEmpty, !watch { Output.error("no events; the API server keeps them for an hour by default") }
      let style = Style.standardOutput()
      for row in rows { Output.line(EventText.line(row, style: style)) }
      guard watch else { return }
      var version = list.resourceVersion
      while true {
        // The server ends a watch every few minutes.
        let stream = connection.client.watch(
          Event.definition, namespace: connection.namespace, fieldSelector: selector, resourceVersion: version)
        for try await event in stream {
          switch event {
          case .added(let object), .modified(let object):
            version = object.resourceVersion ?? version
            Output.line(EventText.line(object.content, style: style))
          case .bookmark(let next): version = next
          case .deleted: break
          case .error(let error): throw error
          }
        }
      }
    }
  }
}

/// Events for people.
package enum EventText {
  package static func moment(_ event: JSONValue) -> String {
    let times = [
      event["series"]?["lastObservedTime"], event["lastTimestamp"], event["eventTime"], event["firstTimestamp"],
    ]
    let text = times.lazy.compactMap { $0?.stringValue }.first { !$0.isEmpty }
    return text ?? event["metadata"]?["creationTimestamp"]?.stringValue ?? ""
  }

  package static func sorted(_ events: [JSONValue]) -> [JSONValue] {
    events.map { (moment: MicroTimestamp(moment($0))?.microseconds ?? 0, event: $0) }
      .sorted { $0.moment < $1.moment }.map(\.event)
  }

  package static func line(_ event: JSONValue, style: Style) -> String {
    let type = event["type"]?.stringValue ?? "Normal"
    let name = TextWidth.printable(event["involvedObject"]?["name"]?.stringValue ?? "")
    let reason = TextWidth.printable(event["reason"]?.stringValue ?? "")
    let count = event["count"]?.int64Value ?? event["series"]?["count"]?.int64Value ?? 1
    let message = TextWidth.printable(event["message"]?.stringValue ?? "")
    let color: Style.Color = type == "Warning" ? .yellow : .green
    return "\(TextWidth.printable(moment(event)))  \(TextWidth.padded(name, to: 12))  "
      + "\(style.paint(TextWidth.padded(reason, to: 20), color))  \(message)\(count > 1 ? " (\(count) times)" : "")"
  }
}
