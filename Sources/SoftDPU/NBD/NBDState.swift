import CLinux
import Glibc

// Transmission of the NBD protocol: requests out of a connection's bytes, answers back. Free functions on plain
// pointers: nothing here allocates for each request, locks or counts references.
//
// SAFETY, for every `unsafe` here: state, slots, items and vectors are allocated by `NBDConnection`, which frees them
// when no request is with a device and nothing of theirs is listed with the reactor; one thread touches them. A slot's
// buffer holds `length` bytes, and every length was compared with the protocol's limit before it was taken.

/// One request, from its first byte to the last byte of its answer.
@unsafe
struct NBDSlot {
  /// First, so that the slot's address is its request's.
  var io: BlockIO
  let state: UnsafeMutablePointer<NBDState>
  let item: UnsafeMutablePointer<OutgoingItem>
  /// The answer's header: 28 bytes at most.
  let header: UnsafeMutableRawPointer
  var next: UnsafeMutablePointer<NBDSlot>?
  var buffer: UnsafeMutableRawPointer?
  var length = 0
  var cookie: UInt64 = 0
  var command: UInt16 = 0
  var flags: UInt16 = 0
  /// The request is not sound, which is told once its bytes are through.
  var isRefused = false
}

@unsafe
struct NBDState {
  let stream: UnsafeMutablePointer<Stream>
  let target: UnsafeMutablePointer<BlockTarget>
  /// The `NBDConnection`, which outlives this.
  let connection: UnsafeMutableRawPointer
  let slots: UnsafeMutablePointer<NBDSlot>
  let items: UnsafeMutablePointer<OutgoingItem>
  let vectors: UnsafeMutablePointer<iovec>
  let headers: UnsafeMutableRawPointer
  let asker: UnsafeMutablePointer<IOLabel>
  let counters: UnsafeMutablePointer<QueueCounters>
  let hasStructuredReplies: Bool
  let hasAllocationContext: Bool
  let isReadOnly: Bool
  var free: UnsafeMutablePointer<NBDSlot>?
  /// A write whose bytes are still coming, and how many of them are there.
  var receiving: UnsafeMutablePointer<NBDSlot>?
  var received = 0
  /// Requests that a device has.
  var inflight = 0
  /// Bytes in buffers.
  var held = 0
  /// Listed where memory is missing.
  let waiter: UnsafeMutablePointer<MemoryWaiter>
  /// No slot or no memory is free: reading goes on when one is.
  var isStalled = false
  var isResuming = false
  var isClosing = false

  /// How many requests a connection may have open.
  static let depth = 128
  static let blockStatusLength = 4096
  static let headerLength = 32

  /// What the arrays take together, in bytes.
  static var length: Int {
    let slot = unsafe MemoryLayout<NBDSlot>.stride + MemoryLayout<OutgoingItem>.stride
    return unsafe depth * (headerLength + slot + MemoryLayout<iovec>.stride)
  }

  /// - Parameter memory: `length` bytes of `PageMemory`, which the state takes over.
  init(
    memory: UnsafeMutableRawPointer, stream: UnsafeMutablePointer<Stream>, target: UnsafeMutablePointer<BlockTarget>,
    connection: UnsafeMutableRawPointer, asker: String, counters: UnsafeMutablePointer<QueueCounters>,
    hasStructuredReplies: Bool, hasAllocationContext: Bool
  ) {
    unsafe self.asker = IOLabel.make(asker)
    unsafe self.counters = unsafe counters
    unsafe self.stream = unsafe stream
    unsafe self.target = unsafe target
    unsafe self.connection = unsafe connection
    unsafe self.hasStructuredReplies = hasStructuredReplies
    unsafe self.hasAllocationContext = hasAllocationContext
    unsafe isReadOnly = unsafe target.pointee.isReadOnly
    unsafe headers = unsafe memory
    let slotMemory = unsafe headers + NBDState.depth * NBDState.headerLength
    unsafe slots = slotMemory.bindMemory(to: NBDSlot.self, capacity: NBDState.depth)
    let itemMemory = unsafe slotMemory + NBDState.depth * MemoryLayout<NBDSlot>.stride
    unsafe items = itemMemory.bindMemory(to: OutgoingItem.self, capacity: NBDState.depth)
    let vectorMemory = unsafe itemMemory + NBDState.depth * MemoryLayout<OutgoingItem>.stride
    unsafe vectors = vectorMemory.bindMemory(to: iovec.self, capacity: NBDState.depth)
    unsafe waiter = .allocate(capacity: 1)
    unsafe waiter.initialize(
      to: MemoryWaiter(context: connection) { connection, _ in
        unsafe Unmanaged<NBDConnection>.fromOpaque(connection)._withUnsafeGuaranteedRef { $0.memoryIsBack() }
      })
  }

