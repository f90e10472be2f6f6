import Kubernetes
import TestSupport
import Testing

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

@Suite struct KubeconfigTests {
  private static let certificate = Data("-----BEGIN CERTIFICATE-----\n".utf8).base64EncodedString()

  private static let everything = """
    apiVersion: v1
    kind: Config
    preferences: {}
    current-context: dev
    clusters:
    - name: dev
      cluster:
        server: https://10.1.2.3:6443
        certificate-authority-data: \(certificate)
        tls-server-name: kubernetes.default
    - cluster: {server: "http://localhost:8080", certificate-authority: pki/ca.crt, insecure-skip-tls-verify: true}
      name: local
    users:
    - name: cert
      user: {client-certificate-data: \(certificate), client-key-data: \(certificate)}
    - name: files
      user: {client-certificate: me.crt, client-key: /abs/me.key}
    - name: token
      user: {token: abc, as: somebody, as-groups: [g1, g2]}
    - name: file
      user: {tokenFile: token.txt}
    - name: basic
      user: {username: u, password: p}
    - name: plugin
      user:
        exec:
          apiVersion: client.authentication.k8s.io/v1
          command: ./login
          args: [get, token]
          env: [{name: REGION, value: here}, {name: EMPTY}]
          interactiveMode: IfAvailable
          installHint: install it
          provideClusterInfo: true
    - name: old-plugin
      user: {exec: {apiVersion: client.authentication.k8s.io/v1alpha1, command: x}}
    - name: provider
      user: {auth-provider: {name: gcp}}
    contexts:
    - {name: dev, context: {cluster: dev, user: cert, namespace: team}}
    - {name: files, context: {cluster: local, user: files}}
    - {name: token, context: {cluster: local, user: token}}
    - {name: file, context: {cluster: local, user: file}}
    - {name: basic, context: {cluster: local, user: basic}}
    - {name: plugin, context: {cluster: local, user: plugin}}
    - {name: old-plugin, context: {cluster: local, user: old-plugin}}
    - {name: provider, context: {cluster: local, user: provider}}
    - {name: nobody, context: {cluster: local, user: ""}}
    - {name: no-cluster, context: {cluster: gone, user: cert}}
    - {name: no-user, context: {cluster: local, user: gone}}
    extensions: []
    """

  private func resolve(_ context: String?) throws -> ClientConfiguration {
    var kubeconfig = Kubeconfig()
    try kubeconfig.merge(yaml: Self.everything, directory: "/home/me/.kube", path: "config")
    return try kubeconfig.resolve(context: context)
  }

  @Test func theCurrentContextIsTheDefault() throws {
    let configuration = try resolve(nil)
    #expect(configuration.server == "https://10.1.2.3:6443")
    #expect(configuration.namespace == "team")
    #expect(configuration.tlsServerName == "kubernetes.default")
    #expect(configuration.certificateAuthority == .pem("-----BEGIN CERTIFICATE-----\n"))
    #expect(configuration.clientCertificate?.key == .pem("-----BEGIN CERTIFICATE-----\n"))
  }

  @Test func relativePathsStartAtTheFile() throws {
    let configuration = try resolve("files")
    #expect(configuration.certificateAuthority == .file("/home/me/.kube/pki/ca.crt"))
    #expect(configuration.clientCertificate?.chain == .file("/home/me/.kube/me.crt"))
    #expect(configuration.clientCertificate?.key == .file("/abs/me.key"))
    #expect(configuration.insecureSkipTLSVerify)
    #expect(configuration.namespace == "default")
  }

  @Test func credentialsOfAllKinds() throws {
    guard case .token("abc") = try resolve("token").credential else {
      Issue.record("token")
      return
    }
    #expect(try resolve("token").impersonation == .init(user: "somebody", groups: ["g1", "g2"]))
    guard case .tokenFile("/home/me/.kube/token.txt") = try resolve("file").credential else {
      Issue.record("token file")
      return
    }
    guard case .basic("u", "p") = try resolve("basic").credential else {
      Issue.record("basic")
      return
    }
    guard case .none = try resolve("nobody").credential else {
      Issue.record("nobody")
      return
    }
    guard case .exec(let plugin) = try resolve("plugin").credential else {
      Issue.record("exec")
      return
    }
    #expect(plugin.arguments == ["get", "token"])
    #expect(plugin.environment == ["REGION": "here", "EMPTY": ""])
    #expect(plugin.provideClusterInfo)
    #expect(plugin.directory == "/home/me/.kube")
  }

  @Test(
    arguments: [
      ("old-plugin", "v1alpha1"), ("provider", "gcp"), ("no-cluster", "gone"), ("no-user", "gone"),
      ("absent", "absent"),
    ])
  func whatCannotBeUsedIsNamed(context: String, word: String) {
    let error = #expect(throws: KubernetesError.self) { try resolve(context) }
    #expect(error?.code == .configuration)
    #expect(error?.message.contains(word) == true)
  }

