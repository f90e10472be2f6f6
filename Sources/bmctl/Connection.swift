import ArgumentParser
import Kubernetes
import Logging

/// Which API server and namespace, as kubectl's flags of the same names say.
struct ConnectionOptions: ParsableArguments {
  @Option(help: ArgumentHelp("The kubeconfig file.", valueName: "file"), completion: .file())
  var kubeconfig: String?

  @Option(help: "The kubeconfig's context to use.")
  var context: String?

  @Option(name: .shortAndLong, help: "The namespace of machines and images; the context's where not given.")
  var namespace: String?

  func configuration() throws -> ClientConfiguration {
    var configuration = try ClientConfiguration.load(kubeconfigPath: kubeconfig, context: context)
    if let namespace {
      guard !namespace.isEmpty else { throw ValidationError("The namespace is empty.") }
      configuration.namespace = namespace
    }
    configuration.userAgent = "bmctl"
    return configuration
  }
}

/// A client and the namespace that commands work in.
struct Connection: Sendable {
  let client: KubernetesClient
  let namespace: String
}

/// Runs `body` with a connection that is closed afterwards.
func withConnection<Result>(
  _ options: ConnectionOptions, _ body: (Connection) async throws -> Result
) async throws -> Result {
  let configuration = try options.configuration()
  var logger = Logger(label: "bmctl")
  logger.logLevel = .critical
  let client = try KubernetesClient(configuration: configuration, logger: logger)
  do {
    let result = try await body(Connection(client: client, namespace: configuration.namespace))
    try? await client.shutdown()
    return result
  } catch {
    try? await client.shutdown()
    throw error
  }
}
