import CLinux
import Dispatch
import Glibc
import Synchronization
import TestSupport

/// Passes TCP connections on, with faults: in pieces of odd sizes, late, with wrong bytes, in another order, or not at
/// all.
final class FaultyRelay: Sendable {
  struct Faults: Sendable {
    /// What arrives is passed on so much later, at most.
    var delayMilliseconds = 0
    /// One piece in so many has a wrong byte; 0 is none.
    var corruptOneIn = 0
    /// One piece in so many ends its connection instead; 0 is none.
    var cutOneIn = 0
    /// Answers of NVMe/TCP to different commands change places, one in so many; 0 is none. TCP keeps the order of bytes,
    /// so this is what a target may do. From the first connection on, or never.
    var reorderOneIn = 0
  }

  /// What was done to the connections.
  struct Tally: Sendable {
    var connections = 0
    var pieces = 0
    var corrupted = 0
    var cut = 0
    var reordered = 0
  }

  private struct State {
    var faults = Faults()
    var tally = Tally()
    var isStopped = false
  }

  private let state = Mutex(State())
  private let listener: Int32
  private let ended = DispatchSemaphore(value: 0)

  var faults: Faults {
    get { state.withLock { $0.faults } }
    set { state.withLock { $0.faults = newValue } }
  }
  var tally: Tally { state.withLock { $0.tally } }

  /// Listens at one address, and connects to another.
  init(
    listen place: (String, UInt16), connect far: (String, UInt16), seed: UInt64, faults: Faults = Faults()
  ) throws {
    state.withLock { $0.faults = faults }
    listener = clinux_tcp_listen(place.0, place.1)
    guard listener >= 0 else { throw TestEnvironmentError("cannot listen at \(place): \(-listener)") }
    DispatchQueue(label: "relay").async { [self] in
      var loop = Loop(listener: listener, far: far, random: SeededGenerator(seed: seed))
      while !state.withLock({ $0.isStopped }) {
        let faults = self.faults
        let turn = loop.turn(faults)
        state.withLock { state in
          state.tally.connections += turn.connections
          state.tally.pieces += turn.pieces
          state.tally.corrupted += turn.corrupted
          state.tally.cut += turn.cut
          state.tally.reordered += turn.reordered
        }
      }
      loop.closeAll()
      ended.signal()
    }
  }

  /// Ends all connections, and waits for that.
  func stop() {
    let isFirst = state.withLock { state in
      defer { state.isStopped = true }
      return !state.isStopped
    }
    guard isFirst else { return }
    ended.wait()
    close(listener)
  }

  /// One direction of a connection: what waits for its time.
  private struct Direction {
    var from: Int32
    var to: Int32
    var waiting: [(due: UInt64, bytes: [UInt8])] = []
    /// The first that waits is sent in part.
    var isTorn = false
    /// The beginning of a PDU.
    var partial: [UInt8] = []
    var lastDue: UInt64 = 0
  }

  private struct Pair {
    var directions: [Direction]
    var isBroken = false
  }

  /// What the relay's thread has for itself.
  private struct Loop {
    let listener: Int32
    let far: (String, UInt16)
    var random: SeededGenerator
    var pairs: [Pair] = []

    mutating func closeAll() {
      for pair in pairs { for direction in pair.directions { close(direction.from) } }
      pairs = []
    }

    private mutating func happens(oneIn count: Int) -> Bool {
      count > 0 && Int.random(in: 0..<count, using: &random) == 0
    }

    mutating func turn(_ faults: Faults) -> Tally {
      var tally = Tally()
      var entries = [pollfd(fd: listener, events: Int16(POLLIN), revents: 0)]
      for pair in pairs {
        for direction in pair.directions {
          // What a slow receiver has not taken holds back the sender.
          let wants = direction.waiting.count < 64 ? Int16(POLLIN) : 0
          entries.append(pollfd(fd: direction.from, events: wants, revents: 0))
        }
      }
      _ = poll(&entries, nfds_t(entries.count), 2)
      while case let near = clinux_accept(listener), near >= 0 {
        let out = clinux_tcp_connect(far.0, far.1)
        guard out >= 0 else {
          close(near)
          continue
        }
        clinux_tune_tcp(near)
        clinux_tune_tcp(out)
        pairs.append(Pair(directions: [Direction(from: near, to: out), Direction(from: out, to: near)]))
        tally.connections += 1
      }
      let now = clinux_monotonic_nanoseconds()
      for index in pairs.indices {
        for side in 0..<2 where !pairs[index].isBroken { serve(index, side, now, faults, &tally) }
      }
      for pair in pairs where pair.isBroken {
        // With a reset: what one end has sent and the other has not got is lost, as it is when a network breaks.
        for direction in pair.directions {
          clinux_discard_on_close(direction.from)
          close(direction.from)
        }
      }
      pairs.removeAll(where: \.isBroken)
      return tally
    }

