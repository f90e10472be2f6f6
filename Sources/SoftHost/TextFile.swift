import Files
import SystemPackage

#if canImport(Glibc)
  import Glibc
#elseif canImport(Musl)
  import Musl
#endif

/// Small files, read and written whole.
enum TextFile {
  /// Reads at most `limit` bytes; a longer file is an error.
  static func read(_ path: String, limit: Int) throws -> String {
    String(decoding: try readBytes(path, limit: limit), as: UTF8.self)
  }

  static func readBytes(_ path: String, limit: Int) throws -> [UInt8] {
    let content: [UInt8]?
    do throws(FileError) { content = try WholeFile.read(path, limit: limit) } catch {
      guard error.number != EFBIG else {
        throw SoftHostError(.file, operation: error.operation, message: "it is longer than \(limit) bytes")
      }
      throw failure(error.operation, error.number)
    }
    guard let content else { throw failure("read \(path)", ENOENT) }
    return content
  }

  /// Reads at most `limit` bytes; nil where there is no such file, or where it went with its process while it was read.
  /// A file that only cannot be read now, for lack of descriptors or memory, is an error.
  static func readBytesIfPresent(_ path: String, limit: Int) throws -> [UInt8]? {
    do {
      return try readBytes(path, limit: limit)
    } catch let error as SoftHostError
      where error.systemError == .noSuchFileOrDirectory || error.systemError == .noSuchProcess
    {
      return nil
    }
  }

  /// Replaces a file as one step that a crash or a power cut cannot tear apart.
  static func replace(_ path: String, with bytes: [UInt8], mode: mode_t = 0o600) throws {
    do throws(FileError) { try WholeFile.replace(path, with: bytes, mode: mode) } catch {
      throw failure(error.operation, error.number)
    }
  }

  static func failure(_ operation: String, _ error: CInt) -> SoftHostError {
    SoftHostError(
      .file, operation: operation, message: String(cString: strerror(error)), cause: Errno(rawValue: error))
  }
}
