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
  /// The command's data, in either direction, and how long its memory is.
  var buffer: UnsafeMutableRawPointer?
  var length = 0
  /// Bytes that the command moves, and how many of them have come.
  var transfer = 0
  var received = 0
  /// Ranges of dataset management that are done.
  var range = 0
  /// Bytes can come for it.
  var isReceiving = false
  /// The request for its data is not sent yet.
  var isAsking = false
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
  let hasHeaderDigest: Bool
  let hasDataDigest: Bool
  /// Data in PDUs to the host begins at a multiple of this.
  let alignment: Int
  let maximumTransfer: Int
  let inCapsuleLength: Int
  let sendsSuccess: Bool
  /// The namespaces, once the queue is connected to a controller; the connection keeps them.
  var namespaces: Unmanaged<NamespaceTable>?
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
  var inflight = 0
  var commands: UInt64 = 0

  static let depth = 136
  static let headerLength = 192
  /// Data with admin commands may be longer than with others.
  static let adminCapsuleLength = 8192

  // Where a slot's headers stand: the command first.
  static let dataHeader = 64
  static let dataDigest = 96
  static let response = 104
  static let transferHeader = 136

  init(
    stream: UnsafeMutablePointer<Stream>, connection: UnsafeMutableRawPointer, hasHeaderDigest: Bool,
    hasDataDigest: Bool, alignment: Int, transport: NVMfTarget.Transport
  ) {
    unsafe self.stream = unsafe stream
    unsafe self.connection = unsafe connection
    unsafe self.hasHeaderDigest = hasHeaderDigest
    unsafe self.hasDataDigest = hasDataDigest
    unsafe self.alignment = alignment
    unsafe maximumTransfer = transport.maximumTransfer
    unsafe inCapsuleLength = transport.inCapsuleLength
    unsafe sendsSuccess = transport.sendsSuccess
    unsafe slots = .allocate(capacity: NVMfState.depth)
    unsafe items = .allocate(capacity: NVMfState.depth)
    unsafe vectors = .allocate(capacity: NVMfState.depth)
    unsafe headers = .allocate(byteCount: NVMfState.depth * NVMfState.headerLength, alignment: 64)
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
      unsafe state.pointee.free = unsafe slot
    }
  }

  func deallocate() {
    unsafe slots.deallocate()
    unsafe items.deallocate()
    unsafe vectors.deallocate()
    unsafe headers.deallocate()
  }
}

/// What became of the bytes that were there.
enum NVMfProgress {
  case more
  /// The host broke the protocol: the reason (FES) and the offset of what was wrong.
  case broken(UInt16, UInt32)
  case finished
}

