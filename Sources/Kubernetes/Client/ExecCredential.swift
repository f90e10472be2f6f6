import Deadlines
import JSON
import Subprocess
import SystemPackage

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// The answer of an exec plugin (`ExecCredential` of client.authentication.k8s.io, v1 and v1beta1).
package struct ExecCredential: Sendable, Hashable {
  static let supportedVersions = ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"]

  package var token: String?
  package var clientCertificatePEM: String?
  package var clientKeyPEM: String?
  package var expiration: Timestamp?

  /// Parses what a plugin printed. The text may hold secrets, so no error repeats it.
  package init(output: [UInt8], plugin: ExecPlugin) throws(KubernetesError) {
    func failure(_ message: String) -> KubernetesError {
      KubernetesError(code: .configuration, operation: "run credential plugin \(plugin.command)", message: message)
    }
    guard let value = try? JSONValue.parse(output) else { throw failure("it printed no JSON") }
    guard value["kind"]?.stringValue == "ExecCredential" else { throw failure("it printed no ExecCredential") }
    guard value["apiVersion"]?.stringValue == plugin.apiVersion else {
      throw failure("it answers in another version than \(plugin.apiVersion), which the kubeconfig names")
    }
    guard let status = value["status"], status.objectValue != nil else { throw failure("its answer has no status") }
    token = status["token"]?.stringValue
    clientCertificatePEM = status["clientCertificateData"]?.stringValue
    clientKeyPEM = status["clientKeyData"]?.stringValue
    guard (clientCertificatePEM == nil) == (clientKeyPEM == nil) else {
      throw failure("its answer has a client certificate without a key, or a key without one")
    }
    guard token != nil || clientCertificatePEM != nil else {
      throw failure("its answer has neither a token nor a client certificate")
    }
    if let text = status["expirationTimestamp"]?.stringValue {
      guard let time = Timestamp(text) else { throw failure("its expirationTimestamp is no RFC 3339 time") }
      expiration = time
    }
  }

  /// Runs the plugin. It gets no terminal: a service cannot answer its questions.
  static func run(_ plugin: ExecPlugin, configuration: ClientConfiguration) async throws -> ExecCredential {
    let operation = "run credential plugin \(plugin.command)"
    var spec: JSONValue = ["interactive": false]
    if plugin.provideClusterInfo {
      var cluster: JSONValue = ["server": .string(configuration.server)]
      if configuration.insecureSkipTLSVerify { cluster["insecure-skip-tls-verify"] = true }
      if let name = configuration.tlsServerName { cluster["tls-server-name"] = .string(name) }
      if let authority = configuration.certificateAuthority {
        let pem = try authority.pem(operation: operation)
        cluster["certificate-authority-data"] = .string(Data(pem.utf8).base64EncodedString())
      }
      spec["cluster"] = cluster
    }
    let info: JSONValue = ["apiVersion": .string(plugin.apiVersion), "kind": "ExecCredential", "spec": spec]
    var variables: [Environment.Key: String?] = [:]
    for (name, value) in plugin.environment { variables[Environment.Key(stringLiteral: name)] = value }
    variables["KUBERNETES_EXEC_INFO"] = info.text

    // As kubectl: a command with a slash is a path (relative to the kubeconfig), one without is searched in PATH.
    let executable: Executable =
      plugin.command.contains("/")
      ? .path(FilePath(Kubeconfig.absolute(plugin.command, in: plugin.directory ?? "")))
      : .name(plugin.command)
    let environment = Environment.inherit.updating(variables)
    let result: ExecutionResult<Void, BytesOutput, StringOutput<UTF8>>
    do {
      result = try await withTimeLimit(.seconds(60)) {
        try await Subprocess.run(
          executable, arguments: Arguments(plugin.arguments), environment: environment, input: .none,
          output: .bytes(limit: 1 << 20), error: .string(limit: 64 << 10))
      }
    } catch let error as CancellationError {
      throw error
    } catch {
      let hint = plugin.installHint.map { ". \($0)" } ?? ""
      throw KubernetesError(
        code: .configuration, operation: operation, message: "it cannot be run: \(error)\(hint)", cause: error)
    }
    guard case .exited(0) = result.terminationStatus else {
      let complaint = result.standardError.trimmingWhitespace().suffix(512)
      throw KubernetesError(
        code: .unauthorized, operation: operation,
        message: "it failed (\(result.terminationStatus))" + (complaint.isEmpty ? "" : ": \(complaint)"))
    }
    return try ExecCredential(output: result.standardOutput, plugin: plugin)
  }
}

extension ClientConfiguration.Source {
  func pem(operation: String) throws(KubernetesError) -> String {
    switch self {
    case .pem(let text): return text
    case .file(let path):
      do {
        return try TextFile.read(path, maximumBytes: 1 << 20)
      } catch {
        throw KubernetesError(code: .configuration, operation: operation, message: "\(error)", cause: error)
      }
    }
  }
}
