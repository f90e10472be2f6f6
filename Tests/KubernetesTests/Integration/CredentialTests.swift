import Kubernetes
import Logging
import TestSupport
import Testing

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

@Suite(.timeLimit(.minutes(3))) struct CredentialTests {
  private func configuration(_ plane: TestControlPlane) -> ClientConfiguration {
    var configuration = ClientConfiguration(server: plane.server)
    configuration.certificateAuthority = .file(plane.certificateAuthority)
    return configuration
  }

  private func canListSecrets(_ configuration: ClientConfiguration) async throws {
    let client = try KubernetesClient(configuration: configuration, logger: Logger(label: "test"))
    _ = try await client.list(Secret.self, namespace: "kube-system", limit: 1)
  }

  @Test func tokensAndTheirRights() async throws {
    let plane = try await TestControlPlane.shared()
    var configuration = configuration(plane)
    configuration.credential = .token(TestControlPlane.adminToken)
    try await canListSecrets(configuration)

    configuration.credential = .token(TestControlPlane.plainToken)
    let forbidden = try await failure { try await canListSecrets(configuration) }
    #expect(forbidden.code == .forbidden)
    #expect(forbidden.message.contains("plain"))

    configuration.credential = .token("nonsense")
    let unauthorized = try await failure { try await canListSecrets(configuration) }
    #expect(unauthorized.code == .unauthorized)
    #expect(!"\(unauthorized)".contains("nonsense"))

    configuration.credential = .token(TestControlPlane.adminToken)
    configuration.impersonation = .init(user: "plain")
    #expect(try await failure { try await canListSecrets(configuration) }.code == .forbidden)
  }

  @Test func aTokenFileIsReadAgainWhenItsTokenIsRefused() async throws {
    let plane = try await TestControlPlane.shared()
    let directory = try TemporaryDirectory()
    var configuration = configuration(plane)
    configuration.credential = .tokenFile(try directory.write("token", TestControlPlane.adminToken + "\n"))
    let client = try KubernetesClient(configuration: configuration, logger: Logger(label: "test"))
    try directory.write("token", "old-and-refused")
    #expect(try await failure { _ = try await client.list(Secret.self, limit: 1) }.code == .unauthorized)
    try directory.write("token", TestControlPlane.adminToken)
    _ = try await client.list(Secret.self, limit: 1)
  }

  @Test func anInClusterAccountWorks() async throws {
    let plane = try await TestControlPlane.shared()
    let directory = try TemporaryDirectory()
    try directory.write("token", TestControlPlane.adminToken)
    try directory.write("namespace", "team")
    try directory.write("ca.crt", try #require(contentsOfFile(plane.certificateAuthority)))
    let port = try #require(plane.server.split(separator: ":").last)
    let configuration = try ClientConfiguration.inCluster(
      environment: ["KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": String(port)],
      directory: directory.path)
    try await canListSecrets(configuration)
  }

  /// A plugin that logs its calls and prints the token that a file names.
  private func plugin(_ directory: TemporaryDirectory, version: String, expiresIn: String) throws -> ExecPlugin {
    let script = try directory.write(
      "plugin.sh",
      """
      #!/bin/sh
      echo "$KUBERNETES_EXEC_INFO" >> "$LOG"
      printf '{"apiVersion":"%s","kind":"ExecCredential","status":{"token":"%s","expirationTimestamp":"%s"}}' \
        "$1" "$(cat "$TOKEN")" "$(date -u -d "$2" +%Y-%m-%dT%H:%M:%SZ)"
      """, mode: 0o755)
    try directory.write("token", TestControlPlane.adminToken)
    return ExecPlugin(
      apiVersion: version, command: script, arguments: [version, expiresIn],
      environment: ["LOG": directory.file("log"), "TOKEN": directory.file("token")], provideClusterInfo: true)
  }

  @Test(arguments: ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"])
  func aPluginsTokenIsKeptUntilItExpiresOrIsRefused(version: String) async throws {
    let plane = try await TestControlPlane.shared()
    let directory = try TemporaryDirectory()
    var configuration = configuration(plane)
    configuration.credential = .exec(try plugin(directory, version: version, expiresIn: "+1 hour"))
    let client = try KubernetesClient(configuration: configuration, logger: Logger(label: "test"))
    func calls() -> Int { contentsOfFile(directory.file("log"))?.split(separator: "\n").count ?? 0 }
    try await withThrowingTaskGroup(of: Void.self) { group in
      for _ in 0..<8 { group.addTask { _ = try await client.list(Secret.self, limit: 1) } }
      try await group.waitForAll()
    }
    #expect(calls() == 1, "eight requests at once, one run of the plugin")
    #expect(contentsOfFile(directory.file("log"))?.contains(plane.server) == true)
  }

  @Test func anExpiredPluginTokenIsRenewed() async throws {
    let plane = try await TestControlPlane.shared()
    let directory = try TemporaryDirectory()
    var configuration = configuration(plane)
    // Within the margin: every request needs a new one.
    configuration.credential = .exec(
      try plugin(directory, version: "client.authentication.k8s.io/v1", expiresIn: "+2 seconds"))
    let client = try KubernetesClient(configuration: configuration, logger: Logger(label: "test"))
    for _ in 0..<2 { _ = try await client.list(Secret.self, limit: 1) }
    #expect(contentsOfFile(directory.file("log"))?.split(separator: "\n").count == 2)
  }

  @Test func aPluginMayGiveAClientCertificate() async throws {
    let plane = try await TestControlPlane.shared()
    let directory = try TemporaryDirectory()
    let script = try directory.write(
      "plugin.py",
      """
      #!/usr/bin/env python3
      import json
      read = lambda name: open("\(plane.directory.path)/" + name).read()
      print(json.dumps({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
        "status": {"clientCertificateData": read("admin.crt"), "clientKeyData": read("admin.key")}}))
      """, mode: 0o755)
    var configuration = configuration(plane)
    configuration.credential = .exec(ExecPlugin(apiVersion: "client.authentication.k8s.io/v1", command: script))
    try await canListSecrets(configuration)
  }

  @Test func aPluginThatIsMissingOrFailsIsNamed() async throws {
    let plane = try await TestControlPlane.shared()
    var configuration = configuration(plane)
    configuration.credential = .exec(
      ExecPlugin(
        apiVersion: "client.authentication.k8s.io/v1", command: "no-such-plugin", installHint: "apt install it"))
    let missing = try await failure { try await canListSecrets(configuration) }
    #expect(missing.code == .configuration)
    #expect(missing.message.contains("apt install it"))
    configuration.credential = .exec(
      ExecPlugin(
        apiVersion: "client.authentication.k8s.io/v1", command: "sh",
        arguments: ["-c", "echo please log in >&2; exit 3"]))
    #expect(try await failure { try await canListSecrets(configuration) }.message.contains("please log in"))
  }

  @Test func certificatesOfTheServerAreChecked() async throws {
    let plane = try await TestControlPlane.shared()
    var configuration = configuration(plane)
    configuration.credential = .token(TestControlPlane.adminToken)
    configuration.certificateAuthority = nil
    let unknown = try await failure { try await canListSecrets(configuration) }
    #expect(unknown.code == .unavailable)
    #expect(unknown.message.contains("certificate authority of the configuration"))
    configuration.insecureSkipTLSVerify = true
    try await canListSecrets(configuration)

    configuration.insecureSkipTLSVerify = false
    configuration.certificateAuthority = .file(plane.certificateAuthority)
    configuration.tlsServerName = "kubernetes.default.svc"
    try await canListSecrets(configuration)
  }
}