/// Takes all whole PDUs that were received.
func takePDUs(_ state: UnsafeMutablePointer<NVMfState>, _ core: UnsafeMutablePointer<ReactorCore>) -> NVMfProgress {
  let stream = unsafe state.pointee.stream
  while true {
    if let slot = unsafe state.pointee.receiving {
      guard unsafe takeData(slot, core) else { return .more }
      if unsafe state.pointee.awaitsDigest {
        guard unsafe stream.pointee.available >= NVMeTCP.digestLength else { return .more }
        guard unsafe dataDigestHolds(slot) else {
          // The command fails, the connection goes on (NVMe TCP 1.0, section 3.3.1.2): here it ends, as with Linux.
          return .broken(NVMeTCP.FatalError.headerDigest, 0)
        }
      }
      unsafe state.pointee.receiving = nil
      if unsafe state.pointee.isCapsule || slot.pointee.received == slot.pointee.transfer {
        unsafe slot.pointee.isReceiving = false
        unsafe execute(slot, core)
      }
      continue
    }
    guard unsafe stream.pointee.available >= NVMeTCP.commonLength else { return .more }
    let bytes = unsafe stream.pointee.bytes
    let type = unsafe bytes.load(as: UInt8.self)
    let flags = unsafe bytes.load(fromByteOffset: 1, as: UInt8.self)
    let headerLength = unsafe Int(bytes.load(fromByteOffset: 2, as: UInt8.self))
    let dataOffset = unsafe Int(bytes.load(fromByteOffset: 3, as: UInt8.self))
    let length = unsafe Int(UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: 4, as: UInt32.self)))
    let expected: Int
    switch type {
    case NVMeTCP.PDU.command: expected = NVMeTCP.commandLength
    case NVMeTCP.PDU.hostData: expected = NVMeTCP.dataHeaderLength
    case NVMeTCP.PDU.hostTerminate: return .finished
    default: return .broken(NVMeTCP.FatalError.sequence, 0)
    }
    guard headerLength == expected else { return .broken(NVMeTCP.FatalError.invalidHeader, 2) }
    let hasDigest = unsafe state.pointee.hasHeaderDigest
    let withDigest = expected + (hasDigest ? NVMeTCP.digestLength : 0)
    guard length >= withDigest else { return .broken(NVMeTCP.FatalError.invalidHeader, 4) }
    let hasData = length > withDigest
    guard !hasData || dataOffset >= withDigest && dataOffset <= length else {
      return .broken(NVMeTCP.FatalError.invalidHeader, 3)
    }
    let start = hasData ? dataOffset : withDigest
    guard unsafe stream.pointee.available >= start else { return .more }
    if hasDigest {
      let sum = unsafe UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: expected, as: UInt32.self))
      guard flags & NVMeTCP.Flag.headerDigest != 0, unsafe clinux_crc32c(0, bytes, expected) == sum else {
        return .broken(NVMeTCP.FatalError.headerDigest, 0)
      }
    }
    let hasDataDigest = unsafe hasData && state.pointee.hasDataDigest
    let dataLength = hasData ? length - start - (hasDataDigest ? NVMeTCP.digestLength : 0) : 0
    guard !hasData || dataLength > 0 else { return .broken(NVMeTCP.FatalError.invalidHeader, 4) }
    if type == NVMeTCP.PDU.command {
      // There are more slots than a queue has entries: a host that fills them all has more open than it may.
      guard let slot = unsafe state.pointee.free else { return .broken(NVMeTCP.FatalError.sequence, 0) }
      let limit = unsafe state.pointee.isIOQueue ? state.pointee.inCapsuleLength : NVMfState.adminCapsuleLength
      guard dataLength <= limit else { return .broken(NVMeTCP.FatalError.outOfRange, 4) }
      unsafe slot.pointee.header.copyMemory(from: bytes + NVMeTCP.commonLength, byteCount: 64)
      unsafe stream.pointee.consume(start)
      unsafe state.pointee.free = unsafe slot.pointee.next
      unsafe state.pointee.commands &+= 1
      unsafe state.pointee.submissionHead =
        state.pointee.submissionHead &+ 1 == state.pointee.queueSize ? 0 : state.pointee.submissionHead &+ 1
      unsafe slot.pointee.transfer = dataLength
      unsafe slot.pointee.received = 0
      unsafe slot.pointee.range = 0
      unsafe slot.pointee.entry = nil
      if hasData {
        guard unsafe brings(slot) else { return .broken(NVMeTCP.FatalError.invalidHeader, 3) }
        guard unsafe reserve(slot, dataLength, core) else { return .broken(NVMeTCP.FatalError.unsupported, 0) }
        unsafe begin(slot, dataLength, hasDataDigest, isCapsule: true)
      } else {
        unsafe prepareTransfer(slot, core)
      }
    } else {
      guard hasData else { return .broken(NVMeTCP.FatalError.invalidHeader, 4) }
      let tag = unsafe Int(UInt16(littleEndian: bytes.loadUnaligned(fromByteOffset: 10, as: UInt16.self)))
      let offset = unsafe Int(UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: 12, as: UInt32.self)))
      let part = unsafe Int(UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: 16, as: UInt32.self)))
      guard unsafe tag < NVMfState.depth, unsafe state.pointee.slots[tag].isReceiving,
        unsafe !state.pointee.slots[tag].isAsking
      else {
        return .broken(NVMeTCP.FatalError.invalidHeader, 10)
      }
      let slot = unsafe state.pointee.slots + tag
      guard part == dataLength, unsafe offset == slot.pointee.received,
        unsafe part <= slot.pointee.transfer - slot.pointee.received
      else { return .broken(NVMeTCP.FatalError.outOfRange, 12) }
      unsafe stream.pointee.consume(start)
      unsafe begin(slot, part, hasDataDigest, isCapsule: false)
    }
  }
}

