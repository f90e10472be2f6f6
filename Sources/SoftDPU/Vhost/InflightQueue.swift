import CLinux

/// One queue's part of the region that records which requests are in flight, so that a front end can hand them to the
/// next target when this one dies (vhost-user, "Inflight I/O tracking", split virtqueue).
///
/// The front end holds the region and could change it at any time: what is read from it is checked.
///
/// SAFETY: `base` has `length(size:)` bytes, mapped as long as the region lives; heads are below `size`, which is
/// checked where a head comes from the region or from a ring.
@unsafe
struct InflightQueue {
  /// features u64, version u16, desc_num u16, last_batch_head u16, used_idx u16.
  private static let headerLength = 16
  /// inflight u8, padding u8[5], next u16, counter u64.
  private static let entryLength = 16
  private static let version: UInt16 = 1

  private let base: UnsafeMutableRawPointer
  let size: UInt16

  /// Bytes that a queue of `size` takes.
  static func length(size: UInt16) -> Int {
    unsafe (headerLength + Int(size) * entryLength + 63) & ~63
  }

  /// `base` has `length(size:)` bytes. A region of zeros becomes an empty record; nil where it is another layout.
  init?(base: UnsafeMutableRawPointer, size: UInt16) {
    unsafe self.base = unsafe base
    unsafe self.size = size
    switch unsafe base.load(fromByteOffset: 8, as: UInt16.self) {
    case 0:
      unsafe base.storeBytes(of: size, toByteOffset: 10, as: UInt16.self)
      unsafe base.storeBytes(of: InflightQueue.version, toByteOffset: 8, as: UInt16.self)
    case unsafe InflightQueue.version:
      guard unsafe base.load(fromByteOffset: 10, as: UInt16.self) == size else { return nil }
    default: return nil
    }
  }

  @inline(__always)
  private func entry(_ head: UInt16) -> UnsafeMutableRawPointer {
    unsafe base + (InflightQueue.headerLength + Int(head) * InflightQueue.entryLength)
  }

  /// Records a request that was taken from the available ring.
  @inline(__always)
  func begin(_ head: UInt16, order: UInt64) {
    let entry = unsafe entry(head)
    unsafe entry.storeBytes(of: order, toByteOffset: 8, as: UInt64.self)
    clinux_release_fence()
    unsafe entry.storeBytes(of: 1, as: UInt8.self)
  }

  /// Records that a request goes into the batch that `used.idx` will publish next.
  @inline(__always)
  func prepare(_ head: UInt16) {
    unsafe entry(head).storeBytes(of: base.load(fromByteOffset: 12, as: UInt16.self), toByteOffset: 6, as: UInt16.self)
    unsafe base.storeBytes(of: head, toByteOffset: 12, as: UInt16.self)
  }

  /// Forgets a request that was published.
  @inline(__always)
  func end(_ head: UInt16) {
    unsafe entry(head).storeBytes(of: 0, as: UInt8.self)
  }

  /// Records that the batch is complete.
  @inline(__always)
  func settle(_ usedIndex: UInt16) {
    clinux_release_fence()
    unsafe base.storeBytes(of: usedIndex, toByteOffset: 14, as: UInt16.self)
  }

  /// Forgets everything, and starts to count at `usedIndex`.
  func reset(usedIndex: UInt16) {
    for head in unsafe 0..<size { unsafe end(head) }
    unsafe settle(usedIndex)
  }

  /// The requests that the previous target had taken and not given back, in the order in which it took them.
  ///
  /// `usedIndex` is what the used ring says: where it differs from the record, that target died while it published
  /// its last batch, and the members of that batch are done.
  func recover(usedIndex: UInt16) -> [UInt16] {
    let unsettled = unsafe usedIndex &- base.load(fromByteOffset: 14, as: UInt16.self)
    if unsettled > 0, unsafe unsettled <= size {
      var head = unsafe base.load(fromByteOffset: 12, as: UInt16.self)
      for _ in 0..<unsettled where unsafe head < size {
        let next = unsafe entry(head).load(fromByteOffset: 6, as: UInt16.self)
        unsafe end(head)
        head = next
      }
    }
    unsafe settle(usedIndex)
    var found: [(order: UInt64, head: UInt16)] = []
    for head in unsafe 0..<size where unsafe entry(head).load(as: UInt8.self) != 0 {
      unsafe found.append((entry(head).load(fromByteOffset: 8, as: UInt64.self), head))
    }
    return found.sorted { $0.order < $1.order }.map(\.head)
  }
}
