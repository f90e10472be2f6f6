import ArgumentParser
import Dispatch
import Glibc
import IaaS
import Kubernetes

struct ConsoleCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "console", abstract: "Open a machine's serial console.",
    discussion: """
      What the guest printed last is shown first. Several people can have one console open, of whom one types: the first
      who does, or who takes the line over. Ctrl-] ends the session, and nothing else does: when the console goes away
      for a while, bmctl connects again and goes on where it was.

      A machine's console is reached through the API server (bm-api). Where the cluster has none, and for a host, bmctl
      has to run on the computer where the chassis serves it.

        bmctl console bm-01
        echo "poweroff" | bmctl console bm-01       # types, shows the answer, ends
        bmctl console --host host-01
      """)

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "The machine.", completion: Completions.machines)
  var name: String?

  @Option(help: "The console of this host, whatever runs on it.")
  var host: String?

  @Option(help: "Where the console is served (unix:/path), instead of what the host's annotation says.")
  var address: String?

  @Flag(help: "Take the line from whoever types.")
  var takeOver = false

  @Flag(help: "Look only.")
  var readOnly = false

  @Option(help: "The key that ends the session: ctrl-], ^A, ..., or none.")
  var detachKey: String = "ctrl-]"

  @Flag(
    help: """
      Tell the guest's shell the terminal's size, now and when it changes, by typing `stty rows N columns N`. A serial \
      line cannot tell it otherwise.
      """)
  var syncSize = false

  func validate() throws {
    guard [name, host, address].compactMap({ $0 }).count == 1 else {
      throw ValidationError("Name a machine, or a host with --host, or give --address.")
    }
    guard DetachKey(detachKey) != nil else {
      throw ValidationError(
        "--detach-key is ctrl- or ^ with a letter or one of \\ ] ^ _ (not ^I, ^J, ^M, ^[), or none.")
    }
    if let address, ConsoleAddress(address) == nil {
      throw ValidationError("--address is unix: and an absolute path of at most 107 bytes.")
    }
    if takeOver || readOnly {
      guard name != nil else { throw ValidationError("--take-over and --read-only go with a machine.") }
      guard !takeOver || !readOnly else { throw ValidationError("--take-over and --read-only exclude each other.") }
    }
    if syncSize, isatty(0) != 1 { throw ValidationError("--sync-size needs a terminal.") }
  }

  func run() async throws {
    guard let key = DetachKey(detachKey) else { throw ValidationError("no such key") }
    if let address, let console = ConsoleAddress(address) {
      try finish(await run(LocalConsoleLine(address: console), key))
      return
    }
    try await withConnection(connection) { connection in
      let subresources = MachineSubresources(connection: connection)
      if let name, try await subresources.isServed(),
        let path = MachineSubresources.path("console", name: name, namespace: connection.namespace)
      {
        let line = RemoteConsoleLine(
          client: connection.client, path: path, description: "the console of \(connection.namespace)/\(name)",
          takesOver: takeOver, isReadOnly: readOnly, isTerminal: isatty(0) == 1)
        try await withThrowingTaskGroup(of: Void.self) { group in
          group.addTask { await line.run() }
          defer { group.cancelAll() }
          try finish(await run(line, key))
        }
      } else {
        try finish(await run(LocalConsoleLine(address: try await resolve(connection)), key))
      }
    }
  }

  /// The session's loop waits in the kernel: it has a thread of its own.
  private func run(_ line: any ConsoleLine, _ key: DetachKey) async throws -> ConsoleSession.Ending {
    let sendsSize = syncSize
    return try await withCheckedThrowingContinuation { continuation in
      DispatchQueue(label: "console").async {
        var session = ConsoleSession(line: line, key: key, sendsSize: sendsSize)
        continuation.resume(with: Result { try session.run() })
      }
    }
  }

  private func finish(_ ending: ConsoleSession.Ending) throws {
    switch ending {
    case .detached, .inputEnded: return
    case .signal(let number): throw ExitCode(128 + number)
    }
  }

  private func resolve(_ connection: Connection) async throws -> ConsoleAddress {
    let hostName: String
    if let host {
      hostName = host
    } else {
      let name = name ?? ""
      let machine = try await connection.client.get(
        BareMetalMachine.self, name: name, namespace: connection.namespace)
      guard let held = machine.status?.host, !held.isEmpty else {
        throw CommandError(
          .conflict, "console of \(name)", "the machine has no host yet (\(machine.status?.message ?? "pending"))",
          remedy: "Wait for it: bmctl wait \(name) --for Starting")
      }
      hostName = held
    }
    let host = try await connection.client.get(BareMetalHost.self, name: hostName)
    guard let text = host.metadata.annotations?[ConsoleAddress.annotation] else {
      throw CommandError(
        .conflict, "console of \(hostName)", "the host has no annotation \(ConsoleAddress.annotation)",
        remedy: "A local cloud sets it. Elsewhere give --address unix:/path, or use the BMC's own console.")
    }
    guard let address = ConsoleAddress(text) else {
      throw CommandError(
        .conflict, "console of \(hostName)",
        "the annotation \(ConsoleAddress.annotation) is '\(TextWidth.printable(text))'; unix:/path was expected")
    }
    return address
  }
}