/// Whether the command brings data: the two low bits of its opcode, or of its type where it is one of fabrics.
private func brings(_ slot: UnsafeMutablePointer<NVMfSlot>) -> Bool {
  let opcode = unsafe slot.pointee.opcode
  return unsafe (opcode == NVMe.Admin.fabrics ? slot.pointee.field8(4) : opcode) & 3 == 1
}

/// Gives the slot memory for its data.
private func reserve(
  _ slot: UnsafeMutablePointer<NVMfSlot>, _ length: Int, _ core: UnsafeMutablePointer<ReactorCore>
) -> Bool {
  if let old = unsafe slot.pointee.buffer { unsafe core.pointee.buffers.give(old, slot.pointee.length) }
  unsafe slot.pointee.buffer = nil
  guard let buffer = unsafe core.pointee.buffers.take(length) else { return false }
  unsafe slot.pointee.buffer = unsafe buffer
  unsafe slot.pointee.length = length
  return true
}

private func begin(
  _ slot: UnsafeMutablePointer<NVMfSlot>, _ length: Int, _ hasDigest: Bool, isCapsule: Bool
) {
  let state = unsafe slot.pointee.state
  unsafe state.pointee.receiving = unsafe slot
  unsafe state.pointee.missing = length
  unsafe state.pointee.partStart = unsafe slot.pointee.received
  unsafe state.pointee.awaitsDigest = hasDigest
  unsafe state.pointee.isCapsule = isCapsule
}

/// Moves received bytes to the command's memory; false where some are missing.
private func takeData(_ slot: UnsafeMutablePointer<NVMfSlot>, _ core: UnsafeMutablePointer<ReactorCore>) -> Bool {
  let state = unsafe slot.pointee.state
  let stream = unsafe state.pointee.stream
  let part = unsafe min(state.pointee.missing, stream.pointee.available)
  if part > 0, let buffer = unsafe slot.pointee.buffer {
    unsafe (buffer + slot.pointee.received).copyMemory(from: stream.pointee.bytes, byteCount: part)
    unsafe stream.pointee.consume(part)
    unsafe slot.pointee.received += part
    unsafe state.pointee.missing -= part
  }
  return unsafe state.pointee.missing == 0
}

private func dataDigestHolds(_ slot: UnsafeMutablePointer<NVMfSlot>) -> Bool {
  let state = unsafe slot.pointee.state
  let stream = unsafe state.pointee.stream
  guard let buffer = unsafe slot.pointee.buffer else { return false }
  let start = unsafe state.pointee.partStart
  let sum = unsafe UInt32(littleEndian: stream.pointee.bytes.loadUnaligned(as: UInt32.self))
  unsafe stream.pointee.consume(NVMeTCP.digestLength)
  unsafe state.pointee.awaitsDigest = false
  return unsafe clinux_crc32c(0, buffer + start, slot.pointee.received - start) == sum
}

