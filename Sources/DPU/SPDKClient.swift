import JSON
import JSONRPC

/// A DPU that is driven over SPDK's JSON-RPC: SPDK itself (23.01 and later), or `ycloud softdpu`.
///
/// Only documented methods and members are relied on. The connection is made anew after it broke; each method of the
/// protocol reads back what is there before it changes anything, so that it can be repeated.
public struct SPDKClient: DPU {
  private let client: JSONRPCClient
  private let timeout: Duration

  /// The size of a logical block that volumes are given, in bytes: what every boot loader understands.
  public static let blockSize: Int = 512

  /// - Parameters:
  ///   - socket: the path of SPDK's RPC socket.
  ///   - timeout: how long one call may take.
  public init(socket: String, timeout: Duration = .seconds(20)) {
    client = JSONRPCClient(path: socket, timeout: timeout)
    self.timeout = timeout
  }

  // MARK: Reading

  public func version() async throws -> String {
    let result = try await call("read version", "spdk_get_version")
    guard let version = result["version"]?.stringValue else { throw malformed("read version", result) }
    return version
  }

  public func volumes() async throws -> [BlockVolume] {
    let operation = "list volumes"
    let result = try await call(operation, "bdev_get_bdevs")
    guard let elements = result.arrayValue else { throw malformed(operation, result) }
    // Only files: a target may have volumes of other kinds, which are not ours to touch.
    return try elements.compactMap { try volume($0, operation) }.sorted { $0.name < $1.name }
  }

  private func volume(_ value: JSONValue, _ operation: String) throws -> BlockVolume? {
    guard let aio = value["driver_specific"]?["aio"], let file = aio["filename"]?.stringValue else { return nil }
    guard let name = value["name"]?.stringValue, let blockSize = value["block_size"]?.intValue, blockSize > 0,
      let count = value["num_blocks"]?.int64Value, count >= 0
    else { throw malformed(operation, value) }
    let isReadOnly =
      aio["readonly"]?.boolValue ?? value["supported_io_types"]?["write"]?.boolValue.map { !$0 } ?? false
    return BlockVolume(
      name: name, file: file, blockSize: blockSize, blockCount: UInt64(count), readOnly: isReadOnly,
      limits: VolumeLimits(assigned: value["assigned_rate_limits"]))
  }

  public func functions() async throws -> [BlockFunction] {
    let operation = "list functions"
    let result = try await call(operation, "vhost_get_controllers")
    guard let elements = result.arrayValue else { throw malformed(operation, result) }
    return try elements.compactMap { value -> BlockFunction? in
      // A controller of another kind (SCSI) has no "block".
      guard let block = value["backend_specific"]?["block"] else { return nil }
      guard let name = value["ctrlr"]?.stringValue else { throw malformed(operation, value) }
      // A volume that was pulled away leaves null here.
      return BlockFunction(
        name: name, volume: block["bdev"]?.stringValue ?? "", readOnly: block["readonly"]?.boolValue ?? false)
    }.sorted { $0.name < $1.name }
  }

  // MARK: Volumes

  public func createVolume(name: String, file: String, readOnly: Bool, shared: Bool) async throws {
    let operation = "create volume \(name)"
    if let present = try await find(volume: name) { return try check(present, operation, file, readOnly) }
    var parameters: JSONValue = [
      "name": .string(name), "filename": .string(file), "block_size": .integer(Int64(SPDKClient.blockSize)),
      "readonly": .bool(readOnly), "fallocate": true,
    ]
    if shared { parameters["shared"] = true }
    do {
      try await create(operation, parameters, leavingOut: shared ? ["shared", "fallocate"] : ["fallocate"])
    } catch let error as DPUError where error.serverCode == -17 {
      // Another caller was faster.
      guard let present = try await find(volume: name) else { throw error }
      try check(present, operation, file, readOnly)
    }
  }

  /// SPDK refuses members that it does not know: "shared", as it locks no files, and before "fallocate" that too.
  private func create(_ operation: String, _ parameters: JSONValue, leavingOut unknown: [String]) async throws {
    var parameters = parameters
    for member in unknown {
      do {
        _ = try await call(operation, "bdev_aio_create", parameters)
        return
      } catch let error as DPUError where error.serverCode == -32603 || error.serverCode == -32602 {
        parameters[member] = nil
      }
    }
    _ = try await call(operation, "bdev_aio_create", parameters)
  }

  private func find(volume name: String) async throws -> BlockVolume? {
    try await volumes().first { $0.name == name }
  }

  private func check(_ present: BlockVolume, _ operation: String, _ file: String, _ readOnly: Bool) throws {
    guard present.file == file, present.readOnly == readOnly else {
      throw DPUError(
        code: .conflict, operation: operation,
        message: "the volume is there already, with the file \(present.file)\(present.readOnly ? ", read-only" : "")")
    }
  }

  public func deleteVolume(name: String) async throws {
    let operation = "delete volume \(name)"
    guard try await find(volume: name) != nil else { return }
    if let user = try await functions().first(where: { $0.volume == name }) {
      throw DPUError(
        code: .busy, operation: operation, message: "the function \(user.name) shows it; unplug that first")
    }
    do {
      _ = try await call(operation, "bdev_aio_delete", ["name": .string(name)])
    } catch let error as DPUError where error.serverCode == -19 {
      return
    }
  }

