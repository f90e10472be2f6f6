import Glibc

/// Something that takes bytes of strangers, made ready to be given any bytes, again and again.
///
/// The same targets serve libFuzzer (`make fuzz`) and a short seeded run in the ordinary tests.
public protocol FuzzTarget: AnyObject {
  /// Takes one input. Throws where the thing under test did what it must not do; a crash needs no report.
  func run(_ input: [UInt8]) throws

  /// Ends what the target started, and looks a last time whether everything is as it must be.
  func finish() throws
}

extension FuzzTarget {
  public func finish() throws {}
}

/// What the thing under test must not do.
public struct FuzzFailure: Error, CustomStringConvertible {
  public let description: String
  public init(_ description: String) { self.description = description }
}

/// All targets by name; `Tests/Fuzz/corpus/<name>` has what each begins with.
public enum FuzzTargets {
  public static let names = ["json", "rpc", "state", "lvol", "nbd", "nvmf", "initiator", "vhost"]

  public static func make(_ name: String) throws -> any FuzzTarget {
    switch name {
    case "json": return JSONTarget()
    case "rpc": return try RPCTarget()
    case "state": return try StateTarget()
    case "lvol": return try LvolTarget()
    case "nbd": return try NBDTarget()
    case "nvmf": return try NVMfTarget()
    case "initiator": return try InitiatorTarget()
    case "vhost": return try VhostTarget()
    default: throw FuzzFailure("no fuzz target \(name); there are \(names.joined(separator: ", "))")
    }
  }

  /// The inputs that are kept in a folder, in the order of their names.
  public static func corpus(_ folder: String) -> [(name: String, bytes: [UInt8])] {
    guard let directory = opendir(folder) else { return [] }
    defer { closedir(directory) }
    var names: [String] = []
    while let entry = readdir(directory) {
      let name = withUnsafeBytes(of: entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
      if !name.hasPrefix(".") { names.append(name) }
    }
    return names.sorted().map { ($0, bytes("\(folder)/\($0)")) }
  }

  /// A file's content; empty where there is none.
  static func bytes(_ path: String) -> [UInt8] {
    let fd = open(path, O_RDONLY | O_CLOEXEC)
    guard fd >= 0 else { return [] }
    defer { close(fd) }
    var content: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 65536)
    while true {
      let count = read(fd, &chunk, chunk.count)
      guard count > 0 else { return content }
      content += chunk[..<count]
    }
  }
}
