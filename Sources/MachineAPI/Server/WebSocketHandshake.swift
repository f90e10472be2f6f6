/// What a client says when it opens a WebSocket.
enum WebSocketHandshake {
  /// - Parameter what: what is opened by it, for the refusal.
  /// - Throws: `APIFailure` 400 where a request is none (RFC 6455, section 4.2.1).
  static func check(_ request: APIRequest, opens what: String) throws(APIFailure) {
    guard request.header("upgrade")?.lowercased() == "websocket", request.header("sec-websocket-version") == "13",
      request.header("sec-websocket-key")?.utf8.count == 24, request.body.isEmpty
    else {
      throw .badRequest("\(what) is opened by a WebSocket handshake (RFC 6455, version 13): Upgrade: websocket")
    }
  }

  /// The subprotocols that a request offers.
  static func offered(_ request: APIRequest) -> [String] {
    request.proof.headers.filter { $0.name.lowercased() == "sec-websocket-protocol" }.map(\.value)
  }

  /// The first of the offered subprotocols that is known; nil where none is offered.
  /// - Throws: `APIFailure` 400 where only others are.
  static func choose(_ offered: [String], known: [String]) throws(APIFailure) -> String? {
    let names = offered.flatMap { $0.split(separator: ",") }.map { text in
      String(text.drop { $0 == " " }.prefix { $0 != " " })
    }
    // A browser's token for the API server stands among them.
    let wanted = names.filter { !$0.isEmpty && !$0.hasPrefix("base64url.bearer.authorization.k8s.io.") }
    guard !wanted.isEmpty else { return nil }
    if let name = wanted.first(where: known.contains) { return name }
    throw .badRequest(
      "none of the subprotocols is spoken here: offer \(known.joined(separator: " or ")), or none",
      field: "Sec-WebSocket-Protocol")
  }
}
