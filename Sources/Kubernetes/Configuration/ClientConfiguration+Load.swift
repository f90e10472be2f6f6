#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

extension ClientConfiguration {
  /// Finds the configuration where kubectl would: an explicit file, the files in `$KUBECONFIG` (separated by colons,
  /// merged), `~/.kube/config`, and at last the service account of the pod that this process runs in.
  ///
  /// - Throws: `KubernetesError` with the code `configuration`.
  public static func load(kubeconfigPath: String? = nil, context: String? = nil) throws -> ClientConfiguration {
    try load(
      kubeconfigPath: kubeconfigPath, context: context, environment: ProcessInfo.processInfo.environment,
      serviceAccountDirectory: "/var/run/secrets/kubernetes.io/serviceaccount")
  }

  package static func load(
    kubeconfigPath: String?, context: String?, environment: [String: String], serviceAccountDirectory: String
  ) throws(KubernetesError) -> ClientConfiguration {
    if let kubeconfigPath, !kubeconfigPath.isEmpty {
      var kubeconfig = Kubeconfig()
      try read(kubeconfigPath, into: &kubeconfig)
      return try kubeconfig.resolve(context: context)
    }
    let listed = (environment["KUBECONFIG"] ?? "").split(separator: ":").map(String.init)
    if !listed.isEmpty {
      var kubeconfig = Kubeconfig()
      // Files of the list that do not exist are skipped, as kubectl does; all of them missing is an error.
      let present = listed.filter { FileManager.default.fileExists(atPath: $0) }
      guard !present.isEmpty else {
        throw KubernetesError(
          code: .configuration, operation: "read kubeconfig",
          message: "none of the files in KUBECONFIG exists: \(listed.joined(separator: ", "))")
      }
      for path in present { try read(path, into: &kubeconfig) }
      return try kubeconfig.resolve(context: context)
    }
    if let home = environment["HOME"], !home.isEmpty {
      let path = "\(home)/.kube/config"
      if FileManager.default.fileExists(atPath: path) {
        var kubeconfig = Kubeconfig()
        try read(path, into: &kubeconfig)
        return try kubeconfig.resolve(context: context)
      }
    }
    return try inCluster(environment: environment, directory: serviceAccountDirectory)
  }

  /// The service account of the pod that this process runs in.
  package static func inCluster(
    environment: [String: String], directory: String
  ) throws(KubernetesError) -> ClientConfiguration {
    guard let host = environment["KUBERNETES_SERVICE_HOST"], let port = environment["KUBERNETES_SERVICE_PORT"],
      !host.isEmpty, !port.isEmpty
    else {
      throw KubernetesError(
        code: .configuration, operation: "find an API server",
        message: "no kubeconfig was given, KUBECONFIG is not set, ~/.kube/config does not exist, and this is no pod")
    }
    let authority = host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)"
    var configuration = ClientConfiguration(server: "https://\(authority)")
    configuration.credential = .tokenFile("\(directory)/token")
    configuration.certificateAuthority = .file("\(directory)/ca.crt")
    if let namespace = try? TextFile.read("\(directory)/namespace", maximumBytes: 1024) {
      let trimmed = namespace.trimmingWhitespace()
      if !trimmed.isEmpty { configuration.namespace = trimmed }
    }
    return configuration
  }

  private static func read(_ path: String, into kubeconfig: inout Kubeconfig) throws(KubernetesError) {
    let text: String
    do {
      text = try TextFile.read(path, maximumBytes: 16 << 20)
    } catch {
      throw KubernetesError(
        code: .configuration, operation: "read kubeconfig \(path)", message: "\(error)", cause: error)
    }
    let absolute = path.hasPrefix("/") ? path : "\(FileManager.default.currentDirectoryPath)/\(path)"
    let directory = absolute.split(separator: "/").dropLast().joined(separator: "/")
    try kubeconfig.merge(yaml: text, directory: "/\(directory)", path: path)
  }
}