  /// Makes the slots, which hold the state's own address.
  static func prepare(_ state: UnsafeMutablePointer<NBDState>) {
    for index in unsafe 0..<NBDState.depth {
      let slot = unsafe state.pointee.slots + index
      unsafe (state.pointee.items + index).initialize(to: OutgoingItem(owner: slot))
      unsafe slot.initialize(
        to: NBDSlot(
          io: BlockIO(
            target: state.pointee.target, vectors: state.pointee.vectors + index,
            done: { slot, result, core in
              unsafe answer(
                slot.assumingMemoryBound(to: NBDSlot.self), result,
                core.assumingMemoryBound(to: ReactorCore.self))
            }),
          state: state, item: state.pointee.items + index,
          header: state.pointee.headers + index * NBDState.headerLength, next: state.pointee.free))
      unsafe slot.pointee.io.asker = unsafe state.pointee.asker
      unsafe state.pointee.free = unsafe slot
    }
  }

  func deallocate() {
    unsafe waiter.deallocate()
    unsafe asker.deallocate()
    unsafe PageMemory.deallocate(headers, NBDState.length)
  }
}

/// What became of the bytes that were there.
enum NBDProgress { case more, stalled, finished, broken }

/// Takes all whole requests that were received.
func takeRequests(_ state: UnsafeMutablePointer<NBDState>, _ core: UnsafeMutablePointer<ReactorCore>) -> NBDProgress {
  let stream = unsafe state.pointee.stream
  while true {
    if let slot = unsafe state.pointee.receiving {
      let wanted = unsafe slot.pointee.length - state.pointee.received
      let part = unsafe min(wanted, stream.pointee.available)
      if part > 0, let buffer = unsafe slot.pointee.buffer {
        unsafe (buffer + state.pointee.received).copyMemory(from: stream.pointee.bytes, byteCount: part)
        unsafe stream.pointee.consume(part)
        unsafe state.pointee.received += part
      }
      guard part == wanted else { return .more }
      unsafe state.pointee.receiving = nil
      unsafe begin(slot, core)
    }
    guard unsafe stream.pointee.available >= NBD.requestLength else { return .more }
    let bytes = unsafe stream.pointee.bytes
    let magic = unsafe UInt32(bigEndian: bytes.loadUnaligned(as: UInt32.self))
    let flags = unsafe UInt16(bigEndian: bytes.loadUnaligned(fromByteOffset: 4, as: UInt16.self))
    let command = unsafe UInt16(bigEndian: bytes.loadUnaligned(fromByteOffset: 6, as: UInt16.self))
    let offset = unsafe UInt64(bigEndian: bytes.loadUnaligned(fromByteOffset: 16, as: UInt64.self))
    let length = unsafe UInt32(bigEndian: bytes.loadUnaligned(fromByteOffset: 24, as: UInt32.self))
    guard magic == NBD.requestMagic else { return .broken }
    if command == NBD.Command.disconnect { return .finished }
    let moves = command == NBD.Command.read || command == NBD.Command.write
    // A write that is too long cannot be answered: its bytes would have to be read first.
    if command == NBD.Command.write, length > NBD.maximumPayload { return .broken }
    let held =
      moves && length <= NBD.maximumPayload
      ? Int(length) : command == NBD.Command.blockStatus ? unsafe NBDState.blockStatusLength : 0
    guard let slot = unsafe state.pointee.free else {
      unsafe state.pointee.isStalled = true
      return .stalled
    }
    // Before the request is taken: one that finds no memory stays with the peer, and those behind it.
    var buffer: UnsafeMutableRawPointer?
    if held > 0 {
      unsafe buffer = unsafe core.pointee.buffers.take(held, peer: &state.pointee.held)
      guard unsafe buffer != nil else {
        unsafe state.pointee.isStalled = true
        unsafe core.pointee.wait(state.pointee.waiter)
        return .stalled
      }
    }
    unsafe slot.pointee.buffer = unsafe buffer
    unsafe slot.pointee.cookie = unsafe bytes.loadUnaligned(fromByteOffset: 8, as: UInt64.self)
    unsafe stream.pointee.consume(NBD.requestLength)
    unsafe state.pointee.free = unsafe slot.pointee.next
    unsafe slot.pointee.command = command
    unsafe slot.pointee.flags = flags
    unsafe slot.pointee.isRefused = flags & ~allowedFlags(command) != 0 || moves && length > NBD.maximumPayload
    unsafe slot.pointee.io.offset = offset
    unsafe slot.pointee.io.remaining = UInt64(length)
    unsafe slot.pointee.io.isDurable = flags & NBD.CommandFlag.fua != 0
    unsafe slot.pointee.io.mayUnmap = flags & NBD.CommandFlag.noHole == 0
    unsafe slot.pointee.length = held
    if command == NBD.Command.write, held > 0 {
      unsafe state.pointee.receiving = unsafe slot
      unsafe state.pointee.received = 0
    } else {
      unsafe begin(slot, core)
    }
  }
}

