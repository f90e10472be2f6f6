package import JSON

/// A request as the Redfish service sees it, whatever server carries it.
package struct RedfishRequest: Sendable {
  package var method: String
  /// The longest path that is looked at, in bytes; those of the service are far shorter. Strangers choose it.
  package static let pathMax = 1024

  /// Without query; slashes at the end are taken off, where it is not longer than `pathMax`.
  package var path: String
  /// Names in lower case.
  package var headers: [String: String]
  package var body: [UInt8]

  package init(method: String, path: String, headers: [String: String] = [:], body: [UInt8] = []) {
    self.method = method
    var bytes = path.utf8[...]
    if bytes.count <= RedfishRequest.pathMax {
      while bytes.count > 1, bytes.last == UInt8(ascii: "/") { bytes.removeLast() }
    }
    self.path = String(Substring(bytes))
    self.headers = headers
    self.body = body
  }
}

package struct RedfishReply: Sendable, Hashable {
  package var status: Int
  package var headers: [String: String] = [:]
  package var body: JSONValue?
  /// A body that is no JSON, in place of `body`.
  package var xml: String?

  package init(status: Int, headers: [String: String] = [:], body: JSONValue? = nil) {
    self.status = status
    self.headers = headers
    self.body = body
  }

  /// The body as it goes over the wire; nil where there is none.
  package var content: (type: String, bytes: [UInt8])? {
    if let xml { return ("application/xml; charset=utf-8", Array(xml.utf8)) }
    return body.map { ("application/json; charset=utf-8", $0.serialize()) }
  }

  /// An error body as the specification wants it (DSP0266, 8.6).
  static func failure(_ status: Int, _ key: String, _ message: String, headers: [String: String] = [:]) -> RedfishReply
  {
    let id = "Base.1.18.\(key)"
    let detail: JSONValue = [
      "@odata.type": "#Message.v1_1_2.Message", "MessageId": .string(id), "Message": .string(message),
      "MessageSeverity": status >= 500 ? "Critical" : "Warning", "Resolution": "See the message.", "MessageArgs": [],
    ]
    return RedfishReply(
      status: status, headers: headers,
      body: [
        "error": ["code": .string(id), "message": .string(message), "@Message.ExtendedInfo": [detail]]
      ])
  }

  static let notFound = failure(404, "ResourceMissingAtURI", "There is no resource at this address.")
}
