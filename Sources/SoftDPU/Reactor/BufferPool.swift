import Glibc

/// Memory for the bytes of requests, on pages: taken and given back without an allocation each, as long as it is not
/// large. Reactor's thread.
///
/// Who gets no memory waits, and each wait has an end. A device that has none always gets a piece, whatever the others
/// have: so of the layers that stand on each other the lowest always goes on, and with it those above. A peer (a
/// connection, or a controller with all its queues) has a share that shrinks as memory does, and those who have nothing
/// get a small piece; only peers' requests ever wait for what other peers have.
///
/// SAFETY: a free buffer holds the address of the next free one of its class in its first bytes; a buffer is in the list
/// or with its user, never both.
@unsafe
struct BufferPool {
  /// 4 KiB, 8 KiB ... 1 MiB; what is longer comes from the system each time.
  private static let classes = 9
  private static let smallest = 4096
  /// What is kept for later, in bytes, for each reactor.
  private static let maximumKept = 64 << 20

  private var free = unsafe InlineArray<9, UnsafeMutableRawPointer?>(repeating: nil)
  private var kept = 0
  /// Bytes that are with their users; of these, with peers.
  private(set) var lent = 0
  private(set) var lentToPeers = 0
  /// The most that one reactor lends, and the most of it to peers: the rest is for devices, which need it to end what
  /// peers have begun.
  private static let maximumLent = 2 << 30
  private static let maximumLentToPeers = 3 << 29
  /// The most that one device, and one peer, has.
  private static let deviceShare = 64 << 20
  private static let peerShare = 64 << 20
  /// What a peer gets that has nothing, however many others there are.
  private static let peerMinimum = 256 << 10
  /// The longest piece that a device takes at a time, with a page for its own use.
  static let piece = 1 << 20

  private static func size(_ length: Int) -> (size: Int, index: Int) {
    guard unsafe length > smallest else { return unsafe (smallest, 0) }
    let index = Int.bitWidth - (length - 1).leadingZeroBitCount - 12
    return unsafe index < classes ? (smallest << index, index) : (length, classes)
  }

  /// Room for `length` bytes, not cleared; nil where the system has none. For what is bounded by other means.
  mutating func take(_ length: Int) -> UnsafeMutableRawPointer? {
    let (size, index) = unsafe BufferPool.size(length)
    if unsafe index < BufferPool.classes, let buffer = unsafe free[index] {
      unsafe free[index] = unsafe buffer.load(as: UnsafeMutableRawPointer?.self)
      unsafe kept -= size
      unsafe lent += size
      return unsafe buffer
    }
    var memory: UnsafeMutableRawPointer?
    guard unsafe posix_memalign(&memory, 4096, size) == 0 else { return nil }
    unsafe lent += size
    return unsafe memory
  }

  /// Takes back what `take` gave for the same length.
  mutating func give(_ buffer: UnsafeMutableRawPointer, _ length: Int) {
    let (size, index) = unsafe BufferPool.size(length)
    unsafe lent -= size
    guard unsafe index < BufferPool.classes, unsafe kept + size <= BufferPool.maximumKept else {
      return unsafe Glibc.free(buffer)
    }
    unsafe buffer.storeBytes(of: free[index], as: UnsafeMutableRawPointer?.self)
    unsafe free[index] = unsafe buffer
    unsafe kept += size
  }

  // MARK: Devices

  /// Whether a device that has `held` bytes may have `length` more.
  func mayTake(_ length: Int, deviceHolding held: Int) -> Bool {
    guard held > 0 else { return true }
    let size = unsafe BufferPool.size(length).size
    return unsafe held + size <= BufferPool.deviceShare && lent + size <= BufferPool.maximumLent
  }

  /// Memory for a device, a piece at most; nil where it has some and has to wait until that is back.
  mutating func take(_ length: Int, device held: inout Int) -> UnsafeMutableRawPointer? {
    guard unsafe mayTake(length, deviceHolding: held), let buffer = unsafe take(length) else { return nil }
    held += unsafe BufferPool.size(length).size
    return unsafe buffer
  }

  mutating func give(_ buffer: UnsafeMutableRawPointer, _ length: Int, device held: inout Int) {
    held -= unsafe BufferPool.size(length).size
    unsafe give(buffer, length)
  }

  // MARK: Peers

  /// Memory for a peer; nil where it has to wait.
  mutating func take(_ length: Int, peer held: inout Int) -> UnsafeMutableRawPointer? {
    let size = unsafe BufferPool.size(length).size
    let free = unsafe min(BufferPool.maximumLentToPeers - lentToPeers, BufferPool.maximumLent - lent)
    let isGranted =
      unsafe held == 0
      ? size <= max(free, BufferPool.peerMinimum) : held + size <= min(BufferPool.peerShare, free / 4)
    guard isGranted, let buffer = unsafe take(length) else { return nil }
    held += size
    unsafe lentToPeers += size
    return unsafe buffer
  }

  mutating func give(_ buffer: UnsafeMutableRawPointer, _ length: Int, peer held: inout Int) {
    let size = unsafe BufferPool.size(length).size
    held -= size
    unsafe lentToPeers -= size
    unsafe give(buffer, length)
  }

  mutating func deallocate() {
    for index in unsafe 0..<BufferPool.classes {
      while let buffer = unsafe free[index] {
        unsafe free[index] = unsafe buffer.load(as: UnsafeMutableRawPointer?.self)
        unsafe Glibc.free(buffer)
      }
    }
  }
}
