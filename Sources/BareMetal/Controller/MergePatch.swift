package import JSON
import Kubernetes

#if canImport(FoundationEssentials)
  import FoundationEssentials
#else
  import Foundation
#endif

/// JSON merge patches (RFC 7386) from a value to another, so that only what changed is written.
package enum MergePatch {
  /// The patch that makes `new` of `old`; nil where they are equal.
  package static func difference(from old: JSONValue, to new: JSONValue) -> JSONValue? {
    guard old != new else { return nil }
    guard case .object(let oldMembers) = old, case .object(let newMembers) = new else { return new }
    var patch: [String: JSONValue] = [:]
    for (name, value) in newMembers {
      guard let before = oldMembers[name] else {
        patch[name] = value
        continue
      }
      if let change = difference(from: before, to: value) { patch[name] = change }
    }
    for name in oldMembers.keys where newMembers[name] == nil { patch[name] = .null }
    return .object(patch)
  }

  /// A typed value as JSON; an absent one as an empty object.
  package static func json(_ value: (some Encodable)?) throws -> JSONValue {
    guard let value else { return [:] }
    let encoder = JSONEncoder()
    encoder.dataEncodingStrategy = .base64
    return try JSONValue.parse(Array(try encoder.encode(value)))
  }

  /// A value of a type from JSON.
  package static func value<T: Decodable>(_ type: T.Type, from json: JSONValue) throws -> T {
    try JSONDecoder().decode(type, from: Data(json.serialize()))
  }
}
