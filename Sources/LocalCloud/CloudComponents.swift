/// The parts of a cloud with their command lines.
struct CloudComponents: Sendable {
  let directory: CloudDirectory
  let settings: CloudSettings
  let programs: Programs
  let logLevel: String

  /// Where the programs are.
  struct Programs: Sendable {
    /// This program, which is also every role.
    var ycloud: String
    var etcd: String
    var dnsmasq: String
    var apiServer: String
    var controllerManager: String
  }

  /// The names of a host's processes.
  static func dataPlane(_ host: String) -> String { "softdpu-\(host)" }
  static func storageAPI(_ host: String) -> String { "opi-bridge-\(host)" }
  static func chassis(_ host: String) -> String { "softhost-\(host)" }
  static func handler(_ host: String) -> String { "bm-handler-\(host)" }

  static let objects = "cluster-objects"

  func all() throws -> [Component] {
    var components = [try etcd(), try apiServer(), try controllerManager(), dhcpServer()]
    let controlPlane = ControlPlane(directory: directory, settings: settings)
    components.append(
      Component(
        name: Self.objects, work: .task { try await controlPlane.applyObjects() }, dependencies: ["kube-apiserver"],
        readiness: .started))
    for host in settings.hostNames {
      components += [dataPlane(host), storageAPI(host), try chassis(host)]
    }
    components += [try volumeController(), try machineController(), try machineAPI()]
    for host in settings.hostNames {
      components.append(try handler(host))
    }
    return components
  }

  private func port(_ use: String) throws -> Int {
    guard let port = settings.ports[use] else {
      throw LocalCloudError(.invalidSettings, operation: "start the cloud", "cloud.json has no port for \(use)")
    }
    return port
  }

  private func process(
    _ name: String, _ executable: String, _ arguments: [String], after dependencies: [String],
    readiness: Component.Readiness, graceSeconds: Double = 10
  ) -> Component {
    Component(
      name: name,
      work: .process(
        Program(
          executable: executable, arguments: arguments, log: directory.log(name), pidFile: directory.pidFile(name),
          graceSeconds: graceSeconds)),
      dependencies: dependencies, readiness: readiness)
  }

  // MARK: Control plane

  private func etcd() throws -> Component {
    let client = "https://127.0.0.1:\(try port(PortPlan.etcdClient))"
    let peer = "https://127.0.0.1:\(try port(PortPlan.etcdPeer))"
    let metrics = try port(PortPlan.etcdMetrics)
    let certificate = directory.certificate("etcd")
    let key = directory.privateKey("etcd")
    let authority = directory.certificate(Certificates.Authority.etcd.rawValue)
    return process(
      "etcd", programs.etcd,
      [
        "--name=local", "--data-dir=\(directory.etcd)",
        "--listen-client-urls=\(client)", "--advertise-client-urls=\(client)",
        "--listen-peer-urls=\(peer)", "--initial-advertise-peer-urls=\(peer)", "--initial-cluster=local=\(peer)",
        "--cert-file=\(certificate)", "--key-file=\(key)", "--client-cert-auth", "--trusted-ca-file=\(authority)",
        "--peer-cert-file=\(certificate)", "--peer-key-file=\(key)", "--peer-client-cert-auth",
        "--peer-trusted-ca-file=\(authority)",
        "--listen-metrics-urls=http://127.0.0.1:\(metrics)",
        // One member: nobody to lose an election to, so it need not wait for one.
        "--heartbeat-interval=20", "--election-timeout=200",
        "--logger=zap", "--log-level=warn",
      ], after: [], readiness: .http(port: metrics, path: "/health"))
  }

