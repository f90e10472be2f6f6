import JSON

/// The manifest of a small machine that boots from a clone of the volume `tiny`.
struct MachineManifest {
  var name: String
  var running = true
  var hostName: String?
  var source = "tiny"
  var size = "256Mi"
  var userData: String? = "#cloud-config\n"

  var json: JSONValue {
    var spec: JSONValue = [
      "running": .bool(running),
      "disks": [
        [
          "name": "root", "bootOrder": 1,
          "template": [
            "size": .string(size), "storageClassName": "ycloud",
            "source": ["persistentVolumeClaim": ["name": .string(source)]],
          ],
        ]
      ],
      "interfaces": [["name": "eth0"]],
    ]
    if let hostName { spec["hostName"] = .string(hostName) }
    if let userData { spec["cloudInit"] = ["userData": .string(userData)] }
    return [
      "apiVersion": "iaas.yusur.io/v1", "kind": "BareMetalMachine", "metadata": ["name": .string(name)], "spec": spec,
    ]
  }
}

extension CloudUnderTest {
  func phase(_ machine: String) async throws -> String? {
    try await object("bmm", machine)?["status"]?["phase"]?.stringValue
  }

  /// The message of a condition, or nil where the machine has none of that type.
  func condition(_ type: String, of machine: String) async throws -> JSONValue? {
    let conditions = try await object("bmm", machine)?["status"]?["conditions"]?.arrayValue
    return conditions?.first { $0["type"]?.stringValue == type }
  }

  /// What a deleted machine must not leave: attachments, claims, boot data, files, functions on the bus.
  func leftovers(of machine: String) async throws -> [String] {
    var left: [String] = []
    for resource in ["bmm", "pvc", "volumeattachment", "pv"] {
      for object in try await objects(resource) {
        let text = object.text
        let name = object["metadata"]?["name"]?.stringValue ?? "?"
        if text.contains("\"\(machine)\"") || text.contains("\(machine)-root") { left.append("\(resource)/\(name)") }
      }
    }
    for host in try await objects("bmh") where host["status"]?["claim"]?["name"]?.stringValue == machine {
      left.append("claim on \(host["metadata"]?["name"]?.stringValue ?? "?")")
    }
    return left
  }
}
