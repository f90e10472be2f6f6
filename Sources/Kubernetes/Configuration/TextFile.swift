import SystemPackage

/// Small text files: credentials, certificates, kubeconfigs.
enum TextFile {
  struct Failure: Error, CustomStringConvertible {
    let description: String
  }

  static func read(_ path: String, maximumBytes: Int) throws -> String {
    do {
      let descriptor = try FileDescriptor.open(FilePath(path), .readOnly)
      return try descriptor.closeAfter {
        var bytes: [UInt8] = []
        while true {
          let chunk = try [UInt8](unsafeUninitializedCapacity: 16_384) { buffer, count in
            count = try descriptor.read(into: UnsafeMutableRawBufferPointer(buffer))
          }
          if chunk.isEmpty { break }
          bytes += chunk
          guard bytes.count <= maximumBytes else {
            throw Failure(description: "\(path) is longer than \(maximumBytes) bytes")
          }
        }
        guard let text = String(validating: bytes, as: UTF8.self) else {
          throw Failure(description: "\(path) is not UTF-8 text")
        }
        return text
      }
    } catch let error as Errno {
      throw Failure(description: "\(path): \(error)")
    }
  }
}

extension String {
  func trimmingWhitespace() -> String {
    guard let first = firstIndex(where: { !$0.isWhitespace }), let last = lastIndex(where: { !$0.isWhitespace }) else {
      return ""
    }
    return String(self[first...last])
  }
}
