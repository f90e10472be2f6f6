public import JSON

/// A request of JSON-RPC 2.0; without an identifier it is a notification, which gets no answer.
public struct Request: Sendable, Hashable {
  /// A string, a number or null; nil marks a notification.
  public var id: JSONValue?
  public var method: String
  /// An object or an array; nil where the method takes no parameters.
  public var params: JSONValue?

  public init(id: JSONValue?, method: String, params: JSONValue? = nil) {
    self.id = id
    self.method = method
    self.params = params
  }

  /// The request as it goes over the wire. Empty parameters are left out, because SPDK's methods without parameters
  /// refuse an empty object.
  public var json: JSONValue {
    var value: JSONValue = ["jsonrpc": "2.0", "method": .string(method)]
    value["id"] = id
    if let params, params != .object([:]), params != .array([]) { value["params"] = params }
    return value
  }

  /// Reads a request, or says which error answers it (specification, section 5.1).
  public static func parse(_ value: JSONValue) -> Result<Request, ResponseError> {
    guard let members = value.objectValue, members["jsonrpc"] == "2.0",
      let method = members["method"]?.stringValue
    else { return .failure(.invalidRequest) }
    switch members["id"] {
    case nil, .null, .string, .integer, .number: break
    default: return .failure(.invalidRequest)
    }
    switch members["params"] {
    case nil, .object, .array: break
    default: return .failure(.invalidRequest)
    }
    return .success(Request(id: members["id"], method: method, params: members["params"]))
  }
}

/// What a server answers to one request.
public struct Response: Sendable, Hashable {
  public var id: JSONValue
  public var result: Result<JSONValue, ResponseError>

  public init(id: JSONValue, result: Result<JSONValue, ResponseError>) {
    self.id = id
    self.result = result
  }

  public var json: JSONValue {
    var value: JSONValue = ["jsonrpc": "2.0", "id": id]
    switch result {
    case .success(let result): value["result"] = result
    case .failure(let error): value["error"] = error.json
    }
    return value
  }

  /// Reads a response; nil where the value is none.
  public init?(_ value: JSONValue) {
    guard let members = value.objectValue, let id = members["id"] else { return nil }
    if let error = members["error"], !error.isNull {
      guard let code = error["code"]?.intValue else { return nil }
      self.init(
        id: id,
        result: .failure(
          ResponseError(code: code, message: error["message"]?.stringValue ?? "", data: error["data"])))
    } else if let result = members["result"] {
      self.init(id: id, result: .success(result))
    } else {
      return nil
    }
  }
}

/// The error member of a response.
public struct ResponseError: Error, Sendable, Hashable, CustomStringConvertible {
  public var code: Int
  public var message: String
  public var data: JSONValue?

  public init(code: Int, message: String, data: JSONValue? = nil) {
    self.code = code
    self.message = message
    self.data = data
  }

  /// The codes that the specification reserves (section 5.1), with the texts that SPDK gives them.
  public static let parseError = ResponseError(code: -32700, message: "Parse error")
  public static let invalidRequest = ResponseError(code: -32600, message: "Invalid request")
  public static let methodNotFound = ResponseError(code: -32601, message: "Method not found")
  public static func invalidParams(_ message: String) -> ResponseError {
    ResponseError(code: -32602, message: message)
  }
  public static func internalError(_ message: String) -> ResponseError {
    ResponseError(code: -32603, message: message)
  }

  public var description: String { "\(message) (code \(code))" }

  var json: JSONValue {
    var value: JSONValue = ["code": .integer(Int64(code)), "message": .string(message)]
    value["data"] = data
    return value
  }
}
