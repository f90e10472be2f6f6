package import GRPCCore

/// Where resources of one kind live: "aioVolumes", or "nvmeNamespaces" below "nvmeSubsystems".
package struct ResourceCollection: Sendable, Hashable {
  package let segment: String
  package let parent: String?

  package init(_ segment: String, under parent: String? = nil) {
    self.segment = segment
    self.parent = parent
  }

  /// The full name of a resource. Throws `invalidArgument` where a part of it cannot be.
  package func name(id: String, parent given: String, field: String) throws(RPCError) -> String {
    try ResourceName.check(id: id, field: field)
    guard let parent else {
      // QoS and encrypted volumes have a parent in their requests that names nothing.
      return "\(segment)/\(id)"
    }
    let name = try ResourceName(given, field: "parent")
    guard name.segments == [parent] else {
      throw .invalid("parent", given, "is not of the form \(parent)/{id}")
    }
    return "\(given)/\(segment)/\(id)"
  }

  /// Checks that a name is one of this collection.
  package func check(_ name: String, field: String = "name") throws(RPCError) {
    let parsed = try ResourceName(name, field: field)
    guard parsed.segments == [parent, segment].compactMap({ $0 }) else {
      let form = parent.map { "\($0)/{id}/\(segment)/{id}" } ?? "\(segment)/{id}"
      throw .invalid(field, name, "is not of the form \(form)")
    }
  }

  package func contains(_ name: String) -> Bool {
    let parts = name.split(separator: "/", omittingEmptySubsequences: false)
    return parts.count == (parent == nil ? 2 : 4) && parts[parts.count - 2] == segment[...]
      && (parent.map { parts[0] == $0[...] } ?? true)
  }
}

/// A resource's name: collections and identifiers by turns (AIP-122).
package struct ResourceName: Sendable, Hashable {
  package let segments: [String]
  package let identifiers: [String]

  package init(_ text: String, field: String) throws(RPCError) {
    let parts = text.split(separator: "/", omittingEmptySubsequences: false).map(String.init)
    guard !text.isEmpty else { throw .missing(field) }
    guard parts.count % 2 == 0, parts.count <= 4 else {
      throw .invalid(field, text, "is not of the form {collection}/{id}")
    }
    segments = stride(from: 0, to: parts.count, by: 2).map { parts[$0] }
    identifiers = stride(from: 1, to: parts.count, by: 2).map { parts[$0] }
    for identifier in identifiers { try ResourceName.check(id: identifier, field: field) }
  }

  /// The longest identifier, in bytes. Two of them and their collections fit into the name of a file.
  package static let longestID = 100

  /// Identifiers become names of the target's objects, of sockets and of files, so they are narrow.
  package static func isID(_ text: String) -> Bool {
    let bytes = text.utf8
    guard let first = bytes.first, bytes.count <= longestID, isLetterOrDigit(first) else { return false }
    return bytes.allSatisfy { isLetterOrDigit($0) || $0 == UInt8(ascii: "-") || $0 == UInt8(ascii: "_") || $0 == 0x2E }
  }

  private static func isLetterOrDigit(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
      UInt8(ascii: "0")...UInt8(ascii: "9"):
      true
    default: false
    }
  }

  package static func check(id: String, field: String) throws(RPCError) {
    guard isID(id) else {
      throw .invalid(
        field, id,
        "is no identifier; use 1 to \(longestID) letters, digits, '-', '_' and '.', beginning with a letter or a digit")
    }
  }

  /// The last identifier of a name that was checked before.
  package static func id(of name: String) -> String {
    name.lastIndex(of: "/").map { String(name[name.index(after: $0)...]) } ?? name
  }

  /// The name of what a resource is part of; empty for one that stands alone.
  package static func parent(of name: String) -> String {
    let parts = name.split(separator: "/", omittingEmptySubsequences: false)
    return parts.count == 4 ? parts[..<2].joined(separator: "/") : ""
  }
}
