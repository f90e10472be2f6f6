import Glibc
import Synchronization

/// A real Kubernetes control plane for tests: etcd and kube-apiserver with TLS and RBAC, in a temporary directory and on
/// free ports, and kube-controller-manager where a test asks for controllers.
///
/// Everything dies with the value, and with the test process. Tests that do not stop any part of it use `shared()` and
/// a namespace of their own.
public final class TestControlPlane: Sendable {
  public let directory: TemporaryDirectory
  /// A kubeconfig with an administrator's client certificate.
  public var kubeconfig: String { directory.file("kubeconfig") }
  /// The authority that signed all certificates.
  public var certificateAuthority: String { directory.file("ca.crt") }
  /// A line of JSON for each change (`audit.k8s.io/v1` `Event`; of our own resources with what was written), where the
  /// plane is audited.
  public var auditLog: String { directory.file("audit.log") }
  /// The URL of the API server.
  public var server: String { "https://127.0.0.1:\(ports.api)" }
  /// A bearer token of an administrator.
  public static let adminToken = "admin-token"
  /// A bearer token of a user `plain`, who may do nothing.
  public static let plainToken = "plain-token"

  private struct Ports: Sendable {
    var etcd: Int
    var peer: Int
    var api: Int
    var controllerManager: Int
  }

  private struct Processes {
    var etcd: ChildProcess?
    var api: ChildProcess?
    var controllerManager: ChildProcess?
  }

  private let ports: Ports
  private let binaries: String
  private let controllers: [String]
  private let claimBinderSync: String
  private let isAudited: Bool
  private let processes = Mutex(Processes())

  /// Starts a control plane and waits until it is ready.
  /// - Parameters:
  ///   - controllers: Names of kube-controller-manager's controllers, such as `persistentvolume-binder`; none of them,
  ///     and no controller manager, where it is empty.
  ///   - claimBinderSync: How often the volume binder looks at all claims; its own default is `15s`.
  ///   - isAudited: Whether the API server writes down who changed what, in `auditLog`.
  public static func start(
    controllers: [String] = [], claimBinderSync: String = "1s", isAudited: Bool = false
  ) async throws -> TestControlPlane {
    let plane = try await TestControlPlane(
      controllers: controllers, claimBinderSync: claimBinderSync, isAudited: isAudited)
    try plane.startEtcd()
    try plane.launchAPIServer()
    try await plane.waitUntilReady()
    if !controllers.isEmpty { try plane.startControllerManager() }
    return plane
  }

  /// A control plane that all tests of this process share; started by the first one who asks.
  public static func shared() async throws -> TestControlPlane { try await SharedControlPlane.plain.get() }

  private init(controllers: [String], claimBinderSync: String = "1s", isAudited: Bool = false) async throws {
    self.claimBinderSync = claimBinderSync
    self.isAudited = isAudited
    directory = try TemporaryDirectory()
    binaries = try Self.findBinaries()
    self.controllers = controllers
    ports = Ports(
      etcd: try TestEnvironment.freePort(), peer: try TestEnvironment.freePort(), api: try TestEnvironment.freePort(),
      controllerManager: try TestEnvironment.freePort())
    _ = try TestEnvironment.requireTool("etcd")
    _ = try TestEnvironment.requireTool("kubectl")
    try await makeCertificates()
    try directory.write(
      "tokens.csv",
      """
      \(Self.adminToken),token-admin,token-admin,"system:masters"
      \(Self.plainToken),plain,plain

      """, mode: 0o600)
    try directory.write("kubeconfig", kubeconfigText(), mode: 0o600)
    try directory.write(
      "audit.yaml",
      """
      apiVersion: audit.k8s.io/v1
      kind: Policy
      omitStages: [RequestReceived, ResponseStarted]
      rules:
      - level: Request
        verbs: [create, update, patch, delete]
        resources:
        - group: iaas.yusur.io
      - level: Metadata
        verbs: [create, update, patch, delete]
      - level: None

      """)
  }

