#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

extension Kubeconfig {
  /// The configuration that a context means.
  /// - Parameter context: nil for the current one.
  package func resolve(context contextName: String? = nil) throws(KubernetesError) -> ClientConfiguration {
    func failure(_ message: String) -> KubernetesError {
      KubernetesError(code: .configuration, operation: "use kubeconfig", message: message)
    }
    let name = contextName ?? currentContext ?? ""
    guard !name.isEmpty else {
      throw failure("it has no current context; name one, or run 'kubectl config use-context'")
    }
    guard let context = contexts[name] else { throw failure("it has no context '\(name)'") }
    guard let clusterName = context.cluster, let (cluster, clusterDirectory) = clusters[clusterName] else {
      throw failure("context '\(name)' names the cluster '\(context.cluster ?? "")', which it does not define")
    }
    guard let server = cluster.server, !server.isEmpty else {
      throw failure("the cluster '\(clusterName)' has no server")
    }
    if let proxy = cluster.proxyURL, !proxy.isEmpty {
      throw failure("the cluster '\(clusterName)' needs the proxy \(proxy); proxies are not supported")
    }

    var configuration = ClientConfiguration(server: server)
    configuration.namespace = context.namespace.flatMap { $0.isEmpty ? nil : $0 } ?? "default"
    configuration.insecureSkipTLSVerify = cluster.insecureSkipTLSVerify ?? false
    configuration.tlsServerName = cluster.tlsServerName
    configuration.certificateAuthority = try source(
      data: cluster.certificateAuthorityData, path: cluster.certificateAuthority, directory: clusterDirectory,
      what: "certificate-authority-data of the cluster '\(clusterName)'")

    guard let userName = context.user, !userName.isEmpty else { return configuration }
    guard let (user, userDirectory) = users[userName] else {
      throw failure("context '\(name)' names the user '\(userName)', which it does not define")
    }
    let chain = try source(
      data: user.clientCertificateData, path: user.clientCertificate, directory: userDirectory,
      what: "client-certificate-data of the user '\(userName)'")
    let key = try source(
      data: user.clientKeyData, path: user.clientKey, directory: userDirectory,
      what: "client-key-data of the user '\(userName)'")
    switch (chain, key) {
    case (let chain?, let key?): configuration.clientCertificate = .init(chain: chain, key: key)
    case (nil, nil): break
    default: throw failure("the user '\(userName)' has a client certificate without a key, or a key without one")
    }
    if let impersonate = user.impersonate, !impersonate.isEmpty {
      configuration.impersonation = .init(user: impersonate, groups: user.impersonateGroups ?? [])
    }
    if let file = user.tokenFile, !file.isEmpty {
      configuration.credential = .tokenFile(Kubeconfig.absolute(file, in: userDirectory))
    } else if let token = user.token, !token.isEmpty {
      configuration.credential = .token(token)
    } else if let username = user.username, !username.isEmpty {
      configuration.credential = .basic(username: username, password: user.password ?? "")
    } else if let exec = user.exec {
      configuration.credential = .exec(try plugin(exec, user: userName, directory: userDirectory))
    } else if let provider = user.authProvider {
      throw failure(
        "the user '\(userName)' needs the auth-provider '\(provider.name ?? "")', which kubectl removed too; "
          + "use its exec plugin")
    }
    return configuration
  }

  private func plugin(_ exec: Exec, user: String, directory: String) throws(KubernetesError) -> ExecPlugin {
    guard let command = exec.command, !command.isEmpty else {
      throw KubernetesError(
        code: .configuration, operation: "use kubeconfig", message: "the exec plugin of '\(user)' has no command")
    }
    let apiVersion = exec.apiVersion ?? ""
    guard ExecCredential.supportedVersions.contains(apiVersion) else {
      throw KubernetesError(
        code: .configuration, operation: "use kubeconfig",
        message: "the exec plugin of '\(user)' speaks '\(apiVersion)'; supported are "
          + ExecCredential.supportedVersions.joined(separator: " and "))
    }
    return ExecPlugin(
      apiVersion: apiVersion, command: command, arguments: exec.args ?? [],
      environment: Dictionary((exec.env ?? []).map { ($0.name, $0.value ?? "") }, uniquingKeysWith: { $1 }),
      installHint: exec.installHint, provideClusterInfo: exec.provideClusterInfo ?? false, directory: directory)
  }

  /// Data wins over a path, as in kubectl.
  private func source(
    data: String?, path: String?, directory: String, what: String
  ) throws(KubernetesError) -> ClientConfiguration.Source? {
    if let data, !data.isEmpty {
      guard let bytes = Data(base64Encoded: data, options: .ignoreUnknownCharacters),
        let text = String(validating: bytes, as: UTF8.self)
      else {
        throw KubernetesError(
          code: .configuration, operation: "use kubeconfig", message: "\(what) is not Base64 of PEM text")
      }
      return .pem(text)
    }
    if let path, !path.isEmpty { return .file(Kubeconfig.absolute(path, in: directory)) }
    return nil
  }

  static func absolute(_ path: String, in directory: String) -> String {
    path.hasPrefix("/") || directory.isEmpty ? path : "\(directory)/\(path)"
  }
}
