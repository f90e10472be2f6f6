import JSON
import Kubernetes
import Logging
import TestSupport

/// A namespace and a client for one test, on a control plane.
struct Cluster {
  let plane: TestControlPlane
  let client: KubernetesClient
  let namespace: String

  /// On the control plane that all tests share.
  static func shared() async throws -> Cluster { try await on(.shared()) }

  static func on(_ plane: TestControlPlane) async throws -> Cluster {
    let client = try makeClient(plane)
    let namespace = "t-" + String(UInt64.random(in: .min ... .max), radix: 36)
    _ = try await client.create(Namespace(metadata: ObjectMeta(name: namespace)))
    return Cluster(plane: plane, client: client, namespace: namespace)
  }

  static func makeClient(
    _ plane: TestControlPlane, _ change: (inout ClientConfiguration) -> Void = { _ in }
  ) throws -> KubernetesClient {
    var configuration = try ClientConfiguration.load(kubeconfigPath: plane.kubeconfig)
    configuration.queriesPerSecond = 500
    configuration.burst = 500
    change(&configuration)
    return try KubernetesClient(configuration: configuration, logger: Logger(label: "test"))
  }

  func configMap(_ name: String, _ data: [String: String] = [:], labels: [String: String]? = nil) -> ConfigMap {
    ConfigMap(metadata: ObjectMeta(name: name, namespace: namespace, labels: labels), data: data)
  }
}

/// Runs `body` and returns the error that it must throw.
func failure(_ body: () async throws -> Void) async throws -> KubernetesError {
  do {
    try await body()
  } catch let error as KubernetesError {
    return error
  }
  throw TestEnvironmentError("the call succeeded, but should have failed")
}
