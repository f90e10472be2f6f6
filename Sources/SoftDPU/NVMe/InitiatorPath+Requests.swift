import CLinux
import Glibc

/// Requests on a path: commands that are made of them, and what their answers mean.
extension InitiatorPath {
  /// Takes a request; false where no queue has room.
  func take(_ io: UnsafeMutablePointer<BlockIO>) -> Bool {
    guard state == .enabled else { return false }
    guard unsafe core.pointee.buffers.mayTake(memory(for: io), deviceHolding: controller.held.pointee) else {
      return false
    }
    for index in unsafe states.indices {
      let queue = unsafe states[index]
      guard unsafe !queue.pointee.isClosed, let slot = unsafe queue.pointee.take() else { continue }
      unsafe slot.pointee.io = unsafe io
      unsafe begin(slot, io)
      return true
    }
    return false
  }

  /// How much memory the first command of a request takes.
  private func memory(for io: UnsafeMutablePointer<BlockIO>) -> Int {
    switch unsafe io.pointee.kind {
    case .write: unsafe min(Int(clamping: io.pointee.length), maximumTransfer)
    case .writeZeroes: unsafe hasWriteZeroes ? 0 : min(Int(clamping: io.pointee.length), maximumTransfer)
    case .unmap: 16
    case .read, .flush: 0
    }
  }

  /// Takes a request back for which there is no memory after all: it begins anew when there is some.
  private func postpone(_ slot: UnsafeMutablePointer<HostSlot>, _ io: UnsafeMutablePointer<BlockIO>) {
    unsafe release(slot, core)
    unsafe controller.submitLater(io, after: Retry.pause)
  }

  /// Sends the command for the next part of a request.
  private func begin(_ slot: UnsafeMutablePointer<HostSlot>, _ io: UnsafeMutablePointer<BlockIO>) {
    guard let raw = unsafe io.pointee.target.pointee.layer else { return unsafe endRequest(slot, -ENXIO) }
    let layer = unsafe raw.assumingMemoryBound(to: NVMeDevice.Layer.self)
    let header = unsafe slot.pointee.header
    let id = unsafe layer.pointee.namespace
    let shift = unsafe UInt64(io.pointee.target.pointee.blockSize.trailingZeroBitCount)
    unsafe header.storeBytes(of: id.littleEndian, toByteOffset: 12, as: UInt32.self)
    let left = unsafe Int(clamping: io.pointee.length) - slot.pointee.progress
    let offset = unsafe io.pointee.offset + UInt64(slot.pointee.progress)
    var inline = 0
    switch unsafe io.pointee.kind {
    case .flush:
      unsafe header.storeBytes(of: NVMe.IO.flush, toByteOffset: 8, as: UInt8.self)
      unsafe slot.pointee.transfer = 0
    case .read, .write:
      let isRead = unsafe io.pointee.kind == .read
      let part = min(left, maximumTransfer)
      unsafe setRange(header, offset >> shift, UInt64(part) >> shift)
      unsafe header.storeBytes(of: isRead ? NVMe.IO.read : NVMe.IO.write, toByteOffset: 8, as: UInt8.self)
      unsafe slot.pointee.transfer = part
      if !isRead {
        if unsafe io.pointee.isDurable { unsafe addFlag(header, 1 << 30) }
        guard unsafe reserve(slot, part, core), let buffer = unsafe slot.pointee.buffer else {
          return unsafe postpone(slot, io)
        }
        unsafe movePieces(io, at: slot.pointee.progress, buffer, part, intoPieces: false)
        if part <= inCapsuleLength { inline = part }
      }
    case .writeZeroes where !hasWriteZeroes:
      // The target does not do it by itself: zeros are sent.
      let part = min(left, maximumTransfer)
      guard unsafe reserve(slot, part, core), let buffer = unsafe slot.pointee.buffer else {
        return unsafe postpone(slot, io)
      }
      unsafe memset(buffer, 0, part)
      unsafe setRange(header, offset >> shift, UInt64(part) >> shift)
      unsafe header.storeBytes(of: NVMe.IO.write, toByteOffset: 8, as: UInt8.self)
      if unsafe io.pointee.isDurable { unsafe addFlag(header, 1 << 30) }
      unsafe slot.pointee.transfer = part
      unsafe slot.pointee.received = part
      if part <= inCapsuleLength { inline = part }
    case .writeZeroes:
      let part = min(left, 0x8000 << Int(shift))
      unsafe setRange(header, offset >> shift, UInt64(part) >> shift)
      unsafe header.storeBytes(of: NVMe.IO.writeZeroes, toByteOffset: 8, as: UInt8.self)
      if unsafe io.pointee.mayUnmap { unsafe addFlag(header, 1 << 25) }
      if unsafe io.pointee.isDurable { unsafe addFlag(header, 1 << 30) }
      unsafe slot.pointee.transfer = 0
      unsafe slot.pointee.received = part
    case .unmap:
      // One range of as many blocks as its field holds.
      let part = min(left, (Int(UInt32.max >> 1) >> Int(shift)) << Int(shift))
      guard unsafe reserve(slot, 16, core), let buffer = unsafe slot.pointee.buffer else {
        return unsafe postpone(slot, io)
      }
      unsafe buffer.storeBytes(of: 0, as: UInt32.self)
      unsafe buffer.storeBytes(of: UInt32(part >> Int(shift)).littleEndian, toByteOffset: 4, as: UInt32.self)
      unsafe buffer.storeBytes(of: (offset >> shift).littleEndian, toByteOffset: 8, as: UInt64.self)
      unsafe header.storeBytes(of: NVMe.IO.datasetManagement, toByteOffset: 8, as: UInt8.self)
      unsafe header.storeBytes(of: UInt32(1 << 2).littleEndian, toByteOffset: 52, as: UInt32.self)
      unsafe slot.pointee.transfer = 16
      unsafe slot.pointee.received = part
      inline = 16 <= inCapsuleLength ? 16 : 0
    }
    unsafe sendCommand(slot, inline: inline, core)
  }

