import Glibc
import JSON

/// The configuration on disk: what is needed to be the same after a restart.
struct SavedState: Sendable, Equatable {
  struct Controller: Sendable, Equatable {
    var name: String
    var device: String
    var isReadOnly: Bool
  }

  var devices: [FileDevice.Parameters] = []
  var controllers: [Controller] = []

  private static let version: Int64 = 1

  var json: JSONValue {
    [
      "version": .integer(SavedState.version),
      "bdevs": .array(
        devices.map {
          [
            "name": .string($0.name), "filename": .string($0.file), "block_size": .integer(Int64($0.blockSize)),
            "readonly": .bool($0.isReadOnly), "fallocate": .bool($0.canUnmap), "uuid": .string($0.uuid),
          ]
        }),
      "controllers": .array(
        controllers.map {
          ["ctrlr": .string($0.name), "dev_name": .string($0.device), "readonly": .bool($0.isReadOnly)]
        }),
    ]
  }

  init() {}

  /// Nil where the value is not a configuration of this version.
  init?(_ value: JSONValue) {
    guard value["version"]?.int64Value == SavedState.version, let devices = value["bdevs"]?.arrayValue,
      let controllers = value["controllers"]?.arrayValue
    else { return nil }
    for device in devices {
      guard let name = device["name"]?.stringValue, let file = device["filename"]?.stringValue,
        let blockSize = device["block_size"]?.int64Value.flatMap({ UInt32(exactly: $0) }),
        let isReadOnly = device["readonly"]?.boolValue, let canUnmap = device["fallocate"]?.boolValue,
        let uuid = device["uuid"]?.stringValue
      else { return nil }
      self.devices.append(
        FileDevice.Parameters(
          name: name, file: file, blockSize: blockSize, isReadOnly: isReadOnly, canUnmap: canUnmap, uuid: uuid))
    }
    for controller in controllers {
      guard let name = controller["ctrlr"]?.stringValue, let device = controller["dev_name"]?.stringValue,
        let isReadOnly = controller["readonly"]?.boolValue
      else { return nil }
      self.controllers.append(Controller(name: name, device: device, isReadOnly: isReadOnly))
    }
  }
}

/// The directory that keeps a `SavedState`.
struct StateDirectory: Sendable {
  let path: String
  private var file: String { "\(path)/softdpu.json" }

  /// What was saved last; nil where nothing was.
  func load() throws(SoftDPUError) -> SavedState? {
    let operation = "read \(file)"
    let fd = unsafe open(file, O_RDONLY | O_CLOEXEC)
    guard fd >= 0 else {
      if errno == ENOENT { return nil }
      throw .system(errno, operation)
    }
    defer { close(fd) }
    // SAFETY: each buffer goes with its own length.
    var content: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 1 << 16)
    while content.count < 64 << 20 {
      let count = unsafe read(fd, &chunk, chunk.count)
      guard count >= 0 else { throw .system(errno, operation) }
      if count == 0 { break }
      content += chunk[..<count]
    }
    do throws(JSONError) {
      guard let state = SavedState(try JSONValue.parse(content)) else {
        throw JSONError(code: .malformed, offset: 0, reason: "not a configuration of this version")
      }
      return state
    } catch {
      throw SoftDPUError(code: .state, operation: operation, message: "\(error); move the file away to start empty")
    }
  }

  /// Saves so that after a crash at any moment either the old or the new state is there, whole.
  func save(_ state: SavedState) throws(SoftDPUError) {
    let operation = "write \(file)"
    let temporary = "\(file).new"
    let fd = unsafe open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
    guard fd >= 0 else { throw .system(errno, operation) }
    let bytes = state.json.serialize() + [0x0A]
    var done = 0
    while done < bytes.count {
      let count = unsafe bytes[done...].withUnsafeBytes { unsafe write(fd, $0.baseAddress, $0.count) }
      guard count > 0 else {
        let error = errno
        close(fd)
        throw .system(error, operation)
      }
      done += count
    }
    guard fsync(fd) == 0 else {
      let error = errno
      close(fd)
      throw .system(error, operation)
    }
    close(fd)
    guard unsafe rename(temporary, file) == 0 else { throw .system(errno, operation) }
    let directory = unsafe open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard directory >= 0 else { throw .system(errno, operation) }
    defer { close(directory) }
    guard fsync(directory) == 0 else { throw .system(errno, operation) }
  }
}
