/// Splits the bytes of a watch into its lines, each one event (JSON texts separated by newlines). Pure.
struct LineSplitter: Sendable {
  private let maximumLineBytes: Int
  private var buffer: [UInt8] = []
  /// Where the first line that was not given out yet starts.
  private var start = 0
  /// Up to where the buffer was searched for a newline.
  private var searched = 0

  init(maximumLineBytes: Int) { self.maximumLineBytes = maximumLineBytes }

  /// Whether bytes wait for the rest of their line.
  var hasPartialLine: Bool { buffer[start...].contains { !Self.isSpace($0) } }

  mutating func append(_ bytes: some Sequence<UInt8>) {
    if start > 0 {
      buffer.removeFirst(start)
      searched -= start
      start = 0
    }
    buffer.append(contentsOf: bytes)
  }

  /// The next complete line that is not blank; nil where more bytes are needed.
  mutating func next() throws(KubernetesError) -> ArraySlice<UInt8>? {
    while let newline = buffer[searched...].firstIndex(of: UInt8(ascii: "\n")) {
      let line = buffer[start..<newline]
      start = newline + 1
      searched = start
      guard line.count <= maximumLineBytes else { throw tooLong() }
      if line.contains(where: { !Self.isSpace($0) }) { return line }
    }
    searched = buffer.count
    guard buffer.count - start <= maximumLineBytes else { throw tooLong() }
    return nil
  }

  private func tooLong() -> KubernetesError {
    KubernetesError(
      code: .invalidResponse, operation: "watch", message: "an event is longer than \(maximumLineBytes) bytes")
  }

  private static func isSpace(_ byte: UInt8) -> Bool { byte == 0x20 || byte == 0x0D || byte == 0x09 || byte == 0x0A }
}

/// An event of a watch as it is on the wire.
package enum RawWatchEvent<T: Decodable & Sendable>: Sendable {
  package enum Change: Sendable { case added, modified, deleted }

  case change(Change, T)
  case bookmark(resourceVersion: String)
  case error(Status)
  /// A type of event that this client does not know.
  case unknown(String)
}

extension RawWatchEvent: Decodable {
  private enum CodingKeys: String, CodingKey { case type, object }
  private struct Bookmark: Decodable { var metadata: ListMeta }

  package init(from decoder: any Decoder) throws {
    let container = try decoder.container(keyedBy: CodingKeys.self)
    switch try container.decode(String.self, forKey: .type) {
    case "ADDED": self = .change(.added, try container.decode(T.self, forKey: .object))
    case "MODIFIED": self = .change(.modified, try container.decode(T.self, forKey: .object))
    case "DELETED": self = .change(.deleted, try container.decode(T.self, forKey: .object))
    case "BOOKMARK":
      let bookmark = try container.decode(Bookmark.self, forKey: .object)
      self = .bookmark(resourceVersion: bookmark.metadata.resourceVersion ?? "")
    case "ERROR": self = .error(try container.decode(Status.self, forKey: .object))
    case let other: self = .unknown(other)
    }
  }
}

/// Bytes in, events out. Pure.
package struct WatchDecoder<T: Decodable & Sendable>: Sendable {
  private var lines: LineSplitter

  package init(maximumEventBytes: Int) { lines = LineSplitter(maximumLineBytes: maximumEventBytes) }

  package var hasPartialEvent: Bool { lines.hasPartialLine }

  package mutating func append(_ bytes: some Sequence<UInt8>) { lines.append(bytes) }

  package mutating func next() throws(KubernetesError) -> RawWatchEvent<T>? {
    while let line = try lines.next() {
      let event: RawWatchEvent<T>
      do {
        event = try Coding.decode(RawWatchEvent<T>.self, from: line)
      } catch {
        throw KubernetesError(
          code: .invalidResponse, operation: "watch", message: "an event cannot be decoded: \(error)", cause: error)
      }
      if case .unknown = event { continue }
      return event
    }
    return nil
  }
}