  /// The directory with kube-apiserver and kube-controller-manager, as scripts/build-kubernetes.sh leaves it.
  private static func findBinaries() throws -> String {
    func variable(_ name: String) -> String? { getenv(name).map { String(cString: $0) } }
    let cache =
      variable("YCLOUD_CACHE") ?? "\(variable("XDG_CACHE_HOME") ?? "\(variable("HOME") ?? "/root")/.cache")/ycloud"
    let root = "\(cache)/kubernetes"
    var versions: [String] = []
    if let listing = opendir(root) {
      defer { closedir(listing) }
      while let entry = readdir(listing) {
        let name = withUnsafePointer(to: &entry.pointee.d_name) {
          String(cString: UnsafeRawPointer($0).assumingMemoryBound(to: CChar.self))
        }
        if !name.hasPrefix("."), access("\(root)/\(name)/bin/kube-apiserver", X_OK) == 0 { versions.append(name) }
      }
    }
    guard let version = versions.max(by: isOlder) else {
      throw TestEnvironmentError("there is no kube-apiserver in \(root); run scripts/build-kubernetes.sh")
    }
    return "\(root)/\(version)/bin"
  }

  /// Whether a version comes before another one: 1.9 before 1.20.
  static func isOlder(_ version: String, than other: String) -> Bool {
    func numbers(_ text: String) -> [Int] { text.split(separator: ".").map { Int($0) ?? 0 } }
    return numbers(version).lexicographicallyPrecedes(numbers(other))
  }

  // MARK: Certificates and configuration

