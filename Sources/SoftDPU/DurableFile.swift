import Files
import Glibc
import JSON

/// Small JSON files that are whole after a crash at any moment: either the old content or the new.
enum DurableFile {
  /// The longest file that is read, in bytes.
  static let maximumLength = 64 << 20

  /// The content; nil where there is no file.
  static func read(_ path: String) throws(SoftDPUError) -> JSONValue? {
    guard let content = try bytes(path) else { return nil }
    return try parse(content, path)
  }

  /// What `bytes` gave, as JSON.
  static func parse(_ content: [UInt8], _ path: String) throws(SoftDPUError) -> JSONValue {
    do throws(JSONError) {
      return try JSONValue.parse(content)
    } catch {
      throw SoftDPUError(
        code: .state, operation: "read \(path)", message: "\(error); restore it, or move it away")
    }
  }

  /// The bytes of a file; nil where there is none.
  static func bytes(_ path: String) throws(SoftDPUError) -> [UInt8]? {
    do throws(FileError) {
      return try WholeFile.read(path, limit: maximumLength)
    } catch {
      guard error.number != EFBIG else {
        throw SoftDPUError(code: .state, operation: error.operation, message: "longer than \(maximumLength) bytes")
      }
      throw .system(error.number, error.operation)
    }
  }

  /// Replaces the content; readable by the owner only.
  static func write(_ value: JSONValue, to path: String) throws(SoftDPUError) {
    try write(value.serialize() + [0x0A], to: path)
  }

  /// The same with bytes. `onNew` is called when the new content is what readers find, though a crash may undo it: an
  /// error after that leaves it there.
  static func write(_ bytes: [UInt8], to path: String, onNew: () -> Void = {}) throws(SoftDPUError) {
    do throws(FileError) { try WholeFile.replace(path, with: bytes, onNew: onNew) } catch {
      throw .system(error.number, error.operation)
    }
  }

  /// Writes all of `bytes`.
  static func write(_ bytes: [UInt8], _ fd: CInt, _ operation: String) throws(SoftDPUError) {
    let error = WholeFile.writeAll(bytes, to: fd)
    guard error == 0 else { throw .system(error, operation) }
  }

  /// Has the names in a directory on disk.
  static func syncDirectory(_ path: String) throws(SoftDPUError) {
    do throws(FileError) { try WholeFile.syncDirectory(path) } catch {
      throw .system(error.number, error.operation)
    }
  }
}
