import CLinux
import Glibc

// The queues of NVMe/TCP: PDUs out of a connection's bytes, commands to devices, completions back. Free functions on
// plain pointers: nothing here allocates for each command, locks or counts references.
//
// SAFETY, for every `unsafe` here: state, slots, items, vectors and headers are allocated by `NVMfConnection`, which
// frees them when no command is with a device and nothing of theirs is listed with the reactor; one thread touches
// them. What a host sends is copied before it is looked at, and every length and offset is compared with the slot's
// buffer before it is used.

/// One command, from its capsule to the last byte of its completion.
@unsafe
struct NVMfSlot {
  /// First, so that the slot's address is its request's.
  var io: BlockIO
  let state: UnsafeMutablePointer<NVMfState>
  let item: UnsafeMutablePointer<OutgoingItem>
  /// `NVMfState.headerLength` bytes of the slot's own: the command, then the headers of what is sent.
  let header: UnsafeMutableRawPointer
  let index: UInt16
  var next: UnsafeMutablePointer<NVMfSlot>?
  /// The command's data, in either direction, how long its memory is, and what counts it.
  var buffer: UnsafeMutableRawPointer?
  var length = 0
  var held: UnsafeMutablePointer<Int>?
  /// Bytes that the command moves, and how many of them have come.
  var transfer = 0
  var received = 0
  /// Ranges of dataset management that are done.
  var range = 0
  /// Bytes can come for it.
  var isReceiving = false
  /// The request for its data is not sent yet.
  var isAsking = false
  /// A part of its data did not have the digest that came with it.
  var isDamaged = false
  var entry: UnsafeMutablePointer<NamespaceTable.Entry>?

