import Glibc
import Hummingbird
import JSON
import Kubernetes
import Logging
import WebServer

/// The server for uploads, and the ConfigMap `upload` by which clients find it.
struct UploadEndpoint: Sendable {
  let settings: CSIController.UploadSettings
  let client: KubernetesClient
  let namespace: String
  let logger: Logger

  func run(router: Router<BasicRequestContext>) async throws {
    let authority = try settings.certificateAuthority.map(readFile)
    let (ports, continuation) = AsyncStream.makeStream(of: Int.self, bufferingPolicy: .bufferingNewest(1))
    let server = WebServer(
      host: settings.host, port: settings.port, tls: settings.tls, router: router, logger: logger,
      onRunning: { port in
        continuation.yield(port)
        continuation.finish()
      })
    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask { try await server.run() }
      for await port in ports { try await publish(port: port, authority: authority) }
      try await group.waitForAll()
    }
  }

  private func publish(port: Int, authority: String?) async throws {
    let scheme = settings.tls == nil ? "http" : "https"
    let host = settings.host.contains(":") ? "[\(settings.host)]" : settings.host
    let url = settings.url ?? "\(scheme)://\(host):\(port)"
    // Senders that know the second type save what is zero on the way.
    var data: JSONValue = [
      "url": .string(url), "contentTypes": .string("application/octet-stream,\(ExtentStream.contentType)"),
    ]
    if let authority { data["ca.crt"] = .string(authority) }
    var backoff = Backoff(initial: .milliseconds(200), maximum: .seconds(10))
    while true {
      do {
        _ = try await client.apply(
          ConfigMap.self, name: "upload", namespace: namespace, configuration: ["data": data],
          fieldManager: "csi-controller")
        logger.info("uploads are received", metadata: ["url": "\(url)", "port": "\(port)"])
        return
      } catch {
        try Task.checkCancellation()
        logger.warning(
          "could not publish the address for uploads; will retry",
          metadata: ["configMap": "\(namespace)/upload", "error": "\(error)"])
      }
      try await Task.sleep(for: backoff.next())
    }
  }

  private func readFile(_ path: String) throws -> String {
    let operation = "read the authority for uploads"
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw StorageError.system(operation, "open '\(path)'", errno) }
    defer { close(descriptor) }
    // Certificates: a file of more than a MiB is something else.
    var bytes = [UInt8](repeating: 0, count: 1 << 20)
    let count = read(descriptor, &bytes, bytes.count)
    guard count >= 0 else { throw StorageError.system(operation, "read '\(path)'", errno) }
    return String(decoding: bytes[..<count], as: UTF8.self)
  }
}
