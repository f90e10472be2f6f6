import ArgumentParser
import IaaS
package import JSON
import Kubernetes

struct TreeCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "tree", abstract: "Show a machine with its disks, volumes, attachments, host and DPU.",
    discussion: "What you may not look at is left out, and told at the end.")

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "The machine.", completion: Completions.machines)
  var name: String

  func run() async throws {
    try await withConnection(connection) { connection in
      let client = connection.client
      let machine = try await client.get(
        BareMetalMachine.definition, name: name, namespace: connection.namespace
      ).content
      var parts = MachineTree(machine: machine)
      func read(_ definition: ResourceDefinition, _ name: String, in namespace: String? = nil) async throws
        -> JSONValue?
      {
        do {
          return try await client.get(definition, name: name, namespace: namespace).content
        } catch let error as KubernetesError {
          switch error.code {
          case .notFound: return nil
          case .forbidden:
            parts.hidden.insert(definition.plural)
            return nil
          default: throw error
          }
        }
      }
      for volume in machine["status"]?["volumes"]?.arrayValue ?? [] {
        guard let claim = volume["claim"]?.stringValue else { continue }
        parts.claims[claim] = try await read(PersistentVolumeClaim.definition, claim, in: connection.namespace)
        guard let name = volume["volume"]?.stringValue, !name.isEmpty else { continue }
        let persistent = try await read(PersistentVolume.definition, name)
        let handle = persistent?["spec"]?["csi"]?["volumeHandle"]?.stringValue ?? name
        let uid = machine["metadata"]?["uid"]?.stringValue ?? ""
        let attachment = Names.attachment(volume: handle, machineUID: uid)
        parts.attachments[name] = try await read(VolumeAttachment.definition, attachment)
      }
      if let host = machine["status"]?["host"]?.stringValue, !host.isEmpty {
        parts.host = try await read(BareMetalHost.definition, host)
      }
      for line in parts.lines(style: Style.standardOutput()) { Output.line(line) }
    }
  }
}

/// A machine and what belongs to it, as far as it could be read.
package struct MachineTree: Sendable {
  package var machine: JSONValue
  package var claims: [String: JSONValue] = [:]
  /// By the volume's name.
  package var attachments: [String: JSONValue] = [:]
  package var host: JSONValue?
  /// The kinds that the user may not look at.
  package var hidden: Set<String> = []

  package init(machine: JSONValue) { self.machine = machine }

  private struct Node {
    var text: String
    var children: [Node] = []
  }

  package func lines(style: Style) -> [String] {
    var lines: [String] = []
    let root = root(style)
    lines.append(root.text)
    draw(root.children, indent: "", style, into: &lines)
    if !hidden.isEmpty {
      lines.append("")
      lines.append("Not shown, as you may not look at them: \(hidden.sorted().joined(separator: ", "))")
    }
    return lines
  }

  private func draw(_ nodes: [Node], indent: String, _ style: Style, into lines: inout [String]) {
    for (index, node) in nodes.enumerated() {
      let isLast = index == nodes.count - 1
      let branch = style.unicode ? (isLast ? "└─ " : "├─ ") : (isLast ? "`- " : "|- ")
      let below = isLast ? "   " : style.unicode ? "│  " : "|  "
      lines.append(indent + branch + node.text)
      draw(node.children, indent: indent + below, style, into: &lines)
    }
  }

  private func text(_ value: JSONValue?) -> String { TextWidth.printable(ResourceTable.text(value)) }

  private func root(_ style: Style) -> Node {
    let phase = text(ResourceTable.phase(machine) ?? "not seen yet")
    var root = Node(
      text: "machine \(style.paint(text(machine["metadata"]?["name"]), .bold))  \(style.state(phase))")
    for volume in machine["status"]?["volumes"]?.arrayValue ?? [] { root.children.append(disk(volume, style)) }
    for address in machine["status"]?["addresses"]?.arrayValue ?? [] {
      let mac = text(address["mac"])
      root.children.append(Node(text: "interface \(text(address["interface"]))  \(mac)  \(text(address["address"]))"))
    }
    if let name = machine["status"]?["host"]?.stringValue, !name.isEmpty {
      root.children.append(server(TextWidth.printable(name), style))
    }
    return root
  }

  private func disk(_ volume: JSONValue, _ style: Style) -> Node {
    var node = Node(text: "disk \(text(volume["disk"]))")
    let claimName = text(volume["claim"])
    let claim = claims[claimName]
    let size = text(claim?["status"]?["capacity"]?["storage"])
    let phase = claim.map { text($0["status"]?["phase"]) } ?? "?"
    var claimNode = Node(text: "claim \(claimName)  \(size)  \(style.state(phase))")
    if let name = volume["volume"]?.stringValue, !name.isEmpty {
      var volumeNode = Node(text: "volume \(TextWidth.printable(name))")
      if let attachment = attachments[name] {
        let isAttached = attachment["status"]?["attached"]?.boolValue == true
        let host = text(attachment["metadata"]?["labels"]?[Names.hostLabel])
        volumeNode.children.append(
          Node(
            text:
              "attachment \(text(attachment["metadata"]?["name"]))  \(isAttached ? "attached" : "not attached") to \(host)"
          ))
      }
      claimNode.children.append(volumeNode)
    }
    node.children.append(claimNode)
    return node
  }

  private func server(_ name: String, _ style: Style) -> Node {
    guard let host else { return Node(text: "host \(name)") }
    let status = host["status"]
    var node = Node(
      text: "host \(name)  \(style.state(text(status?["phase"])))  power \(style.state(text(status?["power"])))")
    let dpu = status?["dpu"]
    let isReady = dpu?["ready"]?.boolValue == true
    var dpuNode = Node(
      text: "dpu \(text(host["spec"]?["dpu"]?["node"]))  \(isReady ? style.paint("ready", .green) : "not ready")"
        + (dpu?["version"]?.stringValue.map { "  \(TextWidth.printable($0))" } ?? ""))
    for slot in dpu?["slots"]?.arrayValue ?? [] {
      dpuNode.children.append(
        Node(text: "slot \(text(slot["name"]))  \(text(slot["kind"]))  \(text(slot["state"]))"))
    }
    node.children.append(dpuNode)
    return node
  }
}
