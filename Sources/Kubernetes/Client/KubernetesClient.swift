import AsyncHTTPClient
import Deadlines
public import JSON
public import Logging
import NIOCore
import NIOHTTP1
import Synchronization
public import Telemetry

/// A client of one Kubernetes API server.
///
/// All calls may run concurrently. They are held to the configuration's request rate, except for those on leases: a
/// leader must be able to renew while its own work uses up the rate.
public final class KubernetesClient: Sendable {
  public let configuration: ClientConfiguration
  let logger: Logger
  private let transport: Transport
  private let credentials: CredentialStore
  private let rateLimiter: RateLimiter
  private let metrics: ClientMetrics?

  /// - Throws: `KubernetesError` with the code `configuration` where the server's URL is not valid.
  public init(
    configuration: ClientConfiguration, logger: Logger, registry: MetricsRegistry? = nil
  ) throws {
    self.configuration = configuration
    self.logger = logger
    transport = try Transport(configuration: configuration)
    credentials = CredentialStore(configuration: configuration)
    rateLimiter = RateLimiter(rate: configuration.queriesPerSecond, burst: configuration.burst)
    metrics = registry.map { ClientMetrics(registry: $0) }
  }

  /// Closes all connections; calls under way fail.
  public func shutdown() async throws {
    try await transport.shutdown()
  }

  /// The server's version, such as `v1.20.2` in `gitVersion`.
  public func version() async throws -> JSONValue {
    try await request(method: "GET", path: "/version")
  }

  /// Any request, for what has no method of its own.
  /// - Parameters:
  ///   - path: Starts with `/`; already percent-encoded.
  ///   - contentType: Of `body`; `application/json` where nil.
  public func request(
    method: String, path: String, query: [(String, String)] = [], body: JSONValue? = nil, contentType: String? = nil
  ) async throws -> JSONValue {
    let bytes = try await send(
      Call(
        operation: "\(method) \(path)", verb: method, resource: "raw", method: HTTPMethod(rawValue: method), path: path,
        query: query, body: body?.serialize(), contentType: contentType ?? "application/json"))
    if bytes.isEmpty { return .null }
    do {
      return try JSONValue.parse(bytes)
    } catch {
      throw KubernetesError(
        code: .invalidResponse, operation: "\(method) \(path)", message: "the answer is no JSON: \(error)",
        cause: error)
    }
  }

  /// Reads what is not JSON, such as a picture.
  /// - Parameters:
  ///   - path: Starts with `/`; already percent-encoded.
  ///   - limit: Of the answer, in bytes; a longer one is an error.
  public func content(path: String, query: [(String, String)] = [], limit: Int) async throws -> [UInt8] {
    try await send(
      Call(
        operation: "GET \(path)", verb: "GET", resource: "raw", method: .GET, path: path, query: query,
        answerMax: limit))
  }

  /// One request to the API server.
  struct Call: Sendable {
    var operation: String
    var verb: String
    /// The plural of the resource, for metrics.
    var resource: String
    var method: HTTPMethod
    var path: String
    var query: [(String, String)] = []
    var body: [UInt8]?
    var contentType = "application/json"
    /// Not held to the request rate.
    var isUrgent = false
    /// Bytes of the answer; as many as the configuration allows where nil.
    var answerMax: Int?
    /// Why it must not be sent.
    var problem: String?

    /// Whether sending it twice has the effect of sending it once.
    var isRepeatable: Bool { method == .GET }
  }

  /// Sends a call and collects the answer. Waits and repeats where the server asks for it.
  func send(_ call: Call) async throws -> [UInt8] {
    var attempt = 0
    while true {
      attempt += 1
      // Waiting for a permit or for a plugin is not the server's time.
      let credential = try await prepare(call)
      let start = ContinuousClock.now
      do {
        let bytes = try await withTimeLimit(configuration.requestTimeout) { [self] in
          let response = try await open(
            call, as: credential, deadline: .now() + .nanoseconds(configuration.requestTimeout.inNanoseconds))
          var body = try await response.body.collect(upTo: call.answerMax ?? configuration.maximumResponseBytes)
          return body.readBytes(length: body.readableBytes) ?? []
        }
        metrics?.record(call, code: "200", since: start)
        return bytes
      } catch {
        let failure = translate(error, operation: call.operation)
        if failure is CancellationError { throw failure }
        let kubernetesError = failure as? KubernetesError
        metrics?.record(call, code: kubernetesError?.httpStatus.map { "\($0)" } ?? "error", since: start)
        guard let kubernetesError, let wait = Self.waitBeforeRepeating(call, after: kubernetesError, attempt: attempt)
        else { throw failure }
        logger.debug(
          "request is repeated",
          metadata: ["operation": "\(call.operation)", "wait": "\(wait)", "error": "\(kubernetesError.message)"])
        try await Task.sleep(for: wait)
      }
    }
  }

  /// How long to wait before the same call is sent again; nil where the caller gets the error.
  static func waitBeforeRepeating(_ call: Call, after error: KubernetesError, attempt: Int) -> Duration? {
    guard attempt < 4 else { return nil }
    // The server did not look at the request, and says when it will.
    if error.code == .tooManyRequests || error.httpStatus == 503, let wait = error.retryAfter {
      return wait <= .seconds(5) ? max(wait, .milliseconds(100)) : nil
    }
    // A connection that the server closed while it was idle: only a read can be sent again without harm.
    if call.isRepeatable, attempt == 1, error.code == .unavailable, error.httpStatus == nil,
      (error.cause as? HTTPClientError) == .remoteConnectionClosed
    {
      return .zero
    }
    return nil
  }

