import HTTPTypes
package import Hummingbird
import JSON
import NIOCore

/// Puts a Redfish service behind an HTTP server.
package enum RedfishRouter {
  /// A request's body may be this long.
  private static let bodyMax = 64 << 10

  /// The routes that hand every request to `respond`.
  package static func make(
    _ respond: @escaping @Sendable (RedfishRequest) async -> RedfishReply
  ) -> Router<BasicRequestContext> {
    let router = Router()
    for method in [HTTPRequest.Method.get, .head, .post, .patch, .put, .delete] {
      for path in ["/", "/**"] {
        router.on(RouterPath(path), method: method) { request, _ in
          await reply(to: request, respond)
        }
      }
    }
    return router
  }

  private static func reply(
    to request: Request, _ respond: @Sendable (RedfishRequest) async -> RedfishReply
  ) async -> Response {
    var headers: [String: String] = [:]
    for field in request.headers { headers[field.name.canonicalName] = field.value }
    let reply: RedfishReply
    do {
      let body = try await request.body.collect(upTo: bodyMax)
      reply = await respond(
        RedfishRequest(
          method: request.method.rawValue, path: request.uri.path, headers: headers,
          body: Array(body.readableBytesView)))
    } catch {
      reply = .failure(413, "PayloadTooLarge", "The body is too long or was cut off.")
    }
    var fields = HTTPFields()
    for (name, value) in reply.headers {
      if let name = HTTPField.Name(name) { fields[name] = value }
    }
    guard let content = reply.content else { return Response(status: .init(code: reply.status), headers: fields) }
    fields[.contentType] = content.type
    let response = Response(
      status: .init(code: reply.status), headers: fields, body: .init(byteBuffer: ByteBuffer(bytes: content.bytes)))
    return request.method == .head ? response.createHeadResponse() : response
  }
}
