import ArgumentParser
import IaaS
import JSON
import Kubernetes

struct MigrateCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "migrate", abstract: "Move a machine to another host.",
    discussion: """
      Makes a BareMetalMachineMigration: another host is reserved, then the machine is stopped, and booted there with the
      same disks, MAC and IP addresses. Where no host is free, the machine goes on where it is until one is.

        bmctl migrate bm-01 --wait
        bmctl migrate bm-01 --to host-07
        bmctl migrate bm-01 --cancel
      """)

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "The machine.", completion: Completions.machines)
  var name: String

  @Option(help: "The host to move to; any that is free and fits where not given.")
  var to: String?

  @Option(name: [.customShort("l"), .long], help: "A label, key=value, that the host must have; may be repeated.")
  var label: [String] = []

  @Option(help: "Seconds that the guest gets to shut down; 0 cuts its power at once.")
  var grace: Int?

  @Flag(help: "Give up the migrations of the machine that are not beyond the point of no return.")
  var cancel = false

  @Flag(help: "Wait until it is done, and show what happens meanwhile.")
  var wait = false

  @Option(help: "With --wait: seconds to wait at most.")
  var timeout: Int = 600

  func validate() throws {
    guard to == nil || label.isEmpty else { throw ValidationError("--to and --label exclude each other.") }
    if let to, !HostArguments.isName(to) { throw ValidationError("'\(to)' is no host name.") }
    for label in label where HostArguments.label(label) == nil {
      throw ValidationError("'\(label)' is no label; key=value was expected.")
    }
    if let grace { guard (0...3600).contains(grace) else { throw ValidationError("--grace is 0 to 3600 seconds.") } }
    guard (1...604_800).contains(timeout) else { throw ValidationError("--timeout is 1 to 604800 seconds.") }
    if cancel, wait || to != nil || !label.isEmpty || grace != nil {
      throw ValidationError("--cancel takes no other option.")
    }
  }

  func run() async throws {
    try await withConnection(connection) { connection in
      if cancel { return try await cancelAll(connection) }
      let machine = try await connection.client.get(
        BareMetalMachine.self, name: name, namespace: connection.namespace)
      let made = try await connection.client.create(migration(of: machine))
      Output.line("\(made.key.name) created")
      if wait {
        try await MigrationWait(connection: connection, name: made.key.name).run(timeoutSeconds: timeout)
      }
    }
  }

  private func migration(of machine: BareMetalMachine) -> BareMetalMachineMigration {
    BareMetalMachineMigration(
      moving: machine, name: BareMetalMachineMigration.name(machine: name, at: .now()), targetHost: to,
      labels: Dictionary(label.compactMap { HostArguments.label($0) }, uniquingKeysWith: { $1 }), graceSeconds: grace)
  }

  private func cancelAll(_ connection: Connection) async throws {
    let all = try await connection.client.listAll(
      BareMetalMachineMigration.self, namespace: connection.namespace
    ).items.filter { $0.spec.machineName == name && !$0.isFinished }
    guard !all.isEmpty else { throw CommandError(.conflict, name, "no migration of this machine is under way") }
    for migration in all {
      guard migration.status?.beyondReturn != true else {
        throw CommandError(
          .conflict, migration.key.name,
          "the machine has left \(migration.status?.sourceHost ?? "its host") already, and goes on to "
            + "\(migration.status?.targetHost ?? "another")",
          remedy: "When it is there: bmctl migrate \(name) --to \(migration.status?.sourceHost ?? "HOST")")
      }
      try await connection.client.delete(
        BareMetalMachineMigration.self, name: migration.key.name, namespace: connection.namespace,
        uid: migration.metadata.uid)
      Output.line("\(migration.key.name) deleted; \(name) stays on \(migration.status?.sourceHost ?? "its host")")
    }
  }
}

/// Waits for one migration and shows its phase, what it waits for, and the seconds.
struct MigrationWait {
  let connection: Connection
  let name: String

  func run(timeoutSeconds: Int) async throws {
    let start = ContinuousClock.now
    var progress = ProgressLine()
    var state = "waits for bm-controller to see it"
    while true {
      do {
        let status = try await connection.client.get(
          BareMetalMachineMigration.self, name: name, namespace: connection.namespace
        ).status
        switch status?.phase {
        case .succeeded:
          progress.clear()
          Output.line(Self.done(status))
          return
        case .failed:
          progress.clear()
          throw CommandError(.conflict, name, TextWidth.printable(status?.message ?? "the migration failed"))
        default: state = TextWidth.printable("\(status?.phase?.rawValue ?? "Pending"): \(status?.message ?? "")")
        }
      } catch let error as KubernetesError where error.isTransient {
        state = "unknown: the API server is away (\(TextWidth.printable(error.message)))"
      }
      let elapsed = DurationText.fixed(start.duration(to: .now).inSeconds, digits: 1) + " s"
      progress.show("[\(TextWidth.padded(elapsed, to: 8, right: true))] \(state)", key: state)
      guard start.duration(to: .now) < .seconds(timeoutSeconds) else {
        progress.keep()
        throw CommandError(
          .timedOut, "wait for \(name)", "it is not done after \(timeoutSeconds) s: \(state)",
          remedy: "To give it up: kubectl delete bmmig \(name)")
      }
      try await Task.sleep(for: .milliseconds(250))
    }
  }

  /// What a migration that is done tells of itself.
  static func done(_ status: BareMetalMachineMigration.Status?) -> String {
    var text = "moved from \(status?.sourceHost ?? "?") to \(status?.targetHost ?? "?")"
    if let down = status?.timeline?.downSeconds, let own = status?.timeline?.ownSeconds {
      text += "; down for \(DurationText.fixed(down, digits: 1)) s, of which \(DurationText.fixed(own, digits: 1)) s "
      text += "after the source was off for sure"
    }
    return text
  }
}