/// A command without data in its capsule: asks the host for its data, or goes on.
private func prepareTransfer(_ slot: UnsafeMutablePointer<NVMfSlot>, _ core: UnsafeMutablePointer<ReactorCore>) {
  let state = unsafe slot.pointee.state
  let length = unsafe Int(slot.pointee.field32(32))
  guard unsafe brings(slot), length > 0 else { return unsafe execute(slot, core) }
  // Commands that bring data to an admin queue have it in their capsule: nobody gets memory before it is known.
  guard unsafe state.pointee.isIOQueue else {
    return unsafe complete(slot, NVMe.Status.invalidField | NVMe.Status.doNotRetry, core)
  }
  // A transport's own descriptor (type 5, subtype A): the data is asked for.
  guard unsafe slot.pointee.field8(39) == 0x5A else {
    return unsafe complete(slot, NVMe.Status.invalidSGLType | NVMe.Status.doNotRetry, core)
  }
  guard unsafe length <= state.pointee.maximumTransfer else {
    return unsafe complete(slot, NVMe.Status.invalidField | NVMe.Status.doNotRetry, core)
  }
  guard unsafe reserve(slot, length, core) else { return unsafe complete(slot, NVMe.Status.internalError, core) }
  unsafe slot.pointee.transfer = length
  unsafe slot.pointee.isReceiving = true
  unsafe slot.pointee.isAsking = true
  let digest = unsafe state.pointee.hasHeaderDigest
  let header = unsafe slot.pointee.header + NVMfState.transferHeader
  unsafe writeCommon(
    header, NVMeTCP.PDU.readyToTransfer, digest ? NVMeTCP.Flag.headerDigest : 0, 0,
    UInt32(NVMeTCP.dataHeaderLength + (digest ? 4 : 0)))
  unsafe header.storeBytes(of: slot.pointee.field16(2).littleEndian, toByteOffset: 8, as: UInt16.self)
  unsafe header.storeBytes(of: slot.pointee.index.littleEndian, toByteOffset: 10, as: UInt16.self)
  unsafe header.storeBytes(of: 0, toByteOffset: 12, as: UInt32.self)
  unsafe header.storeBytes(of: UInt32(length).littleEndian, toByteOffset: 16, as: UInt32.self)
  unsafe header.storeBytes(of: 0, toByteOffset: 20, as: UInt32.self)
  let total = unsafe sealHeader(header, NVMeTCP.dataHeaderLength, digest)
  unsafe slot.pointee.item.pointee.clear()
  unsafe slot.pointee.item.pointee.append(header, total)
  unsafe send(slot.pointee.item, state.pointee.stream, core)
}

@inline(__always)
private func writeCommon(
  _ header: UnsafeMutableRawPointer, _ type: UInt8, _ flags: UInt8, _ dataOffset: UInt8, _ length: UInt32
) {
  unsafe header.storeBytes(of: type, as: UInt8.self)
  unsafe header.storeBytes(of: flags, toByteOffset: 1, as: UInt8.self)
  unsafe header.storeBytes(of: 24, toByteOffset: 2, as: UInt8.self)
  unsafe header.storeBytes(of: dataOffset, toByteOffset: 3, as: UInt8.self)
  unsafe header.storeBytes(of: length.littleEndian, toByteOffset: 4, as: UInt32.self)
}

/// Puts the digest behind a header where there is one; how many bytes both are.
@inline(__always)
private func sealHeader(_ header: UnsafeMutableRawPointer, _ length: Int, _ hasDigest: Bool) -> Int {
  guard hasDigest else { return length }
  let sum = unsafe clinux_crc32c(0, header, length)
  unsafe header.storeBytes(of: sum.littleEndian, toByteOffset: length, as: UInt32.self)
  return length + NVMeTCP.digestLength
}

// MARK: Commands

