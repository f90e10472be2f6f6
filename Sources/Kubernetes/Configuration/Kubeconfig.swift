import Yams

/// The file format of kubectl's configuration (`v1.Config` of client-go), as far as a client needs it.
package struct Kubeconfig: Sendable {
  package struct Cluster: Decodable, Sendable {
    var server: String?
    var certificateAuthority: String?
    var certificateAuthorityData: String?
    var insecureSkipTLSVerify: Bool?
    var tlsServerName: String?
    var proxyURL: String?

    enum CodingKeys: String, CodingKey {
      case server
      case certificateAuthority = "certificate-authority"
      case certificateAuthorityData = "certificate-authority-data"
      case insecureSkipTLSVerify = "insecure-skip-tls-verify"
      case tlsServerName = "tls-server-name"
      case proxyURL = "proxy-url"
    }
  }

  package struct Exec: Decodable, Sendable {
    struct Variable: Decodable, Sendable {
      var name: String
      var value: String?
    }

    var apiVersion: String?
    var command: String?
    var args: [String]?
    var env: [Variable]?
    var installHint: String?
    var provideClusterInfo: Bool?
  }

  package struct User: Decodable, Sendable {
    struct AuthProvider: Decodable, Sendable { var name: String? }

    var clientCertificate: String?
    var clientCertificateData: String?
    var clientKey: String?
    var clientKeyData: String?
    var token: String?
    var tokenFile: String?
    var username: String?
    var password: String?
    var impersonate: String?
    var impersonateGroups: [String]?
    var exec: Exec?
    var authProvider: AuthProvider?

    enum CodingKeys: String, CodingKey {
      case clientCertificate = "client-certificate"
      case clientCertificateData = "client-certificate-data"
      case clientKey = "client-key"
      case clientKeyData = "client-key-data"
      case token, tokenFile, username, password
      case impersonate = "as"
      case impersonateGroups = "as-groups"
      case exec
      case authProvider = "auth-provider"
    }
  }

  package struct Context: Decodable, Sendable {
    var cluster: String?
    var user: String?
    var namespace: String?
  }

  private struct Named<T: Decodable & Sendable>: Decodable, Sendable {
    let name: String
    let value: T

    private struct Key: CodingKey {
      let stringValue: String
      var intValue: Int? { nil }
      init(stringValue: String) { self.stringValue = stringValue }
      init?(intValue: Int) { nil }
    }

    init(from decoder: any Decoder) throws {
      let container = try decoder.container(keyedBy: Key.self)
      name = try container.decode(String.self, forKey: Key(stringValue: "name"))
      let content = container.allKeys.first { ["cluster", "user", "context"].contains($0.stringValue) }
      guard let content else {
        throw DecodingError.dataCorrupted(
          .init(codingPath: container.codingPath, debugDescription: "entry '\(name)' has no content"))
      }
      value = try container.decode(T.self, forKey: content)
    }
  }

  private struct File: Decodable {
    var currentContext: String?
    var clusters: [Named<Cluster>]?
    var users: [Named<User>]?
    var contexts: [Named<Context>]?

    enum CodingKeys: String, CodingKey {
      case currentContext = "current-context"
      case clusters, users, contexts
    }
  }

  package private(set) var currentContext: String?
  package private(set) var clusters: [String: (value: Cluster, directory: String)] = [:]
  package private(set) var users: [String: (value: User, directory: String)] = [:]
  package private(set) var contexts: [String: Context] = [:]

  package init() {}

  /// Adds what a file defines and what no earlier file defined: the first one wins, as in kubectl.
  /// - Parameter directory: The folder of the file, which its relative paths start from.
  package mutating func merge(yaml: String, directory: String, path: String) throws(KubernetesError) {
    let file: File
    do {
      // An empty file is a valid kubeconfig that defines nothing.
      guard try Yams.compose(yaml: yaml) != nil else { return }
      file = try YAMLDecoder().decode(File.self, from: yaml)
    } catch {
      throw KubernetesError(
        code: .configuration, operation: "read kubeconfig \(path)", message: Kubeconfig.explain(error))
    }
    if currentContext?.isEmpty ?? true { currentContext = file.currentContext }
    for entry in file.clusters ?? [] where clusters[entry.name] == nil {
      clusters[entry.name] = (entry.value, directory)
    }
    for entry in file.users ?? [] where users[entry.name] == nil { users[entry.name] = (entry.value, directory) }
    for entry in file.contexts ?? [] where contexts[entry.name] == nil { contexts[entry.name] = entry.value }
  }

  /// What is wrong with the file, without any of its values: these may be secrets.
  private static func explain(_ error: any Error) -> String {
    switch error {
    case DecodingError.typeMismatch(_, let context), DecodingError.valueNotFound(_, let context),
      DecodingError.keyNotFound(_, let context):
      let path = context.codingPath.map { $0.intValue.map { "[\($0)]" } ?? $0.stringValue }.joined(separator: ".")
      return "the value of '\(path)' is missing or has a wrong type"
    case DecodingError.dataCorrupted(let context):
      let path = context.codingPath.map { $0.intValue.map { "[\($0)]" } ?? $0.stringValue }.joined(separator: ".")
      return path.isEmpty ? "it is not valid YAML" : "the value of '\(path)' is not valid"
    default: return "it is not valid YAML"
    }
  }
}
