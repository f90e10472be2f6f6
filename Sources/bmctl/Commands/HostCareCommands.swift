import ArgumentParser
import IaaS
import JSON
import Kubernetes

/// What the verbs that change a host share.
struct HostOptions: ParsableArguments {
  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "The hosts.")
  var names: [String]

  func validate() throws {
    guard !names.isEmpty else { throw ValidationError("Name a host.") }
    for name in names where !HostArguments.isName(name) { throw ValidationError("'\(name)' is no host name.") }
  }

  /// Patches every host; one that fails does not keep the others from being tried.
  func patch(done: String, _ patch: @Sendable (BareMetalHost) throws -> JSONValue?) async throws {
    try await withConnection(connection) { connection in
      try await tryEach(names) { name in
        let host = try await connection.client.get(BareMetalHost.self, name: name)
        if let patch = try patch(host) {
          _ = try await connection.client.mergePatch(
            BareMetalHost.definition, name: name, namespace: nil, patch: patch, fieldManager: "bmctl")
          Output.line("\(name) \(done)")
        } else {
          Output.line("\(name) unchanged")
        }
      }
    }
  }
}

struct HostCordonCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "cordon", abstract: "Keep new machines away; those that are there stay (spec.maintenance: true).")

  @OptionGroup var options: HostOptions

  func run() async throws {
    try await options.patch(done: "takes no new machine") {
      $0.spec.maintenance ? nil : ["spec": ["maintenance": true]]
    }
  }
}

struct HostUncordonCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "uncordon", abstract: "Take machines again: ends maintenance and draining.")

  @OptionGroup var options: HostOptions

  func run() async throws {
    try await options.patch(done: "takes machines again") { host in
      host.spec.maintenance || host.spec.drain ? ["spec": ["maintenance": false, "drain": false]] : nil
    }
  }
}

struct HostDrainCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "drain", abstract: "Give a host's machine to another host, and take no new one.",
    discussion: """
      bm-controller makes a BareMetalMachineMigration for the machine, within its limits of how many move at a time.

      --power-cut is an operator's word that neither the server nor its DPU has power, for a host whose BMC or DPU does
      not answer any more. The machine is then taken away without their word. Where the server is on after all, its disks
      are written by two: pull the plug first. The word holds until 'bmctl host power-back'.
      """)

  @OptionGroup var options: HostOptions

  @Flag(help: "State that neither the server nor its DPU has power.")
  var powerCut = false

  @Flag(help: "Wait until no machine is on the hosts.")
  var wait = false

  @Option(help: "With --wait: seconds to wait at most for each.")
  var timeout: Int = 900

  func validate() throws {
    guard (1...604_800).contains(timeout) else { throw ValidationError("--timeout is 1 to 604800 seconds.") }
  }

  func run() async throws {
    try await options.patch(done: "is being drained") { host in
      var spec: [String: JSONValue] = [:]
      if !host.spec.maintenance { spec["maintenance"] = true }
      if !host.spec.drain { spec["drain"] = true }
      if powerCut, !host.spec.powerCut { spec["powerCut"] = true }
      return spec.isEmpty ? nil : ["spec": .object(spec)]
    }
    guard wait else { return }
    try await withConnection(options.connection) { connection in
      for name in options.names { try await waitUntilEmpty(name, connection.client) }
    }
  }

  private func waitUntilEmpty(_ name: String, _ client: KubernetesClient) async throws {
    let start = ContinuousClock.now
    var progress = ProgressLine()
    while true {
      let host = try await client.get(BareMetalHost.self, name: name)
      guard host.status?.claim != nil else {
        progress.clear()
        return Output.line("\(name) is empty")
      }
      let drained = host.status?.conditions?.condition(BareMetalHost.ConditionType.drained)
      let state = TextWidth.printable(drained?.message ?? "waits for bm-controller")
      let elapsed = DurationText.fixed(start.duration(to: .now).inSeconds, digits: 1) + " s"
      progress.show("[\(TextWidth.padded(elapsed, to: 8, right: true))] \(name) \(state)", key: state)
      guard start.duration(to: .now) < .seconds(timeout) else {
        progress.keep()
        throw CommandError(.timedOut, "drain \(name)", "a machine is there after \(timeout) s: \(state)")
      }
      try await Task.sleep(for: .milliseconds(250))
    }
  }
}

struct HostPowerBackCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "power-back", abstract: "Take back the word that a host has no power (spec.powerCut: false).",
    discussion: """
      Start the DPU before the server: bm-handler then removes what the DPU still shows of machines that have left. The
      host takes machines again when that is done and it is uncordoned.
      """)

  @OptionGroup var options: HostOptions

  func run() async throws {
    try await options.patch(done: "is believed to have power again") {
      $0.spec.powerCut ? ["spec": ["powerCut": false]] : nil
    }
  }
}

struct HostMaintenanceCommand: AsyncParsableCommand {
  enum Wish: String, ExpressibleByArgument, CaseIterable {
    case on
    case off
  }

  static let configuration = CommandConfiguration(
    commandName: "maintenance", abstract: "Set or end a host's maintenance: bmctl host maintenance on HOST.")

  @Argument(help: "on or off.")
  var wish: Wish

  @OptionGroup var options: HostOptions

  func run() async throws {
    try await options.patch(done: "maintenance \(wish.rawValue)") { host in
      host.spec.maintenance == (wish == .on) ? nil : ["spec": ["maintenance": .bool(wish == .on)]]
    }
  }
}

struct HostRescanCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "rescan", abstract: "Read power and inventory from the BMC anew, now.",
    discussion: "Sets the annotation \(Names.rescanAnnotation); bm-controller acts once on every new value.")

  @OptionGroup var options: HostOptions

  func run() async throws {
    let moment = MicroTimestamp.now().description
    try await options.patch(done: "is being read") { _ in
      ["metadata": ["annotations": .object([Names.rescanAnnotation: .string(moment)])]]
    }
  }
}

struct HostCredentialsCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "credentials", abstract: "Give bm-controller another account at a BMC.",
    discussion: """
      Change the password at the BMC first or afterwards: bm-controller tries the new account, and goes on with the one
      before while the new one is refused. The password is read from standard input, or asked for.

        bmctl host credentials host-07 --user admin < new-password.txt
      """)

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "The host.")
  var name: String

  @Option(help: "The user at the BMC; the present one where not given.")
  var user: String?

  func validate() throws {
    guard HostArguments.isName(name) else { throw ValidationError("'\(name)' is no host name.") }
    guard user?.isEmpty != true else { throw ValidationError("--user is empty.") }
  }

  func run() async throws {
    let password = try Password.read(prompt: "New password for \(user ?? "the account") at the BMC of \(name): ")
    try await withConnection(connection) { connection in
      let host = try await connection.client.get(BareMetalHost.self, name: name)
      let reference = host.spec.bmc.credentialsSecretRef
      var data: [String: JSONValue] = ["password": .string(password)]
      if let user { data["username"] = .string(user) }
      _ = try await connection.client.mergePatch(
        Secret.definition, name: reference.name, namespace: reference.namespace, patch: ["stringData": .object(data)],
        fieldManager: "bmctl")
      // bm-controller reads the secret when it looks at the BMC the next time: that is now.
      _ = try await connection.client.mergePatch(
        BareMetalHost.definition, name: name, namespace: nil,
        patch: [
          "metadata": ["annotations": .object([Names.rescanAnnotation: .string(MicroTimestamp.now().description)])]
        ], fieldManager: "bmctl")
    }
    Output.line("the account of \(name) is changed; whether it works: bmctl describe host \(name)")
  }
}
