import CLinux
import Glibc

// The host's side of an NVMe/TCP queue: commands out, data and completions in. Free functions on plain pointers.
//
// SAFETY, for every `unsafe` here: state, slots, items and headers are allocated by `HostQueue`, which frees them when
// nothing of theirs is listed with the reactor; one thread touches them. What a target sends is copied before it is
// looked at, and every index, length and offset is compared with what was asked for before it is used.

/// One command, from its capsule to its completion.
@unsafe
struct HostSlot {
  let state: UnsafeMutablePointer<HostQueueState>
  let item: UnsafeMutablePointer<OutgoingItem>
  /// `HostQueueState.headerLength` bytes: the capsule, then the header of data that is sent.
  let header: UnsafeMutableRawPointer
  let index: UInt16
  var next: UnsafeMutablePointer<HostSlot>?
  /// The request that the command is for; nil for commands of the queue's own.
  var io: UnsafeMutablePointer<BlockIO>?
  /// What is to be sent, or where what comes goes, for as long as there is no request to hold it.
  var buffer: UnsafeMutableRawPointer?
  var bufferLength = 0
  /// Whether the memory is counted by the controller.
  var isCounted = false
  /// Bytes that the command moves, and how many of them have come.
  var transfer = 0
  var received = 0
  /// The part of the data that the target has asked for and that is not sent.
  var sendOffset = 0
  var sendEnd = 0
  var transferTag: UInt16 = 0
  /// Bytes of the request that earlier commands have moved.
  var progress = 0
  var isOpen = false
  /// Something of it is with the stream and not with the kernel.
  var isSending = false
  /// Takes the status and the two words of the completion of a command of the queue's own.
  var done: ((UInt16, UInt32, UInt32) -> Void)?
}

@unsafe
struct HostQueueState {
  let stream: UnsafeMutablePointer<Stream>
  /// The `HostQueue`, which outlives this.
  let queue: UnsafeMutableRawPointer
  let slots: UnsafeMutablePointer<HostSlot>
  let items: UnsafeMutablePointer<OutgoingItem>
  let headers: UnsafeMutableRawPointer
  let depth: Int
  /// What counts the bytes that requests' commands hold: the controller's.
  let held: UnsafeMutablePointer<Int>
  var free: UnsafeMutablePointer<HostSlot>?
  var hasHeaderDigest: Bool
  var hasDataDigest: Bool
  var isInitialized = false
  /// No command is taken any more.
  var isClosed = false
  /// What the target takes in one PDU of data, and in a capsule.
  var maximumData = 4096
  var inCapsuleLength = 0
  /// The command whose data is coming: how many bytes of the PDU are missing, and the digest so far.
  var receiving: UnsafeMutablePointer<HostSlot>?
  var missing = 0
  var digest: UInt32 = 0
  var awaitsDigest = false
  var isLastSuccess = false
  var open = 0

  static let headerLength = 128
  static let dataHeader = 80
  static let digestPlace = 112

  init(
    stream: UnsafeMutablePointer<Stream>, queue: UnsafeMutableRawPointer, depth: Int, held: UnsafeMutablePointer<Int>,
    hasHeaderDigest: Bool, hasDataDigest: Bool
  ) {
    unsafe self.held = unsafe held
    unsafe self.stream = unsafe stream
    unsafe self.queue = unsafe queue
    unsafe self.depth = depth
    unsafe self.hasHeaderDigest = hasHeaderDigest
    unsafe self.hasDataDigest = hasDataDigest
    unsafe slots = .allocate(capacity: depth)
    unsafe items = .allocate(capacity: depth)
    unsafe headers = .allocate(byteCount: depth * HostQueueState.headerLength, alignment: 64)
  }

