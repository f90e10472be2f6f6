/// What a machine's path ends with.
package enum MachineVerb: String, Sendable, Hashable, CaseIterable {
  case start, stop, restart, reset, softreboot, adddisk, removedisk, migrate
  case console, portforward, screenshot, timeline, plan

  /// PUT changes something, GET looks.
  package var method: String {
    switch self {
    case .console, .portforward, .screenshot, .timeline, .plan: "GET"
    default: "PUT"
    }
  }

  /// The verb by which roles allow it.
  package var access: String { method == "PUT" ? "update" : "get" }

  /// The kind of the body, or of the answer.
  package var kind: String {
    switch self {
    case .start: "StartOptions"
    case .stop: "StopOptions"
    case .restart, .reset, .softreboot: "RestartOptions"
    case .adddisk: "AddDiskOptions"
    case .removedisk: "RemoveDiskOptions"
    case .migrate: "MigrateOptions"
    case .console: "Console"
    case .portforward: "PortForward"
    case .screenshot: "MachineScreenshot"
    case .timeline: "MachineTimeline"
    case .plan: "MachinePlan"
    }
  }

  /// The media type of the answer.
  package var produces: String { self == .screenshot ? "image/png" : "application/json" }

  package var summary: String {
    switch self {
    case .start: "Starts the machine (spec.running: true)."
    case .stop: "Stops the machine (spec.running: false); its guest is asked to shut down first."
    case .restart: "Restarts the machine; its guest has the usual time to shut down."
    case .reset: "Cuts the machine's power and starts it again."
    case .softreboot: "Restarts the machine; its guest has ten minutes to shut down."
    case .adddisk: "Adds a disk to spec.disks."
    case .removedisk: "Removes a disk from spec.disks."
    case .migrate: "Moves the machine to another host; it is stopped and booted there (BareMetalMachineMigration)."
    case .console: "The serial console, over WebSocket."
    case .portforward: "A TCP connection to a port of the machine, over WebSocket."
    case .screenshot: "What the machine's screen shows now, as a PNG; where its host's BMC can take a picture of it."
    case .timeline: "When the machine's first start passed which point."
    case .plan: "The steps that bm-controller would take now."
    }
  }

  /// The query's parameters besides those that every path takes.
  package var parameters: [String] {
    switch self {
    case .console: ["since", "takeover", "readOnly"]
    case .portforward: ["port"]
    case .plan: ["running"]
    case .screenshot, .timeline: []
    default: ["dryRun"]
    }
  }
}

/// What a request's path and method ask for.
package enum Route: Sendable, Hashable {
  /// Whether the process works, for whoever asks.
  case health(String)
  case groups
  case group
  case resources
  case openAPI2
  case openAPI3Index
  case openAPI3
  case machine(MachineVerb, namespace: String, name: String)

  /// - Parameters:
  ///   - path: of the request, as it came, without the query.
  /// - Throws: `APIFailure` 404, 405 or 400.
  package static func parse(method: String, path: String) throws(APIFailure) -> Route {
    let route = try route(path)
    let wanted: String
    if case .machine(let verb, _, _) = route { wanted = verb.method } else { wanted = "GET" }
    guard method == wanted else {
      throw APIFailure(405, "MethodNotAllowed", "\(path) takes \(wanted), not \(method.prefix(16))")
    }
    return route
  }

  private static func route(_ path: String) throws(APIFailure) -> Route {
    switch path {
    case "/healthz", "/readyz", "/livez": return .health(String(path.dropFirst()))
    case "/apis", "/apis/": return .groups
    case "/apis/\(APIGroup.name)", "/apis/\(APIGroup.name)/": return .group
    case APIGroup.path, APIGroup.path + "/": return .resources
    case "/openapi/v2": return .openAPI2
    case "/openapi/v3": return .openAPI3Index
    case "/openapi/v3/apis/\(APIGroup.groupVersion)": return .openAPI3
    default: break
    }
    let prefix = "\(APIGroup.path)/namespaces/"
    guard path.hasPrefix(prefix) else { throw .notFound(String(path.prefix(256))) }
    let parts = path.dropFirst(prefix.count).split(separator: "/", omittingEmptySubsequences: false)
    guard parts.count == 4, parts[1] == APIGroup.plural, let verb = MachineVerb(rawValue: String(parts[3])) else {
      throw .notFound(String(path.prefix(256)))
    }
    // Names are what the API server lets objects be called: nothing in them needs an escape, or climbs in a path.
    guard ObjectName.isLabel(parts[0]) else {
      throw .badRequest("'\(parts[0].prefix(64))' is no name of a namespace")
    }
    guard ObjectName.isSubdomain(parts[2]) else {
      throw .badRequest("'\(parts[2].prefix(64))' is no name of a machine")
    }
    return .machine(verb, namespace: String(parts[0]), name: String(parts[2]))
  }

  /// What the caller must be allowed to do; nil for what everybody may.
  package func access(path: String) -> AccessRequest? {
    switch self {
    case .health: nil
    case .machine(let verb, let namespace, let name):
      .machine(verb: verb.access, subresource: verb.rawValue, namespace: namespace, name: name)
    default: .path(verb: "get", path: path)
    }
  }
}

/// Names of objects (RFC 1123).
package enum ObjectName {
  package static func isLabel(_ text: Substring) -> Bool {
    (1...63).contains(text.utf8.count) && isBounded(text) && text.utf8.allSatisfy { isAlphanumeric($0) || $0 == 0x2D }
  }

  package static func isSubdomain(_ text: Substring) -> Bool {
    (1...253).contains(text.utf8.count)
      && text.split(separator: ".", omittingEmptySubsequences: false).allSatisfy { part in
        !part.isEmpty && isBounded(part) && part.utf8.allSatisfy { isAlphanumeric($0) || $0 == 0x2D }
      }
  }

  private static func isBounded(_ text: Substring) -> Bool {
    guard let first = text.utf8.first, let last = text.utf8.last else { return false }
    return isAlphanumeric(first) && isAlphanumeric(last)
  }

  private static func isAlphanumeric(_ byte: UInt8) -> Bool {
    (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte) || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
  }
}
