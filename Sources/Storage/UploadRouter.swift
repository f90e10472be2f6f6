import HTTPTypes
import Hummingbird
import JSON
import NIOCore

/// The HTTP side of uploads: `PUT /v1/upload/{namespace}/{claim}`.
func uploadRouter<Cluster: VolumeCluster>(_ service: UploadService<Cluster>) -> Router<BasicRequestContext> {
  let router = Router(context: BasicRequestContext.self)
  router.put("/v1/upload/:namespace/:claim") { request, context in
    guard let namespace = context.parameters.get("namespace"), let name = context.parameters.get("claim"),
      isObjectName(namespace), isObjectName(name)
    else { return Response(status: .notFound) }
    let key = ClaimKey(namespace: namespace, name: name)
    let reply = await service.receive(
      key, authorization: request.headers[.authorization],
      contentLength: request.headers[.contentLength].flatMap { Int64($0) },
      isExtents: request.headers[.contentType] == ExtentStream.contentType, body: request.body)
    let text: JSONValue = [
      "status": .integer(Int64(reply.status)), "message": .string(reply.message),
      "receivedBytes": .integer(reply.receivedBytes), "allocatedBytes": .integer(reply.allocatedBytes),
    ]
    var headers: HTTPFields = [.contentType: "application/json"]
    if reply.status == 503 { headers[.retryAfter] = "10" }
    return Response(
      status: .init(code: reply.status), headers: headers,
      body: ResponseBody(byteBuffer: ByteBuffer(bytes: text.serialize() + [0x0A])))
  }
  return router
}

/// Whether an API server could know an object of that name: a DNS subdomain (RFC 1123).
package func isObjectName(_ name: String) -> Bool {
  let bytes = name.utf8
  guard (1...253).contains(bytes.count), bytes.first != UInt8(ascii: "."), bytes.last != UInt8(ascii: ".") else {
    return false
  }
  return bytes.allSatisfy {
    (UInt8(ascii: "a")...UInt8(ascii: "z")).contains($0) || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0)
      || $0 == UInt8(ascii: "-") || $0 == UInt8(ascii: ".")
  }
}
