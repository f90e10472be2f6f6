import ArgumentParser
package import JSON

struct PlanCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "plan", abstract: "Show what bm-controller would do now for a machine.",
    discussion: """
      The steps are those of bm-controller's own planner, made from the objects as they are. Nothing is changed.

        bmctl plan bm-01
        bmctl plan bm-01 --running false     # what stopping it would do
      """)

  enum Format: String, CaseIterable, ExpressibleByArgument { case json, yaml }

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "The machine.", completion: Completions.machines)
  var name: String

  @Option(help: "Plan as if spec.running were true or false.")
  var running: Bool?

  @Option(name: .shortAndLong, help: "json or yaml: the plan as bm-api answers it.")
  var output: Format?

  func run() async throws {
    try await withConnection(connection) { connection in
      let subresources = MachineSubresources(connection: connection)
      guard try await subresources.isServed() else { throw MachineSubresources.missing("plan of \(name)") }
      let query = running.map { [("running", "\($0)")] } ?? []
      let plan = try await subresources.get("plan", name, query: query)
      if let output {
        Output.write(output == .json ? DocumentText.json(plan) + "\n" : DocumentText.yaml(plan), to: 1)
        return
      }
      for line in PlanText.lines(plan, style: Style.standardOutput()) { Output.line(line) }
    }
  }
}

/// A plan as bm-api answers it, for people.
package enum PlanText {
  package static func lines(_ plan: JSONValue, style: Style) -> [String] {
    func texts(_ value: JSONValue?) -> [String] {
      (value?.arrayValue ?? []).compactMap { $0.stringValue ?? $0["description"]?.stringValue }.map(TextWidth.printable)
    }
    let name = TextWidth.printable(plan["metadata"]?["name"]?.stringValue ?? "")
    let phase = TextWidth.printable(plan["phase"]?.stringValue ?? "Pending")
    var lines = ["\(style.paint(name, .bold))  \(style.state(phase))"]
    if let message = plan["message"]?.stringValue, !message.isEmpty {
      lines.append("  \(TextWidth.printable(message))")
    }
    let steps = texts(plan["steps"])
    lines.append(steps.isEmpty ? "Nothing is to be done now." : "To be done now, in any order:")
    lines += steps.map { "  \(style.unicode ? "•" : "*") \($0)" }
    let assumptions = texts(plan["assumptions"])
    if !assumptions.isEmpty {
      lines.append("Provided that:")
      lines += assumptions.map { "  \(style.unicode ? "•" : "*") \($0)" }
    }
    return lines
  }
}
