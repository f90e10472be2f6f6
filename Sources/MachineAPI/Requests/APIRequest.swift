/// One request, complete.
package struct APIRequest: Sendable {
  package var method: String
  /// Without the query, as it came.
  package var path: String
  /// Names and values, decoded, in their order.
  package var query: [(name: String, value: String)]
  package var proof: Proof
  package var body: [UInt8]

  package init(method: String, path: String, query: [(name: String, value: String)], proof: Proof, body: [UInt8]) {
    self.method = method
    self.path = path
    self.query = query
    self.proof = proof
    self.body = body
  }

  /// - Parameter target: the request line's, with the query.
  /// - Throws: `APIFailure` 400 where the query is not encoded well.
  package init(method: String, target: String, proof: Proof, body: [UInt8]) throws(APIFailure) {
    let parts = target.split(separator: "?", maxSplits: 1, omittingEmptySubsequences: false)
    var query: [(name: String, value: String)] = []
    if parts.count == 2 {
      for pair in parts[1].split(separator: "&") {
        let halves = pair.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
        let value = halves.count == 2 ? halves[1].replacing("+", with: " ") : ""
        guard let name = PercentText.decoded(halves[0]), let value = PercentText.decoded(value) else {
          throw .badRequest("the query has an escape that is not whole or not UTF-8")
        }
        query.append((name, value))
        guard query.count <= 32 else { throw .badRequest("the query has more than 32 parameters") }
      }
    }
    self.init(method: method, path: String(parts[0]), query: query, proof: proof, body: body)
  }

  func header(_ name: String) -> String? { proof.headers.first { $0.name.lowercased() == name }?.value }

  /// Parameters that clients of Kubernetes add to any request, and that mean nothing here.
  private static let ignored: Set = ["pretty", "timeout", "timeoutSeconds", "fieldManager", "fieldValidation"]

  /// Refuses parameters that `verb` does not have, so that a misspelt one is not taken for none.
  package func checkParameters(of verb: MachineVerb) throws(APIFailure) {
    for (name, _) in query where !Self.ignored.contains(name) && !verb.parameters.contains(name) {
      let known = verb.parameters.isEmpty ? "it has none" : "it has \(verb.parameters.joined(separator: ", "))"
      throw .badRequest(
        "\(verb.rawValue) has no parameter '\(name.prefix(64))'; \(known)", field: String(name.prefix(64)))
    }
  }

  /// The value of a parameter that is given once at most.
  package func parameter(_ name: String) throws(APIFailure) -> String? {
    let values = query.filter { $0.name == name }
    guard values.count <= 1 else { throw .badRequest("the parameter \(name) is given more than once", field: name) }
    return values.first?.value
  }

  /// A parameter that is true or false; the name alone means true.
  package func flag(_ name: String) throws(APIFailure) -> Bool? {
    switch try parameter(name) {
    case nil: return nil
    case "true", "": return true
    case "false": return false
    default: throw .badRequest("the parameter \(name) is true or false", field: name)
    }
  }
}
