import Dispatch
import Files
import Glibc
import GRPCCore
import JSON
import OPI
import SwiftProtobuf

/// A resource as it was asked for.
package struct Record: Sendable {
  package enum Phase: String, Sendable {
    /// It is to be at the target.
    case present
    /// It is to be there no more.
    case deleting
  }

  package var phase: Phase
  package var message: any Resource
  /// The key of an encrypted volume.
  var secret: [UInt8] = []

  package var name: String { message.name }
}

/// Which volume a snapshot of a store was taken of. The target does not tell that from a clone of the snapshot.
struct SnapshotOrigin: Sendable, Hashable {
  var volumeUUID: String
  /// Nil until the target has answered.
  var snapshotUUID: String?
}

/// What was asked for, on disk: one small file for each resource, so that a change costs the same whatever there is.
///
/// A key has a file of its own, which only the owner reads; the description beside it can be shown to anybody.
package struct RecordStore: Sendable {
  private let directory: String
  private let queue = DispatchQueue(label: "records")

  package init(directory: String) throws {
    self.directory = directory
    guard mkdir(directory, 0o700) == 0 || errno == EEXIST else { throw Self.failure("make the folder \(directory)") }
  }

  private static let kinds: [String: any Resource.Type] = Dictionary(
    uniqueKeysWithValues: [
      OPIAioVolume.self, OPINullVolume.self, OPIMallocVolume.self, OPIEncryptedVolume.self, OPIQosVolume.self,
      OPINvmeSubsystem.self, OPINvmeController.self, OPINvmeNamespace.self, OPIVirtioBlk.self,
      OPINvmeRemoteController.self, OPINvmePath.self, YCVolume.self,
    ].map { (kind: any Resource.Type) in (kind.collection.segment, kind) })

  // MARK: Changes

  func write(_ record: Record) async throws {
    try await onQueue { try save(record) }
  }

  func remove(_ name: String) async throws {
    try await onQueue {
      // The key first: a record without one is found again, a key without a record would stay.
      for path in ["\(path(name)).key", path(name)] where unlink(path) != 0 && errno != ENOENT {
        throw Self.failure("remove \(path)")
      }
      do throws(FileError) { try WholeFile.syncDirectory(directory) } catch { throw Self.failure(error) }
    }
  }

  func write(_ origin: SnapshotOrigin, of snapshot: String) async throws {
    try await onQueue {
      var text: JSONValue = ["name": .string(snapshot), "volume_uuid": .string(origin.volumeUUID)]
      if let uuid = origin.snapshotUUID { text["snapshot_uuid"] = .string(uuid) }
      try replace(originPath(snapshot), text.serialize() + [0x0A])
    }
  }

  /// Nil also for a file that was damaged: the snapshot counts as somebody else's then.
  func origin(of snapshot: String) async throws -> SnapshotOrigin? {
    try await onQueue {
      let path = originPath(snapshot)
      guard access(path, F_OK) == 0 else { return nil }
      guard let json = try? JSONValue.parse(try content(path)), json["name"]?.stringValue == snapshot,
        let volume = json["volume_uuid"]?.stringValue
      else { return nil }
      return SnapshotOrigin(volumeUUID: volume, snapshotUUID: json["snapshot_uuid"]?.stringValue)
    }
  }

  func removeOrigin(of snapshot: String) async throws {
    try await onQueue {
      let path = originPath(snapshot)
      guard unlink(path) == 0 || errno == ENOENT else { throw Self.failure("remove \(path)") }
    }
  }

  /// Disks may take their time, which no thread of the others should wait for.
  private func onQueue<Value: Sendable>(_ body: @escaping @Sendable () throws -> Value) async throws -> Value {
    try await withCheckedThrowingContinuation { (continuation: CheckedContinuation<Value, any Error>) in
      queue.async { continuation.resume(with: Result(catching: body)) }
    }
  }

  private func save(_ record: Record) throws {
    if !record.secret.isEmpty { try replace("\(path(record.name)).key", record.secret) }
    let spec: JSONValue
    do {
      let bytes: [UInt8] = try record.message.jsonUTF8Bytes()
      spec = try JSONValue.parse(bytes)
    } catch {
      throw RPCError(code: .internalError, message: "write down \(record.name): \(error)")
    }
    let text: JSONValue = ["name": .string(record.name), "phase": .string(record.phase.rawValue), "spec": spec]
    try replace(path(record.name), text.serialize() + [0x0A])
    let key = "\(path(record.name)).key"
    guard record.secret.isEmpty else { return }
    if unlink(key) == 0 {
      do throws(FileError) { try WholeFile.syncDirectory(directory) } catch { throw Self.failure(error) }
    } else if errno != ENOENT {
      throw Self.failure("remove \(key)")
    }
  }

  private func path(_ name: String) -> String { "\(stem(name)).json" }
  private func originPath(_ snapshot: String) -> String { "\(stem(snapshot)).origin" }
  private func stem(_ name: String) -> String {
    "\(directory)/\(name.split(separator: "/").joined(separator: "%"))"
  }

  private func replace(_ path: String, _ bytes: [UInt8]) throws {
    do throws(FileError) { try WholeFile.replace(path, with: bytes) } catch { throw Self.failure(error) }
  }

  private static func failure(_ error: FileError) -> RPCError {
    let code: RPCError.Code = [ENOSPC, EDQUOT].contains(error.number) ? .resourceExhausted : .internalError
    return RPCError(code: code, message: error.description)
  }

  private static func failure(_ operation: String) -> RPCError { failure(FileError(errno, operation)) }

  // MARK: Reading

  /// All records. A file that cannot be read stops the bridge: what it holds would be lost without a word.
  package func load() throws -> [String: Record] {
    guard let folder = opendir(directory) else { throw Self.failure("open \(directory)") }
    defer { closedir(folder) }
    var records: [String: Record] = [:]
    while let entry = readdir(folder) {
      let file = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
        pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      let path = "\(directory)/\(file)"
      // A write that was cut off, and the key of one.
      if file.hasSuffix(".new") { unlink(path) }
      if file.hasSuffix(".json.key"), access(String(path.dropLast(4)), F_OK) != 0 { unlink(path) }
      guard file.hasSuffix(".json") else { continue }
      let record = try read(path)
      records[record.name] = record
    }
    return records
  }

  private func read(_ path: String) throws -> Record {
    func broken(_ reason: String) -> RPCError {
      RPCError(
        code: .dataLoss, message: "\(path): \(reason); restore the file, or move it away to give the resource up")
    }
    let json: JSONValue
    do { json = try JSONValue.parse(try content(path)) } catch let error as JSONError { throw broken("\(error)") }
    guard let name = json["name"]?.stringValue, let phase = json["phase"]?.stringValue.flatMap(Record.Phase.init),
      let spec = json["spec"], let parsed = try? ResourceName(name, field: "name"),
      let kind = parsed.segments.last.flatMap({ Self.kinds[$0] }), self.path(name) == path
    else { throw broken("it is no record of a resource") }
    var message: any Resource
    do { message = try kind.init(jsonUTF8Bytes: spec.serialize()) } catch { throw broken("\(error)") }
    guard message.name == name else { throw broken("the names in it differ") }
    let secret = access("\(path).key", F_OK) == 0 ? try content("\(path).key") : []
    return Record(phase: phase, message: message, secret: secret)
  }

  private func content(_ path: String) throws -> [UInt8] {
    do throws(FileError) {
      guard let bytes = try WholeFile.read(path, limit: 1 << 20) else { throw FileError(ENOENT, "read \(path)") }
      return bytes
    } catch {
      guard error.number != EFBIG else {
        throw RPCError(code: .dataLoss, message: "\(path): longer than a record can be; move it away")
      }
      throw Self.failure(error)
    }
  }
}
