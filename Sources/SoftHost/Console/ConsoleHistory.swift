/// The last bytes of a console, for readers that come late. Pure.
package struct ConsoleHistory: Sendable {
  private var bytes: [UInt8] = []
  private let limit: Int

  package init(limit: Int) {
    self.limit = limit
  }

  package mutating func append(_ new: some Collection<UInt8>) {
    bytes.append(contentsOf: new.suffix(limit))
    // Cut only now and then, so that each byte is moved about once.
    if bytes.count > 2 * limit { bytes.removeFirst(bytes.count - limit) }
  }

  /// At most `limit` bytes. Where older ones are gone it starts at a line, so that no half of a character or of an
  /// escape sequence comes first.
  package var content: [UInt8] {
    guard bytes.count > limit else { return bytes }
    let tail = bytes.suffix(limit)
    guard let newline = tail.firstIndex(of: 0x0A) else { return Array(tail) }
    return Array(tail[(newline + 1)...])
  }
}

/// What one reader still has to get. Pure.
///
/// A reader that does not keep up misses bytes. When it has taken all that waited for it, it is brought up to date: told
/// how many bytes it missed, and shown the end of the history.
package struct ConsoleReader: Sendable, Hashable {
  /// Bytes that may wait for one reader.
  package static let outboxMax = 256 << 10
  private var waiting = 0
  private var missed = 0

  package init() {}

  /// Whether the next bytes are to be sent; otherwise the reader misses them.
  package mutating func offer(_ count: Int) -> Bool {
    // Once something is missing, what comes later must not be shown as if it followed.
    guard missed == 0, waiting + count <= ConsoleReader.outboxMax else {
      missed += count
      return false
    }
    waiting += count
    return true
  }

  /// Some bytes have gone out. Returns how many were missed when it is time to bring the reader up to date.
  package mutating func sent(_ count: Int) -> Int? {
    waiting -= count
    guard waiting <= 0, missed > 0 else { return nil }
    defer { missed = 0 }
    return missed
  }
}