/// Carries out a command whose data is all there.
private func execute(_ slot: UnsafeMutablePointer<NVMfSlot>, _ core: UnsafeMutablePointer<ReactorCore>) {
  let state = unsafe slot.pointee.state
  guard unsafe state.pointee.isIOQueue, unsafe slot.pointee.opcode != NVMe.Admin.fabrics else {
    unsafe Unmanaged<NVMfConnection>.fromOpaque(state.pointee.connection)._withUnsafeGuaranteedRef {
      unsafe $0.administer(slot)
    }
    return
  }
  let opcode = unsafe slot.pointee.opcode
  if opcode == NVMe.IO.flush, unsafe slot.pointee.namespace == NVMe.allNamespaces {
    // A cache is a namespace's: each has to be emptied, one after the other.
    return unsafe flushNext(slot, core)
  }
  guard let table = unsafe state.pointee.namespaces,
    let entry = unsafe table._withUnsafeGuaranteedRef({ unsafe $0.entry(slot.pointee.namespace) }),
    let target = unsafe entry.pointee.target
  else { return unsafe complete(slot, NVMe.Status.invalidNamespace | NVMe.Status.doNotRetry, core) }
  unsafe slot.pointee.entry = unsafe entry
  let io = unsafe slot.io
  unsafe io.pointee.target = unsafe target
  unsafe io.pointee.first = 0
  unsafe io.pointee.end = 0
  unsafe io.pointee.isDurable = unsafe slot.pointee.word(12) & 1 << 30 != 0
  switch opcode {
  case NVMe.IO.flush:
    unsafe io.pointee.kind = .flush
    unsafe io.pointee.remaining = 0
    unsafe io.pointee.offset = 0
    unsafe go(slot, core)
  case NVMe.IO.read, NVMe.IO.write, NVMe.IO.compare: unsafe move(slot, opcode, target, core)
  case NVMe.IO.writeZeroes:
    guard unsafe locate(slot, target) else {
      return unsafe complete(slot, NVMe.Status.lbaOutOfRange | NVMe.Status.doNotRetry, core)
    }
    guard unsafe !target.pointee.isReadOnly else { return unsafe complete(slot, NVMe.Status.writeProtected, core) }
    guard unsafe target.pointee.canWriteZeroes else {
      return unsafe complete(slot, NVMe.Status.invalidOpcode | NVMe.Status.doNotRetry, core)
    }
    unsafe io.pointee.kind = .writeZeroes
    unsafe io.pointee.mayUnmap = unsafe slot.pointee.word(12) & 1 << 25 != 0
    unsafe go(slot, core)
  case NVMe.IO.datasetManagement:
    let count = unsafe Int(slot.pointee.word(10) & 0xFF) + 1
    guard unsafe slot.pointee.received >= 16 * count else {
      return unsafe complete(slot, NVMe.Status.invalidSGLLength | NVMe.Status.doNotRetry, core)
    }
    guard unsafe !target.pointee.isReadOnly else { return unsafe complete(slot, NVMe.Status.writeProtected, core) }
    unsafe nextRange(slot, core)
  default: unsafe complete(slot, NVMe.Status.invalidOpcode | NVMe.Status.doNotRetry, core)
  }
}

/// Sets the request's range from the command; false where it lies outside of the namespace.
private func locate(_ slot: UnsafeMutablePointer<NVMfSlot>, _ target: UnsafeMutablePointer<BlockTarget>) -> Bool {
  let shift = unsafe UInt64(target.pointee.blockSize.trailingZeroBitCount)
  let block = unsafe slot.pointee.field64(40)
  let length = unsafe (UInt64(slot.pointee.word(12) & 0xFFFF) + 1) << shift
  guard block <= UInt64.max >> shift, unsafe isInside(target, offset: block << shift, length: length) else {
    return false
  }
  unsafe slot.io.pointee.offset = block << shift
  unsafe slot.io.pointee.remaining = length
  return true
}

private func move(
  _ slot: UnsafeMutablePointer<NVMfSlot>, _ opcode: UInt8, _ target: UnsafeMutablePointer<BlockTarget>,
  _ core: UnsafeMutablePointer<ReactorCore>
) {
  let state = unsafe slot.pointee.state
  let io = unsafe slot.io
  guard unsafe locate(slot, target) else {
    return unsafe complete(slot, NVMe.Status.lbaOutOfRange | NVMe.Status.doNotRetry, core)
  }
  let length = unsafe Int(io.pointee.remaining)
  guard unsafe length <= state.pointee.maximumTransfer else {
    return unsafe complete(slot, NVMe.Status.invalidField | NVMe.Status.doNotRetry, core)
  }
  if opcode == NVMe.IO.read {
    guard unsafe Int(slot.pointee.field32(32)) >= length else {
      return unsafe complete(slot, NVMe.Status.invalidSGLLength | NVMe.Status.doNotRetry, core)
    }
    guard unsafe reserve(slot, length, core) else { return unsafe complete(slot, NVMe.Status.internalError, core) }
    unsafe slot.pointee.transfer = length
    unsafe io.pointee.kind = .read
  } else {
    guard unsafe slot.pointee.received == length else {
      return unsafe complete(slot, NVMe.Status.invalidSGLLength | NVMe.Status.doNotRetry, core)
    }
    if opcode == NVMe.IO.write {
      guard unsafe !target.pointee.isReadOnly else {
        return unsafe complete(slot, NVMe.Status.writeProtected | NVMe.Status.doNotRetry, core)
      }
      unsafe io.pointee.kind = .write
    } else {
      // What is there is read behind what the host sent.
      guard let both = unsafe core.pointee.buffers.take(2 * length), let given = unsafe slot.pointee.buffer else {
        return unsafe complete(slot, NVMe.Status.internalError, core)
      }
      unsafe both.copyMemory(from: given, byteCount: length)
      unsafe core.pointee.buffers.give(given, slot.pointee.length)
      unsafe slot.pointee.buffer = unsafe both
      unsafe slot.pointee.length = 2 * length
      unsafe io.pointee.kind = .read
    }
  }
  guard let buffer = unsafe slot.pointee.buffer else { return unsafe complete(slot, NVMe.Status.internalError, core) }
  unsafe io.pointee.vectors.pointee = unsafe iovec(
    iov_base: opcode == NVMe.IO.compare ? buffer + length : buffer, iov_len: length)
  unsafe io.pointee.end = 1
  unsafe go(slot, core)
}