private func allowedFlags(_ command: UInt16) -> UInt16 {
  typealias Flag = NBD.CommandFlag
  switch command {
  case NBD.Command.read: return Flag.doNotFragment | Flag.fua
  case NBD.Command.writeZeroes: return Flag.fua | Flag.noHole | Flag.fastZero
  case NBD.Command.blockStatus: return Flag.requestOne | Flag.fua
  default: return Flag.fua
  }
}

/// Starts a request whose bytes are all there.
private func begin(_ slot: UnsafeMutablePointer<NBDSlot>, _ core: UnsafeMutablePointer<ReactorCore>) {
  let state = unsafe slot.pointee.state
  let target = unsafe state.pointee.target
  let io = unsafe slot.io
  if unsafe slot.pointee.isRefused { return unsafe refuse(slot, NBD.ErrorNumber.invalid, core) }
  switch unsafe slot.pointee.command {
  case NBD.Command.read: unsafe io.pointee.kind = .read
  case NBD.Command.write: unsafe io.pointee.kind = .write
  case NBD.Command.flush:
    unsafe io.pointee.kind = .flush
    unsafe io.pointee.remaining = 0
    unsafe io.pointee.offset = 0
    unsafe state.pointee.inflight += 1
    return unsafe start(io, core)
  case NBD.Command.trim: unsafe io.pointee.kind = .unmap
  case NBD.Command.writeZeroes: unsafe io.pointee.kind = .writeZeroes
  case NBD.Command.blockStatus:
    guard unsafe state.pointee.hasAllocationContext, unsafe io.pointee.remaining > 0,
      unsafe isInside(target, offset: io.pointee.offset, length: io.pointee.remaining)
    else { return unsafe refuse(slot, NBD.ErrorNumber.invalid, core) }
    return unsafe answerBlockStatus(slot, core)
  default: return unsafe refuse(slot, NBD.ErrorNumber.invalid, core)
  }
  let isRead = unsafe io.pointee.kind == .read
  if !isRead, unsafe state.pointee.isReadOnly || target.pointee.isReadOnly {
    return unsafe refuse(slot, NBD.ErrorNumber.permission, core)
  }
  guard unsafe io.pointee.remaining > 0,
    unsafe isInside(target, offset: io.pointee.offset, length: io.pointee.remaining)
  else {
    let isBeyond = unsafe io.pointee.kind == .write && io.pointee.offset >= target.pointee.capacity
    return unsafe refuse(slot, isBeyond ? NBD.ErrorNumber.space : NBD.ErrorNumber.invalid, core)
  }
  if unsafe io.pointee.kind == .unmap
    ? !target.pointee.canUnmap
    : false
      || io.pointee.kind == .writeZeroes && !target.pointee.canWriteZeroes
  {
    return unsafe refuse(slot, NBD.ErrorNumber.unsupported, core)
  }
  // No faster than a write: where zeros are written one by one, and where something else decides (proto.md,
  // NBD_CMD_FLAG_FAST_ZERO).
  if unsafe slot.pointee.flags & NBD.CommandFlag.fastZero != 0,
    unsafe !target.pointee.canUnmap || target.pointee.engine == .layer
  {
    return unsafe refuse(slot, NBD.ErrorNumber.unsupported, core)
  }
  unsafe io.pointee.first = 0
  unsafe io.pointee.end = 0
  if let buffer = unsafe slot.pointee.buffer {
    unsafe io.pointee.vectors.pointee = unsafe iovec(iov_base: buffer, iov_len: slot.pointee.length)
    unsafe io.pointee.end = 1
  }
  unsafe state.pointee.inflight += 1
  unsafe start(io, core)
}