  @Test func theFirstOfSeveralFilesWins() throws {
    var kubeconfig = Kubeconfig()
    try kubeconfig.merge(
      yaml: "clusters: [{name: a, cluster: {server: 'https://first'}}]", directory: "/1", path: "1")
    try kubeconfig.merge(yaml: "", directory: "/2", path: "2")
    try kubeconfig.merge(
      yaml: """
        current-context: c
        clusters: [{name: a, cluster: {server: 'https://second'}}]
        contexts: [{name: c, context: {cluster: a}}]
        """, directory: "/3", path: "3")
    #expect(try kubeconfig.resolve().server == "https://first")
  }

  @Test(
    arguments: [
      "clusters: 5", "{", "- a\n- b", "clusters: [{name: a}]", "users: [{name: a, user: {token: [secret-token]}}]",
      "\u{0}", "clusters: [{name: a, cluster: {server: {secret-token: 1}}}]", "&a [*a]",
    ])
  func aBrokenFileIsAnErrorWithoutItsContent(yaml: String) throws {
    var kubeconfig = Kubeconfig()
    do throws(KubernetesError) {
      try kubeconfig.merge(yaml: yaml, directory: "/", path: "config")
      _ = try kubeconfig.resolve()
      Issue.record("was accepted")
    } catch {
      #expect(error.code == .configuration)
      #expect(!"\(error)".contains("secret-token"))
    }
  }

  @Test func randomChangesNeverTrap() {
    var random = SeededGenerator(seed: 11)
    let template = Array(Self.everything.utf8)
    for _ in 0..<400 {
      var bytes = template
      for _ in 0..<(1 + random.next() % 6) {
        bytes[Int(random.next() % UInt64(bytes.count))] = UInt8(truncatingIfNeeded: random.next() % 128)
      }
      var kubeconfig = Kubeconfig()
      try? kubeconfig.merge(yaml: String(decoding: bytes, as: UTF8.self), directory: "/", path: "config")
      for context in ["dev", "token", "plugin"] { _ = try? kubeconfig.resolve(context: context) }
    }
  }

  @Test func searchesWhereKubectlSearches() throws {
    let directory = try TemporaryDirectory()
    let home = directory.path
    func load(_ environment: [String: String], path: String? = nil) throws -> ClientConfiguration {
      try ClientConfiguration.load(
        kubeconfigPath: path, context: nil, environment: environment, serviceAccountDirectory: directory.file("sa"))
    }
    let nothing = #expect(throws: KubernetesError.self) { try load(["HOME": home]) }
    #expect(nothing?.message.contains("KUBECONFIG") == true)

    try FileManager.default.createDirectory(atPath: directory.file("sa"), withIntermediateDirectories: true)
    try directory.write("sa/namespace", "pods-own\n")
    try directory.write("sa/token", "t")
    let pod = ["HOME": home, "KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"]
    let inCluster = try load(pod)
    #expect(inCluster.server == "https://[fd00::1]:443")
    #expect(inCluster.namespace == "pods-own")

    func config(_ server: String) -> String {
      """
      current-context: c
      clusters: [{name: a, cluster: {server: '\(server)'}}]
      contexts: [{name: c, context: {cluster: a}}]
      """
    }
    try FileManager.default.createDirectory(atPath: directory.file(".kube"), withIntermediateDirectories: true)
    try directory.write(".kube/config", config("https://home"))
    try directory.write("other", config("https://other"))
    #expect(try load(pod).server == "https://home")
    #expect(
      try load(pod.merging(["KUBECONFIG": "/absent:\(directory.file("other"))"]) { $1 }).server == "https://other")
    #expect(throws: KubernetesError.self) { try load(pod.merging(["KUBECONFIG": "/absent"]) { $1 }) }
    #expect(try load(pod, path: directory.file("other")).server == "https://other")
    #expect(throws: KubernetesError.self) { try load(pod, path: "/absent") }
  }

  @Test func execAnswersAreChecked() throws {
    let plugin = ExecPlugin(apiVersion: "client.authentication.k8s.io/v1", command: "login")
    func parse(_ text: String) throws -> ExecCredential { try ExecCredential(output: Array(text.utf8), plugin: plugin) }
    let head = #""apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential""#
    let good = try parse("{\(head),\"status\":{\"token\":\"t\",\"expirationTimestamp\":\"2030-01-01T00:00:00Z\"}}")
    #expect(good.token == "t")
    #expect(good.expiration == Timestamp("2030-01-01T00:00:00Z"))
    for bad in [
      "", "{}", "{\(head)}", "{\(head),\"status\":{}}", "{\(head),\"status\":{\"clientKeyData\":\"secret-token\"}}",
      "{\(head),\"status\":{\"token\":\"secret-token\",\"expirationTimestamp\":\"soon\"}}",
      #"{"apiVersion":"client.authentication.k8s.io/v1beta1","kind":"ExecCredential","status":{"token":"secret-token"}}"#,
    ] {
      let error = #expect(throws: KubernetesError.self) { try parse(bad) }
      #expect(!"\(error as Any)".contains("secret-token"))
    }
  }
}