@inline(__always)
private func go(_ slot: UnsafeMutablePointer<NVMfSlot>, _ core: UnsafeMutablePointer<ReactorCore>) {
  unsafe slot.pointee.state.pointee.inflight += 1
  unsafe slot.pointee.entry?.pointee.inflight += 1
  unsafe start(slot.io, core)
}

/// Takes a device's answer.
func commandDone(_ slot: UnsafeMutablePointer<NVMfSlot>, _ result: CInt, _ core: UnsafeMutablePointer<ReactorCore>) {
  unsafe slot.pointee.state.pointee.inflight -= 1
  unsafe slot.pointee.entry?.pointee.inflight -= 1
  let opcode = unsafe slot.pointee.opcode
  guard result >= 0 else { return unsafe complete(slot, status(result, isRead: opcode == NVMe.IO.read), core) }
  switch opcode {
  case NVMe.IO.read: unsafe answerRead(slot, core)
  case NVMe.IO.compare:
    let length = unsafe slot.pointee.length / 2
    guard let buffer = unsafe slot.pointee.buffer, unsafe memcmp(buffer, buffer + length, length) == 0 else {
      return unsafe complete(slot, NVMe.Status.compareFailure | NVMe.Status.doNotRetry, core)
    }
    unsafe complete(slot, NVMe.Status.success, core)
  case NVMe.IO.datasetManagement: unsafe nextRange(slot, core)
  case NVMe.IO.flush where unsafe slot.pointee.namespace == NVMe.allNamespaces: unsafe flushNext(slot, core)
  default: unsafe complete(slot, NVMe.Status.success, core)
  }
}

private func status(_ result: CInt, isRead: Bool) -> UInt16 {
  switch result {
  case -ENOSPC, -EDQUOT, -EFBIG: NVMe.Status.capacityExceeded | NVMe.Status.doNotRetry
  case -ENOMEM: NVMe.Status.internalError
  case -EOPNOTSUPP: NVMe.Status.invalidOpcode | NVMe.Status.doNotRetry
  case -EPERM, -EROFS, -EACCES: NVMe.Status.writeProtected | NVMe.Status.doNotRetry
  default: isRead ? NVMe.Status.unrecoveredRead : NVMe.Status.writeFault
  }
}

/// The next namespace's cache.
private func flushNext(_ slot: UnsafeMutablePointer<NVMfSlot>, _ core: UnsafeMutablePointer<ReactorCore>) {
  guard let table = unsafe slot.pointee.state.pointee.namespaces else {
    return unsafe complete(slot, NVMe.Status.invalidNamespace, core)
  }
  let count = unsafe table._withUnsafeGuaranteedRef { $0.count }
  while unsafe slot.pointee.range < count {
    unsafe slot.pointee.range += 1
    let id = unsafe UInt32(slot.pointee.range)
    guard let entry = unsafe table._withUnsafeGuaranteedRef({ unsafe $0.entry(id) }),
      let target = unsafe entry.pointee.target
    else { continue }
    unsafe slot.pointee.entry = unsafe entry
    unsafe slot.io.pointee.target = unsafe target
    unsafe slot.io.pointee.kind = .flush
    unsafe slot.io.pointee.remaining = 0
    unsafe slot.io.pointee.first = 0
    unsafe slot.io.pointee.end = 0
    return unsafe go(slot, core)
  }
  unsafe complete(slot, NVMe.Status.success, core)
}

