package import JSON
import Yams

/// Kubernetes objects from YAML files.
package enum Manifests {
  /// All documents of a YAML text, with `${NAME}` replaced by the variables' values. Empty documents are left out.
  package static func parse(_ text: String, variables: [String: String] = [:]) throws -> [JSONValue] {
    var text = text
    for (name, value) in variables { text = text.replacing("${\(name)}", with: value) }
    return try Yams.compose_all(yaml: text).map(json).filter { !$0.isNull }
  }

  private static func json(_ node: Node) -> JSONValue {
    switch node {
    case .mapping(let mapping):
      var object: [String: JSONValue] = [:]
      for (key, value) in mapping { object[key.string ?? ""] = json(value) }
      return .object(object)
    case .sequence(let sequence):
      return .array(sequence.map(json))
    case .scalar(let scalar):
      // Only plain scalars have a type of their own; "1" in quotes is a text.
      if scalar.style != .plain { return .string(scalar.string) }
      if scalar.string.isEmpty || node.null != nil { return .null }
      if let value = node.bool { return .bool(value) }
      if let value = node.int { return .integer(Int64(value)) }
      if let value = node.float { return .number(value) }
      return .string(scalar.string)
    case .alias:
      return .null
    }
  }
}
