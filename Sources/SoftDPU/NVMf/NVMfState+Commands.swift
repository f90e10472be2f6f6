import CLinux
import Glibc

// I/O commands to devices, and completions back to the host.
//
// SAFETY, for every `unsafe` here: as in NVMfState.swift, which allocates and describes what these functions work on.

/// Carries out a command whose data is all there.
func execute(_ slot: UnsafeMutablePointer<NVMfSlot>, _ core: UnsafeMutablePointer<ReactorCore>) {
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
    guard unsafe reserve(slot, length, core) else { return unsafe waitForMemory(slot, core) }
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
      // What is there is read behind what the host sent; the memory for both was taken at once.
      guard unsafe slot.pointee.length >= 2 * length else {
        return unsafe complete(slot, NVMe.Status.internalError, core)
      }
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
  unsafe slot.pointee.state.pointee.counters?.count(slot.io, core)
  let opcode = unsafe slot.pointee.opcode
  guard result >= 0 else {
    return unsafe complete(slot, status(result, isRead: opcode == NVMe.IO.read || opcode == NVMe.IO.compare), core)
  }
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
  unsafe giveBuffer(slot, core)
  unsafe slot.pointee.next = unsafe state.pointee.free
  unsafe state.pointee.free = unsafe slot
}