/// Takes a device's answer.
func answer(_ slot: UnsafeMutablePointer<NBDSlot>, _ result: CInt, _ core: UnsafeMutablePointer<ReactorCore>) {
  let state = unsafe slot.pointee.state
  unsafe state.pointee.inflight -= 1
  unsafe state.pointee.counters.count(slot.io, core)
  guard result >= 0 else { return unsafe refuse(slot, errorNumber(result), core) }
  guard unsafe slot.pointee.command == NBD.Command.read, let buffer = unsafe slot.pointee.buffer else {
    return unsafe reply(slot, simple: 0, core)
  }
  let header = unsafe slot.pointee.header
  let item = unsafe slot.pointee.item
  unsafe item.pointee.clear()
  if unsafe state.pointee.hasStructuredReplies {
    unsafe chunk(slot, NBD.ReplyType.offsetData, length: UInt32(slot.pointee.length) + 8)
    // Where it began: a read that the file answered in parts has moved on.
    let offset = unsafe slot.pointee.io.place
    unsafe header.storeBytes(of: offset.bigEndian, toByteOffset: 20, as: UInt64.self)
    unsafe item.pointee.append(header, 28)
  } else {
    unsafe simpleHeader(slot, 0)
    unsafe item.pointee.append(header, 16)
  }
  unsafe item.pointee.append(buffer, slot.pointee.length)
  unsafe send(item, state.pointee.stream, core)
}

private func errorNumber(_ result: CInt) -> UInt32 {
  switch result {
  case -ENOSPC, -EDQUOT, -EFBIG: NBD.ErrorNumber.space
  case -ENOMEM: NBD.ErrorNumber.memory
  case -EOPNOTSUPP: NBD.ErrorNumber.unsupported
  case -EPERM, -EROFS, -EACCES: NBD.ErrorNumber.permission
  default: NBD.ErrorNumber.io
  }
}

/// The header of a structured reply's only chunk.
private func chunk(_ slot: UnsafeMutablePointer<NBDSlot>, _ type: UInt16, length: UInt32) {
  let header = unsafe slot.pointee.header
  unsafe header.storeBytes(of: NBD.structuredReplyMagic.bigEndian, as: UInt32.self)
  unsafe header.storeBytes(of: NBD.replyDone.bigEndian, toByteOffset: 4, as: UInt16.self)
  unsafe header.storeBytes(of: type.bigEndian, toByteOffset: 6, as: UInt16.self)
  unsafe header.storeBytes(of: slot.pointee.cookie, toByteOffset: 8, as: UInt64.self)
  unsafe header.storeBytes(of: length.bigEndian, toByteOffset: 16, as: UInt32.self)
}

private func simpleHeader(_ slot: UnsafeMutablePointer<NBDSlot>, _ error: UInt32) {
  let header = unsafe slot.pointee.header
  unsafe header.storeBytes(of: NBD.simpleReplyMagic.bigEndian, as: UInt32.self)
  unsafe header.storeBytes(of: error.bigEndian, toByteOffset: 4, as: UInt32.self)
  unsafe header.storeBytes(of: slot.pointee.cookie, toByteOffset: 8, as: UInt64.self)
}

private func reply(
  _ slot: UnsafeMutablePointer<NBDSlot>, simple error: UInt32, _ core: UnsafeMutablePointer<ReactorCore>
) {
  unsafe simpleHeader(slot, error)
  unsafe slot.pointee.item.pointee.clear()
  unsafe slot.pointee.item.pointee.append(slot.pointee.header, 16)
  unsafe send(slot.pointee.item, slot.pointee.state.pointee.stream, core)
}

