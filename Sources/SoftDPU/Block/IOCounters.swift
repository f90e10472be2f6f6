/// What a block device has done, and how long it took: read on its reactor's thread only.
struct IOCounters: Sendable {
  /// Of one kind of request.
  struct Of: Sendable {
    var operations: UInt64 = 0
    var bytes: UInt64 = 0
    /// Latencies in nanoseconds: their sum, the least and the greatest.
    var sum: UInt64 = 0
    var least: UInt64 = 0
    var greatest: UInt64 = 0
  }

  var read = Of()
  var write = Of()
  var unmap = Of()
  var writeZeroes = Of()
  var flush = Of()
  var errors: UInt64 = 0
  /// Requests that took longer than the threshold of the trace.
  var slow: UInt64 = 0
  /// Latencies, by `BlockIO.Kind.group`.
  var histograms = InlineArray<3, Histogram>(repeating: Histogram(repeating: 0))

  /// Entry `n` counts what lay below `IOCounters.bounds[n]`, the last what lay above all bounds.
  typealias Histogram = InlineArray<13, UInt64>

  /// Upper bounds of the histogram in microseconds, each four times the one before, from 1 us to 16.8 s.
  static let bounds: [UInt64] = (0..<12).map { 1 << (2 * $0) }

  @inline(__always)
  mutating func count(_ kind: BlockIO.Kind, bytes: UInt64, nanoseconds: UInt64, isFailed: Bool) {
    switch kind {
    case .read: read.add(bytes, nanoseconds)
    case .write: write.add(bytes, nanoseconds)
    case .unmap: unmap.add(bytes, nanoseconds)
    case .writeZeroes: writeZeroes.add(bytes, nanoseconds)
    case .flush: flush.add(0, nanoseconds)
    }
    if isFailed { errors &+= 1 }
    histograms[kind.group][IOCounters.bucket(nanoseconds)] &+= 1
  }

  /// Where a latency is counted.
  @inline(__always)
  static func bucket(_ nanoseconds: UInt64) -> Int {
    // The number of binary digits of whole microseconds, halved, is the number of bounds passed.
    let microseconds = nanoseconds / 1000
    let digits = UInt64.bitWidth - microseconds.leadingZeroBitCount
    return min(12, (digits + 1) / 2)
  }
}

extension IOCounters.Of {
  @inline(__always)
  mutating func add(_ length: UInt64, _ nanoseconds: UInt64) {
    least = operations == 0 ? nanoseconds : min(least, nanoseconds)
    greatest = max(greatest, nanoseconds)
    operations &+= 1
    bytes &+= length
    sum &+= nanoseconds
  }
}
