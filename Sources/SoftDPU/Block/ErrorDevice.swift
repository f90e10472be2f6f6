import CLinux
import Glibc
import JSON

/// A device that fails on demand, for tests (SPDK's bdev_error).
@safe
final class ErrorDevice: LayerDevice, @unchecked Sendable {
  enum Fault: String, Sendable {
    case failure
    /// Never answered, until the faults are cleared or what waits is let go on.
    case pending
    /// Bits of one byte of what is read are turned over.
    case corruptData = "corrupt_data"
    case noMemory = "nomem"
  }

  /// A fault for the next `count` requests of a kind.
  struct Injection: Sendable, Hashable {
    var fault: Fault
    var count: UInt64
    var corruptOffset: UInt64 = 0
    var corruptValue: UInt8 = 0xFF
  }

  /// Reactor's thread.
  @unsafe
  struct Layer {
    let base: UnsafeMutablePointer<BlockTarget>
    var injections = [Injection?](repeating: nil, count: 5)
    var pending: UnsafeMutablePointer<BlockIO>?
  }

  private let layer: UnsafeMutablePointer<Layer>

  init(uuid: String, below: BlockDevice) throws(SoftDPUError) {
    unsafe layer = UnsafeMutablePointer<Layer>.allocate(capacity: 1)
    unsafe layer.initialize(to: Layer(base: below.target))
    try unsafe super.init(
      name: "EE_\(below.name)", uuid: uuid, productName: "Error Injection Disk", below: below,
      submit: { io, core in
        unsafe ErrorDevice.take(
          io.assumingMemoryBound(to: BlockIO.self), core.assumingMemoryBound(to: ReactorCore.self))
      }, layer: UnsafeMutableRawPointer(layer))
  }

  deinit {
    unsafe layer.deinitialize(count: 1)
    unsafe layer.deallocate()
  }

  /// Has the next requests of these kinds fail, whoever sends them after this call. No injection clears those kinds, and
  /// answers what is pending. Not on the reactor's thread.
  func inject(_ kinds: [BlockIO.Kind], _ injection: Injection?) {
    let indices = kinds.map { Int($0.rawValue) }
    reactor.sync { [self] in
      for index in indices { unsafe layer.pointee.injections[index] = injection }
      guard injection == nil else { return }
      var next = unsafe layer.pointee.pending
      unsafe layer.pointee.pending = nil
      while let io = unsafe next {
        unsafe next = unsafe io.pointee.next
        unsafe io.pointee.next = nil
        unsafe finish(io, -EIO, reactor.core)
      }
    }
  }

  /// Lets what is pending go on to the device below, and makes no more requests wait. Not on the reactor's thread.
  func resumePending() {
    reactor.sync { [self] in
      for index in unsafe layer.pointee.injections.indices
      where unsafe layer.pointee.injections[index]?.fault == .pending {
        unsafe layer.pointee.injections[index] = nil
      }
      // The last to come is the first in the list.
      var first: UnsafeMutablePointer<BlockIO>?
      var next = unsafe layer.pointee.pending
      unsafe layer.pointee.pending = nil
      while let io = unsafe next {
        unsafe next = unsafe io.pointee.next
        unsafe io.pointee.next = unsafe first
        unsafe first = unsafe io
      }
      while let io = unsafe first {
        unsafe first = unsafe io.pointee.next
        unsafe io.pointee.next = nil
        unsafe ErrorDevice.pass(io, layer, note: 0, ErrorDevice.carriedOn, reactor.core)
      }
    }
  }

  override func release() {
    inject([.read, .write, .flush, .unmap, .writeZeroes], nil)
    super.release()
  }

  // SAFETY: the layer's state is freed with the device, which its users keep; requests are counted by the target.

  private static func take(_ io: UnsafeMutablePointer<BlockIO>, _ core: UnsafeMutablePointer<ReactorCore>) {
    guard let raw = unsafe io.pointee.target.pointee.layer else { return unsafe finish(io, -ENXIO, core) }
    let layer = unsafe raw.assumingMemoryBound(to: Layer.self)
    let index = unsafe Int(io.pointee.kind.rawValue)
    guard var injection = unsafe layer.pointee.injections[index], injection.count > 0 else {
      return unsafe pass(io, layer, note: 0, carriedOn, core)
    }
    injection.count -= 1
    unsafe layer.pointee.injections[index] = injection.count == 0 ? nil : injection
    switch injection.fault {
    case .failure: unsafe finish(io, -EIO, core)
    case .noMemory: unsafe finish(io, -ENOMEM, core)
    case .pending:
      unsafe io.pointee.next = unsafe layer.pointee.pending
      unsafe layer.pointee.pending = unsafe io
    case .corruptData:
      unsafe pass(io, layer, note: injection.corruptOffset << 8 | UInt64(injection.corruptValue), corrupted, core)
    }
  }

  private static func pass(
    _ io: UnsafeMutablePointer<BlockIO>, _ layer: UnsafeMutablePointer<Layer>, note: UInt64,
    _ done: BlockIO.Completion, _ core: UnsafeMutablePointer<ReactorCore>
  ) {
    if unsafe !descend(io, to: layer.pointee.base, note: note, done: done, core) { unsafe finish(io, -ENOMEM, core) }
  }

  private static let carriedOn: BlockIO.Completion = { raw, result, core in
    let io = unsafe raw.assumingMemoryBound(to: BlockIO.self)
    let core = unsafe core.assumingMemoryBound(to: ReactorCore.self)
    unsafe pop(io, core)
    unsafe finish(io, result, core)
  }

  private static let corrupted: BlockIO.Completion = { raw, result, core in
    let io = unsafe raw.assumingMemoryBound(to: BlockIO.self)
    let core = unsafe core.assumingMemoryBound(to: ReactorCore.self)
    let note = unsafe io.pointee.frame?.pointee.note ?? 0
    unsafe pop(io, core)
    if unsafe io.pointee.first < io.pointee.end {
      let piece = unsafe io.pointee.vectors[io.pointee.first]
      if let base = unsafe piece.iov_base, unsafe note >> 8 < UInt64(piece.iov_len) {
        let place = Int(note >> 8)
        let byte = unsafe base.load(fromByteOffset: place, as: UInt8.self)
        unsafe base.storeBytes(of: byte ^ UInt8(truncatingIfNeeded: note), toByteOffset: place, as: UInt8.self)
      }
    }
    unsafe finish(io, result, core)
  }

  override var creation: ConfigurationCall? {
    ConfigurationCall(
      method: "bdev_error_create", parameters: ["base_name": .string(base?.name ?? ""), "uuid": .string(uuid)])
  }
}