/// Answers with an error; reads and block status, which have structured replies, with a chunk of that kind.
private func refuse(
  _ slot: UnsafeMutablePointer<NBDSlot>, _ error: UInt32, _ core: UnsafeMutablePointer<ReactorCore>
) {
  let command = unsafe slot.pointee.command
  guard unsafe slot.pointee.state.pointee.hasStructuredReplies,
    command == NBD.Command.read || command == NBD.Command.blockStatus
  else { return unsafe reply(slot, simple: error, core) }
  unsafe chunk(slot, NBD.ReplyType.error, length: 6)
  unsafe slot.pointee.header.storeBytes(of: error.bigEndian, toByteOffset: 20, as: UInt32.self)
  unsafe slot.pointee.header.storeBytes(of: 0, toByteOffset: 24, as: UInt16.self)
  unsafe slot.pointee.item.pointee.clear()
  unsafe slot.pointee.item.pointee.append(slot.pointee.header, 26)
  unsafe send(slot.pointee.item, slot.pointee.state.pointee.stream, core)
}

/// Which parts of a range are holes. At most 512 parts are told; the client asks again for the rest.
private func answerBlockStatus(_ slot: UnsafeMutablePointer<NBDSlot>, _ core: UnsafeMutablePointer<ReactorCore>) {
  let state = unsafe slot.pointee.state
  let offset = unsafe slot.pointee.io.offset
  let length = unsafe slot.pointee.io.remaining
  guard let buffer = unsafe slot.pointee.buffer else { return unsafe refuse(slot, NBD.ErrorNumber.memory, core) }
  let size = unsafe slot.pointee.length
  var used = 0
  unsafe buffer.storeBytes(of: NBD.allocationContextID.bigEndian, as: UInt32.self)
  used = 4
  unsafe forEachExtent(state.pointee.target, offset: offset, length: length) { length, isHole in
    let flags = isHole ? NBD.stateHole | NBD.stateZero : 0
    unsafe buffer.storeBytes(of: UInt32(length).bigEndian, toByteOffset: used, as: UInt32.self)
    unsafe buffer.storeBytes(of: flags.bigEndian, toByteOffset: used + 4, as: UInt32.self)
    used += 8
    return unsafe used + 8 <= size && slot.pointee.flags & NBD.CommandFlag.requestOne == 0
  }
  unsafe chunk(slot, NBD.ReplyType.blockStatus, length: UInt32(used))
  unsafe slot.pointee.item.pointee.clear()
  unsafe slot.pointee.item.pointee.append(slot.pointee.header, 20)
  unsafe slot.pointee.item.pointee.append(buffer, used)
  unsafe send(slot.pointee.item, state.pointee.stream, core)
}

/// Frees a slot whose answer is sent, and goes on reading where that waited for it.
func slotSent(_ slot: UnsafeMutablePointer<NBDSlot>, _ core: UnsafeMutablePointer<ReactorCore>) {
  let state = unsafe slot.pointee.state
  if let buffer = unsafe slot.pointee.buffer {
    unsafe core.pointee.give(buffer, slot.pointee.length, peer: &state.pointee.held)
    unsafe slot.pointee.buffer = nil
  }
  unsafe slot.pointee.next = unsafe state.pointee.free
  unsafe state.pointee.free = unsafe slot
  guard unsafe state.pointee.isStalled, unsafe !state.pointee.isResuming else { return }
  unsafe state.pointee.isStalled = false
  unsafe state.pointee.isResuming = true
  unsafe core.pointee.`defer`(
    { state, core in
      let state = unsafe state.assumingMemoryBound(to: NBDState.self)
      unsafe state.pointee.isResuming = false
      unsafe Unmanaged<NBDConnection>.fromOpaque(state.pointee.connection)._withUnsafeGuaranteedRef { $0.readable() }
    }, state)
}

extension UnsafeMutablePointer where Pointee == NBDSlot {
  /// The slot's request, which stands at its start.
  var io: UnsafeMutablePointer<BlockIO> {
    // SAFETY: the first member of a structure has its address.
    unsafe UnsafeMutableRawPointer(self).assumingMemoryBound(to: BlockIO.self)
  }
}
