import Hummingbird
import Logging
import Synchronization
import Telemetry
import TestSupport
import Testing
import WebServer

@Suite(.timeLimit(.minutes(1))) struct WebServerTests {
  /// Runs `body` with the port of a server that is stopped afterwards.
  private func withServer(
    tls: TLSFiles? = nil, isReady: @escaping @Sendable () -> Bool = { true }, _ body: (Int) async throws -> Void
  ) async throws {
    let registry = MetricsRegistry()
    registry.counter("things_total", help: "Things.").increment()
    let port = Mutex(0)
    let server = WebServer(
      host: "127.0.0.1", port: 0, tls: tls, router: operationsRouter(registry: registry, isReady: isReady),
      logger: Logger(label: "test"), onRunning: { actual in port.withLock { $0 = actual } })
    try await withThrowingTaskGroup(of: Void.self) { group in
      group.addTask { try await server.run() }
      try await eventually { port.withLock { $0 } != 0 }
      try await body(port.withLock { $0 })
      group.cancelAll()
      try await group.waitForAll()
    }
  }

  private func get(_ url: String, _ options: String...) async throws -> String {
    try await ChildProcess.run("curl", ["-s", "-i", "--max-time", "5"] + options + [url])
  }

  @Test func operatorsSeeMetricsHealthAndReadiness() async throws {
    let ready = Readiness()
    try await withServer(isReady: { ready.value.withLock { $0 } }) { port in
      let base = "http://127.0.0.1:\(port)"
      let metrics = try await get("\(base)/metrics")
      #expect(metrics.contains("text/plain; version=0.0.4"))
      #expect(metrics.contains("things_total 1"))
      #expect(try await get("\(base)/healthz").contains("200 OK"))
      #expect(try await get("\(base)/readyz").contains("503"))
      ready.value.withLock { $0 = true }
      #expect(try await get("\(base)/readyz").contains("200 OK"))
      #expect(try await get("\(base)/other").contains("404"))
    }
  }

  private final class Readiness: Sendable {
    let value = Mutex(false)
  }

  @Test func stopsAlthoughAConnectionIsOpen() async throws {
    let start = ContinuousClock.now
    try await withServer { port in
      let client = try ChildProcess(
        "bash", ["-c", "exec 3<>/dev/tcp/127.0.0.1/\(port); echo open; sleep 100"])
      try await eventually { client.output.contains("open") }
    }
    #expect(ContinuousClock.now - start < .seconds(10))
  }

  @Test func aTakenPortIsNamed() async throws {
    try await withServer { port in
      let second = WebServer(
        host: "127.0.0.1", port: port, tls: nil,
        router: operationsRouter(registry: MetricsRegistry(), isReady: { true }), logger: Logger(label: "test"))
      let error = await #expect(throws: WebServerError.self) { try await second.run() }
      #expect(error?.subject == "127.0.0.1:\(port)")
    }
  }

  @Test func aMissingCertificateIsNamed() async throws {
    let server = WebServer(
      host: "127.0.0.1", port: 0, tls: TLSFiles(certificateChain: "/absent.crt", privateKey: "/absent.key"),
      router: operationsRouter(registry: MetricsRegistry(), isReady: { true }), logger: Logger(label: "test"))
    let error = await #expect(throws: WebServerError.self) { try await server.run() }
    #expect(error?.description.contains("/absent.crt") == true)
  }

  @Test func clientCertificatesAreDemandedWhereAnAuthorityIsSet() async throws {
    let directory = try TemporaryDirectory()
    func issue(_ name: String, _ extra: [String]) async throws {
      try await ChildProcess.run(
        "openssl",
        [
          "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
          "/CN=\(name)", "-keyout", directory.file("\(name).key"), "-out", directory.file("\(name).crt"),
        ] + extra)
    }
    let signed = ["-CA", directory.file("ca.crt"), "-CAkey", directory.file("ca.key")]
    try await issue("ca", ["-addext", "keyUsage=critical,keyCertSign"])
    try await issue("server", signed + ["-addext", "subjectAltName=IP:127.0.0.1"])
    try await issue("client", signed)
    try await issue("stranger", [])
    let tls = TLSFiles(
      certificateChain: directory.file("server.crt"), privateKey: directory.file("server.key"),
      clientCA: directory.file("ca.crt"))
    try await withServer(tls: tls) { port in
      let url = "https://127.0.0.1:\(port)/healthz"
      func answer(to name: String) async throws -> String {
        try await get(
          url, "--cacert", directory.file("ca.crt"), "--cert", directory.file("\(name).crt"), "--key",
          directory.file("\(name).key"))
      }
      let accepted = try await answer(to: "client")
      #expect(accepted.contains("200 OK"))
      await #expect(throws: TestEnvironmentError.self) { _ = try await answer(to: "stranger") }
      await #expect(throws: TestEnvironmentError.self) {
        _ = try await get(url, "--cacert", directory.file("ca.crt"))
      }
    }
  }
}