  public func limitVolume(name: String, _ limits: VolumeLimits) async throws {
    _ = try await call(
      "limit volume \(name)", "bdev_set_qos_limit",
      [
        "name": .string(name), "rw_ios_per_sec": .integer(limits.iops), "rw_mbytes_per_sec": .integer(limits.bandwidth),
        "r_mbytes_per_sec": .integer(limits.readBandwidth), "w_mbytes_per_sec": .integer(limits.writeBandwidth),
      ])
  }

  public func rescanVolume(name: String) async throws {
    _ = try await call("rescan volume \(name)", "bdev_aio_rescan", ["name": .string(name)])
  }

  public func snapshot(into folder: String, files: [String: String]) async throws -> GroupSnapshotTimes {
    let operation = "take the snapshot \(folder)"
    let list = files.sorted { $0.key < $1.key }.map { volume, file -> JSONValue in
      ["name": .string(volume), "file": .string(file)]
    }
    let answer = try await call(operation, "bdev_snapshot_files", ["folder": .string(folder), "files": .array(list)])
    guard let taken = answer["taken_at_us"]?.int64Value, let pause = answer["pause_us"]?.int64Value else {
      throw malformed(operation, answer)
    }
    return GroupSnapshotTimes(takenAt: taken, pause: pause)
  }

  // MARK: Functions

  public func plug(function: String, volume: String, readOnly: Bool) async throws {
    let operation = "plug \(function)"
    try await refuseRetiring(function, operation)
    if let present = try await find(function: function) { return try check(present, operation, volume, readOnly) }
    do {
      _ = try await call(
        operation, "vhost_create_blk_controller",
        ["ctrlr": .string(function), "dev_name": .string(volume), "readonly": .bool(readOnly)])
    } catch let error as DPUError where error.code == .refused {
      // Another caller was faster.
      guard let present = try await find(function: function) else { throw error }
      try check(present, operation, volume, readOnly)
    }
  }

  /// softdpu keeps a controller that was deleted while the server still holds on to its disk. It is no disk to plug.
  private func refuseRetiring(_ function: String, _ operation: String) async throws {
    let controllers = try await call(operation, "vhost_get_controllers").arrayValue ?? []
    guard controllers.contains(where: { $0["ctrlr"]?.stringValue == function && $0["retiring"]?.boolValue == true })
    else { return }
    throw DPUError(
      code: .busy, operation: operation, message: "it is being unplugged, and the server has not let go of it yet")
  }

  private func find(function name: String) async throws -> BlockFunction? {
    try await functions().first { $0.name == name }
  }

  private func check(_ present: BlockFunction, _ operation: String, _ volume: String, _ readOnly: Bool) throws {
    guard present.volume == volume, present.readOnly == readOnly else {
      throw DPUError(
        code: .conflict, operation: operation,
        message:
          "the function is there already, with the volume \(present.volume)\(present.readOnly ? ", read-only" : "")")
    }
  }

  public func unplug(function: String, force: Bool) async throws {
    let operation = "unplug \(function)"
    guard try await find(function: function) != nil else { return }
    var parameters: JSONValue = ["ctrlr": .string(function)]
    // SPDK does not know the word, and softdpu only with it cuts a server off.
    if force { parameters["force"] = true }
    do {
      _ = try await call(operation, "vhost_delete_controller", parameters)
    } catch let error as DPUError where error.code != .timeout && error.code != .unavailable {
      // Gone by another's hand is gone; everything else stands.
      guard try await find(function: function) != nil else { return }
      guard error.code == .busy else { throw error }
      throw DPUError(
        code: .busy, operation: operation, message: "the server has not let go of it yet",
        serverCode: error.serverCode)
    }
  }

  // MARK: Calls

  private func call(_ operation: String, _ method: String, _ parameters: JSONValue? = nil) async throws -> JSONValue {
    do {
      return try await client.call(method, parameters, timeout: timeout)
    } catch let error as JSONRPCError {
      throw DPUError(
        code: SPDKClient.code(error), operation: operation, message: error.message, serverCode: error.serverCode)
    }
  }

  private static func code(_ error: JSONRPCError) -> DPUError.Code {
    switch error.code {
    case .unreachable, .closed, .overloaded: return .unavailable
    case .timeout: return .timeout
    case .malformed: return .malformed
    case .server(let code):
      switch code {
      case -19, -2: return .notFound
      case -17: return .conflict
      case -16, -1: return .busy
      case -32601: return .unsupported
      default: break
      }
      // The vhost methods give every error one code, and the system's text.
      switch error.message {
      case "No such device", "No such file or directory": return .notFound
      case "Device or resource busy": return .busy
      default: return .refused
      }
    }
  }

  private func malformed(_ operation: String, _ value: JSONValue) -> DPUError {
    DPUError(code: .malformed, operation: operation, message: "the answer is not understood: \(value.text.prefix(200))")
  }
}

extension VolumeLimits {
  /// The limits that SPDK shows of a block device.
  init(assigned limits: JSONValue?) {
    func limit(_ name: String) -> Int64 { max(0, limits?[name]?.int64Value ?? 0) }
    self.init(
      iops: limit("rw_ios_per_sec"), bandwidth: limit("rw_mbytes_per_sec"), readBandwidth: limit("r_mbytes_per_sec"),
      writeBandwidth: limit("w_mbytes_per_sec"))
  }
}
