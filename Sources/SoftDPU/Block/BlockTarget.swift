import Glibc

/// What the hot path needs to know of a block device: a plain value at a fixed address, changed by its reactor's
/// thread only.
///
/// SAFETY: the `BlockDevice` that owns what is named here outlives every way out that holds this value's address.
@unsafe
struct BlockTarget {
  enum Engine: UInt8 {
    case file, memory, null
    /// Another device's requests, changed or held back: `submit` takes them.
    case layer
  }

  let engine: Engine
  /// The reactor whose thread carries out the requests.
  let reactor: Int
  /// Size in bytes, a multiple of the block size.
  var capacity: UInt64
  var blockSize: UInt32
  var isReadOnly: Bool
  /// Takes unmap; zeros may be written by punching holes.
  var canUnmap: Bool
  /// Takes writeZeroes.
  var canWriteZeroes: Bool
  /// Requests that were started and are not finished.
  var inflight = 0
  /// Changes that were handed to the engine and are not finished.
  var changing = 0
  /// While changes are kept back.
  var hold: UnsafeMutablePointer<ChangeHold>?
  let counters: UnsafeMutablePointer<IOCounters>
  var limiter: UnsafeMutablePointer<RateLimiter>?
  /// What virtio-blk's GET_ID answers: 20 bytes, padded with zeros.
  let identity: UnsafeMutableRawPointer
  /// The device's name.
  let label: UnsafeMutablePointer<IOLabel>

  /// Memory for requests whose bytes have to be elsewhere.
  var budget = unsafe DeviceMemory()

  // Files.
  /// Opened with O_DIRECT, or -1 where the file has no direct I/O.
  var directFD: CInt = -1
  /// Opened without it: for reads and writes of files that have no direct I/O, and for everything else.
  var bufferedFD: CInt = -1
  /// Direct I/O needs memory at multiples of this (a mask: the alignment less one).
  var memoryMask: UInt = 0
  /// The file lives in memory, so that its I/O is done at once, on the reactor's thread.
  var isInline = false

  // Memory.
  var memory: UnsafeMutableRawPointer?

  // Layers.
  var submit: (@convention(c) (UnsafeMutableRawPointer, UnsafeMutableRawPointer) -> Void)?
  /// The layer's own state.
  var layer: UnsafeMutableRawPointer?

  /// Allocates a target with its counters; `destroy` frees it.
  static func make(
    _ engine: Engine, name: String, reactor: Int, capacity: UInt64, blockSize: UInt32, isReadOnly: Bool,
    canUnmap: Bool, canWriteZeroes: Bool
  ) -> UnsafeMutablePointer<BlockTarget> {
    let identity = UnsafeMutableRawPointer.allocate(byteCount: 20, alignment: 8)
    unsafe identity.initializeMemory(as: UInt8.self, repeating: 0, count: 20)
    for (index, byte) in name.utf8.prefix(20).enumerated() {
      unsafe identity.storeBytes(of: byte, toByteOffset: index, as: UInt8.self)
    }
    let counters = UnsafeMutablePointer<IOCounters>.allocate(capacity: 1)
    unsafe counters.initialize(to: IOCounters())
    let target = UnsafeMutablePointer<BlockTarget>.allocate(capacity: 1)
    unsafe target.initialize(
      to: BlockTarget(
        engine: engine, reactor: reactor, capacity: capacity, blockSize: blockSize, isReadOnly: isReadOnly,
        canUnmap: canUnmap, canWriteZeroes: canWriteZeroes, counters: counters, identity: identity,
        label: IOLabel.make(name)))
    return unsafe target
  }

  static func destroy(_ target: UnsafeMutablePointer<BlockTarget>) {
    unsafe target.pointee.counters.deallocate()
    unsafe target.pointee.identity.deallocate()
    unsafe target.pointee.label.deallocate()
    if let limiter = unsafe target.pointee.limiter {
      unsafe limiter.deinitialize(count: 1)
      unsafe limiter.deallocate()
    }
    unsafe target.deallocate()
  }

  private init(
    engine: Engine, reactor: Int, capacity: UInt64, blockSize: UInt32, isReadOnly: Bool, canUnmap: Bool,
    canWriteZeroes: Bool, counters: UnsafeMutablePointer<IOCounters>, identity: UnsafeMutableRawPointer,
    label: UnsafeMutablePointer<IOLabel>
  ) {
    unsafe self.engine = engine
    unsafe self.reactor = reactor
    unsafe self.capacity = capacity
    unsafe self.blockSize = blockSize
    unsafe self.isReadOnly = isReadOnly
    unsafe self.canUnmap = canUnmap
    unsafe self.canWriteZeroes = canWriteZeroes
    unsafe self.counters = unsafe counters
    unsafe self.identity = unsafe identity
    unsafe self.label = unsafe label
  }
}

/// Whether a range lies within the target and on its blocks.
@inline(__always)
func isInside(_ target: UnsafeMutablePointer<BlockTarget>, offset: UInt64, length: UInt64) -> Bool {
  let mask = unsafe UInt64(target.pointee.blockSize) - 1
  return unsafe (offset | length) & mask == 0 && length <= target.pointee.capacity
    && offset <= target.pointee.capacity - length
}
