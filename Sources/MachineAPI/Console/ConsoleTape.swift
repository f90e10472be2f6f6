/// The last bytes of a console, each at its place in all that was ever written on it. Pure.
///
/// Every reader has a place of its own on the tape. One that does not keep up finds that what it wanted is gone, and is
/// told how much: it costs no memory, and nobody waits for it.
package struct ConsoleTape: Sendable {
  package let capacity: Int
  private var ring: [UInt8] = []
  /// The place after the last byte.
  package private(set) var end: UInt64 = 0
  /// The place of the first byte that is still there.
  package var start: UInt64 { end - UInt64(ring.count) }

  package init(capacity: Int) { self.capacity = max(1, capacity) }

  package mutating func append(_ bytes: some Collection<UInt8>) {
    var rest = Array(bytes.suffix(capacity))[...]
    end += UInt64(bytes.count - rest.count)
    if bytes.count > rest.count { ring.removeAll(keepingCapacity: true) }
    // A quiet console has a short ring; only a full one turns.
    if ring.count < capacity {
      // While it grows, the byte at place p stands at p modulo the capacity only if the ring began at a multiple of it.
      if ring.isEmpty { origin = end % UInt64(capacity) }
      let room = rest.prefix(capacity - ring.count)
      ring.append(contentsOf: room)
      end += UInt64(room.count)
      rest = rest.dropFirst(room.count)
    }
    while !rest.isEmpty {
      let index = slot(end)
      let piece = rest.prefix(capacity - index)
      ring.replaceSubrange(index..<(index + piece.count), with: piece)
      end += UInt64(piece.count)
      rest = rest.dropFirst(piece.count)
    }
  }

  /// Where in the capacity the ring's first element belongs.
  private var origin: UInt64 = 0

  private func slot(_ place: UInt64) -> Int {
    let whole = UInt64(capacity)
    return Int((place % whole + whole - origin) % whole)
  }

  /// At most `limit` bytes from `place` on; where these are gone, from the first ones that are there.
  package func read(from place: UInt64, atMost limit: Int) -> (skipped: UInt64, bytes: ArraySlice<UInt8>) {
    let from = min(max(place, start), end)
    let skipped = from > place ? from - place : 0
    guard from < end, limit > 0 else { return (skipped, []) }
    let index = slot(from)
    // Up to the ring's edge: the next call gets what is behind it.
    let count = min(Int(end - from), limit, ring.count - index)
    return (skipped, ring[index..<(index + count)])
  }

  /// Where a reader who comes anew begins: `history` bytes back at most, and where older ones are gone or left out, at
  /// the beginning of a line, so that no half of a character or of an escape sequence comes first.
  package func beginning(history: Int) -> UInt64 {
    let wanted = end - UInt64(min(max(0, history), ring.count))
    guard wanted > 0 else { return 0 }
    var place = wanted
    while place < end {
      let (_, bytes) = read(from: place, atMost: capacity)
      if let newline = bytes.firstIndex(of: 0x0A) { return place + UInt64(newline - bytes.startIndex) + 1 }
      place += UInt64(bytes.count)
    }
    return wanted
  }
}

/// Who may type on a console: one at a time. Pure.
package struct WriterSeat: Sendable, Hashable {
  package struct Holder: Sendable, Hashable {
    package var session: Int
    package var user: String
  }

  package private(set) var holder: Holder?

  package init() {}

  package enum Answer: Sendable, Hashable {
    case mayType
    /// The seat was free, and is this session's now.
    case tookSeat
    /// Somebody else has it.
    case refused(holder: String)
  }

  /// Somebody types: a free seat is theirs.
  package mutating func type(session: Int, user: String) -> Answer {
    guard let holder else {
      self.holder = Holder(session: session, user: user)
      return .tookSeat
    }
    return holder.session == session ? .mayType : .refused(holder: holder.user)
  }

  /// Somebody takes the seat, whoever has it. Returns whether it changed hands.
  package mutating func takeOver(session: Int, user: String) -> Bool {
    guard holder?.session != session else { return false }
    holder = Holder(session: session, user: user)
    return true
  }

  /// Somebody left. Returns whether the seat is free by that.
  package mutating func leave(session: Int) -> Bool {
    guard holder?.session == session else { return false }
    holder = nil
    return true
  }
}

/// A place on a console's tape that a reader can come back to: `EPOCH.OFFSET`. Another epoch is another tape.
package struct ConsolePlace: Sendable, Hashable, CustomStringConvertible {
  package var epoch: String
  package var offset: UInt64

  package init(epoch: String, offset: UInt64) {
    self.epoch = epoch
    self.offset = offset
  }

  package init?(_ text: String) {
    let parts = text.split(separator: ".", omittingEmptySubsequences: false)
    guard parts.count == 2, (1...32).contains(parts[0].utf8.count), ObjectName.isLabel(parts[0]),
      let offset = UInt64(parts[1])
    else { return nil }
    self.init(epoch: String(parts[0]), offset: offset)
  }

  package var description: String { "\(epoch).\(offset)" }
}
