import IaaS
import JSON
import Kubernetes
import Logging
import MachineAPI
import NIOCore
import NIOPosix
import Synchronization
import Telemetry
import TestSupport
import WebServer

/// bm-api behind a real kube-apiserver, with a machine on a host whose serial line is a test's.
final class Installation: Sendable {
  let plane: TestControlPlane
  /// As administrator.
  let client: KubernetesClient
  let namespace: String
  let line: SerialLine
  /// bm-api's own port.
  let port: Int
  private let task: Mutex<Task<Void, any Error>?>
  private let configuration: MachineAPIServer.Configuration

  static let machine = "bm-01"

  private init(
    plane: TestControlPlane, client: KubernetesClient, namespace: String, line: SerialLine, port: Int,
    configuration: MachineAPIServer.Configuration
  ) {
    self.plane = plane
    self.client = client
    self.namespace = namespace
    self.line = line
    self.port = port
    self.configuration = configuration
    task = Mutex(nil)
  }

  deinit { task.withLock { $0 }?.cancel() }

  /// Starts everything and waits until the API server serves the group.
  static func start(_ change: (inout MachineAPIServer.Configuration) -> Void = { _ in }) async throws -> Installation {
    let plane = try await TestControlPlane.start(controllers: ["clusterrole-aggregation"])
    let client = try makeClient(plane)
    try await plane.kubectl("create", "namespace", Names.systemNamespace)
    let deploy = "\(TestEnvironment.repository)/deploy"
    try await plane.kubectl("apply", "--server-side", "-f", "\(deploy)/crds", "-f", "\(deploy)/rbac")
    for kind in ["baremetalmachines", "baremetalhosts", "baremetalmachinemigrations"] {
      try await plane.kubectl(
        "wait", "--for=condition=Established", "--timeout=60s", "crd/\(kind).iaas.yusur.io")
    }
    try await plane.issue(
      "bm-api", subject: "/CN=bm-api",
      extensions: ["subjectAltName=DNS:bm-api.\(Names.systemNamespace).svc,DNS:localhost,IP:127.0.0.1"])
    let port = try TestEnvironment.freePort()
    let line = try await SerialLine.start(path: plane.directory.file("console.sock"))
    var configuration = MachineAPIServer.Configuration(
      host: "127.0.0.1", port: port,
      tls: TLSFiles(
        certificateChain: plane.directory.file("bm-api.crt"), privateKey: plane.directory.file("bm-api.key")))
    configuration.consoleFolder = plane.directory.path
    change(&configuration)
    let installation = Installation(
      plane: plane, client: client, namespace: "team", line: line, port: port, configuration: configuration)
    try await installation.makeObjects()
    installation.startServer()
    try await installation.register()
    return installation
  }

  static func makeClient(
    _ plane: TestControlPlane, as user: String? = nil, groups: [String] = []
  ) throws -> KubernetesClient {
    var configuration = try ClientConfiguration.load(kubeconfigPath: plane.kubeconfig)
    configuration.queriesPerSecond = 1000
    configuration.burst = 1000
    if let user { configuration.impersonation = .init(user: user, groups: groups) }
    return try KubernetesClient(configuration: configuration, logger: Logger(label: "test"))
  }

  /// A client as somebody else.
  func client(as user: String) throws -> KubernetesClient { try Self.makeClient(plane, as: user) }

  /// bm-api with the rights of its own account.
  func startServer() {
    let configuration = configuration
    let plane = plane
    task.withLock { task in
      task = Task {
        let client = try Self.makeClient(plane, as: "ycloud:bm-api", groups: ["system:authenticated"])
        try await MachineAPIServer(
          configuration: configuration, client: client, registry: MetricsRegistry(), logger: Logger(label: "bm-api")
        ).run()
      }
    }
  }

  func stopServer() async {
    let running = task.withLock { task in
      defer { task = nil }
      return task
    }
    running?.cancel()
    _ = await running?.result
  }

  private func register() async throws {
    let authority = Array((contentsOfFile(plane.certificateAuthority) ?? "").utf8)
    try await plane.apply(
      manifest: """
        apiVersion: v1
        kind: Service
        metadata: {name: bm-api, namespace: \(Names.systemNamespace)}
        spec: {type: ExternalName, externalName: localhost}
        ---
        apiVersion: apiregistration.k8s.io/v1
        kind: APIService
        metadata: {name: v1.\(Names.subresourceGroup)}
        spec:
          group: \(Names.subresourceGroup)
          version: v1
          groupPriorityMinimum: 1000
          versionPriority: 15
          caBundle: \(base64(authority))
          service: {name: bm-api, namespace: \(Names.systemNamespace), port: \(port)}
        """)
    try await waitUntilServed()
  }

  func waitUntilServed() async throws {
    try await eventually(within: .seconds(60), every: .milliseconds(200), "the API server serves the group") {
      let status = try await self.client.request(
        method: "GET", path: "/apis/apiregistration.k8s.io/v1/apiservices/v1.\(Names.subresourceGroup)")["status"]
      let isAvailable = (status?["conditions"]?.arrayValue ?? []).contains {
        $0["type"]?.stringValue == "Available" && $0["status"]?.stringValue == "True"
      }
      guard isAvailable else { throw TestEnvironmentError("\(status?.text ?? "no status")") }
      _ = try await self.client.request(method: "GET", path: "/apis/\(Names.subresourceGroup)/v1")
      return true
    }
  }

