/// A part of the cloud that the supervisor brings up and keeps up.
package struct Component: Sendable {
  package enum Work: Sendable {
    /// A program that runs as long as the cloud.
    case process(Program)
    /// Something that is done once after each start of the supervisor, and again until it succeeds.
    case task(@Sendable () async throws -> Void)
  }

  /// How the supervisor sees that the part does its work.
  package enum Readiness: Sendable {
    /// A file of type socket accepts a connection.
    case unixSocket(String)
    /// `GET path` on 127.0.0.1 answers 200.
    case http(port: Int, path: String)
    /// Any question that has yes or no as its answer; an error is a no.
    case probe(@Sendable () async throws -> Bool)
    /// Ready when started or done.
    case started
  }

  package var name: String
  package var work: Work
  /// Names of the parts that must have been ready once before this one is started.
  package var dependencies: [String]
  package var readiness: Readiness

  package init(name: String, work: Work, dependencies: [String], readiness: Readiness) {
    self.name = name
    self.work = work
    self.dependencies = dependencies
    self.readiness = readiness
  }
}

/// How a program is started and stopped.
package struct Program: Sendable, Hashable {
  /// An absolute path.
  package var executable: String
  package var arguments: [String]
  package var log: String
  package var pidFile: String
  /// How long it has between SIGTERM and SIGKILL.
  package var graceSeconds: Double

  package init(executable: String, arguments: [String], log: String, pidFile: String, graceSeconds: Double) {
    self.executable = executable
    self.arguments = arguments
    self.log = log
    self.pidFile = pidFile
    self.graceSeconds = graceSeconds
  }
}

/// The order of parts that depend on each other.
package enum StartOrder {
  /// Sorts names so that each stands behind the ones it depends on; otherwise in the order given.
  /// - Throws: ``LocalCloudError`` for a name that is unknown or depends on itself.
  package static func sort(_ dependencies: [(name: String, dependsOn: [String])]) throws -> [String] {
    let known = Dictionary(dependencies.map { ($0.name, $0.dependsOn) }, uniquingKeysWith: { first, _ in first })
    var sorted: [String] = []
    var done: Set<String> = []
    var path: [String] = []

    func visit(_ name: String) throws {
      if done.contains(name) { return }
      if let start = path.firstIndex(of: name) {
        throw LocalCloudError(
          .invalidSettings, operation: "order the parts",
          "they depend on each other in a circle: \((path[start...] + [name]).joined(separator: " -> "))")
      }
      guard let next = known[name] else {
        throw LocalCloudError(.invalidSettings, operation: "order the parts", "there is no part '\(name)'")
      }
      path.append(name)
      for dependency in next { try visit(dependency) }
      path.removeLast()
      done.insert(name)
      sorted.append(name)
    }
    for (name, _) in dependencies { try visit(name) }
    return sorted
  }
}

/// How long to wait before a part that ended is started again.
package struct RestartBackoff: Sendable, Hashable {
  package static let first = Duration.milliseconds(100)
  package static let longest = Duration.seconds(15)
  /// A part that ran this long has earned a quick restart.
  package static let calm = Duration.seconds(20)

  private var next = RestartBackoff.first

  package init() {}

  /// - Parameter ran: how long the part ran before it ended.
  package mutating func delay(afterRunning ran: Duration) -> Duration {
    if ran >= Self.calm { next = Self.first }
    defer { next = min(next * 2, Self.longest) }
    return next
  }
}
