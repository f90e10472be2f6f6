/// What one queue of a way out has carried: counted by the reactor that serves it, where it takes a device's answer.
struct QueueCounters: Sendable {
  /// Of one group of requests.
  struct Of: Sendable {
    var bytes: UInt64 = 0
    /// Latencies in nanoseconds.
    var sum: UInt64 = 0
    var histogram = IOCounters.Histogram(repeating: 0)

    var operations: UInt64 { histogram.indices.reduce(0) { $0 &+ histogram[$1] } }
  }

  var groups = InlineArray<3, Of>(repeating: Of())

  @inline(__always)
  mutating func count(_ kind: BlockIO.Kind, bytes: UInt64, nanoseconds: UInt64) {
    let group = kind.group
    groups[group].bytes &+= bytes
    groups[group].sum &+= nanoseconds
    groups[group].histogram[IOCounters.bucket(nanoseconds)] &+= 1
  }

  mutating func add(_ other: QueueCounters) {
    for group in groups.indices {
      groups[group].bytes &+= other.groups[group].bytes
      groups[group].sum &+= other.groups[group].sum
      for bucket in groups[group].histogram.indices {
        groups[group].histogram[bucket] &+= other.groups[group].histogram[bucket]
      }
    }
  }
}

extension UnsafeMutablePointer where Pointee == QueueCounters {
  /// Counts a request that its way out takes back.
  ///
  /// SAFETY: called on the thread of the reactor whose ledger the counters belong to, by the queue that has them.
  @inline(__always)
  func count(_ io: UnsafeMutablePointer<BlockIO>, _ core: UnsafeMutablePointer<ReactorCore>) {
    unsafe pointee.count(
      io.pointee.kind, bytes: io.pointee.length, nanoseconds: core.pointee.now &- io.pointee.began)
  }
}

/// The counters of a reactor's queues. They stay when a connection ends, and go on when the same peer comes back to the
/// same queue, so that a sum never falls.
///
/// There are at most `capacity` of connections: peers come and go. For a new one the one that ended first makes room, and
/// what it had counted is added to the "other" of its kind, which also counts for those that find no room.
///
/// SAFETY: used on the reactor's thread only. Counters stay at their address until the last queue has let go of them.
@safe
final class QueueLedger {
  enum FrontEnd: String, Sendable {
    case nbd
    case nvmeTCP = "nvme_tcp"
    case vhost
  }

  struct Key: Sendable, Hashable, Comparable {
    var frontEnd: FrontEnd
    /// A numeric address without its port, "unix", or the name of a vhost-user controller: nothing that a peer says.
    var peer: String
    /// Nil: all that have no counters of their own.
    var queue: Int?

    static func < (one: Key, other: Key) -> Bool {
      (one.frontEnd.rawValue, one.peer, one.queue ?? .max) < (other.frontEnd.rawValue, other.peer, other.queue ?? .max)
    }
  }

  /// SAFETY: the ledger frees the counters when it drops the entry.
  @safe
  private struct Entry {
    let counters: UnsafeMutablePointer<QueueCounters>
    var users = 0
    /// The greater, the later it was let go of.
    var ended: UInt64 = 0

    init() {
      unsafe counters = .allocate(capacity: 1)
      unsafe counters.initialize(to: QueueCounters())
    }
  }

  private var entries: [Key: Entry] = [:]
  private var endings: UInt64 = 0
  private let capacity: Int

  /// Connections of one peer that have a number of their own.
  static let numbered = 64

  init(capacity: Int = 512) { self.capacity = capacity }

  deinit {
    for entry in entries.values { unsafe entry.counters.deallocate() }
  }

  /// Counters for a queue, and the key by which `end` knows them.
  /// - Parameter queue: nil for connections without numbers, which get the lowest that is free.
  func begin(
    _ frontEnd: FrontEnd, peer: String, queue: Int? = nil
  ) -> (key: Key, counters: UnsafeMutablePointer<QueueCounters>) {
    var key = Key(frontEnd: frontEnd, peer: peer, queue: queue)
    if queue == nil {
      key.queue = (0..<QueueLedger.numbered).first { number in
        (entries[Key(frontEnd: frontEnd, peer: peer, queue: number)]?.users ?? 0) == 0
      }
    }
    if entries[key] == nil, key.queue == nil || frontEnd != .vhost && !makeRoom() {
      key = Key(frontEnd: frontEnd, peer: "other", queue: nil)
    }
    var entry = entries[key] ?? Entry()
    entry.users += 1
    entries[key] = entry
    return unsafe (key, entry.counters)
  }

  func end(_ key: Key) {
    endings += 1
    entries[key]?.users -= 1
    entries[key]?.ended = endings
  }

  /// Forgets what a vhost-user controller that is gone has counted.
  func forget(controller: String) {
    for (key, entry) in entries where key.frontEnd == .vhost && key.peer == controller {
      guard entry.users == 0 else { continue }
      unsafe entry.counters.deallocate()
      entries[key] = nil
    }
  }

  var totals: [Key: QueueCounters] { entries.mapValues { unsafe $0.counters.pointee } }

  /// False where all counters of connections are in use.
  private func makeRoom() -> Bool {
    let counted = entries.filter { $0.key.frontEnd != .vhost && $0.key.queue != nil }
    guard counted.count >= capacity else { return true }
    let idle = counted.filter { $0.value.users == 0 }
    guard let (key, entry) = idle.min(by: { $0.value.ended < $1.value.ended }) else { return false }
    let other = Key(frontEnd: key.frontEnd, peer: "other", queue: nil)
    let sum = entries[other] ?? Entry()
    unsafe sum.counters.pointee.add(entry.counters.pointee)
    entries[other] = sum
    unsafe entry.counters.deallocate()
    entries[key] = nil
    return true
  }
}
