import CLinux
import Glibc
import Synchronization

/// Random reads of a device, made on its own reactor as a way out would make them: for measurements, as SPDK's bdevperf.
///
/// SAFETY: slots and memory live until the last request is back; the reactor's thread alone touches them meanwhile.
@safe
final class DeviceLoad: @unchecked Sendable {
  @unsafe
  private struct Slot {
    /// First, so that the slot's address is its request's.
    var io: BlockIO
    let load: Unmanaged<DeviceLoad>
    let buffer: UnsafeMutableRawPointer
    let vector: UnsafeMutablePointer<iovec>
  }

  private static let length = 4096

  private let device: BlockDevice
  private let slots: UnsafeMutablePointer<Slot>
  private let core: UnsafeMutablePointer<ReactorCore>
  private let target: UnsafeMutablePointer<BlockTarget>
  private let blocks: UInt64
  private let depth: Int
  private let end: UInt64
  private var random: UInt64 = 0x9E37_79B9_7F4A_7C15
  /// Answered, and to be started again: a device may answer before `start` returns.
  private var ready: [Int] = []
  private var isStarting = false
  private var underWay = 0
  private var count = 0
  private var failure: CInt = 0
  private let ended = Latch()

  /// EINVAL where the device has not a single block of 4 KiB.
  static func run(_ device: BlockDevice, depth: Int, seconds: Double) throws(SoftDPUError) -> Int {
    let operation = "load \(device.name)"
    guard device.size >= UInt64(length), depth > 0, seconds > 0 else { throw .system(EINVAL, operation) }
    let load = DeviceLoad(device, depth: depth, seconds: seconds)
    device.reactor.post {
      load.ready = Array(0..<depth)
      load.startReady()
    }
    load.ended.wait()
    guard load.failure == 0 else { throw .system(-load.failure, operation) }
    return load.count
  }

  private init(_ device: BlockDevice, depth: Int, seconds: Double) {
    self.device = device
    unsafe core = unsafe device.reactor.core
    unsafe target = unsafe device.target
    blocks = device.size / UInt64(DeviceLoad.length)
    self.depth = depth
    end = clinux_monotonic_nanoseconds() &+ UInt64(seconds * 1e9)
    unsafe slots = .allocate(capacity: depth)
    for index in 0..<depth {
      let buffer = UnsafeMutableRawPointer.allocate(byteCount: DeviceLoad.length, alignment: 4096)
      let vector = UnsafeMutablePointer<iovec>.allocate(capacity: 1)
      unsafe (slots + index).initialize(
        to: Slot(
          io: BlockIO(
            target: device.target, vectors: vector,
            done: { raw, result, _ in
              let slot = unsafe raw.assumingMemoryBound(to: Slot.self)
              unsafe slot.pointee.load._withUnsafeGuaranteedRef { unsafe $0.answered(slot, result) }
            }), load: Unmanaged.passUnretained(self), buffer: buffer, vector: vector))
    }
  }

  deinit {
    for index in 0..<depth {
      unsafe slots[index].buffer.deallocate()
      unsafe slots[index].vector.deallocate()
    }
    unsafe slots.deallocate()
  }

  private func answered(_ slot: UnsafeMutablePointer<Slot>, _ result: CInt) {
    underWay -= 1
    count += 1
    if result < 0 { failure = result }
    unsafe ready.append(slot - slots)
    startReady()
  }

  private func startReady() {
    guard !isStarting else { return }
    isStarting = true
    while failure == 0, let index = ready.popLast() {
      let slot = unsafe slots + index
      guard unsafe core.pointee.now < end else { break }
      random ^= random << 13
      random ^= random >> 7
      random ^= random << 17
      unsafe slot.pointee.vector.pointee = unsafe iovec(iov_base: slot.pointee.buffer, iov_len: DeviceLoad.length)
      unsafe slot.pointee.io.target = unsafe target
      unsafe slot.pointee.io.kind = .read
      unsafe slot.pointee.io.first = 0
      unsafe slot.pointee.io.end = 1
      unsafe slot.pointee.io.offset = random % blocks * UInt64(DeviceLoad.length)
      unsafe slot.pointee.io.remaining = UInt64(DeviceLoad.length)
      underWay += 1
      unsafe start(UnsafeMutableRawPointer(slot).assumingMemoryBound(to: BlockIO.self), core)
    }
    isStarting = false
    if underWay == 0 { ended.open() }
  }
}
