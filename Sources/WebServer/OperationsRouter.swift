import HTTPTypes
public import Hummingbird
import NIOCore
public import Telemetry

/// The router that every role offers to its operators.
///
/// - `/metrics`: Prometheus text.
/// - `/healthz`: 200 as long as the process can answer at all.
/// - `/readyz`: 200 where `isReady` says so, 503 otherwise.
public func operationsRouter(
  registry: MetricsRegistry, isReady: @Sendable @escaping () async -> Bool
) -> Router<BasicRequestContext> {
  let router = Router(context: BasicRequestContext.self)
  @Sendable func text(_ status: HTTPResponse.Status, _ body: String, type: String = "text/plain; charset=utf-8")
    -> Response
  {
    Response(
      status: status, headers: [.contentType: type], body: ResponseBody(byteBuffer: ByteBuffer(string: body)))
  }
  router.get("/metrics") { _, _ in
    text(.ok, registry.render(), type: "text/plain; version=0.0.4; charset=utf-8")
  }
  router.get("/healthz") { _, _ in text(.ok, "ok\n") }
  router.get("/readyz") { _, _ in
    await isReady() ? text(.ok, "ok\n") : text(.serviceUnavailable, "not ready\n")
  }
  return router
}
