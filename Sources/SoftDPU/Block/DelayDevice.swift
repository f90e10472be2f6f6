import CLinux
import Glibc
import JSON
import Synchronization

/// How long a delayed device takes longer, in microseconds: most requests, and one of a hundred.
struct DelayLatencies: Sendable, Hashable {
  var averageRead: UInt64
  var p99Read: UInt64
  var averageWrite: UInt64
  var p99Write: UInt64

  /// One of a hundred takes no less time than most.
  var isSound: Bool { averageRead <= p99Read && averageWrite <= p99Write }
}

/// A device that answers late, for tests (SPDK's bdev_delay).
@safe
final class DelayDevice: LayerDevice, @unchecked Sendable {
  /// Reactor's thread.
  @unsafe
  struct Layer {
    let base: UnsafeMutablePointer<BlockTarget>
    var latencies: DelayLatencies
    var reads = 0
    var writes = 0
  }

  private let layer: UnsafeMutablePointer<Layer>
  private let current: Mutex<DelayLatencies>

  init(name: String, uuid: String, below: BlockDevice, latencies: DelayLatencies) throws(SoftDPUError) {
    unsafe layer = UnsafeMutablePointer<Layer>.allocate(capacity: 1)
    unsafe layer.initialize(to: Layer(base: below.target, latencies: latencies))
    current = Mutex(latencies)
    try unsafe super.init(
      name: name, uuid: uuid, productName: "delay", below: below,
      submit: { io, core in
        unsafe DelayDevice.take(
          io.assumingMemoryBound(to: BlockIO.self), core.assumingMemoryBound(to: ReactorCore.self))
      }, layer: UnsafeMutableRawPointer(layer))
  }

  deinit { unsafe layer.deallocate() }

  /// Changes some of the latencies; false, with nothing changed, where they would contradict each other.
  func update(_ change: (inout DelayLatencies) -> Void) -> Bool {
    let changed = current.withLock { current -> DelayLatencies? in
      var latencies = current
      change(&latencies)
      guard latencies.isSound else { return nil }
      current = latencies
      return latencies
    }
    guard let changed else { return false }
    reactor.post { [self] in unsafe layer.pointee.latencies = changed }
    return true
  }

  // SAFETY: the layer's state is freed with the device, which its users keep; requests are counted by the target.

  private static func take(_ io: UnsafeMutablePointer<BlockIO>, _ core: UnsafeMutablePointer<ReactorCore>) {
    guard let raw = unsafe io.pointee.target.pointee.layer else { return unsafe finish(io, -ENXIO, core) }
    let layer = unsafe raw.assumingMemoryBound(to: Layer.self)
    if unsafe !descend(io, to: layer.pointee.base, done: answered, core) { unsafe finish(io, -ENOMEM, core) }
  }

  /// The device below has answered: what it said is kept until its time.
  private static let answered: BlockIO.Completion = { raw, result, core in
    let io = unsafe raw.assumingMemoryBound(to: BlockIO.self)
    let core = unsafe core.assumingMemoryBound(to: ReactorCore.self)
    guard let frame = unsafe io.pointee.frame, let raw = unsafe frame.pointee.target.pointee.layer else { return }
    let layer = unsafe raw.assumingMemoryBound(to: Layer.self)
    let delay: UInt64
    if unsafe io.pointee.kind == .read {
      unsafe layer.pointee.reads &+= 1
      delay =
        unsafe layer.pointee.reads % 100 == 0 ? layer.pointee.latencies.p99Read : layer.pointee.latencies.averageRead
    } else {
      unsafe layer.pointee.writes &+= 1
      delay =
        unsafe layer.pointee.writes % 100 == 0
        ? layer.pointee.latencies.p99Write : layer.pointee.latencies.averageWrite
    }
    unsafe frame.pointee.result = result
    unsafe core.pointee.schedule(at: clinux_monotonic_nanoseconds() &+ delay &* 1000, due, io)
  }

  private static let due: TimerQueue.Action = { raw, core in
    let io = unsafe raw.assumingMemoryBound(to: BlockIO.self)
    let core = unsafe core.assumingMemoryBound(to: ReactorCore.self)
    guard let frame = unsafe io.pointee.frame else { return }
    let result = unsafe frame.pointee.result
    unsafe pop(io, core)
    unsafe finish(io, result, core)
  }

  override var specifics: JSONValue { ["delay": parameters] }

  private var parameters: JSONValue {
    let latencies = current.withLock { $0 }
    return [
      "name": .string(name), "base_bdev_name": .string(base?.name ?? ""),
      "avg_read_latency": .integer(Int64(clamping: latencies.averageRead)),
      "p99_read_latency": .integer(Int64(clamping: latencies.p99Read)),
      "avg_write_latency": .integer(Int64(clamping: latencies.averageWrite)),
      "p99_write_latency": .integer(Int64(clamping: latencies.p99Write)),
    ]
  }

  override var creation: ConfigurationCall? {
    var parameters = self.parameters
    parameters["uuid"] = .string(uuid)
    return ConfigurationCall(method: "bdev_delay_create", parameters: parameters)
  }
}