  private func apiServer() throws -> Component {
    let cluster = directory.certificate(Certificates.Authority.cluster.rawValue)
    let controlPlane = ControlPlane(directory: directory, settings: settings)
    return process(
      "kube-apiserver", programs.apiServer,
      [
        "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
        "--secure-port=\(try port(PortPlan.apiServer))",
        // The address is a loopback one, which is no endpoint for a Service.
        "--endpoint-reconciler-type=none",
        "--etcd-servers=https://127.0.0.1:\(try port(PortPlan.etcdClient))",
        "--etcd-cafile=\(directory.certificate(Certificates.Authority.etcd.rawValue))",
        "--etcd-certfile=\(directory.certificate("etcd-client"))",
        "--etcd-keyfile=\(directory.privateKey("etcd-client"))",
        "--tls-cert-file=\(directory.certificate("kube-apiserver"))",
        "--tls-private-key-file=\(directory.privateKey("kube-apiserver"))",
        "--client-ca-file=\(cluster)", "--anonymous-auth=false", "--authorization-mode=RBAC",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-account-key-file=\(directory.serviceAccountPublicKey)",
        "--service-account-signing-key-file=\(directory.privateKey("service-accounts"))",
        "--service-cluster-ip-range=10.96.0.0/24",
        // How it speaks for its users to bm-api.
        "--requestheader-client-ca-file=\(directory.certificate(Certificates.Authority.frontProxy.rawValue))",
        "--requestheader-allowed-names=\(Certificates.frontProxyClient)",
        "--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--proxy-client-cert-file=\(directory.certificate(Certificates.frontProxyClient))",
        "--proxy-client-key-file=\(directory.privateKey(Certificates.frontProxyClient))",
        "--profiling=false",
      ], after: ["etcd"], readiness: .probe { try await controlPlane.isReady() },
      // With watches open it takes a minute to end by itself, and has nothing to lose.
      graceSeconds: 1)
  }

  /// Only the controllers that this cloud has work for.
  static let controllers = [
    "namespace", "garbagecollector", "serviceaccount", "serviceaccount-token", "clusterrole-aggregation",
    "persistentvolume-binder", "pv-protection", "pvc-protection", "root-ca-cert-publisher",
  ]

  private func controllerManager() throws -> Component {
    let port = try port(PortPlan.controllerManager)
    let kubeconfig = directory.roleKubeconfig(Account.controllerManager.name)
    let controlPlane = ControlPlane(directory: directory, settings: settings)
    return process(
      "kube-controller-manager", programs.controllerManager,
      [
        "--bind-address=127.0.0.1", "--secure-port=\(port)", "--port=0",
        "--tls-cert-file=\(directory.certificate("kube-controller-manager-server"))",
        "--tls-private-key-file=\(directory.privateKey("kube-controller-manager-server"))",
        "--kubeconfig=\(kubeconfig)", "--authentication-kubeconfig=\(kubeconfig)",
        "--authorization-kubeconfig=\(kubeconfig)", "--authentication-skip-lookup",
        "--client-ca-file=\(directory.certificate(Certificates.Authority.cluster.rawValue))",
        "--root-ca-file=\(directory.certificate(Certificates.Authority.cluster.rawValue))",
        "--service-account-private-key-file=\(directory.privateKey("service-accounts"))",
        "--use-service-account-credentials=false", "--leader-elect=false",
        "--controllers=\(Self.controllers.joined(separator: ","))",
        // Looks every 15 s otherwise whether a volume is there.
        "--pvclaimbinder-sync-period=1s",
        "--profiling=false",
      ], after: ["kube-apiserver"], readiness: .probe { try await controlPlane.isControllerManagerReady() },
      graceSeconds: 3)
  }

  private func dhcpServer() -> Component {
    let network = BridgeNetwork(directory: directory, settings: settings)
    return process(
      "dnsmasq", programs.dnsmasq,
      [
        "--keep-in-foreground", "--log-facility=-", "--conf-file=\(network.dhcpConfigurationFile)",
        "--pid-file=\(directory.dhcpPidFile)",
      ], after: [],
      // It writes its own pid file when it has its sockets.
      readiness: .probe { [directory] in
        let own = try Files.read(directory.dhcpPidFile)?.prefix { $0 != "\n" }
        let started = try Files.read(directory.pidFile("dnsmasq"))?.prefix { $0 != "\n" }
        return own != nil && own == started
      }, graceSeconds: 3)
  }

  // MARK: The simulated hardware

  private func dataPlane(_ host: String) -> Component {
    let files = directory.host(host)
    return process(
      Self.dataPlane(host), programs.ycloud,
      [
        "softdpu", "--rpc-socket", files.spdkSocket, "--vhost-dir", files.bus, "--state-dir", files.dpuState,
        "--log-level", logLevel,
      ], after: [], readiness: .unixSocket(files.spdkSocket))
  }

  private func storageAPI(_ host: String) -> Component {
    let files = directory.host(host)
    return process(
      Self.storageAPI(host), programs.ycloud,
      [
        "opi-bridge", "--grpc", "unix:\(files.opiSocket)", "--spdk", files.spdkSocket, "--state-dir", files.opiState,
        "--log-level", logLevel,
      ], after: [Self.dataPlane(host)], readiness: .unixSocket(files.opiSocket))
  }

