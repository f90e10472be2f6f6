import IaaS
import Yams

/// What cloud-init is told, and what of it can be checked beforehand.
package enum CloudInit {
  /// The largest user data, in bytes. It must fit into the secret together with the rest, and into the seed disk.
  package static let userDataBytesMax = 512 * 1024

  /// What is wrong with user data, or nil where nothing is.
  package static func problem(userData: String) -> String? {
    guard userData.utf8.count <= userDataBytesMax else {
      return "it has \(userData.utf8.count) bytes, the limit is \(userDataBytesMax); load large files from the network"
    }
    let firstLine = userData.prefix { $0 != "\n" && $0 != "\r\n" }
    let trimmed = firstLine.trimmingSpaces()
    if userData.isEmpty { return nil }
    if trimmed == "#cloud-config" { return yamlProblem(userData, expectMapping: true) }
    if trimmed == "#cloud-config-archive" { return yamlProblem(userData, expectMapping: false) }
    let known = [
      "#!", "## template: jinja", "#include", "#cloud-boothook", "#part-handler", "Content-Type:", "MIME-Version:",
    ]
    if known.contains(where: { trimmed.lowercased().hasPrefix($0.lowercased()) }) { return nil }
    return "its first line is none that cloud-init knows; start it with '#cloud-config', '#!' and an interpreter, "
      + "'#include', '#cloud-boothook', '#part-handler', '## template: jinja' or a MIME header"
  }

  /// What is wrong with network configuration, or nil where nothing is.
  package static func problem(networkData: String) -> String? {
    if let problem = yamlProblem(networkData, expectMapping: true) { return problem }
    guard let node = try? Yams.compose(yaml: networkData) else { return nil }
    let version = node["version"] ?? node["network"]?["version"]
    guard let number = version?.int, number == 1 || number == 2 else {
      return "it has no 'version: 1' or 'version: 2'"
    }
    return nil
  }

  private static func yamlProblem(_ text: String, expectMapping: Bool) -> String? {
    do {
      guard let node = try Yams.compose(yaml: text) else { return nil }
      if case .scalar(let scalar) = node, scalar.string.isEmpty { return nil }
      if expectMapping, node.mapping == nil { return "it is YAML, but not a mapping of keys to values" }
      if !expectMapping, node.sequence == nil { return "it is YAML, but not a list" }
      return nil
    } catch {
      // The parser's message quotes the text, which may hold a password: only the place is told.
      if let error = error as? YamlError, let mark = error.mark {
        return "it is not YAML: line \(mark.line), column \(mark.column) cannot be parsed"
      }
      return "it is not YAML"
    }
  }

  /// The instance's data; a new instance-id makes cloud-init take the machine for a new one.
  package static func metaData(machineUID: String, name: String) -> String {
    "instance-id: \(quoted(machineUID))\nlocal-hostname: \(quoted(name))\n"
  }

  /// A YAML scalar that is a text whatever it looks like: `007`, `null` and `on` are names, too.
  private static func quoted(_ text: String) -> String {
    "\"\(text.replacing("\\", with: "\\\\").replacing("\"", with: "\\\""))\""
  }

  /// Network configuration, version 2: every interface is found by its MAC address and uses DHCP.
  package static func networkConfig(interfaces: [GuestInterface]) -> String {
    guard !interfaces.isEmpty else { return "version: 2\nethernets: {}\n" }
    var text = "version: 2\nethernets:\n"
    for interface in interfaces {
      let name = quoted(interface.name)
      text += "  \(name):\n    match:\n      macaddress: \(quoted(interface.mac))\n"
      text += "    set-name: \(name)\n    dhcp4: true\n"
    }
    return text
  }
}

extension YamlError {
  fileprivate var mark: Mark? {
    switch self {
    case .scanner(_, _, let mark, _), .parser(_, _, let mark, _), .composer(_, _, let mark, _): mark
    default: nil
    }
  }
}

extension StringProtocol {
  func trimmingSpaces() -> String {
    var text = Substring(self)
    while let last = text.last, last == " " || last == "\t" || last == "\r" { text.removeLast() }
    return String(text)
  }
}
