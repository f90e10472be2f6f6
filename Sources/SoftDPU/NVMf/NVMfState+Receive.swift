import CLinux
import Glibc

// PDUs out of a connection's bytes, until a command and its data are whole.
//
// SAFETY, for every `unsafe` here: as in NVMfState.swift, which allocates and describes what these functions work on.

/// What became of the bytes that were there.
enum NVMfProgress {
  case more
  /// The next command finds no memory: it waits where it is.
  case stalled
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
        // The command fails when all of its data is there, and the connection goes on (NVMe TCP 1.0, section 3.3.1.2).
        if unsafe !dataDigestHolds(slot) { unsafe slot.pointee.isDamaged = true }
      }
      unsafe state.pointee.receiving = nil
      if unsafe state.pointee.isCapsule || slot.pointee.received == slot.pointee.transfer {
        if unsafe slot.pointee.isReceiving { unsafe state.pointee.asked -= 1 }
        unsafe slot.pointee.isReceiving = false
        if unsafe slot.pointee.isDamaged {
          unsafe complete(slot, NVMe.Status.transientTransportError, core)
        } else {
          unsafe execute(slot, core)
        }
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
      if hasData {
        let opcode = unsafe bytes.load(fromByteOffset: NVMeTCP.commonLength, as: UInt8.self)
        let isCompare = unsafe state.pointee.isIOQueue && opcode == NVMe.IO.compare
        let needed = isCompare ? 2 * dataLength : dataLength
        // What stands behind it may be the data that other commands wait for: then the memory is taken in any case, a
        // capsule's for each of the queue's commands at most.
        guard unsafe reserve(slot, needed, mustHave: state.pointee.asked > 0, core) else {
          unsafe state.pointee.isStalled = true
          unsafe core.pointee.wait(state.pointee.waiter)
          return .stalled
        }
      }
      unsafe slot.pointee.header.copyMemory(from: bytes + NVMeTCP.commonLength, byteCount: 64)
      unsafe stream.pointee.consume(start)
      unsafe state.pointee.free = unsafe slot.pointee.next
      unsafe state.pointee.commands &+= 1
      unsafe state.pointee.submissionHead =
        state.pointee.submissionHead &+ 1 == state.pointee.queueSize ? 0 : state.pointee.submissionHead &+ 1
      unsafe slot.pointee.transfer = dataLength
      unsafe slot.pointee.received = 0
      unsafe slot.pointee.range = 0
      unsafe slot.pointee.isDamaged = false
      unsafe slot.pointee.entry = nil
      if hasData {
        guard unsafe brings(slot) else { return .broken(NVMeTCP.FatalError.invalidHeader, 3) }
        unsafe begin(slot, dataLength, hasDataDigest, isCapsule: true)
      } else {
        unsafe proceed(slot, core)
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

/// Gives the slot memory for its data; false where it has to wait. `mustHave`: whatever the others have.
func reserve(
  _ slot: UnsafeMutablePointer<NVMfSlot>, _ length: Int, mustHave: Bool = false,
  _ core: UnsafeMutablePointer<ReactorCore>
) -> Bool {
  unsafe giveBuffer(slot, core)
  let held = unsafe slot.pointee.state.pointee.held
  if let buffer = unsafe core.pointee.buffers.take(length, peer: &held.pointee) {
    unsafe slot.pointee.buffer = unsafe buffer
    unsafe slot.pointee.held = unsafe held
  } else {
    guard mustHave, let buffer = unsafe core.pointee.buffers.take(length) else { return false }
    unsafe slot.pointee.buffer = unsafe buffer
    unsafe slot.pointee.held = nil
  }
  unsafe slot.pointee.length = length
  return true
}

/// Gives a slot's memory back.
func giveBuffer(_ slot: UnsafeMutablePointer<NVMfSlot>, _ core: UnsafeMutablePointer<ReactorCore>) {
  guard let buffer = unsafe slot.pointee.buffer else { return }
  if let held = unsafe slot.pointee.held {
    unsafe core.pointee.give(buffer, slot.pointee.length, peer: &held.pointee)
  } else {
    unsafe core.pointee.buffers.give(buffer, slot.pointee.length)
    unsafe core.pointee.memoryReturned()
  }
  unsafe slot.pointee.buffer = nil
}

/// Goes on with a command without data in its capsule, or has it wait behind others for memory.
private func proceed(_ slot: UnsafeMutablePointer<NVMfSlot>, _ core: UnsafeMutablePointer<ReactorCore>) {
  let state = unsafe slot.pointee.state
  let opcode = unsafe slot.pointee.opcode
  let needsMemory = unsafe brings(slot) || opcode == NVMe.IO.read
  if needsMemory, unsafe state.pointee.waitingFirst != nil { return unsafe waitForMemory(slot, core) }
  unsafe prepareTransfer(slot, core)
}

/// Has a command wait until memory is given back. The host knows nothing of it, as of a disk that takes its time.
func waitForMemory(_ slot: UnsafeMutablePointer<NVMfSlot>, _ core: UnsafeMutablePointer<ReactorCore>) {
  let state = unsafe slot.pointee.state
  unsafe slot.pointee.next = nil
  if let last = unsafe state.pointee.waitingLast {
    unsafe last.pointee.next = unsafe slot
  } else {
    unsafe state.pointee.waitingFirst = unsafe slot
  }
  unsafe state.pointee.waitingLast = unsafe slot
  unsafe core.pointee.wait(state.pointee.waiter)
}

/// Tries the commands that wait for memory again, in their order, until one finds none.
func resumeWaiting(_ state: UnsafeMutablePointer<NVMfState>, _ core: UnsafeMutablePointer<ReactorCore>) {
  var next = unsafe state.pointee.waitingFirst
  unsafe state.pointee.waitingFirst = nil
  unsafe state.pointee.waitingLast = nil
  while let slot = unsafe next {
    unsafe next = unsafe slot.pointee.next
    // The first that still finds none is in the list again, and the rest comes behind it.
    unsafe proceed(slot, core)
  }
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
  // What is there is read behind what the host sends.
  let needed = unsafe slot.pointee.opcode == NVMe.IO.compare ? 2 * length : length
  guard unsafe reserve(slot, needed, core) else { return unsafe waitForMemory(slot, core) }
  unsafe slot.pointee.transfer = length
  unsafe slot.pointee.isReceiving = true
  unsafe state.pointee.asked += 1
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
func writeCommon(
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
func sealHeader(_ header: UnsafeMutableRawPointer, _ length: Int, _ hasDigest: Bool) -> Int {
  guard hasDigest else { return length }
  let sum = unsafe clinux_crc32c(0, header, length)
  unsafe header.storeBytes(of: sum.littleEndian, toByteOffset: length, as: UInt32.self)
  return length + NVMeTCP.digestLength
}