  private func setRange(_ header: UnsafeMutableRawPointer, _ block: UInt64, _ count: UInt64) {
    unsafe header.storeBytes(of: block.littleEndian, toByteOffset: 48, as: UInt64.self)
    unsafe header.storeBytes(of: UInt32(count - 1).littleEndian, toByteOffset: 56, as: UInt32.self)
  }

  private func addFlag(_ header: UnsafeMutableRawPointer, _ flag: UInt32) {
    let word = unsafe UInt32(littleEndian: header.load(fromByteOffset: 56, as: UInt32.self))
    unsafe header.storeBytes(of: (word | flag).littleEndian, toByteOffset: 56, as: UInt32.self)
  }

  private func endRequest(_ slot: UnsafeMutablePointer<HostSlot>, _ result: CInt) {
    let io = unsafe slot.pointee.io
    unsafe release(slot, core)
    if let io = unsafe io { unsafe finishCounted(io, result) }
    unsafe owner._withUnsafeGuaranteedRef { $0.serveWaiting() }
  }

  private func finishCounted(_ io: UnsafeMutablePointer<BlockIO>, _ result: CInt) {
    let (kind, length, began) = unsafe (io.pointee.kind, io.pointee.length, io.pointee.admitted)
    let raw = unsafe io.pointee.target.pointee.layer
    let tally = unsafe raw.map { unsafe $0.assumingMemoryBound(to: NVMeDevice.Layer.self).pointee.tally } ?? -1
    unsafe finish(io, result, core)
    guard unsafe counters.indices.contains(tally) else { return }
    // The request's end has just looked at the clock.
    let elapsed = unsafe core.pointee.now &- began
    unsafe counters[tally].count(kind, bytes: length, nanoseconds: elapsed, isFailed: result < 0)
  }

  /// Takes the completion of a request's command.
  func completed(_ slot: UnsafeMutablePointer<HostSlot>, _ status: UInt16) {
    guard let io = unsafe slot.pointee.io else { return unsafe release(slot, core) }
    let code = status & 0x7FF
    guard code == NVMe.Status.success else {
      if unsafe tryAgain(slot, io, status) { return unsafe owner._withUnsafeGuaranteedRef { $0.serveWaiting() } }
      if hasWriteZeroes, unsafe io.pointee.kind == .writeZeroes, code & 0x700 != 0x200 {
        // Some targets offer the command whatever their files can do (Linux's nvmet on tmpfs).
        hasWriteZeroes = false
        unsafe restart(slot, io)
        return
      }
      return unsafe endRequest(slot, InitiatorPath.errorNumber(code))
    }
    let part: Int
    switch unsafe io.pointee.kind {
    case .flush: part = 0
    case .read:
      guard unsafe slot.pointee.received == slot.pointee.transfer else { return unsafe endRequest(slot, -EIO) }
      part = unsafe slot.pointee.transfer
    case .write: part = unsafe slot.pointee.transfer
    case .unmap, .writeZeroes: part = unsafe slot.pointee.received
    }
    unsafe slot.pointee.progress += part
    guard unsafe slot.pointee.progress < Int(clamping: io.pointee.length) else { return unsafe endRequest(slot, 0) }
    unsafe restart(slot, io)
  }

  /// Sends the command for the rest of a request, with the same slot.
  private func restart(_ slot: UnsafeMutablePointer<HostSlot>, _ io: UnsafeMutablePointer<BlockIO>) {
    unsafe slot.pointee.received = 0
    unsafe slot.pointee.sendOffset = 0
    unsafe slot.pointee.sendEnd = 0
    unsafe memset(slot.pointee.header, 0, HostQueueState.headerLength)
    unsafe begin(slot, io)
  }

  /// Has a request that was refused for now asked for once more; false where that makes no sense.
  private func tryAgain(
    _ slot: UnsafeMutablePointer<HostSlot>, _ io: UnsafeMutablePointer<BlockIO>, _ status: UInt16
  ) -> Bool {
    let refusal = NVMeRefusal(status: status)
    guard refusal != .final, unsafe io.pointee.retries < refusal.maximumRetries else { return false }
    unsafe io.pointee.retries += 1
    unsafe release(slot, core)
    if refusal == .ofPath {
      shunnedUntil = clinux_monotonic_nanoseconds() &+ InitiatorPath.shunTime
      if controller.hasOther(than: self) {
        unsafe controller.submitAgain(io, core)
        return true
      }
    }
    unsafe controller.submitLater(io, after: NVMeRefusal.pause)
    return true
  }

  /// How long a path is the last to be asked, after it refused a request.
  private static let shunTime: UInt64 = 1_000_000_000

  private static func errorNumber(_ code: UInt16) -> CInt {
    switch code {
    case NVMe.Status.capacityExceeded: -ENOSPC
    case NVMe.Status.writeProtected: -EROFS
    // The second is what Linux answers for a command that its file system does not have.
    case NVMe.Status.invalidOpcode, NVMe.Status.conflictingAttributes: -EOPNOTSUPP
    default: -EIO
    }
  }
}