  private func makeCertificates() async throws {
    let openssl = try TestEnvironment.requireTool("openssl")
    let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    func issue(_ name: String, subject: String, _ extra: [String]) async throws {
      try await ChildProcess.run(
        openssl,
        ["req", "-x509"] + curve + [
          "-keyout", directory.file("\(name).key"), "-out", directory.file("\(name).crt"), "-subj", subject,
        ] + extra)
    }
    let signed = ["-CA", directory.file("ca.crt"), "-CAkey", directory.file("ca.key")]
    try await issue("ca", subject: "/CN=test-authority", ["-addext", "keyUsage=critical,keyCertSign,cRLSign"])
    try await issue(
      "server", subject: "/CN=kube-apiserver",
      signed + [
        "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:kubernetes.default.svc",
        "-addext", "basicConstraints=critical,CA:FALSE",
      ])
    try await issue(
      "admin", subject: "/O=system:masters/CN=admin", signed + ["-addext", "basicConstraints=critical,CA:FALSE"])
    // The API server where it speaks for its users to the servers of aggregated groups.
    try await issue("proxy-ca", subject: "/CN=front-proxy", ["-addext", "keyUsage=critical,keyCertSign,cRLSign"])
    try await issue(
      "proxy", subject: "/CN=front-proxy-client",
      [
        "-CA", directory.file("proxy-ca.crt"), "-CAkey", directory.file("proxy-ca.key"),
        "-addext", "basicConstraints=critical,CA:FALSE",
      ])
    try await ChildProcess.run(
      openssl, ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", directory.file("sa.key")])
    try await ChildProcess.run(
      openssl, ["pkey", "-in", directory.file("sa.key"), "-pubout", "-out", directory.file("sa.pub")])
  }

  private func kubeconfigText() -> String {
    """
    apiVersion: v1
    kind: Config
    current-context: test
    clusters:
    - name: test
      cluster:
        server: \(server)
        certificate-authority: ca.crt
    users:
    - name: admin
      user:
        client-certificate: admin.crt
        client-key: admin.key
    contexts:
    - name: test
      context:
        cluster: test
        user: admin

    """
  }

  // MARK: Processes

  /// Starts etcd, with what it had before where it ran already.
  public func startEtcd() throws {
    let client = "http://127.0.0.1:\(ports.etcd)"
    let peer = "http://127.0.0.1:\(ports.peer)"
    let child = try ChildProcess(
      "etcd",
      [
        "--name", "test", "--data-dir", directory.file("etcd"), "--unsafe-no-fsync", "--listen-client-urls", client,
        "--advertise-client-urls", client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
        "--initial-cluster", "test=\(peer)", "--heartbeat-interval", "50", "--election-timeout", "250",
        "--logger", "zap", "--log-level", "warn",
      ], output: directory.file("etcd.log"))
    processes.withLock { $0.etcd = child }
  }

  /// Kills API server and etcd and starts them with nothing in them, as after a loss of all data.
  public func startOver() async throws {
    killAPIServer()
    killEtcd()
    try await ChildProcess.run("rm", ["-rf", directory.file("etcd")])
    try startEtcd()
    try await startAPIServer()
  }

  public func killEtcd() {
    let child = processes.withLock { processes in
      defer { processes.etcd = nil }
      return processes.etcd
    }
    child?.kill()
  }

  /// Starts the API server anew, on the same port, and waits until it is ready.
  public func startAPIServer() async throws {
    try launchAPIServer()
    try await waitUntilReady()
  }

  /// Starts the API server anew without waiting for it.
  public func launchAPIServer() throws {
    let child = try ChildProcess(
      "\(binaries)/kube-apiserver",
      [
        "--etcd-servers=http://127.0.0.1:\(ports.etcd)", "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
        "--secure-port=\(ports.api)", "--cert-dir=\(directory.path)", "--tls-cert-file=\(directory.file("server.crt"))",
        "--tls-private-key-file=\(directory.file("server.key"))", "--client-ca-file=\(directory.file("ca.crt"))",
        "--token-auth-file=\(directory.file("tokens.csv"))", "--authorization-mode=RBAC",
        "--service-account-key-file=\(directory.file("sa.pub"))",
        "--service-account-signing-key-file=\(directory.file("sa.key"))",
        "--service-account-issuer=https://kubernetes.default.svc", "--service-cluster-ip-range=10.96.0.0/24",
        "--etcd-compaction-interval=0", "--allow-privileged=true",
        "--requestheader-client-ca-file=\(directory.file("proxy-ca.crt"))",
        "--requestheader-allowed-names=front-proxy-client", "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--proxy-client-cert-file=\(directory.file("proxy.crt"))",
        "--proxy-client-key-file=\(directory.file("proxy.key"))",
      ] + (isAudited ? ["--audit-policy-file=\(directory.file("audit.yaml"))", "--audit-log-path=\(auditLog)"] : []),
      output: directory.file("kube-apiserver.log"))
    processes.withLock { $0.api = child }
  }

  /// Issues a certificate in the plane's directory: `NAME.crt` and `NAME.key`.
  /// - Parameters:
  ///   - authority: `ca` or `proxy-ca`.
  ///   - days: how long it is valid; below zero it has expired.
  public func issue(
    _ name: String, subject: String, authority: String = "ca", days: Int = 2, extensions: [String] = []
  ) async throws {
    let openssl = try TestEnvironment.requireTool("openssl")
    try await ChildProcess.run(
      openssl,
      [
        "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", subject, "-keyout",
        directory.file("\(name).key"), "-out", directory.file("\(name).csr"),
      ])
    let file = try directory.write(
      "\(name).ext", (["basicConstraints=critical,CA:FALSE"] + extensions).joined(separator: "\n") + "\n")
    try await ChildProcess.run(
      openssl,
      [
        "x509", "-req", "-in", directory.file("\(name).csr"), "-CA", directory.file("\(authority).crt"), "-CAkey",
        directory.file("\(authority).key"), "-set_serial", "\(Int.random(in: 1..<1 << 40))", "-days", "\(days)",
        "-extfile", file, "-out", directory.file("\(name).crt"),
      ])
  }

  /// Kills the API server without any warning; open watches are cut.
  public func killAPIServer() {
    let child = processes.withLock { processes in
      defer { processes.api = nil }
      return processes.api
    }
    child?.kill()
  }

  /// Stops and continues the API server as a whole: connections stay open and nothing answers.
  public func freezeAPIServer(_ frozen: Bool) {
    let child = processes.withLock { $0.api }
    if frozen { child?.freeze() } else { child?.signal(SIGCONT) }
  }

  private func startControllerManager() throws {
    let child = try ChildProcess(
      "\(binaries)/kube-controller-manager",
      [
        "--kubeconfig=\(kubeconfig)", "--controllers=\(controllers.joined(separator: ","))",
        "--use-service-account-credentials=false", "--leader-elect=false",
        "--pvclaimbinder-sync-period=\(claimBinderSync)",
        "--bind-address=127.0.0.1", "--secure-port=\(ports.controllerManager)", "--port=0",
        "--cert-dir=\(directory.path)", "--service-account-private-key-file=\(directory.file("sa.key"))",
        "--root-ca-file=\(directory.file("ca.crt"))", "--kube-api-qps=2000", "--kube-api-burst=4000",
      ], output: directory.file("kube-controller-manager.log"))
    processes.withLock { $0.controllerManager = child }
  }

  private func waitUntilReady() async throws {
    try await eventually(
      within: .seconds(60), every: .milliseconds(200),
      "the API server is ready; its log: \(contentsOfFile(self.directory.file("kube-apiserver.log"))?.suffix(2000) ?? "")"
    ) {
      if let child = self.processes.withLock({ $0.api }), let exit = child.exitIfEnded {
        throw TestEnvironmentError("kube-apiserver ended with \(exit)")
      }
      return try await self.kubectl("get", "--raw", "/readyz").hasPrefix("ok")
    }
    // The namespace is made a moment after the server calls itself ready.
    try await eventually(within: .seconds(30), every: .milliseconds(100), "the default namespace exists") {
      try await self.kubectl("get", "namespace", "default", "-o", "name").contains("default")
    }
  }

  /// Kills everything and removes the directory's content. For the end of the process only.
  fileprivate func stop() {
    killAPIServer()
    killEtcd()
    processes.withLock { $0.controllerManager }?.kill()
    directory.discard()
  }

  // MARK: Tools

  /// Runs kubectl as the administrator and returns what it prints.
  @discardableResult
  public func kubectl(_ arguments: String...) async throws -> String {
    try await ChildProcess.run("kubectl", ["--kubeconfig", kubeconfig] + arguments)
  }

  /// Applies a manifest with kubectl.
  @discardableResult
  public func apply(manifest: String) async throws -> String {
    let file = try TemporaryDirectory()
    defer { withExtendedLifetime(file) {} }
    return try await kubectl("apply", "-f", try file.write("manifest.yaml", manifest))
  }

  /// Makes etcd forget all versions before the present one, as a busy cluster does after some minutes.
  public func compactEtcd() async throws {
    let endpoint = "http://127.0.0.1:\(ports.etcd)"
    let status = try await ChildProcess.run(
      "etcdctl", ["--endpoints", endpoint, "get", "/none", "-w", "fields"], environment: ["ETCDCTL_API": "3"])
    guard let line = status.split(separator: "\n").first(where: { $0.contains("\"Revision\"") }),
      let revision = line.split(separator: " ").last
    else { throw TestEnvironmentError("etcdctl does not tell the revision: \(status)") }
    try await ChildProcess.run(
      "etcdctl", ["--endpoints", endpoint, "compact", String(revision)], environment: ["ETCDCTL_API": "3"])
  }
}

/// A control plane that many tests use: started by the first one who asks, and ended with the process, because nothing
/// else would.
public actor SharedControlPlane {
  static let plain = SharedControlPlane { try await TestControlPlane.start() }

  private static let kept = Mutex<[TestControlPlane]>([])
  private static let endsWithProcess: Void = {
    _ = atexit { for plane in SharedControlPlane.kept.withLock({ $0 }) { plane.stop() } }
  }()

  private let start: @Sendable () async throws -> TestControlPlane
  private var task: Task<TestControlPlane, any Error>?

  /// - Parameter start: Starts it, and makes what all the tests count on.
  public init(_ start: @escaping @Sendable () async throws -> TestControlPlane) {
    self.start = start
  }

  public func get() async throws -> TestControlPlane {
    if let task { return try await task.value }
    Self.endsWithProcess
    let task = Task { [start] in
      let plane = try await start()
      Self.kept.withLock { $0.append(plane) }
      return plane
    }
    self.task = task
    return try await task.value
  }
}