  /// Waits until a call may be sent, and says as whom.
  func prepare(_ call: Call) async throws -> RequestCredential {
    if let problem = call.problem {
      throw KubernetesError(code: .badRequest, operation: call.operation, message: problem)
    }
    if !call.isUrgent {
      let waited = try await rateLimiter.acquire()
      if waited > .zero { metrics?.throttled(waited) }
    }
    return try await credentials.credential()
  }

  /// Sends a call that is prepared, and returns when a head of success is there; the body follows.
  func open(
    _ call: Call, as prepared: RequestCredential, deadline: NIODeadline
  ) async throws -> HTTPClientResponse {
    var credential = prepared
    var isSecondTry = false
    while true {
      let request = makeRequest(call, credential: credential)
      let response = try await transport.execute(request, certificate: credential.certificate, deadline: deadline)
      if (200..<300).contains(response.status.code) { return response }
      var body = try await response.body.collect(upTo: 1 << 20)
      let bytes = body.readBytes(length: body.readableBytes) ?? []
      if response.status == .unauthorized, !isSecondTry {
        // A token may have been rotated before its time: once, with a new one.
        let renewed = try await credentials.credential(rejected: credential)
        isSecondTry = true
        if renewed != credential {
          credential = renewed
          continue
        }
      }
      throw KubernetesError(
        operation: call.operation, httpStatus: Int(response.status.code),
        status: try? Coding.decode(Status.self, from: bytes), body: String(decoding: bytes, as: UTF8.self),
        retryAfterHeader: response.headers.first(name: "retry-after"))
    }
  }

  private func makeRequest(_ call: Call, credential: RequestCredential) -> HTTPClientRequest {
    let query = call.query.isEmpty ? "" : "?\(PercentEncoding.query(call.query))"
    var request = HTTPClientRequest(url: transport.base + call.path + query)
    request.method = call.method
    request.headers.add(name: "accept", value: "application/json")
    request.headers.add(name: "user-agent", value: configuration.userAgent)
    if let authorization = credential.authorization {
      request.headers.add(name: "authorization", value: authorization)
    }
    if let impersonation = configuration.impersonation {
      request.headers.add(name: "impersonate-user", value: impersonation.user)
      for group in impersonation.groups { request.headers.add(name: "impersonate-group", value: group) }
    }
    if let body = call.body {
      request.headers.add(name: "content-type", value: call.contentType)
      request.body = .bytes(ByteBuffer(bytes: body))
    }
    return request
  }

  /// Errors of the layers below as errors of this module; cancellation stays what it is.
  func translate(_ error: any Error, operation: String) -> any Error {
    switch error {
    case is CancellationError, is KubernetesError: return error
    case let error as TimeLimitExceeded:
      return KubernetesError(
        code: .timeout, operation: operation, message: "the API server at \(configuration.server) gave \(error)",
        cause: error)
    case let error as HTTPClientError where error == .cancelled && Task.isCancelled:
      return CancellationError()
    case let error as HTTPClientError where error == .deadlineExceeded || error == .readTimeout:
      return KubernetesError(
        code: .timeout, operation: operation,
        message: "no answer from the API server at \(configuration.server) in time", cause: error)
    case is NIOTooManyBytesError:
      return KubernetesError(
        code: .invalidResponse, operation: operation, message: "the answer is longer than this client reads",
        cause: error)
    default:
      return KubernetesError(
        code: .unavailable, operation: operation,
        message: "the API server at \(configuration.server) cannot be reached: \(TransportFailure.explain(error))",
        cause: error)
    }
  }
}

extension Duration {
  /// At most a year, so that a deadline can be computed from it.
  var inNanoseconds: Int64 {
    let (seconds, attoseconds) = components
    guard seconds < 365 * 86_400 else { return 365 * 86_400 * 1_000_000_000 }
    return max(0, seconds) * 1_000_000_000 + max(0, attoseconds / 1_000_000_000)
  }
}

/// What a client counts.
struct ClientMetrics: Sendable {
  private let requests: CounterFamily
  private let duration: HistogramFamily
  private let throttle: HistogramFamily

  init(registry: MetricsRegistry) {
    requests = registry.counter(
      "kubernetes_client_requests_total", help: "Requests to the API server.", labels: ["verb", "resource", "code"])
    duration = registry.histogram(
      "kubernetes_client_request_duration_seconds", help: "Time until the answer was complete.",
      labels: ["verb", "resource"])
    throttle = registry.histogram(
      "kubernetes_client_throttle_duration_seconds", help: "Time that requests waited for the client's own rate limit.")
  }

  func record(_ call: KubernetesClient.Call, code: String, since start: ContinuousClock.Instant) {
    requests.increment(call.verb, call.resource, code)
    duration.observe(ContinuousClock.now - start, call.verb, call.resource)
  }

  func throttled(_ wait: Duration) { throttle.observe(wait) }
}
