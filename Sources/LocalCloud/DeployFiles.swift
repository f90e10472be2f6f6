import JSON

/// The manifests in `deploy/`, the same ones that are for a cluster of the user's own.
enum DeployFiles {
  /// Looks for `deploy/` beside or above the program (a checkout has it two or three levels above `.build/release`),
  /// then where a package would install it.
  static func directory() throws -> String {
    if let given = Machine.variable("YCLOUD_DEPLOY"), !given.isEmpty { return given }
    var candidates: [String] = []
    if let program = Machine.ownExecutable {
      var parts = program.split(separator: "/")
      while !parts.isEmpty {
        parts.removeLast()
        candidates.append(parts.map { "/\($0)" }.joined() + "/deploy")
      }
    }
    candidates.append("/usr/share/ycloud/deploy")
    guard let found = candidates.first(where: { Files.isDirectory("\($0)/crds") }) else {
      throw LocalCloudError(
        .missingRequirement, operation: "find the manifests",
        "there is no folder 'deploy' above \(Machine.ownExecutable ?? "this program"); name it in YCLOUD_DEPLOY")
    }
    return found
  }

  /// All objects of the files in a folder of `deploy/`, in the order of the files' names.
  static func manifests(in folder: String, variables: [String: String] = [:]) throws -> [JSONValue] {
    try Files.names(in: "\(try directory())/\(folder)").filter { $0.hasSuffix(".yaml") }.flatMap { name in
      try manifests(file: "\(folder)/\(name)", variables: variables)
    }
  }

  /// All objects of one file of `deploy/`.
  static func manifests(file: String, variables: [String: String] = [:]) throws -> [JSONValue] {
    let path = "\(try directory())/\(file)"
    guard let text = try Files.read(path) else {
      throw LocalCloudError(.missingRequirement, operation: "read \(path)", "the file is not there")
    }
    do {
      return try Manifests.parse(text, variables: variables)
    } catch {
      throw LocalCloudError(.controlPlane, operation: "read \(path)", "it is no YAML", cause: error)
    }
  }
}
