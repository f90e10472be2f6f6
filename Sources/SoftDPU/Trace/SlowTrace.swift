/// The last requests of a reactor that took longer than a threshold.
///
/// What it costs the others is one comparison: the time that a request took is known anyway, for the statistics.
///
/// SAFETY: made by the reactor's thread, and touched by no other; an index is a count modulo the capacity.
@unsafe
struct SlowTrace {
  /// One request of one device; times in nanoseconds.
  struct Entry {
    /// When it ended, by the monotonic clock.
    var ended: UInt64
    /// Until the engine had it: for a limit, for a path to a remote subsystem.
    var waited: UInt64
    /// From then on.
    var served: UInt64
    var kind: BlockIO.Kind
    var offset: UInt64
    var length: UInt64
    /// 0 or a negative error number.
    var result: CInt
    var device: IOLabel
    var asker: IOLabel
  }

  static let capacity = 256

  /// In nanoseconds; the greatest number is off.
  var threshold = UInt64.max
  /// All that were over the threshold.
  private(set) var count: UInt64 = 0
  private let entries: UnsafeMutablePointer<Entry>

  init() { unsafe entries = .allocate(capacity: SlowTrace.capacity) }

  func deallocate() { unsafe entries.deallocate() }

  mutating func add(_ entry: Entry) {
    unsafe (entries + Int(count % UInt64(SlowTrace.capacity))).initialize(to: entry)
    unsafe count &+= 1
  }

  /// What is kept, the latest first.
  var latest: [SlowRequest] {
    let kept = unsafe min(count, UInt64(SlowTrace.capacity))
    return (0..<kept).map { age in
      unsafe SlowRequest(entries[Int((count - 1 - age) % UInt64(SlowTrace.capacity))])
    }
  }

  mutating func clear() { unsafe count = 0 }
}

/// Keeps a request that took longer than the threshold.
///
/// SAFETY: `finish` calls it, whose request and target are as alive as they were there.
@inline(never)
func noteSlow(
  _ io: UnsafeMutablePointer<BlockIO>, _ result: CInt, now: UInt64, _ core: UnsafeMutablePointer<ReactorCore>
) {
  let target = unsafe io.pointee.target
  unsafe target.pointee.counters.pointee.slow &+= 1
  unsafe core.pointee.slow.add(
    SlowTrace.Entry(
      ended: now, waited: io.pointee.admitted &- io.pointee.began, served: now &- io.pointee.admitted,
      kind: io.pointee.kind, offset: io.pointee.place, length: io.pointee.length, result: result,
      device: target.pointee.label.pointee, asker: io.pointee.asker?.pointee ?? IOLabel("")))
}