  /// Makes the slots, which hold the state's own address.
  static func prepare(_ state: UnsafeMutablePointer<HostQueueState>) {
    for index in unsafe 0..<state.pointee.depth {
      let slot = unsafe state.pointee.slots + index
      unsafe (state.pointee.items + index).initialize(to: OutgoingItem(owner: slot))
      unsafe slot.initialize(
        to: HostSlot(
          state: state, item: state.pointee.items + index,
          header: state.pointee.headers + index * HostQueueState.headerLength, index: UInt16(index),
          next: state.pointee.free))
      unsafe state.pointee.free = unsafe slot
    }
  }

  func deallocate() {
    unsafe slots.deinitialize(count: depth)
    unsafe slots.deallocate()
    unsafe items.deallocate()
    unsafe headers.deallocate()
  }

  /// Takes a free slot.
  mutating func take() -> UnsafeMutablePointer<HostSlot>? {
    guard let slot = unsafe free else { return nil }
    unsafe free = unsafe slot.pointee.next
    unsafe slot.pointee.isOpen = true
    unsafe slot.pointee.io = nil
    unsafe slot.pointee.transfer = 0
    unsafe slot.pointee.received = 0
    unsafe slot.pointee.sendOffset = 0
    unsafe slot.pointee.sendEnd = 0
    unsafe slot.pointee.progress = 0
    unsafe open += 1
    unsafe memset(slot.pointee.header, 0, HostQueueState.headerLength)
    return unsafe slot
  }
}

/// Gives a slot back, with its memory.
func release(_ slot: UnsafeMutablePointer<HostSlot>, _ core: UnsafeMutablePointer<ReactorCore>) {
  let state = unsafe slot.pointee.state
  unsafe giveBuffer(slot, core)
  unsafe slot.pointee.isOpen = false
  unsafe slot.pointee.io = nil
  unsafe slot.pointee.done = nil
  unsafe state.pointee.open -= 1
  unsafe slot.pointee.next = unsafe state.pointee.free
  unsafe state.pointee.free = unsafe slot
}

/// Gives the slot memory for a request's bytes; false where that has to wait.
func reserve(_ slot: UnsafeMutablePointer<HostSlot>, _ length: Int, _ core: UnsafeMutablePointer<ReactorCore>) -> Bool {
  // The next part of a request goes where the one before was.
  if unsafe slot.pointee.buffer != nil, unsafe slot.pointee.bufferLength >= length { return true }
  unsafe giveBuffer(slot, core)
  guard let buffer = unsafe core.pointee.buffers.take(length, device: &slot.pointee.state.pointee.held.pointee) else {
    return false
  }
  unsafe slot.pointee.buffer = unsafe buffer
  unsafe slot.pointee.bufferLength = length
  unsafe slot.pointee.isCounted = true
  return true
}

func giveBuffer(_ slot: UnsafeMutablePointer<HostSlot>, _ core: UnsafeMutablePointer<ReactorCore>) {
  guard let buffer = unsafe slot.pointee.buffer else { return }
  if unsafe slot.pointee.isCounted {
    let length = unsafe slot.pointee.bufferLength
    unsafe core.pointee.buffers.give(buffer, length, device: &slot.pointee.state.pointee.held.pointee)
  } else {
    unsafe core.pointee.buffers.give(buffer, slot.pointee.bufferLength)
  }
  unsafe slot.pointee.buffer = nil
  unsafe slot.pointee.isCounted = false
  unsafe core.pointee.memoryReturned()
}

// MARK: Commands