    /// Has whole PDUs wait, some of them before the one that came before them.
    private mutating func takePDUs(_ direction: inout Direction, _ faults: Faults, _ tally: inout Tally) {
      while direction.partial.count >= 8 {
        let length = (4..<8).reversed().reduce(0) { $0 << 8 | Int(direction.partial[$1]) }
        guard length >= 8, direction.partial.count >= length else { return }
        let bytes = Array(direction.partial.prefix(length))
        direction.partial.removeFirst(length)
        direction.waiting.append((direction.lastDue, bytes))
        let last = direction.waiting.count - 1
        guard last > (direction.isTorn ? 1 : 0), let own = Loop.command(of: bytes),
          let other = Loop.command(of: direction.waiting[last - 1].bytes), own != other,
          happens(oneIn: faults.reorderOneIn)
        else { continue }
        direction.waiting[last].bytes = direction.waiting[last - 1].bytes
        direction.waiting[last - 1].bytes = bytes
        tally.reordered += 1
      }
    }

    /// The command that a PDU answers, by its number: a completion, or data; nil for others.
    private static func command(of bytes: [UInt8]) -> Int? {
      guard bytes.count >= 24 else { return nil }
      switch bytes[0] {
      case 5: return Int(bytes[20]) | Int(bytes[21]) << 8
      case 7: return Int(bytes[8]) | Int(bytes[9]) << 8
      default: return nil
      }
    }

    private mutating func serve(_ index: Int, _ side: Int, _ now: UInt64, _ faults: Faults, _ tally: inout Tally) {
      var direction = pairs[index].directions[side]
      var chunk = [UInt8](repeating: 0, count: Int.random(in: 1...16384, using: &random))
      if direction.waiting.count < 64 {
        let count = recv(direction.from, &chunk, chunk.count, Int32(MSG_DONTWAIT))
        if count == 0 || count < 0 && errno != EAGAIN && errno != ENOTCONN {
          pairs[index].isBroken = true
          return
        }
        if count > 0 {
          tally.pieces += 1
          var bytes = Array(chunk[..<count])
          if happens(oneIn: faults.cutOneIn) {
            tally.cut += 1
            pairs[index].isBroken = true
            return
          }
          if happens(oneIn: faults.corruptOneIn) {
            tally.corrupted += 1
            bytes[Int.random(in: 0..<count, using: &random)] ^= 1 << UInt8.random(in: 0..<8, using: &random)
          }
          let delay = faults.delayMilliseconds > 0 ? Int.random(in: 0...faults.delayMilliseconds, using: &random) : 0
          direction.lastDue = max(direction.lastDue, now + UInt64(delay) * 1_000_000)
          if faults.reorderOneIn > 0, side == 1 {
            direction.partial += bytes
            takePDUs(&direction, faults, &tally)
          } else {
            direction.waiting.append((direction.lastDue, bytes))
          }
        }
      }
      while let (due, bytes) = direction.waiting.first, due <= now {
        let count = bytes.withUnsafeBytes {
          send(direction.to, $0.baseAddress, $0.count, Int32(MSG_DONTWAIT | MSG_NOSIGNAL))
        }
        if count < 0, errno != EAGAIN, errno != ENOTCONN {
          pairs[index].isBroken = true
          return
        }
        if count < bytes.count {
          if count > 0 {
            direction.waiting[0].bytes.removeFirst(count)
            direction.isTorn = true
          }
          break
        }
        direction.isTorn = false
        direction.waiting.removeFirst()
      }
      pairs[index].directions[side] = direction
    }
  }
}
