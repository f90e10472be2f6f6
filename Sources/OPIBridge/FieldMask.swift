package import GRPCCore
import JSON
package import SwiftProtobuf

/// Updates of part of a message (AIP-134).
package enum FieldMask {
  /// `old` with the masked fields of `patch`. No mask means the fields that `patch` has; "*" means all of it.
  ///
  /// A masked field that `patch` does not have is cleared. The paths must have been checked.
  package static func apply<M: Message>(_ patch: M, to old: M, _ paths: [String]) throws(RPCError) -> M {
    guard !paths.contains("*") else { return patch }
    let source = try tree(patch)
    var result = try tree(old)
    let masked = paths.isEmpty ? leaves(source, below: []) : paths.map { $0.split(separator: ".").map(String.init) }
    for path in masked { result = replacing(result, path[...], with: value(source, path[...])) }
    do {
      return try M(jsonUTF8Bytes: result.serialize())
    } catch {
      throw .invalid("update_mask", paths.joined(separator: ","), "gives fields that exclude each other")
    }
  }

  /// `new` without what the client only repeats: fields that differ from `old`, but are what it was shown.
  package static func withoutEchoes<M: Message>(_ new: M, of shown: M, since old: M) throws(RPCError) -> M {
    let (before, seen) = (try tree(old), try tree(shown))
    var result = try tree(new)
    for path in leaves(result, below: []) + leaves(seen, below: []) {
      let given = value(result, path[...])
      guard given == value(seen, path[...]), given != value(before, path[...]) else { continue }
      result = replacing(result, path[...], with: value(before, path[...]))
    }
    do { return try M(jsonUTF8Bytes: result.serialize()) } catch { return new }
  }

  /// The path of the first field that differs, in the order of names; nil where there is none.
  package static func firstDifference<M: Message>(_ old: M, _ new: M) throws(RPCError) -> String? {
    difference(try tree(old), try tree(new), path: [])
  }

  private static func tree<M: Message>(_ message: M) throws(RPCError) -> JSONValue {
    var options = JSONEncodingOptions()
    options.preserveProtoFieldNames = true
    do {
      let bytes: [UInt8] = try message.jsonUTF8Bytes(options: options)
      return try JSONValue.parse(bytes)
    } catch {
      throw RPCError(code: .internalError, message: "\(M.protoMessageName): \(error)")
    }
  }

  private static func leaves(_ value: JSONValue, below path: [String]) -> [[String]] {
    guard let members = value.objectValue else { return [path] }
    return members.flatMap { leaves($0.value, below: path + [$0.key]) }
  }

  private static func value(_ tree: JSONValue, _ path: ArraySlice<String>) -> JSONValue? {
    guard let first = path.first else { return tree }
    return tree[first].flatMap { value($0, path.dropFirst()) }
  }

  private static func replacing(_ tree: JSONValue, _ path: ArraySlice<String>, with new: JSONValue?) -> JSONValue {
    guard let first = path.first else { return new ?? tree }
    var members = tree.objectValue ?? [:]
    if path.count == 1 {
      members[first] = new
    } else if new != nil || members[first] != nil {
      members[first] = replacing(members[first] ?? [:], path.dropFirst(), with: new)
    }
    return .object(members)
  }

  private static func difference(_ old: JSONValue, _ new: JSONValue, path: [String]) -> String? {
    guard old != new else { return nil }
    guard let before = old.objectValue, let after = new.objectValue else { return path.joined(separator: ".") }
    for key in Set(before.keys).union(after.keys).sorted() where before[key] != after[key] {
      let below = path + [key]
      guard let one = before[key], let other = after[key] else { return below.joined(separator: ".") }
      return difference(one, other, path: below)
    }
    return nil
  }
}