/// Sends the command that stands in the slot's header behind the common header, with `inline` bytes of its buffer.
func sendCommand(
  _ slot: UnsafeMutablePointer<HostSlot>, inline: Int, _ core: UnsafeMutablePointer<ReactorCore>
) {
  let state = unsafe slot.pointee.state
  let header = unsafe slot.pointee.header
  let hasDigest = unsafe state.pointee.hasHeaderDigest
  let hasDataDigest = unsafe inline > 0 && state.pointee.hasDataDigest
  let start = NVMeTCP.commandLength + (hasDigest ? NVMeTCP.digestLength : 0)
  var flags: UInt8 = hasDigest ? NVMeTCP.Flag.headerDigest : 0
  if hasDataDigest { flags |= NVMeTCP.Flag.dataDigest }
  unsafe header.storeBytes(of: NVMeTCP.PDU.command, as: UInt8.self)
  unsafe header.storeBytes(of: flags, toByteOffset: 1, as: UInt8.self)
  unsafe header.storeBytes(of: UInt8(NVMeTCP.commandLength), toByteOffset: 2, as: UInt8.self)
  unsafe header.storeBytes(of: inline > 0 ? UInt8(start) : 0, toByteOffset: 3, as: UInt8.self)
  unsafe header.storeBytes(
    of: UInt32(start + inline + (hasDataDigest ? NVMeTCP.digestLength : 0)).littleEndian, toByteOffset: 4,
    as: UInt32.self)
  // Data by SGL; the identifier is the slot's number.
  unsafe header.storeBytes(of: 0x40, toByteOffset: 9, as: UInt8.self)
  unsafe header.storeBytes(of: slot.pointee.index.littleEndian, toByteOffset: 10, as: UInt16.self)
  unsafe header.storeBytes(of: UInt32(slot.pointee.transfer).littleEndian, toByteOffset: 40, as: UInt32.self)
  unsafe header.storeBytes(of: inline > 0 ? 0x01 : 0x5A, toByteOffset: 47, as: UInt8.self)
  if hasDigest {
    let sum = unsafe clinux_crc32c(0, header, NVMeTCP.commandLength)
    unsafe header.storeBytes(of: sum.littleEndian, toByteOffset: NVMeTCP.commandLength, as: UInt32.self)
  }
  let item = unsafe slot.pointee.item
  unsafe item.pointee.clear()
  unsafe item.pointee.append(header, start)
  if inline > 0, let buffer = unsafe slot.pointee.buffer { unsafe appendData(slot, buffer, inline, hasDataDigest) }
  unsafe slot.pointee.isSending = true
  unsafe send(item, state.pointee.stream, core)
}

private func appendData(
  _ slot: UnsafeMutablePointer<HostSlot>, _ data: UnsafeMutableRawPointer, _ length: Int, _ hasDigest: Bool
) {
  unsafe slot.pointee.item.pointee.append(data, length)
  guard hasDigest else { return }
  let place = unsafe slot.pointee.header + HostQueueState.digestPlace
  unsafe place.storeBytes(of: clinux_crc32c(0, data, length).littleEndian, as: UInt32.self)
  unsafe slot.pointee.item.pointee.append(place, NVMeTCP.digestLength)
}