/// The next range that is to be given back. Other attributes of dataset management are hints that nothing here takes.
private func nextRange(_ slot: UnsafeMutablePointer<NVMfSlot>, _ core: UnsafeMutablePointer<ReactorCore>) {
  let count = unsafe Int(slot.pointee.word(10) & 0xFF) + 1
  guard let target = unsafe slot.pointee.entry?.pointee.target, let buffer = unsafe slot.pointee.buffer,
    unsafe slot.pointee.word(11) & 1 << 2 != 0, unsafe target.pointee.canUnmap
  else { return unsafe complete(slot, NVMe.Status.success, core) }
  let shift = unsafe UInt64(target.pointee.blockSize.trailingZeroBitCount)
  while unsafe slot.pointee.range < count {
    let range = unsafe buffer + 16 * slot.pointee.range
    unsafe slot.pointee.range += 1
    let blocks = unsafe UInt64(UInt32(littleEndian: range.loadUnaligned(fromByteOffset: 4, as: UInt32.self)))
    let first = unsafe UInt64(littleEndian: range.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
    guard blocks > 0 else { continue }
    guard first <= UInt64.max >> shift, unsafe isInside(target, offset: first << shift, length: blocks << shift) else {
      return unsafe complete(slot, NVMe.Status.lbaOutOfRange | NVMe.Status.doNotRetry, core)
    }
    unsafe slot.io.pointee.kind = .unmap
    unsafe slot.io.pointee.offset = first << shift
    unsafe slot.io.pointee.remaining = blocks << shift
    return unsafe go(slot, core)
  }
  unsafe complete(slot, NVMe.Status.success, core)
}

// MARK: Completions

/// Sends a command's data, and its completion with it or in the same PDU.
private func answerRead(_ slot: UnsafeMutablePointer<NVMfSlot>, _ core: UnsafeMutablePointer<ReactorCore>) {
  unsafe sendData(slot, slot.pointee.transfer, isSuccess: slot.pointee.state.pointee.sendsSuccess, core)
}

/// Sends the first `length` bytes of the slot's buffer, then, unless the data itself says so, the completion.
func sendData(
  _ slot: UnsafeMutablePointer<NVMfSlot>, _ length: Int, isSuccess: Bool, _ core: UnsafeMutablePointer<ReactorCore>
) {
  let state = unsafe slot.pointee.state
  guard let buffer = unsafe slot.pointee.buffer else { return unsafe complete(slot, NVMe.Status.internalError, core) }
  let hasHeaderDigest = unsafe state.pointee.hasHeaderDigest
  let hasDataDigest = unsafe state.pointee.hasDataDigest
  let header = unsafe slot.pointee.header + NVMfState.dataHeader
  let unaligned = NVMeTCP.dataHeaderLength + (hasHeaderDigest ? NVMeTCP.digestLength : 0)
  let alignment = unsafe state.pointee.alignment
  let start = (unaligned + alignment - 1) / alignment * alignment
  var flags = NVMeTCP.Flag.last
  if isSuccess { flags |= NVMeTCP.Flag.success }
  if hasHeaderDigest { flags |= NVMeTCP.Flag.headerDigest }
  if hasDataDigest { flags |= NVMeTCP.Flag.dataDigest }
  unsafe writeCommon(
    header, NVMeTCP.PDU.controllerData, flags, UInt8(start),
    UInt32(start + length + (hasDataDigest ? NVMeTCP.digestLength : 0)))
  unsafe header.storeBytes(of: slot.pointee.field16(2).littleEndian, toByteOffset: 8, as: UInt16.self)
  unsafe header.storeBytes(of: 0, toByteOffset: 10, as: UInt16.self)
  unsafe header.storeBytes(of: 0, toByteOffset: 12, as: UInt32.self)
  unsafe header.storeBytes(of: UInt32(length).littleEndian, toByteOffset: 16, as: UInt32.self)
  unsafe header.storeBytes(of: 0, toByteOffset: 20, as: UInt32.self)
  _ = unsafe sealHeader(header, NVMeTCP.dataHeaderLength, hasHeaderDigest)
  let item = unsafe slot.pointee.item
  unsafe item.pointee.clear()
  if start > unaligned { unsafe memset(header + unaligned, 0, min(start, 32) - unaligned) }
  unsafe item.pointee.append(header, min(start, 32))
  // Room for padding beyond the slot's own header is not offered: an alignment above 32 is refused at the start.
  unsafe item.pointee.append(buffer, length)
  if hasDataDigest {
    let digest = unsafe slot.pointee.header + NVMfState.dataDigest
    unsafe digest.storeBytes(of: clinux_crc32c(0, buffer, length).littleEndian, as: UInt32.self)
    unsafe item.pointee.append(digest, NVMeTCP.digestLength)
  }
  if !isSuccess { unsafe appendResponse(slot, NVMe.Status.success, 0, 0) }
  unsafe send(item, state.pointee.stream, core)
}

private func appendResponse(
  _ slot: UnsafeMutablePointer<NVMfSlot>, _ status: UInt16, _ word0: UInt32, _ word1: UInt32
) {
  let state = unsafe slot.pointee.state
  let hasDigest = unsafe state.pointee.hasHeaderDigest
  let header = unsafe slot.pointee.header + NVMfState.response
  unsafe writeCommon(
    header, NVMeTCP.PDU.response, hasDigest ? NVMeTCP.Flag.headerDigest : 0, 0,
    UInt32(NVMeTCP.dataHeaderLength + (hasDigest ? NVMeTCP.digestLength : 0)))
  unsafe header.storeBytes(of: word0.littleEndian, toByteOffset: 8, as: UInt32.self)
  unsafe header.storeBytes(of: word1.littleEndian, toByteOffset: 12, as: UInt32.self)
  unsafe header.storeBytes(of: state.pointee.submissionHead.littleEndian, toByteOffset: 16, as: UInt16.self)
  unsafe header.storeBytes(of: 0, toByteOffset: 18, as: UInt16.self)
  unsafe header.storeBytes(of: slot.pointee.field16(2).littleEndian, toByteOffset: 20, as: UInt16.self)
  unsafe header.storeBytes(of: (status << 1).littleEndian, toByteOffset: 22, as: UInt16.self)
  let length = unsafe sealHeader(header, NVMeTCP.dataHeaderLength, hasDigest)
  unsafe slot.pointee.item.pointee.append(header, length)
}

/// Sends a command's completion.
func complete(
  _ slot: UnsafeMutablePointer<NVMfSlot>, _ status: UInt16, word0: UInt32 = 0, word1: UInt32 = 0,
  _ core: UnsafeMutablePointer<ReactorCore>
) {
  unsafe slot.pointee.item.pointee.clear()
  unsafe appendResponse(slot, status, word0, word1)
  unsafe send(slot.pointee.item, slot.pointee.state.pointee.stream, core)
}

/// Something of a slot is with the kernel: a request for data leaves it open, a completion frees it.
func slotSent(_ slot: UnsafeMutablePointer<NVMfSlot>, _ core: UnsafeMutablePointer<ReactorCore>) {
  if unsafe slot.pointee.isAsking {
    unsafe slot.pointee.isAsking = false
    return
  }
  let state = unsafe slot.pointee.state
  if let buffer = unsafe slot.pointee.buffer {
    unsafe core.pointee.buffers.give(buffer, slot.pointee.length)
    unsafe slot.pointee.buffer = nil
  }
  unsafe slot.pointee.next = unsafe state.pointee.free
  unsafe state.pointee.free = unsafe slot
}