  private func makeObjects() async throws {
    for namespace in [namespace, "other"] { try await plane.kubectl("create", "namespace", namespace) }
    for (user, role) in [("alice", "edit"), ("carol", "edit"), ("bob", "view")] {
      try await plane.kubectl(
        "create", "rolebinding", "\(user)-\(role)", "-n", namespace, "--clusterrole=\(role)", "--user=\(user)")
    }
    try await plane.kubectl("create", "rolebinding", "mallory", "-n", "other", "--clusterrole=admin", "--user=mallory")
    try await eventually(within: .seconds(30), every: .milliseconds(200), "the roles are aggregated") {
      try await self.plane.kubectl("get", "clusterrole", "edit", "-o", "yaml").contains(Names.subresourceGroup)
    }
    var machine = BareMetalMachine(
      metadata: ObjectMeta(name: Self.machine, namespace: namespace),
      spec: .init(disks: [.init(name: "root", bootOrder: 1, existingClaim: .init(claimName: "root"))]))
    machine = try await client.create(machine)
    var host = BareMetalHost(
      metadata: ObjectMeta(name: "host-01"),
      spec: .init(
        bmc: .init(address: "redfish://127.0.0.1:1/redfish/v1/Systems/1", credentialsSecretRef: .init(name: "bmc")),
        dpu: .init(node: "dpu-01")))
    host.metadata.annotations = [ConsoleAddress.annotation: "unix:\(line.path)"]
    _ = try await client.create(host)
    try await hold(machine)
  }

  /// The host is the machine's.
  func hold(_ machine: BareMetalMachine) async throws {
    _ = try await client.mergePatch(
      BareMetalHost.self, name: "host-01",
      patch: [
        "status": [
          "phase": "Claimed", "power": "On",
          "claim": [
            "namespace": .string(namespace), "name": .string(Self.machine),
            "uid": .string(machine.metadata.uid ?? ""),
          ],
        ]
      ], subresource: "status")
    _ = try await client.mergePatch(
      BareMetalMachine.self, name: Self.machine, namespace: namespace,
      patch: [
        "status": [
          "host": "host-01", "phase": "Running", "boot": 1, "bootedAt": .string(MicroTimestamp.now().description),
        ]
      ], subresource: "status")
  }

  func path(_ verb: String, machine: String = Installation.machine, namespace: String? = nil) -> String {
    "/apis/\(Names.subresourceGroup)/v1/namespaces/\(namespace ?? self.namespace)/baremetalmachines/\(machine)/\(verb)"
  }

  /// Somebody else's WebSocket client (Python's), in one of its scenarios.
  func python(_ scenario: String, path: String) async throws -> JSONValue {
    let venv = try await ChildProcess.run(
      "\(TestEnvironment.repository)/scripts/test-venv.sh", [], within: .seconds(300)
    ).split(separator: "\n").last
    let folder = #filePath.split(separator: "/").dropLast().reduce(into: "") { $0 += "/\($1)" }
    let text = try await ChildProcess.run(
      "\(venv ?? "")/bin/python3",
      [
        "\(folder)/Python/console.py", scenario, plane.server, "https://127.0.0.1:\(port)",
        plane.certificateAuthority, TestControlPlane.adminToken, path,
      ], within: .seconds(120))
    return try JSONValue.parse(String(text.split(separator: "\n").last ?? ""))
  }

  func machineObject() async throws -> BareMetalMachine {
    try await client.get(BareMetalMachine.self, name: Self.machine, namespace: namespace)
  }
}

func base64(_ bytes: [UInt8]) -> String {
  let letters = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)
  var text: [UInt8] = []
  for start in stride(from: 0, to: bytes.count, by: 3) {
    let group = Array(bytes[start..<min(start + 3, bytes.count)])
    let value = group.reduce(0) { $0 << 8 | Int($1) } << (8 * (3 - group.count))
    for index in 0..<4 {
      text.append(index <= group.count ? letters[value >> (18 - 6 * index) & 63] : UInt8(ascii: "="))
    }
  }
  return String(decoding: text, as: UTF8.self)
}

/// A server's serial line as a chassis serves it: it greets, and sends back what is typed.
final class SerialLine: Sendable {
  let path: String
  private let server: any Channel
  private let clients: NIOLoopBoundBox<[any Channel]>
  private let group: MultiThreadedEventLoopGroup

  static let greeting = "login: \n"

  private init(
    path: String, server: any Channel, clients: NIOLoopBoundBox<[any Channel]>, group: MultiThreadedEventLoopGroup
  ) {
    self.path = path
    self.server = server
    self.clients = clients
    self.group = group
  }

  deinit { server.close(promise: nil) }

  static func start(path: String) async throws -> SerialLine {
    let group = MultiThreadedEventLoopGroup.singleton
    let loop = group.next()
    let clients = NIOLoopBoundBox.makeBoxSendingValue([any Channel](), eventLoop: loop)
    let server = try await ServerBootstrap(group: loop, childGroup: loop)
      .childChannelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          clients.value.append(channel)
          try channel.pipeline.syncOperations.addHandler(Echo())
        }
      }
      .bind(unixDomainSocketPath: path).get()
    return SerialLine(path: path, server: server, clients: clients, group: group)
  }

  /// Writes to everybody who is connected, and waits until it is taken.
  func write(_ bytes: [UInt8]) async throws {
    let clients = clients
    try await server.eventLoop.flatSubmit {
      EventLoopFuture.andAllComplete(
        clients.value.map { $0.writeAndFlush($0.allocator.buffer(bytes: bytes)) }, on: clients.eventLoop)
    }.get()
  }

  private final class Echo: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer

    func channelActive(context: ChannelHandlerContext) {
      context.writeAndFlush(NIOAny(context.channel.allocator.buffer(string: SerialLine.greeting)), promise: nil)
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
      var buffer = context.channel.allocator.buffer(string: "you typed ")
      var typed = unwrapInboundIn(data)
      buffer.writeBuffer(&typed)
      context.writeAndFlush(NIOAny(buffer), promise: nil)
    }
  }
}