/// Sends the next part of the data that the target asked for.
private func sendData(_ slot: UnsafeMutablePointer<HostSlot>, _ core: UnsafeMutablePointer<ReactorCore>) {
  let state = unsafe slot.pointee.state
  guard let buffer = unsafe slot.pointee.buffer else { return }
  let offset = unsafe slot.pointee.sendOffset
  let part = unsafe min(slot.pointee.sendEnd - offset, state.pointee.maximumData)
  let isLast = unsafe offset + part == slot.pointee.sendEnd
  let hasDigest = unsafe state.pointee.hasHeaderDigest
  let hasDataDigest = unsafe state.pointee.hasDataDigest
  let start = NVMeTCP.dataHeaderLength + (hasDigest ? NVMeTCP.digestLength : 0)
  var flags: UInt8 = isLast ? NVMeTCP.Flag.last : 0
  if hasDigest { flags |= NVMeTCP.Flag.headerDigest }
  if hasDataDigest { flags |= NVMeTCP.Flag.dataDigest }
  let header = unsafe slot.pointee.header + HostQueueState.dataHeader
  unsafe header.storeBytes(of: NVMeTCP.PDU.hostData, as: UInt8.self)
  unsafe header.storeBytes(of: flags, toByteOffset: 1, as: UInt8.self)
  unsafe header.storeBytes(of: UInt8(NVMeTCP.dataHeaderLength), toByteOffset: 2, as: UInt8.self)
  unsafe header.storeBytes(of: UInt8(start), toByteOffset: 3, as: UInt8.self)
  unsafe header.storeBytes(
    of: UInt32(start + part + (hasDataDigest ? NVMeTCP.digestLength : 0)).littleEndian, toByteOffset: 4,
    as: UInt32.self)
  unsafe header.storeBytes(of: slot.pointee.index.littleEndian, toByteOffset: 8, as: UInt16.self)
  unsafe header.storeBytes(of: slot.pointee.transferTag.littleEndian, toByteOffset: 10, as: UInt16.self)
  unsafe header.storeBytes(of: UInt32(offset).littleEndian, toByteOffset: 12, as: UInt32.self)
  unsafe header.storeBytes(of: UInt32(part).littleEndian, toByteOffset: 16, as: UInt32.self)
  unsafe header.storeBytes(of: 0, toByteOffset: 20, as: UInt32.self)
  if hasDigest {
    let sum = unsafe clinux_crc32c(0, header, NVMeTCP.dataHeaderLength)
    unsafe header.storeBytes(of: sum.littleEndian, toByteOffset: NVMeTCP.dataHeaderLength, as: UInt32.self)
  }
  unsafe slot.pointee.sendOffset += part
  unsafe slot.pointee.item.pointee.clear()
  unsafe slot.pointee.item.pointee.append(header, start)
  unsafe appendData(slot, buffer + offset, part, hasDataDigest)
  unsafe slot.pointee.isSending = true
  unsafe send(slot.pointee.item, state.pointee.stream, core)
}

/// The last byte of an item is with the kernel: the next part of the data follows.
func hostItemSent(_ slot: UnsafeMutablePointer<HostSlot>, _ core: UnsafeMutablePointer<ReactorCore>) {
  unsafe slot.pointee.isSending = false
  if unsafe slot.pointee.isOpen, unsafe slot.pointee.sendOffset < slot.pointee.sendEnd { unsafe sendData(slot, core) }
}

// MARK: What comes

/// What became of the bytes that were there.
enum HostProgress {
  case more
  /// The target broke the protocol.
  case broken(String)
}

