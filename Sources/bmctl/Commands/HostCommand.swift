import ArgumentParser
import Glibc
import IaaS
import JSON
import Kubernetes
import Synchronization

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

struct HostCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "host", abstract: "Servers that machines run on.",
    subcommands: [
      HostAddCommand.self, HostListCommand.self, HostCordonCommand.self, HostUncordonCommand.self,
      HostDrainCommand.self, HostPowerBackCommand.self, HostMaintenanceCommand.self, HostRescanCommand.self,
      HostCredentialsCommand.self,
    ])
}

struct HostAddCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "add", abstract: "Register a server.",
    discussion: """
      Makes a BareMetalHost and the secret with its BMC's password. The password is read from standard input, or asked
      for: it is never part of a command line.

        bmctl host add host-07 --bmc redfish+https://10.0.0.7 --user admin --dpu-node dpu-07 \\
          --ca bmc-ca.pem < password.txt
      """)

  @OptionGroup var connection: ConnectionOptions

  @Argument(help: "The host's name.")
  var name: String

  @Option(help: "The BMC: redfish+https://HOST[:PORT], redfish+http://... or ipmi://HOST[:PORT].")
  var bmc: String

  @Option(help: "The user at the BMC.")
  var user: String

  @Option(help: "The DPU in the server, as a node's name.")
  var dpuNode: String

  @Option(help: "Authorities for the BMC's certificate (PEM file), or that certificate itself.", completion: .file())
  var ca: String?

  @Flag(help: "Accept any certificate of the BMC. Somebody else could then learn the password.")
  var insecureSkipVerify = false

  @Option(name: [.customShort("l"), .long], help: "A label, key=value; may be repeated.")
  var label: [String] = []

  @Flag(help: "Take no machines for now.")
  var maintenance = false

  func validate() throws {
    guard HostArguments.isName(name) else {
      throw ValidationError("'\(name)' is no host name: lower-case letters, digits and '-', at most 50.")
    }
    guard HostArguments.isBMC(bmc) else {
      throw ValidationError("--bmc is redfish+https://HOST, redfish+http://HOST or ipmi://HOST, without user name.")
    }
    guard !user.isEmpty else { throw ValidationError("--user is empty.") }
    for label in label where HostArguments.label(label) == nil {
      throw ValidationError("'\(label)' is no label; key=value was expected.")
    }
  }

  func run() async throws {
    let password = try Password.read(prompt: "Password of \(user) at \(bmc): ")
    var bundle: String?
    if let ca {
      let file = try RawFile(ca)
      guard file.size <= 96 << 10 else { throw CommandError(.invalidInput, ca, "the file is larger than 96 KiB") }
      bundle = Data(try file.read(at: 0, count: Int(file.size))).base64EncodedString()
    }
    try await withConnection(connection) { connection in try await add(connection.client, password, bundle) }
    Output.line("host \(name) added; see: bmctl get host \(name) --watch")
  }

  private func add(_ client: KubernetesClient, _ password: String, _ bundle: String?) async throws {
    let secretName = "bmc-\(name)"
    var host = BareMetalHost(
      metadata: ObjectMeta(name: name),
      spec: .init(
        bmc: .init(
          address: bmc, credentialsSecretRef: .init(name: secretName), caBundle: bundle,
          insecureSkipVerify: insecureSkipVerify),
        dpu: .init(node: dpuNode), maintenance: maintenance))
    let labels = Dictionary(label.compactMap { HostArguments.label($0) }, uniquingKeysWith: { $1 })
    if !labels.isEmpty { host.metadata.labels = labels }
    let made = try await client.create(host)
    do {
      var secret = Secret(metadata: ObjectMeta(name: secretName, namespace: Names.systemNamespace))
      secret.stringData = ["username": user, "password": password]
      // The secret goes with its host.
      secret.metadata.ownerReferences = OwnerReference(owner: made, controller: false).map { [$0] }
      _ = try await client.create(secret)
    } catch {
      try? await client.delete(BareMetalHost.self, name: name, uid: made.metadata.uid)
      if let error = error as? KubernetesError, error.code == .alreadyExists {
        throw CommandError(
          .conflict, "host add \(name)", "the secret \(Names.systemNamespace)/\(secretName) exists already",
          remedy:
            "It may belong to an older host. Delete it: kubectl delete secret -n \(Names.systemNamespace) \(secretName)"
        )
      }
      throw error
    }
  }
}