  @inline(__always)
  func field8(_ offset: Int) -> UInt8 { unsafe header.load(fromByteOffset: offset, as: UInt8.self) }
  @inline(__always)
  func field16(_ offset: Int) -> UInt16 {
    unsafe UInt16(littleEndian: header.loadUnaligned(fromByteOffset: offset, as: UInt16.self))
  }
  @inline(__always)
  func field32(_ offset: Int) -> UInt32 {
    unsafe UInt32(littleEndian: header.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
  }
  @inline(__always)
  func field64(_ offset: Int) -> UInt64 {
    unsafe UInt64(littleEndian: header.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
  }

  var opcode: UInt8 { unsafe field8(0) }
  var namespace: UInt32 { unsafe field32(4) }
  /// The command's own words, 10 to 15.
  func word(_ number: Int) -> UInt32 { unsafe field32(4 * number) }
}

extension UnsafeMutablePointer where Pointee == NVMfSlot {
  /// The slot's request, which stands at its start.
  var io: UnsafeMutablePointer<BlockIO> {
    // SAFETY: the first member of a structure has its address.
    unsafe UnsafeMutableRawPointer(self).assumingMemoryBound(to: BlockIO.self)
  }
}

@unsafe
struct NVMfState {
  let stream: UnsafeMutablePointer<Stream>
  /// The `NVMfConnection`, which outlives this.
  let connection: UnsafeMutableRawPointer
  let slots: UnsafeMutablePointer<NVMfSlot>
  let items: UnsafeMutablePointer<OutgoingItem>
  let vectors: UnsafeMutablePointer<iovec>
  let headers: UnsafeMutableRawPointer
  let asker = unsafe IOLabel.make("NVMe/TCP")
  let hasHeaderDigest: Bool
  let hasDataDigest: Bool
  /// Data in PDUs to the host begins at a multiple of this.
  let alignment: Int
  let maximumTransfer: Int
  let inCapsuleLength: Int
  let sendsSuccess: Bool
  /// The namespaces, once the queue is connected to a controller; the connection keeps them.
  var namespaces: Unmanaged<NamespaceTable>?
  /// Of an I/O queue.
  var counters: UnsafeMutablePointer<QueueCounters>?
  /// An I/O queue of an enabled controller.
  var isIOQueue = false
  var queueSize: UInt16 = 128
  var submissionHead: UInt16 = 0
  var free: UnsafeMutablePointer<NVMfSlot>?
  /// The command whose data is coming, how many bytes of the present PDU are missing, and where they began.
  var receiving: UnsafeMutablePointer<NVMfSlot>?
  var missing = 0
  var partStart = 0
  var awaitsDigest = false
  var isCapsule = false
  /// Commands whose data was asked for and has not come: what is received must be taken, because it brings it.
  var asked = 0
  /// What counts the bytes that commands hold: the connection's own place, and its controller's for I/O.
  let ownHeld: UnsafeMutablePointer<Int>
  var held: UnsafeMutablePointer<Int>
  /// Listed where memory is missing.
  let waiter: UnsafeMutablePointer<MemoryWaiter>
  /// Commands that wait for memory, in the order of their arrival.
  var waitingFirst: UnsafeMutablePointer<NVMfSlot>?
  var waitingLast: UnsafeMutablePointer<NVMfSlot>?
  /// Nothing is taken: the next command has no room for what it brings.
  var isStalled = false
  var inflight = 0
  var commands: UInt64 = 0

  static let depth = 136
  static let headerLength = 192
  /// What the arrays take together, in bytes.
  static var length: Int {
    let slot = unsafe MemoryLayout<NVMfSlot>.stride + MemoryLayout<OutgoingItem>.stride
    return unsafe depth * (headerLength + slot + MemoryLayout<iovec>.stride)
  }
  /// Data with admin commands may be longer than with others.
  static let adminCapsuleLength = 8192

  // Where a slot's headers stand: the command first.
  static let dataHeader = 64
  static let dataDigest = 96
  static let response = 104
  static let transferHeader = 136

  /// - Parameter memory: `length` bytes of `PageMemory`, which the state takes over.
  init(
    memory: UnsafeMutableRawPointer, stream: UnsafeMutablePointer<Stream>, connection: UnsafeMutableRawPointer,
    hasHeaderDigest: Bool, hasDataDigest: Bool, alignment: Int, transport: NVMfTarget.Transport
  ) {
    unsafe self.stream = unsafe stream
    unsafe self.connection = unsafe connection
    unsafe self.hasHeaderDigest = hasHeaderDigest
    unsafe self.hasDataDigest = hasDataDigest
    unsafe self.alignment = alignment
    unsafe maximumTransfer = transport.maximumTransfer
    unsafe inCapsuleLength = transport.inCapsuleLength
    unsafe sendsSuccess = transport.sendsSuccess
    unsafe ownHeld = .allocate(capacity: 1)
    unsafe ownHeld.initialize(to: 0)
    unsafe held = unsafe ownHeld
    unsafe counters = nil
    unsafe waiter = .allocate(capacity: 1)
    unsafe waiter.initialize(
      to: MemoryWaiter(context: connection) { connection, _ in
        unsafe Unmanaged<NVMfConnection>.fromOpaque(connection)._withUnsafeGuaranteedRef { $0.memoryIsBack() }
      })
    // In the order of their alignment: headers begin on multiples of 64.
    unsafe headers = unsafe memory
    let slotMemory = unsafe headers + NVMfState.depth * NVMfState.headerLength
    unsafe slots = slotMemory.bindMemory(to: NVMfSlot.self, capacity: NVMfState.depth)
    let itemMemory = unsafe slotMemory + NVMfState.depth * MemoryLayout<NVMfSlot>.stride
    unsafe items = itemMemory.bindMemory(to: OutgoingItem.self, capacity: NVMfState.depth)
    let vectorMemory = unsafe itemMemory + NVMfState.depth * MemoryLayout<OutgoingItem>.stride
    unsafe vectors = vectorMemory.bindMemory(to: iovec.self, capacity: NVMfState.depth)
  }

  /// Makes the slots, which hold the state's own address.
  static func prepare(_ state: UnsafeMutablePointer<NVMfState>, _ placeholder: UnsafeMutablePointer<BlockTarget>) {
    for index in unsafe 0..<NVMfState.depth {
      let slot = unsafe state.pointee.slots + index
      unsafe (state.pointee.items + index).initialize(to: OutgoingItem(owner: slot))
      unsafe slot.initialize(
        to: NVMfSlot(
          io: BlockIO(
            target: placeholder, vectors: state.pointee.vectors + index,
            done: { slot, result, core in
              unsafe commandDone(
                slot.assumingMemoryBound(to: NVMfSlot.self), result,
                core.assumingMemoryBound(to: ReactorCore.self))
            }),
          state: state, item: state.pointee.items + index,
          header: state.pointee.headers + index * NVMfState.headerLength, index: UInt16(index),
          next: state.pointee.free))
      unsafe slot.pointee.io.asker = unsafe state.pointee.asker
      unsafe state.pointee.free = unsafe slot
    }
  }

  func deallocate() {
    unsafe asker.deallocate()
    unsafe ownHeld.deallocate()
    unsafe waiter.deallocate()
    unsafe PageMemory.deallocate(headers, NVMfState.length)
  }
}
