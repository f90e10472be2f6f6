package import JSON

/// The body of a PUT: everything in it may be left out, and nothing else may be in it.
package struct VerbOptions: Sendable, Hashable {
  /// Everything is checked, and nothing changed.
  package var isDryRun = false
  /// Only this incarnation of the machine.
  package var uid: String?
  /// Only this version of the machine.
  package var resourceVersion: String?
  /// Restarts: a request with the same id as the last one is the same request. migrate: as any former one.
  package var requestID: String?
  /// adddisk: the element of spec.disks.
  package var disk: JSONValue?
  /// removedisk: the disk's name.
  package var name: String?

  /// migrate: the host to move to.
  package var targetHost: String?
  /// migrate: labels that the host must have.
  package var hostLabels: [String: String] = [:]
  /// migrate: how long the guest gets to shut down.
  package var graceSeconds: Int?

  package init() {}

  package static let bodyMax = 64 << 10

  /// - Throws: `APIFailure` 400, which names the field.
  package init(_ verb: MachineVerb, request: APIRequest) throws(APIFailure) {
    if let value = try request.parameter("dryRun") {
      guard value == "All" else {
        throw .badRequest("the parameter dryRun is '\(value.prefix(16))'; it can only be All", field: "dryRun")
      }
      isDryRun = true
    }
    let bytes = request.body.drop { [0x20, 0x09, 0x0A, 0x0D].contains($0) }
    if !bytes.isEmpty {
      if let type = request.header("content-type")?.lowercased(), !type.hasPrefix("application/json"), type != "*/*" {
        throw APIFailure(415, "UnsupportedMediaType", "the body is '\(type.prefix(64))'; it must be application/json")
      }
      try read(verb, bytes)
    }
    if verb == .adddisk, disk == nil {
      throw .badRequest("disk is missing: give the element of spec.disks that is to be added", field: "disk")
    }
    if verb == .removedisk, name == nil { throw .badRequest("name is missing: name the disk to remove", field: "name") }
    if targetHost != nil, !hostLabels.isEmpty {
      throw .badRequest("targetHost and hostSelector exclude each other", field: "hostSelector")
    }
  }

  private mutating func read(_ verb: MachineVerb, _ bytes: some Collection<UInt8>) throws(APIFailure) {
    let value: JSONValue
    do {
      value = try JSONValue.parse(bytes)
    } catch {
      throw .badRequest("the body is no JSON: \(error)")
    }
    guard case .object(let members) = value else { throw .badRequest("the body is no JSON object") }
    for (field, value) in members.sorted(by: { $0.key < $1.key }) {
      switch field {
      case "apiVersion":
        try expect(field, value, APIGroup.groupVersion)
      case "kind":
        try expect(field, value, verb.kind)
      case "metadata" where value == [:] || value.isNull: break
      case "dryRun":
        guard value == ["All"] || value == [] else { throw .badRequest("dryRun can only be [\"All\"]", field: field) }
        isDryRun = isDryRun || value == ["All"]
      case "preconditions":
        try readPreconditions(value)
      case "requestID" where [.restart, .reset, .softreboot, .migrate].contains(verb):
        let text = try text(field, value)
        guard text.utf8.count <= 64, ObjectName.isSubdomain(Substring(text)) else {
          throw .badRequest("requestID must be 1 to 64 of a-z, 0-9, '-' and '.', such as a UUID", field: field)
        }
        requestID = text
      case "disk" where verb == .adddisk:
        guard case .object = value, let name = value["name"]?.stringValue, ObjectName.isLabel(Substring(name)) else {
          throw .badRequest("disk must be an object with a name, as in spec.disks", field: "disk.name")
        }
        disk = value
      case "name" where verb == .removedisk:
        name = try text(field, value)
      case "targetHost" where verb == .migrate:
        let text = try text(field, value)
        guard text.utf8.count <= 50, ObjectName.isLabel(Substring(text)) else {
          throw .badRequest("targetHost is '\(text.prefix(64))', which is no name of a host", field: field)
        }
        targetHost = text
      case "hostSelector" where verb == .migrate:
        try readSelector(value)
      case "graceSeconds" where verb == .migrate:
        guard let seconds = value.intValue, (0...3600).contains(seconds) else {
          throw .badRequest("graceSeconds must be a whole number, 0 to 3600", field: field)
        }
        graceSeconds = seconds
      default:
        throw .badRequest("\(verb.kind) has no field '\(field.prefix(64))'", field: String(field.prefix(64)))
      }
    }
  }

  private mutating func readPreconditions(_ value: JSONValue) throws(APIFailure) {
    guard case .object(let members) = value else {
      throw .badRequest("preconditions must be an object", field: "preconditions")
    }
    for (field, value) in members {
      switch field {
      case "uid": uid = try text("preconditions.uid", value)
      case "resourceVersion": resourceVersion = try text("preconditions.resourceVersion", value)
      default:
        throw .badRequest(
          "preconditions has no field '\(field.prefix(64))'", field: "preconditions.\(field.prefix(64))")
      }
    }
  }

  private mutating func readSelector(_ value: JSONValue) throws(APIFailure) {
    guard case .object(let members) = value else {
      throw .badRequest("hostSelector must be an object", field: "hostSelector")
    }
    for (field, value) in members {
      guard field == "matchLabels" else {
        throw .badRequest("hostSelector has no field '\(field.prefix(64))'", field: "hostSelector.\(field.prefix(64))")
      }
      guard case .object(let labels) = value, labels.count <= 32 else {
        throw .badRequest(
          "hostSelector.matchLabels must be an object of 32 labels at most", field: "hostSelector.matchLabels")
      }
      for (key, value) in labels {
        guard !key.isEmpty, key.utf8.count <= 317, let text = value.stringValue, text.utf8.count <= 63 else {
          throw .badRequest(
            "the label '\(key.prefix(64))' must have a text of 63 bytes at most as its value",
            field: "hostSelector.matchLabels")
        }
        hostLabels[key] = text
      }
    }
  }

  private func text(_ field: String, _ value: JSONValue) throws(APIFailure) -> String {
    guard let text = value.stringValue, !text.isEmpty else {
      throw .badRequest("\(field) must be a text", field: field)
    }
    return text
  }

  private func expect(_ field: String, _ value: JSONValue, _ wanted: String) throws(APIFailure) {
    guard value.stringValue == wanted else {
      throw .badRequest(
        "\(field) is \(String(decoding: value.serialize().prefix(64), as: UTF8.self)); \(wanted) was expected",
        field: field)
    }
  }
}
