package import DPU
package import GRPCCore
package import JSON
package import JSONRPC

/// SPDK, or softdpu, behind its JSON-RPC socket. Only documented methods and members are relied on.
package struct Target: Sendable {
  private let client: JSONRPCClient
  /// Functions of the server are plugged by the rules that bare-metal handling has for them.
  package let functions: SPDKClient

  package init(socket: String, timeout: Duration = .seconds(20)) {
    client = JSONRPCClient(path: socket, timeout: timeout)
    functions = SPDKClient(socket: socket, timeout: timeout)
  }

  @discardableResult
  package func call(
    _ method: String, _ parameters: JSONValue? = nil, for operation: String
  ) async throws -> JSONValue {
    do {
      return try await client.call(method, parameters)
    } catch let error as JSONRPCError {
      throw TargetError(error, operation)
    }
  }

  package func version() async throws -> String {
    let answer = try await call("spdk_get_version", for: "read the version")
    return answer["version"]?.stringValue ?? "unknown"
  }
}

/// A call that the target answered with an error; the code is for those who must know which.
package struct TargetError: Error {
  package let error: RPCError
  package let serverCode: Int?
  /// Whether the target may have done what it was asked, or may still do it.
  package let isOpen: Bool

  package init(_ error: JSONRPCError, _ operation: String) {
    self.error = RPCError(error, operation)
    serverCode = error.serverCode
    isOpen = [.timeout, .closed, .malformed].contains(error.code)
  }

  /// - Parameter goesOn: Whether the target goes on with what it could not do in time.
  package init(_ error: DPUError, goesOn: Bool = false) {
    self.error = RPCError(error)
    serverCode = error.serverCode
    isOpen = goesOn || [.timeout, .unavailable, .malformed].contains(error.code)
  }

  /// -19, and -2 of methods that look for names: what was asked for is not there.
  var isAbsent: Bool { serverCode == -19 || error.code == .notFound }
  var isPresent: Bool { serverCode == -17 || error.code == .alreadyExists }
  /// -32603 and -32602 are what releases answer that do not know a parameter.
  var isUndecoded: Bool { serverCode == -32603 || serverCode == -32602 }
}

/// A block device of the target.
package struct Bdev: Sendable {
  let json: JSONValue
  let name: String
  let blockSize: Int64
  let blockCount: Int64

  init?(_ json: JSONValue) {
    guard let name = json["name"]?.stringValue, let blockSize = json["block_size"]?.int64Value, blockSize > 0,
      let blockCount = json["num_blocks"]?.int64Value, blockCount >= 0
    else { return nil }
    self.json = json
    self.name = name
    self.blockSize = blockSize
    self.blockCount = blockCount
  }

  var aliases: [String] { json["aliases"]?.arrayValue?.compactMap(\.stringValue) ?? [] }
  var uuid: String { json["uuid"]?.stringValue ?? "" }
  var product: String { json["product_name"]?.stringValue ?? "" }
  var canWrite: Bool { json["supported_io_types"]?["write"]?.boolValue ?? true }
  var capacity: Int64 { blockCount.multipliedReportingOverflow(by: blockSize).partialValue }

  func specifics(_ module: String) -> JSONValue? { json["driver_specific"]?[module] }
  func isCalled(_ text: String) -> Bool { name == text || uuid == text || aliases.contains(text) }
}

/// What the target shows during one call of the bridge; each thing is asked for once.
package actor TargetView {
  let target: Target
  private var all: [Bdev]?
  private var single: [String: Bdev?] = [:]
  private var lists: [String: [JSONValue]] = [:]
  private var knownVersion: String?

  package init(_ target: Target) { self.target = target }

  /// Whether this call of the bridge changed something at the target, or may have.
  private(set) var isChanged = false

  /// The target was changed: what was read of it is forgotten.
  func noteChange() {
    isChanged = true
    invalidate()
  }

  func invalidate() {
    all = nil
    single = [:]
    lists = [:]
  }

  func version() async throws -> String {
    if let knownVersion { return knownVersion }
    let version = try await target.version()
    knownVersion = version
    return version
  }

  func bdevs() async throws -> [Bdev] {
    if let all { return all }
    let answer = try await target.call("bdev_get_bdevs", for: "list block devices")
    let found = (answer.arrayValue ?? []).compactMap(Bdev.init)
    all = found
    return found
  }

  /// A block device by its name, its alias or its UUID; nil where there is none.
  func bdev(_ name: String) async throws -> Bdev? {
    if let all { return all.first { $0.isCalled(name) } }
    if let known = single[name] { return known }
    var found: Bdev?
    do {
      found = try await target.call("bdev_get_bdevs", ["name": .string(name)], for: "find the block device \(name)")
        .arrayValue?.first.flatMap(Bdev.init)
    } catch let error as TargetError where error.isAbsent {}
    single[name] = .some(found)
    return found
  }

  func subsystems() async throws -> [JSONValue] { try await list("nvmf_get_subsystems") }
  func functions() async throws -> [JSONValue] { try await list("vhost_get_controllers") }
  func remoteControllers() async throws -> [JSONValue] { try await list("bdev_nvme_get_controllers") }
  func stores() async throws -> [JSONValue] { try await list("bdev_lvol_get_lvstores") }

  func subsystem(nqn: String) async throws -> JSONValue? {
    try await subsystems().first { $0["nqn"]?.stringValue == nqn }
  }

  private func list(_ method: String) async throws -> [JSONValue] {
    if let known = lists[method] { return known }
    var found: [JSONValue] = []
    do {
      found = try await target.call(method, for: "ask \(method)").arrayValue ?? []
    } catch let error as TargetError where error.serverCode == -32601 {
      // A target without that part has nothing of the kind.
    }
    lists[method] = found
    return found
  }
}
