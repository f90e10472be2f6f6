/// Reads what ipmitool prints. Apart from any I/O.
package enum IPMIOutput {
  /// Why there is no session with the BMC.
  package enum SessionFailure: Hashable {
    case password
    case username
    /// No answer at all.
    case silent
    /// The host name cannot be resolved.
    case name
    case cipher
    case privilege
    case resources
    case other(String)
  }

  package static func power(_ output: String) -> PowerState {
    for line in output.split(whereSeparator: \.isNewline) where line.hasPrefix("Chassis Power is ") {
      switch line.dropFirst("Chassis Power is ".count) {
      case "on": return .on
      case "off": return .off
      default: return .unknown
      }
    }
    return .unknown
  }

  /// The reason of a failed session in the error output of `ipmitool -v`, or nil where the session was there.
  package static func sessionFailure(_ errors: String) -> SessionFailure? {
    // The order is that of the session's steps: the first that matches is the cause.
    if errors.contains("Address lookup for") { return .name }
    if errors.contains("RAKP 2 HMAC is invalid") || errors.contains("RAKP 4 message has invalid") { return .password }
    for line in errors.split(whereSeparator: \.isNewline) where line.contains("indicates an error :") {
      let reason = line.split(separator: ":").last.map { String($0.drop { $0 == " " }) } ?? ""
      switch reason {
      case "unauthorized name": return .username
      case "invalid integrity check value": return .password
      case "unauthorized role or privilege level requested", "invalid role": return .privilege
      case "insufficient resources for session", "insufficient resources to create a session at the requested time":
        return .resources
      default: return .other(reason)
      }
    }
    if errors.contains("invalid authentication algorithm") || errors.contains("invalid integrity algorithm")
      || errors.contains("invalid confidentiality algorithm") || errors.contains("no matching cipher suite")
      || errors.contains("no cipher suite match")
    {
      return .cipher
    }
    if errors.contains("insufficient resources") { return .resources }
    if errors.contains("privilege level") && errors.contains("Unable to establish") { return .privilege }
    if errors.contains("Unable to establish IPMI") { return .silent }
    if errors.contains("Unable to Get Chassis Power Status") || errors.contains("no response") { return .silent }
    return nil
  }

  /// The last line that says something, bounded.
  package static func reason(_ errors: String) -> String {
    let lines = errors.split(whereSeparator: \.isNewline).filter {
      !$0.hasPrefix("Loading IANA") && !$0.hasPrefix("Running Get")
    }
    return lines.last.map { String($0.prefix(200)) } ?? "no reason given"
  }

  /// Completion codes after which the same command may be taken a moment later, as ipmitool writes them (IPMI 2.0, table
  /// 5-2: C0h, D0h, D1h, D2h).
  private static let busyCodes = [
    "Node busy", "SDR Repository in update mode", "Device firmeware in update mode",
    "Device firmware in update mode", "BMC initialization in progress",
  ]
  /// C3h: what is behind the BMC did not answer in time; whether the command came through is not known.
  private static let timeoutCode = "Timeout"

  /// What a command that failed within its session means.
  package static func refusal(_ errors: String, operation: String) -> BMCError {
    let reason = reason(errors)
    if busyCodes.contains(where: { reason.ends(withCode: $0) }) {
      return BMCError(.busy, operation: operation, message: "the BMC is busy: \(reason)")
    }
    if reason.ends(withCode: timeoutCode) {
      return BMCError(.timeout, operation: operation, message: "the BMC had no answer in time: \(reason)")
    }
    return BMCError(
      .rejected, operation: operation, message: "the BMC refused it: \(reason)",
      isStateRefusal: isStateRefusal(errors))
  }

  /// Whether a command was refused because of the state that the server is in (completion code D5h).
  package static func isStateRefusal(_ errors: String) -> Bool { errors.contains("not supported in present state") }

  package static func addController(_ output: String, to inventory: inout HardwareInventory) {
    let fields = fields(output)
    inventory.bmcFirmwareVersion = fields["Firmware Revision"]
    if let name = fields["Manufacturer Name"], !name.hasPrefix("Unknown") { inventory.manufacturer = name }
  }

  package static func addFRU(_ output: String, to inventory: inout HardwareInventory) {
    let fields = fields(output)
    if let maker = fields["Product Manufacturer"] ?? fields["Board Mfg"] { inventory.manufacturer = maker }
    inventory.model = fields["Product Name"] ?? fields["Board Product"]
    inventory.serialNumber = fields["Product Serial"] ?? fields["Chassis Serial"] ?? fields["Board Serial"]
  }

  /// Lines of the form `name : value`; empty values are left out, the first of equal names counts.
  private static func fields(_ output: String) -> [String: String] {
    var fields: [String: String] = [:]
    for line in output.split(whereSeparator: \.isNewline).prefix(256) {
      guard let colon = line.firstIndex(of: ":") else { continue }
      let name = trim(line[..<colon])
      let value = trim(line[line.index(after: colon)...])
      if !name.isEmpty, !value.isEmpty, fields[name] == nil { fields[name] = String(value.prefix(256)) }
    }
    return fields
  }

  private static func trim(_ text: Substring) -> String {
    var text = text
    while let last = text.last, last == " " || last == "\r" || last == "\t" { text.removeLast() }
    return String(text.drop { $0 == " " || $0 == "\t" })
  }
}

extension String {
  /// Whether this is a line of ipmitool that ends with the name of a completion code: `Set ... failed: Node busy`,
  /// `... failed: 0xc0 Node busy`.
  fileprivate func ends(withCode name: String) -> Bool {
    let line = self.last == " " || self.last == "\r" ? String(self.dropLast()) : self
    return line.hasSuffix(": \(name)") || (line.contains(": 0x") && line.hasSuffix(" \(name)"))
  }
}