/// Takes all whole PDUs that were received. `completed` gets each command that has ended, with its status and words.
func takeAnswers(
  _ state: UnsafeMutablePointer<HostQueueState>, _ core: UnsafeMutablePointer<ReactorCore>,
  _ completed: (UnsafeMutablePointer<HostSlot>, UInt16, UInt32, UInt32) -> Void
) -> HostProgress {
  let stream = unsafe state.pointee.stream
  while true {
    if let slot = unsafe state.pointee.receiving {
      unsafe takeData(slot)
      guard unsafe state.pointee.missing == 0 else { return .more }
      if unsafe state.pointee.awaitsDigest {
        guard unsafe stream.pointee.available >= NVMeTCP.digestLength else { return .more }
        let sum = unsafe UInt32(littleEndian: stream.pointee.bytes.loadUnaligned(as: UInt32.self))
        unsafe stream.pointee.consume(NVMeTCP.digestLength)
        guard unsafe sum == state.pointee.digest else { return .broken("a data digest that does not hold") }
      }
      unsafe state.pointee.receiving = nil
      if unsafe state.pointee.isLastSuccess { unsafe completed(slot, NVMe.Status.success, 0, 0) }
      continue
    }
    guard unsafe stream.pointee.available >= NVMeTCP.commonLength else { return .more }
    let bytes = unsafe stream.pointee.bytes
    let type = unsafe bytes.load(as: UInt8.self)
    let flags = unsafe bytes.load(fromByteOffset: 1, as: UInt8.self)
    let headerLength = unsafe Int(bytes.load(fromByteOffset: 2, as: UInt8.self))
    let dataOffset = unsafe Int(bytes.load(fromByteOffset: 3, as: UInt8.self))
    let length = unsafe Int(UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: 4, as: UInt32.self)))
    if unsafe !state.pointee.isInitialized {
      guard type == NVMeTCP.PDU.initializeResponse, length == NVMeTCP.initializeLength else {
        return .broken("PDU \(type) where the answer to the first was expected")
      }
      guard unsafe stream.pointee.available >= length else { return .more }
      let most = unsafe UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: 12, as: UInt32.self))
      let digests = unsafe bytes.load(fromByteOffset: 11, as: UInt8.self)
      guard most >= 4096, unsafe bytes.loadUnaligned(fromByteOffset: 8, as: UInt16.self) == 0,
        unsafe (digests & 1 != 0) == state.pointee.hasHeaderDigest,
        unsafe (digests & 2 != 0) == state.pointee.hasDataDigest
      else { return .broken("the target's answer to the first PDU") }
      guard unsafe bytes.load(fromByteOffset: 10, as: UInt8.self) == 0 else {
        return .broken("the target wants data at multiples of more than 4 bytes (CPDA), which is not offered")
      }
      unsafe state.pointee.maximumData = Int(clamping: most)
      unsafe state.pointee.isInitialized = true
      unsafe stream.pointee.consume(length)
      unsafe Unmanaged<HostQueue>.fromOpaque(state.pointee.queue)._withUnsafeGuaranteedRef { $0.initialized() }
      continue
    }
    guard headerLength == NVMeTCP.dataHeaderLength else { return .broken("a header of \(headerLength) bytes") }
    let hasDigest = unsafe state.pointee.hasHeaderDigest
    let withDigest = headerLength + (hasDigest ? NVMeTCP.digestLength : 0)
    let start = type == NVMeTCP.PDU.controllerData ? dataOffset : withDigest
    guard length >= withDigest, start >= withDigest, start <= length else { return .broken("a PDU's length") }
    guard unsafe stream.pointee.available >= start else { return .more }
    if hasDigest {
      let sum = unsafe UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: headerLength, as: UInt32.self))
      guard unsafe clinux_crc32c(0, bytes, headerLength) == sum else {
        return .broken("a header digest that does not hold")
      }
    }
    switch type {
    case NVMeTCP.PDU.response:
      let word0 = unsafe UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: 8, as: UInt32.self))
      let word1 = unsafe UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: 12, as: UInt32.self))
      let identifier = unsafe UInt16(littleEndian: bytes.loadUnaligned(fromByteOffset: 20, as: UInt16.self))
      let status = unsafe UInt16(littleEndian: bytes.loadUnaligned(fromByteOffset: 22, as: UInt16.self)) >> 1
      guard length == withDigest, let slot = unsafe slot(identifier, state) else {
        return .broken("a completion of no command")
      }
      unsafe stream.pointee.consume(length)
      unsafe completed(slot, status, word0, word1)
    case NVMeTCP.PDU.controllerData:
      let identifier = unsafe UInt16(littleEndian: bytes.loadUnaligned(fromByteOffset: 8, as: UInt16.self))
      let offset = unsafe Int(UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: 12, as: UInt32.self)))
      let part = unsafe Int(UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: 16, as: UInt32.self)))
      let hasDataDigest = unsafe state.pointee.hasDataDigest
      guard let slot = unsafe slot(identifier, state), unsafe offset == slot.pointee.received, part > 0,
        unsafe part <= slot.pointee.transfer - slot.pointee.received,
        length == start + part + (hasDataDigest ? NVMeTCP.digestLength : 0), unsafe isRead(slot)
      else { return .broken("data that was not asked for") }
      let isLast = flags & NVMeTCP.Flag.last != 0
      let isSuccess = flags & NVMeTCP.Flag.success != 0
      guard !isSuccess || isLast, unsafe !isSuccess || offset + part == slot.pointee.transfer else {
        return .broken("success before the last data")
      }
      unsafe stream.pointee.consume(start)
      unsafe state.pointee.receiving = unsafe slot
      unsafe state.pointee.missing = part
      unsafe state.pointee.digest = 0
      unsafe state.pointee.awaitsDigest = hasDataDigest
      unsafe state.pointee.isLastSuccess = isSuccess
    case NVMeTCP.PDU.readyToTransfer:
      let identifier = unsafe UInt16(littleEndian: bytes.loadUnaligned(fromByteOffset: 8, as: UInt16.self))
      let tag = unsafe UInt16(littleEndian: bytes.loadUnaligned(fromByteOffset: 10, as: UInt16.self))
      let offset = unsafe Int(UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: 12, as: UInt32.self)))
      let part = unsafe Int(UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: 16, as: UInt32.self)))
      guard length == withDigest, let slot = unsafe slot(identifier, state), unsafe !isRead(slot),
        unsafe slot.pointee.buffer != nil, part > 0, unsafe offset == slot.pointee.sendEnd,
        unsafe part <= slot.pointee.transfer - offset, unsafe slot.pointee.sendOffset == slot.pointee.sendEnd
      else { return .broken("a request for data that is not there") }
      unsafe stream.pointee.consume(length)
      unsafe slot.pointee.transferTag = tag
      unsafe slot.pointee.sendOffset = offset
      unsafe slot.pointee.sendEnd = offset + part
      unsafe sendData(slot, core)
    case NVMeTCP.PDU.controllerTerminate: return .broken("the target ended the connection")
    default: return .broken("PDU \(type)")
    }
  }
}

