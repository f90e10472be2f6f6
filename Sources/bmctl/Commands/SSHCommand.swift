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

  @Option(name: [.customShort("l"), .long], help: "The user in the guest.")
  var user: String = "debian"

  @Option(name: [.customShort("i"), .long], help: "The private key file.", completion: .file())
  var identity: String?

  @Option(name: .shortAndLong, help: "The port of the guest's ssh server.")
  var port: Int = 22

  @Option(name: .customShort("o"), help: ArgumentHelp("An option for ssh (Name=value); may be repeated."))
  var option: [String] = []

  @Argument(parsing: .postTerminator, help: "A command to run instead of a shell, after --.")
  var command: [String] = []

  func validate() throws {
    guard (1...65535).contains(port) else { throw ValidationError("A port is 1 to 65535.") }
    guard SSHArguments.isUser(user) else { throw ValidationError("'\(user)' is no user name.") }
  }

  func run() async throws {
    let machine = try await withConnection(connection) { connection in
      try await connection.client.get(BareMetalMachine.self, name: name, namespace: connection.namespace)
    }
    guard let address = machine.status?.addresses?.lazy.compactMap(\.address).first(where: { !$0.isEmpty }) else {
      let phase = machine.status?.phase?.rawValue ?? "not seen yet"
      throw CommandError(
        .conflict, "ssh \(name)", "the machine has no address (it is \(phase))",
        remedy: "Wait for it: bmctl wait \(name) --for Running")
    }
    guard SSHArguments.isAddress(address) else {
      throw CommandError(.failure, "ssh \(name)", "the machine's address '\(TextWidth.printable(address))' is none")
    }
    let arguments = SSHArguments.arguments(
      address: address, uid: machine.metadata.uid ?? name, user: user, identity: identity, port: port,
      options: option, command: command)
    Self.replaceProcess("ssh", arguments)
    throw CommandError(
      .failure, "ssh \(name)", "cannot run ssh: \(String(cString: strerror(errno)))",
      remedy: "Install it: apt-get install openssh-client")
  }

  /// Becomes another program; returns only where that fails.
  private static func replaceProcess(_ program: String, _ arguments: [String]) {
    // A signal that is ignored stays ignored in the program.
    signal(SIGPIPE, SIG_DFL)
    var pointers: [UnsafeMutablePointer<CChar>?] = ([program] + arguments).map { strdup($0) }
    pointers.append(nil)
    execvp(program, pointers)
  }
}

/// The command line of ssh.
package enum SSHArguments {
  package static func arguments(
    address: String, uid: String, user: String, identity: String?, port: Int, options: [String], command: [String]
  ) -> [String] {
    var arguments = ["-o", "HostKeyAlias=bmm-\(uid)"]
    // ssh takes the first value of an option: what the user gives counts.
    for option in options { arguments += ["-o", option] }
    arguments += ["-o", "StrictHostKeyChecking=accept-new", "-o", "CheckHostIP=no"]
    if let identity { arguments += ["-i", identity, "-o", "IdentitiesOnly=yes"] }
    if port != 22 { arguments += ["-p", "\(port)"] }
    arguments += ["-l", user, "--", address]
    return arguments + command
  }

  /// A status is written by others: what goes to ssh's command line must be an address and nothing else.
  package static func isAddress(_ text: String) -> Bool {
    var four = in_addr()
    var six = in6_addr()
    return inet_pton(AF_INET, text, &four) == 1 || inet_pton(AF_INET6, text, &six) == 1
  }

  package static func isUser(_ text: String) -> Bool {
    guard let first = text.utf8.first, first != UInt8(ascii: "-"), text.utf8.count <= 64 else { return false }
    return text.utf8.allSatisfy {
      ($0 | 0x20 >= UInt8(ascii: "a") && $0 | 0x20 <= UInt8(ascii: "z"))
        || ($0 >= UInt8(ascii: "0") && $0 <= UInt8(ascii: "9")) || "._-".utf8.contains($0)
    }
  }
}