struct HostListCommand: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "List hosts; the same as `get hosts`.")

  @OptionGroup var connection: ConnectionOptions

  @Option(name: .shortAndLong, help: "wide, json, yaml or name; a table where not given.")
  var output: OutputFormat?

  func run() async throws {
    try await withConnection(connection) { connection in
      try await ObjectPrinter.list(.hosts, namespace: nil, format: output, client: connection.client)
    }
  }
}

extension ObjectPrinter {
  /// Prints all objects of a kind.
  static func list(
    _ resource: Resource, namespace: String?, format: OutputFormat?, client: KubernetesClient
  ) async throws {
    let query = ObjectQuery(
      client: client, definition: resource.definition, namespace: namespace, labelSelector: resource.labelSelector,
      names: [])
    var printer = ObjectPrinter(resource: resource, format: format, namespaces: false, heading: true, single: false)
    let objects = try await query.objects()
    if objects.isEmpty, format == nil || format == .wide { Output.error("There are no \(resource.rawValue).") }
    printer.show(all: objects)
  }
}

/// Checks of `host add`; the API server checks the same again.
package enum HostArguments {
  package static func isName(_ text: String) -> Bool {
    text.utf8.count <= 50 && !text.contains(".") && ImageName.isValid(text)
  }

  package static func isBMC(_ text: String) -> Bool {
    guard text.utf8.count <= 512 else { return false }
    let schemes = ["redfish://", "redfish+https://", "redfish+http://", "ipmi://"]
    guard let scheme = schemes.first(where: text.hasPrefix) else { return false }
    let rest = text.dropFirst(scheme.count)
    return !rest.isEmpty && !rest.contains("@") && rest.utf8.allSatisfy { $0 > 0x20 && $0 < 0x7F }
  }

  package static func label(_ text: String) -> (String, String)? {
    let parts = text.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
    guard parts.count == 2, !parts[0].isEmpty else { return nil }
    return (String(parts[0]), String(parts[1]))
  }
}

/// A secret that a person types, or a program hands over.
enum Password {
  private static let maximumBytes = 1024
  private static let interrupted = Atomic(false)

  /// The first line of standard input. On a terminal, nothing of it is shown.
  static func read(prompt: String) throws -> String {
    // With the echo off, Ctrl-C must not end the process before the echo is on again: it ends the read.
    interrupted.store(false, ordering: .relaxed)
    var action = sigaction()
    var former = sigaction()
    action.__sigaction_handler.sa_handler = { _ in Password.interrupted.store(true, ordering: .relaxed) }
    sigaction(SIGINT, &action, &former)
    defer { sigaction(SIGINT, &former, nil) }
    var mode = termios()
    let isTerminal = isatty(0) == 1 && tcgetattr(0, &mode) == 0
    if isTerminal {
      var silent = mode
      silent.c_lflag &= ~tcflag_t(ECHO)
      tcsetattr(0, TCSAFLUSH, &silent)
      Output.write(prompt, to: 2)
    }
    defer {
      if isTerminal {
        tcsetattr(0, TCSAFLUSH, &mode)
        Output.write("\n", to: 2)
      }
    }
    var bytes: [UInt8] = []
    var byte: UInt8 = 0
    while bytes.count <= maximumBytes {
      let count = Glibc.read(0, &byte, 1)
      if count < 0, errno == EINTR {
        if interrupted.load(ordering: .relaxed) { throw CancellationError() }
        continue
      }
      if count <= 0 || byte == UInt8(ascii: "\n") { break }
      bytes.append(byte)
    }
    if bytes.last == UInt8(ascii: "\r") { bytes.removeLast() }
    guard !bytes.isEmpty, bytes.count <= maximumBytes, let text = String(validating: bytes, as: UTF8.self) else {
      throw CommandError(
        .invalidInput, "read the password", "standard input gave none, or one longer than \(maximumBytes) bytes",
        remedy: "For example: bmctl host add ... < password.txt")
    }
    return text
  }
}