  private func chassis(_ host: String) throws -> Component {
    let files = directory.host(host)
    let name = Self.chassis(host)
    let metrics = try port(PortPlan.metrics(name))
    return process(
      name, programs.ycloud,
      [
        "softhost", "--name", host, "--bus-dir", files.bus, "--state-dir", files.state,
        "--bmc-listen", "127.0.0.1:\(try port(PortPlan.bmc(host)))",
        "--bmc-tls-cert", directory.certificate("bmc-\(host)"), "--bmc-tls-key", directory.privateKey("bmc-\(host)"),
        "--bmc-credentials-file", files.bmcCredentials,
        "--console-socket", files.consoleSocket, "--console-log", files.consoleLog,
        "--memory", "\(settings.hostMemoryMiB)", "--cpus", "\(settings.hostCPUs)",
        "--firmware", settings.firmware.rawValue,
        "--metrics-address", "127.0.0.1:\(metrics)", "--log-level", logLevel,
      ], after: [], readiness: .http(port: metrics, path: "/readyz"))
  }

  // MARK: The roles that use Kubernetes

  private func volumeController() throws -> Component {
    let name = Account.volumeController.name
    let metrics = try port(PortPlan.metrics(name))
    let pool = StoragePool(directory: directory, settings: settings)
    return process(
      name, programs.ycloud,
      [
        "csi-controller", "--pool", pool.path, "--kubeconfig", directory.roleKubeconfig(name),
        "--upload-listen", "127.0.0.1:\(try port(PortPlan.upload))",
        "--upload-tls-cert", directory.certificate("upload"), "--upload-tls-key", directory.privateKey("upload"),
        "--upload-ca", directory.certificate(Certificates.Authority.cluster.rawValue),
        "--metrics-address", "127.0.0.1:\(metrics)", "--log-level", logLevel,
      ], after: [Self.objects], readiness: .http(port: metrics, path: "/readyz"))
  }

  private func machineController() throws -> Component {
    let name = Account.machineController.name
    let metrics = try port(PortPlan.metrics(name))
    return process(
      name, programs.ycloud,
      [
        "bm-controller", "--kubeconfig", directory.roleKubeconfig(name),
        "--identity-lock", directory.identityLock(name),
        "--metrics-address", "127.0.0.1:\(metrics)", "--log-level", logLevel,
      ], after: [Self.objects], readiness: .http(port: metrics, path: "/readyz"))
  }

  private func machineAPI() throws -> Component {
    let name = Account.machineAPI.name
    let metrics = try port(PortPlan.metrics(name))
    return process(
      name, programs.ycloud,
      [
        "bm-api", "--kubeconfig", directory.roleKubeconfig(name),
        "--listen", "127.0.0.1:\(try port(PortPlan.machineAPI))",
        "--tls-cert", directory.certificate("bm-api-server"), "--tls-key", directory.privateKey("bm-api-server"),
        "--console-sockets", "\(directory.shortPath)/hosts", "--machine-networks", settings.subnet,
        "--screenshots",
        "--metrics-address", "127.0.0.1:\(metrics)", "--log-level", logLevel,
      ], after: [Self.objects], readiness: .http(port: metrics, path: "/readyz"))
  }

  private func handler(_ host: String) throws -> Component {
    let files = directory.host(host)
    let name = Self.handler(host)
    let metrics = try port(PortPlan.metrics(name))
    let pool = StoragePool(directory: directory, settings: settings)
    return process(
      name, programs.ycloud,
      [
        "bm-handler", "--host", host, "--opi", "unix:\(files.opiSocket)", "--bus-dir", files.bus, "--pool", pool.path,
        "--state-dir", files.handlerState, "--bridge", settings.name, "--dhcp-hosts-dir", directory.dhcpHosts,
        "--dhcp-lease-file", directory.dhcpLeases, "--dhcp-pid-file", directory.dhcpPidFile, "--kubeconfig",
        directory.roleKubeconfig(name),
        "--metrics-address", "127.0.0.1:\(metrics)", "--log-level", logLevel,
      ], after: [Self.objects, Self.storageAPI(host)], readiness: .http(port: metrics, path: "/readyz"))
  }
}
