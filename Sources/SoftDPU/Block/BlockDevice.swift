import CLinux
import Glibc
import JSON
import Synchronization

/// A block device (SPDK's bdev): its name, its shape, who uses it, and the plain value that the hot path works on.
///
/// SAFETY: what does not change is constant; `target` is written by the reactor's thread only, once the device is in
/// use, and freed with the device, which everybody who holds the target's address keeps; the rest is behind a mutex.
@safe
class BlockDevice: @unchecked Sendable {
  /// A way out that shows the device, or a device above it.
  struct User: Sendable {
    /// For people: "vhost controller vda".
    var description: String
    /// Nobody else may open the device for writing.
    var isExclusive: Bool
    /// Called off the reactor's thread after the device's size has changed.
    var onResize: @Sendable (UInt64) -> Void
  }

  private struct State {
    var name: String
    var aliases: [String]
    var size: UInt64
    var limits = RateLimits()
    var users: [ObjectIdentifier: User] = [:]
  }

  let uuid: String
  /// What SPDK calls this kind of device.
  let productName: String
  let blockSize: UInt32
  /// The least length of a write that needs no reading, in bytes.
  let physicalBlockSize: UInt32
  let reactor: Reactor
  let target: UnsafeMutablePointer<BlockTarget>
  private let state: Mutex<State>

  init(
    name: String, aliases: [String] = [], uuid: String, productName: String, blockSize: UInt32,
    physicalBlockSize: UInt32, size: UInt64, reactor: Reactor, target: UnsafeMutablePointer<BlockTarget>
  ) {
    self.uuid = uuid
    self.productName = productName
    self.blockSize = blockSize
    self.physicalBlockSize = physicalBlockSize
    self.reactor = reactor
    unsafe self.target = unsafe target
    state = Mutex(State(name: name, aliases: aliases, size: size))
  }

  deinit {
    // On the reactor's thread: a timer may still name the target.
    let doomed = unsafe Doomed(target: target)
    let reactor = reactor
    let isPosted = reactor.post {
      unsafe reactor.core.pointee.timers.remove(context: doomed.target)
      unsafe BlockTarget.destroy(doomed.target)
    }
    if !isPosted { unsafe BlockTarget.destroy(doomed.target) }
  }

  /// A target that nobody uses any more, on its way to its end.
  @unsafe
  private struct Doomed: @unchecked Sendable {
    let target: UnsafeMutablePointer<BlockTarget>
  }

  // MARK: What there is

  var name: String { state.withLock { $0.name } }
  /// Other names, without the UUID.
  var aliases: [String] { state.withLock { $0.aliases } }
  /// Size in bytes, as clients are told.
  var size: UInt64 { state.withLock { $0.size } }
  var limits: RateLimits { state.withLock { $0.limits } }
  var isReadOnly: Bool { unsafe target.pointee.isReadOnly }
  /// The device whose requests this one changes.
  var base: BlockDevice? { nil }
  /// What SPDK's `driver_specific` has for this kind.
  var specifics: JSONValue { [:] }
  /// The call that makes the device again after a restart; nil where something else does.
  var creation: ConfigurationCall? { nil }

  func rename(_ name: String, aliases: [String]) {
    state.withLock { state in
      state.name = name
      state.aliases = aliases
    }
  }

  // MARK: Users

  var users: [User] { state.withLock { $0.users.values.sorted { $0.description < $1.description } } }

  /// Whether one user has the device for itself (SPDK's `claimed`).
  var isClaimed: Bool { state.withLock { $0.users.values.contains(where: \.isExclusive) } }

  /// Enters a user. EPERM where another has the device for itself, EBUSY where one that wants it for itself is late.
  func open(_ owner: AnyObject, _ user: User) throws(SoftDPUError) {
    let refusal = state.withLock { state -> (CInt, String)? in
      if let holder = state.users.values.first(where: \.isExclusive) { return (EPERM, holder.description) }
      if user.isExclusive, let holder = state.users.values.first { return (EPERM, holder.description) }
      state.users[ObjectIdentifier(owner)] = user
      return nil
    }
    guard let (code, holder) = refusal else { return }
    throw SoftDPUError(
      code: .system(code), operation: "open \(name) for \(user.description)", message: "\(holder) uses it")
  }

  func close(_ owner: AnyObject) { _ = state.withLock { $0.users.removeValue(forKey: ObjectIdentifier(owner)) } }

  // MARK: Changes

  /// Has requests and clients see another size, in bytes.
  func resize(_ size: UInt64) {
    let users = state.withLock { state in
      state.size = size
      return Array(state.users.values)
    }
    reactor.post { [self] in unsafe target.pointee.capacity = size }
    for user in users { user.onResize(size) }
  }

  /// Refuses writes that come after this call. Not on the reactor's thread.
  func makeReadOnly() {
    reactor.sync { [self] in
      unsafe target.pointee.isReadOnly = true
      unsafe target.pointee.canUnmap = false
      unsafe target.pointee.canWriteZeroes = false
    }
  }

  func setLimits(_ limits: RateLimits) {
    state.withLock { $0.limits = limits }
    reactor.post { [self] in applyLimits(limits) }
  }

  private func applyLimits(_ limits: RateLimits) {
    let now = clinux_monotonic_nanoseconds()
    if let limiter = unsafe target.pointee.limiter {
      unsafe limiter.pointee.set(limits, now: now)
    } else if !limits.isUnlimited {
      let limiter = UnsafeMutablePointer<RateLimiter>.allocate(capacity: 1)
      unsafe limiter.initialize(to: RateLimiter(limits, now: now))
      unsafe target.pointee.limiter = unsafe limiter
    }
    unsafe releaseWaiting(target, reactor.core)
  }

  /// What the device has done.
  var counters: IOCounters { reactor.sync { [self] in unsafe target.pointee.counters.pointee } }

  /// What several devices have done, with one question to each reactor however many they are.
  static func counters(of devices: [BlockDevice]) -> [IOCounters] {
    var counters = [IOCounters](repeating: IOCounters(), count: devices.count)
    for (_, indices) in Dictionary(grouping: devices.indices, by: { devices[$0].reactor.number }) {
      guard let first = indices.first else { continue }
      let values = devices[first].reactor.sync { indices.map { unsafe devices[$0].target.pointee.counters.pointee } }
      for (index, value) in zip(indices, values) { counters[index] = value }
    }
    return counters
  }

  func resetCounters() {
    reactor.sync { [self] in unsafe target.pointee.counters.pointee = IOCounters() }
  }
}