/// The open command of an identifier, which the target has.
private func slot(
  _ identifier: UInt16, _ state: UnsafeMutablePointer<HostQueueState>
) -> UnsafeMutablePointer<HostSlot>? {
  guard unsafe Int(identifier) < state.pointee.depth else { return nil }
  let slot = unsafe state.pointee.slots + Int(identifier)
  return unsafe slot.pointee.isOpen && !slot.pointee.isSending ? slot : nil
}

/// Whether the command brings data.
@inline(__always)
private func isRead(_ slot: UnsafeMutablePointer<HostSlot>) -> Bool {
  let opcode = unsafe slot.pointee.header.load(fromByteOffset: 8, as: UInt8.self)
  let kind = unsafe slot.pointee.header.load(fromByteOffset: 12, as: UInt8.self)
  return (opcode == NVMe.Admin.fabrics ? kind : opcode) & 3 == 2
}

/// Moves received bytes to the request's pieces, or to the command's own memory.
private func takeData(_ slot: UnsafeMutablePointer<HostSlot>) {
  let state = unsafe slot.pointee.state
  let stream = unsafe state.pointee.stream
  let part = unsafe min(state.pointee.missing, stream.pointee.available)
  guard part > 0 else { return }
  let bytes = unsafe stream.pointee.bytes
  if unsafe state.pointee.awaitsDigest {
    unsafe state.pointee.digest = unsafe clinux_crc32c(state.pointee.digest, bytes, part)
  }
  if let io = unsafe slot.pointee.io {
    unsafe movePieces(io, at: slot.pointee.progress + slot.pointee.received, bytes, part, intoPieces: true)
  } else if let buffer = unsafe slot.pointee.buffer {
    unsafe (buffer + slot.pointee.received).copyMemory(from: bytes, byteCount: part)
  }
  unsafe slot.pointee.received += part
  unsafe state.pointee.missing -= part
  unsafe stream.pointee.consume(part)
}

/// Copies between contiguous bytes and a request's pieces, `offset` bytes behind the start of the pieces.
func movePieces(
  _ io: UnsafeMutablePointer<BlockIO>, at offset: Int, _ bytes: UnsafeMutableRawPointer, _ length: Int,
  intoPieces: Bool
) {
  unsafe movePieces(
    io.pointee.vectors, io.pointee.first..<io.pointee.end, at: offset, bytes, length, intoPieces: intoPieces)
}
