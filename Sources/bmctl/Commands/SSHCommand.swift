import ArgumentParser
import Glibc
import IaaS
import JSON
import Kubernetes

struct SSHCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "ssh", abstract: "Log in to a machine by ssh.",
    discussion: """
      Runs ssh with the machine's address. The host key is remembered under the machine's UID, so a new machine that got
      an old machine's address is not taken for it.

        bmctl ssh bm-01 --identity .ycloud/ssh_ed25519
        bmctl ssh bm-01 -- uname -a
      """)

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "The machine.", completion: Completions.machines)
  var name: String

  @OptionGroup var login: SSHOptions

  @Option(name: .shortAndLong, help: "The port of the guest's ssh server.")
  var port: Int = 22

  @Argument(parsing: .postTerminator, help: "A command to run instead of a shell, after --.")
  var command: [String] = []

  func validate() throws {
    guard (1...65535).contains(port) else { throw ValidationError("A port is 1 to 65535.") }
  }

  func run() async throws {
    let guest = try await withConnection(connection) { connection in
      try await SSHGuest.find(name, for: "ssh \(name)", connection)
    }
    let arguments = SSHArguments.arguments(
      address: guest.address, uid: guest.uid, user: login.user, identity: login.identity, port: port,
      options: login.option, command: command)
    throw SSHProgram.become("ssh", arguments, for: "ssh \(name)")
  }
}

struct SCPCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "scp", abstract: "Copy files from or to a machine by scp.",
    discussion: """
      Runs scp with the machine's address; the host key is remembered as `bmctl ssh` does. What has a colon before any
      slash is a path in a machine, as with scp itself: ./a:b is a file here. All paths in machines are in one.

        bmctl scp -r bm-01:/var/log/syslog .
        bmctl scp disk.conf bm-01:/tmp/
      """)

  @OptionGroup var connection: ConnectionOptions

  @Argument(
    help:
      "What to copy, and last where to; MACHINE:PATH in the machine, where a relative path is below the user's home.",
    completion: .file())
  var paths: [String]

  @OptionGroup var login: SSHOptions

  @Option(name: [.customShort("P"), .long], help: "The port of the guest's ssh server.")
  var port: Int = 22

  @Flag(name: .shortAndLong, help: "Copy folders with all that is in them.")
  var recursive = false

  @Flag(name: [.customShort("p"), .long], help: "Keep times and modes of files.")
  var preserve = false

  func validate() throws {
    guard (1...65535).contains(port) else { throw ValidationError("A port is 1 to 65535.") }
    _ = try copy()
  }

  private func copy() throws -> SCPCopy {
    switch SCPCopy.parse(paths) {
    case .success(let copy): return copy
    case .failure(let problem): throw ValidationError(problem.message)
    }
  }

  func run() async throws {
    let copy = try copy()
    let guest = try await withConnection(connection) { connection in
      try await SSHGuest.find(copy.machine, for: "scp", connection)
    }
    let arguments = SSHArguments.scp(
      copy, address: guest.address, uid: guest.uid, user: login.user, identity: login.identity, port: port,
      options: login.option, isRecursive: recursive, preserves: preserve)
    throw SSHProgram.become("scp", arguments, for: "scp")
  }
}

/// What logging in takes, whatever is done then.
struct SSHOptions: ParsableArguments {
  @Option(name: [.customShort("l"), .long], help: "The user in the guest.")
  var user: String = "debian"

  @Option(name: [.customShort("i"), .long], help: "The private key file.", completion: .file())
  var identity: String?

  @Option(name: .customShort("o"), help: ArgumentHelp("An option for ssh (Name=value); may be repeated."))
  var option: [String] = []

  func validate() throws {
    guard SSHArguments.isUser(user) else { throw ValidationError("'\(user)' is no user name.") }
  }
}

/// A machine that can be logged in to: its address, and what its host key is remembered under.
struct SSHGuest {
  let address: String
  let uid: String

  /// - Throws: `CommandError` where the machine has no address, or something else in its place.
  static func find(_ name: String, for operation: String, _ connection: Connection) async throws -> SSHGuest {
    let machine = try await connection.client.get(BareMetalMachine.self, name: name, namespace: connection.namespace)
    guard let address = machine.status?.addresses?.lazy.compactMap(\.address).first(where: { !$0.isEmpty }) else {
      let phase = machine.status?.phase?.rawValue ?? "not seen yet"
      throw CommandError(
        .conflict, operation, "machine \(name) has no address (it is \(phase))",
        remedy: "Wait for it: bmctl wait \(name) --for Running")
    }
    guard SSHArguments.isAddress(address) else {
      throw CommandError(
        .failure, operation, "the address of machine \(name), '\(TextWidth.printable(address))', is none")
    }
    return SSHGuest(address: address, uid: machine.metadata.uid ?? name)
  }
}

private enum SSHProgram {
  /// Becomes another program; returns only where that fails, and why.
  static func become(_ program: String, _ arguments: [String], for operation: String) -> CommandError {
    // A signal that is ignored stays ignored in the program.
    signal(SIGPIPE, SIG_DFL)
    var pointers: [UnsafeMutablePointer<CChar>?] = ([program] + arguments).map { strdup($0) }
    pointers.append(nil)
    execvp(program, pointers)
    return CommandError(
      .failure, operation, "cannot run \(program): \(String(cString: strerror(errno)))",
      remedy: "Install it: apt-get install openssh-client")
  }
}
