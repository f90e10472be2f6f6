import JSON
import JSONRPC

/// The parameters of one call, read as strictly as SPDK reads them: an unknown member, a missing one or one of
/// another type is an error.
struct Parameters {
  struct Failure: Error {}

  private let members: [String: JSONValue]

  init(_ request: Request, allowed: Set<String>) throws(Failure) {
    switch request.params {
    case nil: members = [:]
    case .object(let members): self.members = members
    default: throw Failure()
    }
    guard members.keys.allSatisfy(allowed.contains) else { throw Failure() }
  }

  private init(_ members: [String: JSONValue]) { self.members = members }

  /// A list of objects, each read as strictly.
  func objects(_ name: String, allowed: Set<String>) throws(Failure) -> [Parameters] {
    guard let elements = members[name]?.arrayValue else { throw Failure() }
    var objects: [Parameters] = []
    for element in elements {
      guard let members = element.objectValue, members.keys.allSatisfy(allowed.contains) else { throw Failure() }
      objects.append(Parameters(members))
    }
    return objects
  }

  func string(_ name: String) throws(Failure) -> String {
    guard let value = members[name]?.stringValue else { throw Failure() }
    return value
  }

  func optionalString(_ name: String) throws(Failure) -> String? {
    guard let value = members[name] else { return nil }
    guard let text = value.stringValue else { throw Failure() }
    return text
  }

  func bool(_ name: String) throws(Failure) -> Bool {
    guard let value = members[name] else { return false }
    guard let flag = value.boolValue else { throw Failure() }
    return flag
  }

  func optionalBool(_ name: String) throws(Failure) -> Bool? { members[name] == nil ? nil : try bool(name) }

  func optionalUInt16(_ name: String) throws(Failure) -> UInt16? {
    guard let value = members[name] else { return nil }
    guard let number = value.int64Value.flatMap({ UInt16(exactly: $0) }) else { throw Failure() }
    return number
  }

  func optionalUInt32(_ name: String) throws(Failure) -> UInt32? {
    guard let value = members[name] else { return nil }
    guard let number = value.int64Value.flatMap({ UInt32(exactly: $0) }) else { throw Failure() }
    return number
  }

  func optionalInt(_ name: String) throws(Failure) -> Int32? {
    guard let value = members[name] else { return nil }
    guard let number = value.int64Value.flatMap({ Int32(exactly: $0) }) else { throw Failure() }
    return number
  }

  func uint32(_ name: String) throws(Failure) -> UInt32 {
    guard let number = try optionalUInt32(name) else { throw Failure() }
    return number
  }

  func optionalUInt64(_ name: String) throws(Failure) -> UInt64? {
    guard let value = members[name] else { return nil }
    guard let number = value.int64Value.flatMap({ UInt64(exactly: $0) }) else { throw Failure() }
    return number
  }

  func uint64(_ name: String) throws(Failure) -> UInt64 {
    guard let number = try optionalUInt64(name) else { throw Failure() }
    return number
  }

  func optionalStrings(_ name: String) throws(Failure) -> [String]? {
    guard let value = members[name] else { return nil }
    guard let elements = value.arrayValue else { throw Failure() }
    var texts: [String] = []
    for element in elements {
      guard let text = element.stringValue else { throw Failure() }
      texts.append(text)
    }
    return texts
  }

  func optionalObject(_ name: String) throws(Failure) -> JSONValue? {
    guard let value = members[name] else { return nil }
    guard value.objectValue != nil else { throw Failure() }
    return value
  }
}
