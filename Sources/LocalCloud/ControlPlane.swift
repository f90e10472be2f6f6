import IaaS
import JSON
import Kubernetes
import Logging

/// The local API server as its administrator sees it: whether it works, and the objects that every cloud has.
struct ControlPlane: Sendable {
  let directory: CloudDirectory
  let settings: CloudSettings

  static let systemNamespace = "ycloud-system"
  static let fieldManager = "ycloud-up"

  /// Whether the API server has done all its own preparations.
  func isReady() async throws -> Bool {
    let client = try KubernetesClient(configuration: configuration(), logger: Self.quiet)
    return try await Self.closing(client) { try await Self.answersOK(client, "/readyz") }
  }

  func isControllerManagerReady() async throws -> Bool {
    var configuration = ClientConfiguration(
      server: "https://127.0.0.1:\(settings.ports[PortPlan.controllerManager] ?? 0)")
    configuration.certificateAuthority = .file(directory.certificate(Certificates.Authority.cluster.rawValue))
    configuration.requestTimeout = .seconds(2)
    let client = try KubernetesClient(configuration: configuration, logger: Self.quiet)
    return try await Self.closing(client) { try await Self.answersOK(client, "/healthz") }
  }

  /// Makes the definitions, rights, storage class, accounts and hosts, or brings them up to date.
  func applyObjects() async throws {
    let client = try KubernetesClient(configuration: configuration(), logger: Self.quiet)
    try await Self.closing(client) {
      let objects = ObjectApplier(client: client, fieldManager: Self.fieldManager)
      try await objects.apply([Self.namespace])
      let definitions = try DeployFiles.manifests(in: "crds") + DeployFiles.manifests(in: "snapshot-crds")
      try await objects.apply(definitions)
      try await objects.apply(try DeployFiles.manifests(in: "rbac"))
      try await objects.apply(try DeployFiles.manifests(file: "storage-class.yaml").map(Self.asDefaultClass))
      for host in settings.hostNames {
        try await objects.apply(try DeployFiles.manifests(in: "hosts", variables: ["HOST": host]))
      }
      let (service, registration) = try machineAPIObjects()
      try await objects.apply([service])
      try await Self.register(registration, client)
      for definition in definitions {
        try await objects.waitUntilServed(definition)
      }
      try await objects.apply(try DeployFiles.manifests(file: "snapshot-class.yaml"))
      for host in settings.hostNames {
        try await objects.apply(try hostObjects(host))
      }
    }
  }

  /// The class as the one of claims that name none: in a cloud of its own there is no other that they could mean.
  private static func asDefaultClass(_ storageClass: JSONValue) -> JSONValue {
    var result = storageClass
    var metadata = result["metadata"] ?? [:]
    var annotations = metadata["annotations"] ?? [:]
    annotations["storageclass.kubernetes.io/is-default-class"] = "true"
    metadata["annotations"] = annotations
    result["metadata"] = metadata
    return result
  }

  private static let namespace: JSONValue = [
    "apiVersion": "v1", "kind": "Namespace", "metadata": ["name": .string(systemNamespace)],
  ]

  /// Where the API server finds bm-api: on this machine, by a name of the Service that its certificate has.
  private func machineAPIObjects() throws -> (service: JSONValue, registration: JSONValue) {
    let authority = directory.certificate(Certificates.Authority.cluster.rawValue)
    let name = Account.machineAPI.name
    return (
      [
        "apiVersion": "v1", "kind": "Service",
        "metadata": ["name": .string(name), "namespace": .string(Self.systemNamespace)],
        "spec": ["type": "ExternalName", "externalName": "localhost"],
      ],
      [
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": ["name": .string("v1.\(Names.subresourceGroup)")],
        "spec": [
          "group": .string(Names.subresourceGroup), "version": "v1", "groupPriorityMinimum": 1000,
          "versionPriority": 15, "caBundle": .string(Base64.encode(try Files.read(authority) ?? "")),
          "service": [
            "name": .string(name), "namespace": .string(Self.systemNamespace),
            "port": .integer(Int64(settings.ports[PortPlan.machineAPI] ?? 0)),
          ],
        ],
      ]
    )
  }

  /// Server-side apply of an APIService makes kube-apiserver 1.20 panic: it has no field manager for these.
  private static func register(_ registration: JSONValue, _ client: KubernetesClient) async throws {
    let definition = ResourceDefinition(
      group: "apiregistration.k8s.io", version: "v1", kind: "APIService", plural: "apiservices", namespaced: false)
    let object = DynamicObject(content: registration)
    do {
      _ = try await client.create(definition, object)
    } catch let error as KubernetesError {
      guard error.code == .alreadyExists else { throw error }
      _ = try await client.mergePatch(definition, name: object.name ?? "", patch: registration)
    }
  }

  /// A simulated server as an operator would register a real one: its BMC's account and the host itself.
  private func hostObjects(_ host: String) throws -> [JSONValue] {
    let bmc = try BMCAccess(host, directory: directory, settings: settings)
    let secret = "bmc-\(host)"
    return [
      [
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/basic-auth",
        "metadata": ["name": .string(secret), "namespace": .string(Self.systemNamespace)],
        "data": [
          "username": .string(Base64.encode(bmc.username)), "password": .string(Base64.encode(bmc.password)),
        ],
      ],
      [
        "apiVersion": "iaas.yusur.io/v1", "kind": "BareMetalHost",
        "metadata": [
          "name": .string(host),
          // Where bmctl, on this machine, finds the host's serial console.
          "annotations": ["iaas.yusur.io/console": .string("unix:\(directory.host(host).consoleSocket)")],
        ],
        "spec": [
          "bmc": [
            "address": .string(bmc.address),
            "credentialsSecretRef": ["name": .string(secret), "namespace": .string(Self.systemNamespace)],
            "caBundle": .string(Base64.encode(bmc.authority)),
          ],
          "dpu": ["node": .string(CloudSettings.dpuNode(of: host))],
        ],
      ],
    ]
  }

  private func configuration() throws -> ClientConfiguration {
    var configuration = try ClientConfiguration.load(kubeconfigPath: directory.kubeconfig)
    configuration.userAgent = "ycloud-up"
    configuration.requestTimeout = .seconds(5)
    return configuration
  }

  /// The health endpoints answer "ok", which is no JSON: that the client complains about the content means that the
  /// status was a good one.
  private static func answersOK(_ client: KubernetesClient, _ path: String) async throws -> Bool {
    do {
      _ = try await client.request(method: "GET", path: path)
      return true
    } catch let error as KubernetesError {
      return error.code == .invalidResponse
    }
  }

  private static func closing<Result: Sendable>(
    _ client: KubernetesClient, _ body: () async throws -> Result
  ) async throws -> Result {
    do {
      let result = try await body()
      try await client.shutdown()
      return result
    } catch {
      try? await client.shutdown()
      throw error
    }
  }

  private static var quiet: Logger {
    var logger = Logger(label: "control-plane")
    logger.logLevel = .warning
    return logger
  }
}
