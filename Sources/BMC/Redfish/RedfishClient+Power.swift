package import JSON
import NIOHTTP1

extension RedfishClient {
  func power() async throws -> PowerState {
    try await call("read power") { operation in
      RedfishPower.state(of: try await self.system(operation: operation).document)
    }
  }

  func setPower(_ action: PowerAction) async throws {
    try await call("\(action.rawValue)") { operation in
      let (path, system, _) = try await self.system(operation: operation)
      let reset = system.at("Actions", "#ComputerSystem.Reset")
      let target = reset?["target"]?.stringValue ?? path + "/Actions/ComputerSystem.Reset"
      guard target.isRedfishPath else {
        throw BMCError(.protocolError, operation: operation, message: "the reset action has no usable target")
      }
      let allowed = try await self.allowedResets(reset, operation: operation)
      switch RedfishPower.plan(action, allowed: allowed, state: RedfishPower.state(of: system)) {
      case .nothing:
        return
      case .unsupported:
        throw BMCError(
          .unsupported, operation: operation,
          message: "the BMC does not offer this; it offers \(allowed.sorted().joined(separator: ", "))")
      case .reset(let type):
        try await self.reset(target, type, operation: operation)
      case .offThenOn:
        try await self.reset(target, "ForceOff", operation: operation)
        while RedfishPower.state(of: try await self.system(operation: operation).document) != .off {
          try await Task.sleep(for: .milliseconds(500))
        }
        try await self.reset(target, "On", operation: operation)
      }
    }
  }

  /// What the service accepts: named with the action, or behind `@Redfish.ActionInfo`; empty where it does not say.
  private func allowedResets(_ reset: JSONValue?, operation: String) async throws -> Set<String> {
    var values = reset?["ResetType@Redfish.AllowableValues"]?.arrayValue
    if values == nil, let path = reset?["@Redfish.ActionInfo"]?.stringValue, path.isRedfishPath {
      let answer = try await send(.GET, path, operation: operation)
      let parameters = answer.isSuccess ? answer.body?["Parameters"]?.arrayValue : nil
      values = parameters?.first { $0["Name"]?.stringValue == "ResetType" }?["AllowableValues"]?.arrayValue
    }
    return Set((values ?? []).prefix(64).compactMap(\.stringValue))
  }

  private func reset(_ target: String, _ type: String, operation: String) async throws {
    let answer = try await send(.POST, target, body: ["ResetType": .string(type)], operation: operation)
    // "It is so already" is what was wanted.
    guard answer.isSuccess || answer.hasMessage("NoOperation") else {
      let what = "the BMC answered \(answer.status) to reset \(type)"
      guard !answer.isStateRefusal else {
        throw error(.rejected, answer, operation: operation, isStateRefusal: true, what)
      }
      throw failure(answer, operation: operation, asking: "reset \(type)")
    }
  }

  func setBootOverride(_ override: BootOverride) async throws {
    try await call("set the boot source") { operation in
      let body = RedfishPower.boot(override)
      for attempt in 0..<3 {
        let (path, _, etag) = try await self.system(operation: operation)
        var headers = HTTPHeaders()
        // Some BMCs send weak tags and take back only strong ones, or none that they gave.
        if var etag, attempt < 2 {
          if attempt == 1, etag.hasPrefix("W/") { etag.removeFirst(2) }
          headers.add(name: "If-Match", value: etag)
        }
        let answer = try await self.send(.PATCH, path, body: body, headers: headers, operation: operation)
        if answer.isSuccess { return }
        // Somebody changed the system between reading and writing: once more with what is there now.
        if answer.status == 412 && attempt < 2 { continue }
        if answer.status == 405 || answer.status == 501 {
          throw self.error(.unsupported, answer, operation: operation, "the BMC has no boot override")
        }
        throw self.failure(answer, operation: operation, asking: "PATCH \(path)")
      }
    }
  }
}

/// The decisions of Redfish power control, apart from any I/O.
package enum RedfishPower {
  package enum Plan: Hashable {
    case nothing
    case reset(String)
    /// Cut, wait until it reads off, give power again.
    case offThenOn
    case unsupported
  }

  package static func state(of system: JSONValue) -> PowerState {
    switch system["PowerState"]?.stringValue {
    case "On", "Paused": .on
    case "Off": .off
    case "PoweringOn": .poweringOn
    case "PoweringOff": .poweringOff
    default: .unknown
    }
  }

  /// Chooses the `ResetType` for an action among those allowed; an empty set means that the BMC did not say.
  ///
  /// Nothing that loses data stands in for something that does not: a shutdown or restart by the operating system is
  /// never replaced by force.
  package static func plan(_ action: PowerAction, allowed: Set<String>, state: PowerState) -> Plan {
    func has(_ type: String) -> Bool { allowed.isEmpty || allowed.contains(type) }
    func first(_ types: String...) -> Plan { types.first(where: has).map { .reset($0) } ?? .unsupported }
    switch action {
    case .on:
      if state == .on { return .nothing }
      if has("On") || has("ForceOn") { return first("On", "ForceOn") }
      // The button toggles: pressing it is right only where the server is known to be off.
      return state == .off ? first("PushPowerButton") : .unsupported
    case .forceOff:
      return first("ForceOff")
    case .gracefulShutdown:
      if state == .off { return .nothing }
      if has("GracefulShutdown") { return .reset("GracefulShutdown") }
      return state == .on ? first("PushPowerButton") : .unsupported
    case .forceRestart:
      return first("ForceRestart", "PowerCycle")
    case .gracefulRestart:
      return first("GracefulRestart")
    case .powerCycle:
      if has("PowerCycle") { return .reset("PowerCycle") }
      if has("ForceOff") && has("On") { return .offThenOn }
      return first("FullPowerCycle")
    }
  }

  package static func boot(_ override: BootOverride) -> JSONValue {
    var boot: JSONValue = [:]
    let target: String? =
      switch override.source {
      case .none: nil
      case .disk: "Hdd"
      case .network: "Pxe"
      case .cdrom: "Cd"
      case .usb: "Usb"
      case .firmwareSetup: "BiosSetup"
      }
    if let target {
      boot["BootSourceOverrideEnabled"] = override.duration == .once ? "Once" : "Continuous"
      boot["BootSourceOverrideTarget"] = .string(target)
    } else {
      boot["BootSourceOverrideEnabled"] = "Disabled"
    }
    if let firmware = override.firmware {
      boot["BootSourceOverrideMode"] = firmware == .uefi ? "UEFI" : "Legacy"
    }
    return ["Boot": boot]
  }
}
