import CLinux
import Dispatch
import Glibc
import Logging
import Synchronization

/// A remote NVMe subsystem (SPDK's bdev_nvme): its namespaces are block devices here, reached over one or several paths.
///
/// Requests wait while no path is there, are handed in again after a path broke, and fail when the time for that is
/// over. All of it happens on one reactor.
///
/// SAFETY: what does not change is constant; the rest is touched on the reactor's thread only, but for what stands
/// behind the mutex.
@safe
final class InitiatorController: @unchecked Sendable {
  /// How a subsystem is reached and what is done when it is not.
  struct Options: Sendable, Hashable {
    var hasHeaderDigest = false
    var hasDataDigest = false
    var ioQueues = 1
    var queueDepth = 128
    /// Seconds without any path until requests fail for good; -1 is never, 0 at once.
    var lossTimeout = 0
    /// Seconds between two attempts to reconnect.
    var reconnectDelay = 0
    /// Seconds without any path until requests fail, while attempts go on; 0 is `lossTimeout`.
    var fastFailTimeout = 0
    var keepAliveMilliseconds: UInt32 = 10_000
    /// One path at a time carries requests; the others are there for when it is lost.
    var isFailover = false
    /// How long it may take until a path is ready, in nanoseconds.
    var connectTime: UInt64 = 10_000_000_000
    /// The address and port that connections come from; nil and 0 for the system's choice.
    var sourceAddress: String?
    var sourcePort: UInt16 = 0
  }

  /// A namespace of the subsystem.
  struct Namespace: Sendable, Hashable {
    var id: UInt32
    var blocks: UInt64
    var blockSize: UInt32
    var uuid: String
    /// The target gave the UUID; otherwise it was made up here.
    var isIdentified: Bool
    var isReadOnly: Bool
    /// Where the paths count its requests.
    var tally = 0
  }

  let name: String
  let subsystemNQN: String
  let hostNQN: String
  /// Reactor's thread, but for what is read before the first path.
  private(set) var options: Options
  let reactor: Reactor
  let logger: Logger
  private let hostID: [UInt8]
  private let shown = Mutex<[InitiatorPath.Report]>([])
  private let failover: Mutex<Bool>
  /// Bytes that commands of its queues hold, all together. Reactor's thread.
  let held: UnsafeMutablePointer<Int>

  // Reactor's thread.
  private var paths: [InitiatorPath] = [] {
    didSet { unsafe ways = unsafe paths.map { unsafe Unmanaged.passUnretained($0) } }
  }
  /// `paths` for the hot path, which counts no references.
  private var ways: [Unmanaged<InitiatorPath>] = unsafe []
  private var nextPath = 0
  private var waitingFirst: UnsafeMutablePointer<BlockIO>?
  private var waitingLast: UnsafeMutablePointer<BlockIO>?
  /// Since when there is no path, in nanoseconds of the monotonic clock; 0 while there is one.
  private var lostSince: UInt64 = 0
  private(set) var isEnded = false
  /// What the namespaces were when they were seen first.
  private var known: [UInt32: Namespace] = [:]
  /// Namespaces in the order in which they were seen.
  private var tallies: [UInt32: Int] = [:]
  private var onNamespaces: @Sendable ([Namespace]) -> Void = { _ in }

  init(
    name: String, subsystemNQN: String, hostNQN: String, hostID: [UInt8], options: Options, reactor: Reactor,
    logger: Logger
  ) {
    self.name = name
    self.subsystemNQN = subsystemNQN
    self.hostNQN = hostNQN
    self.hostID = hostID
    self.options = options
    failover = Mutex(options.isFailover)
    unsafe held = .allocate(capacity: 1)
    unsafe held.initialize(to: 0)
    self.reactor = reactor
    var logger = logger
    logger[metadataKey: "nvme"] = "\(name)"
    self.logger = logger
    unsafe waitingFirst = nil
    unsafe waitingLast = nil
  }

  deinit { unsafe held.deallocate() }

  /// Whether one path at a time carries requests. Any thread.
  var isFailover: Bool { failover.withLock { $0 } }

  /// What is known of the paths. Any thread.
  var reports: [InitiatorPath.Report] { shown.withLock { $0 } }

  /// Connects a path; `done` gets the error number of a first attempt that failed, or the namespaces.
  func connect(
    _ place: NVMfTarget.ListenAddress, _ done: @escaping @Sendable (Result<[Namespace], SoftDPUError>) -> Void
  ) {
    reactor.post { [self] in
      let path = InitiatorPath(place: place, controller: self, hostID: hostID)
      paths.append(path)
      path.start { [self] result in
        if case .failure = result { remove(path) }
        done(result)
      }
      report()
    }
  }

  /// Connects a path again that was given up, with times that may be others than before. `done` as for `connect`; ENODEV
  /// where there is no such path any more.
  func restart(
    _ place: NVMfTarget.ListenAddress, _ options: Options,
    _ done: @escaping @Sendable (Result<[Namespace], SoftDPUError>) -> Void
  ) {
    reactor.post { [self] in
      guard let path = paths.first(where: { $0.place == place && $0.isGivenUp }) else {
        return done(.failure(.system(ENODEV, "connect to \(place.address):\(place.port)")))
      }
      self.options = options
      failover.withLock { $0 = options.isFailover }
      path.start(done)
      report()
    }
  }

  /// Has one path at a time carry requests, from now on.
  func useOnePath() {
    failover.withLock { $0 = true }
    reactor.post { [self] in options.isFailover = true }
  }

  /// Has `body` called with all namespaces whenever one of them has changed. Any thread.
  func watch(_ body: @escaping @Sendable ([Namespace]) -> Void) {
    reactor.post { [self] in onNamespaces = body }
  }

  func tell(_ namespaces: [Namespace]) { onNamespaces(namespaces) }

  /// A namespace that is another one than it was, here or over another path: its content is not what its users wrote.
  func stranger(among namespaces: [Namespace]) -> UInt32? {
    for namespace in namespaces {
      guard let before = known[namespace.id] else {
        known[namespace.id] = namespace
        continue
      }
      let isSame = !before.isIdentified || !namespace.isIdentified || before.uuid == namespace.uuid
      guard isSame, before.blockSize == namespace.blockSize else { return namespace.id }
    }
    return nil
  }

  /// The number that a namespace is counted under.
  func tally(of namespace: UInt32) -> Int {
    if let tally = tallies[namespace] { return tally }
    tallies[namespace] = tallies.count
    return tallies.count - 1
  }

  /// What has been done over each path for a namespace that is counted under `tally`. Not on the reactor's thread.
  func statistics(of tally: Int) -> [(place: NVMfTarget.ListenAddress, counters: IOCounters)] {
    reactor.sync { [self] in paths.map { ($0.place, $0.counters(of: tally)) } }
  }

  // MARK: Reset

  /// Connects paths anew, one after the other, so that the others carry the requests meanwhile; what a path has under way
  /// is handed in again.
  ///
  /// - Parameters:
  ///   - id: the controller whose path it is to be; nil for all.
  ///   - done: gets ENODEV where there is none, EBUSY where a path is just being connected, or why it could not be.
  func reset(controllerID id: UInt16?, _ done: @escaping @Sendable (Result<Void, SoftDPUError>) -> Void) {
    reactor.post { [self] in
      let chosen = paths.filter { id == nil || $0.isReady && $0.report.controllerID == id }
      guard !chosen.isEmpty, !isEnded else { return done(.failure(.system(ENODEV, "reset \(name)"))) }
      reset(chosen[...], done)
    }
  }

  private func reset(
    _ chosen: ArraySlice<InitiatorPath>, _ done: @escaping @Sendable (Result<Void, SoftDPUError>) -> Void
  ) {
    guard let path = chosen.first else { return done(.success(())) }
    path.reset { [self] error in
      if let error { done(.failure(error)) } else { reset(chosen.dropFirst(), done) }
    }
  }

  /// Takes a path away. Its requests go to another one, or wait.
  func disconnect(_ place: NVMfTarget.ListenAddress) {
    reactor.post { [self] in
      for path in paths where path.place == place { remove(path) }
    }
  }

  private func remove(_ path: InitiatorPath) {
    paths.removeAll { $0 === path }
    path.end()
    pathChanged()
  }

  /// Ends everything: what waits fails.
  func end(then: @escaping @Sendable () -> Void) {
    reactor.post { [self] in
      isEnded = true
      unsafe reactor.core.pointee.timers.remove(context: Unmanaged.passUnretained(self).toOpaque())
      for path in paths { path.end() }
      paths = []
      failWaiting(-ENXIO)
      report()
      then()
    }
  }

  func report() {
    let reports = paths.map(\.report)
    shown.withLock { $0 = reports }
  }

  // MARK: Requests

  /// Takes a request of one of the namespaces.
  func submit(_ io: UnsafeMutablePointer<BlockIO>, _ core: UnsafeMutablePointer<ReactorCore>) {
    unsafe io.pointee.retries = 0
    unsafe submitAgain(io, core)
  }

  func submitAgain(_ io: UnsafeMutablePointer<BlockIO>, _ core: UnsafeMutablePointer<ReactorCore>) {
    if isEnded || hasGivenUp { return unsafe finish(io, -EIO, core) }
    if unsafe waitingFirst == nil, unsafe dispatchToPath(io) { return }
    unsafe io.pointee.next = nil
    if let last = unsafe waitingLast {
      unsafe last.pointee.next = unsafe io
    } else {
      unsafe waitingFirst = unsafe io
    }
    unsafe waitingLast = unsafe io
  }

  private func dispatchToPath(_ io: UnsafeMutablePointer<BlockIO>) -> Bool {
    let count = unsafe ways.count
    guard !options.isFailover else { return unsafe dispatchToOne(io) }
    for isLast in [false, true] {
      for _ in 0..<count {
        nextPath = nextPath + 1 < count ? nextPath + 1 : 0
        // One that has just refused a request is the last to be asked.
        if unsafe ways[nextPath]._withUnsafeGuaranteedRef({ unsafe ($0.isShunned == isLast) && $0.take(io) }) {
          return true
        }
      }
    }
    return false
  }

  /// The path that carries requests stays the same as long as it is there.
  private func dispatchToOne(_ io: UnsafeMutablePointer<BlockIO>) -> Bool {
    let count = unsafe ways.count
    for isLast in [false, true] {
      for step in 0..<count {
        let index = (nextPath + step) % count
        guard unsafe ways[index]._withUnsafeGuaranteedRef({ $0.isReady && $0.isShunned == isLast }) else { continue }
        nextPath = index
        return unsafe ways[index]._withUnsafeGuaranteedRef { unsafe $0.take(io) }
      }
    }
    return false
  }

  /// Hands a request in again after a while, which a target has refused for now.
  func submitLater(_ io: UnsafeMutablePointer<BlockIO>, after nanoseconds: UInt64) {
    unsafe reactor.core.pointee.schedule(
      at: clinux_monotonic_nanoseconds() &+ nanoseconds,
      { raw, core in
        let io = unsafe raw.assumingMemoryBound(to: BlockIO.self)
        let core = unsafe core.assumingMemoryBound(to: ReactorCore.self)
        guard let raw = unsafe io.pointee.target.pointee.layer else { return unsafe finish(io, -ENXIO, core) }
        let layer = unsafe raw.assumingMemoryBound(to: NVMeDevice.Layer.self)
        unsafe layer.pointee.controller._withUnsafeGuaranteedRef { unsafe $0.submitAgain(io, core) }
      }, io)
  }

  /// Whether another path than this one can take requests.
  func hasOther(than path: InitiatorPath) -> Bool { paths.contains { $0 !== path && $0.isReady && !$0.isShunned } }

  /// Hands in what waits, as far as there is room.
  func serveWaiting() {
    guard unsafe waitingFirst != nil else { return }
    let now = clinux_monotonic_nanoseconds()
    while let io = unsafe waitingFirst {
      // Taken out first: where there is no memory for the command, the request ends at once, which leads here again.
      unsafe waitingFirst = unsafe io.pointee.next
      if unsafe waitingFirst == nil { unsafe waitingLast = nil }
      unsafe io.pointee.admitted = now
      guard unsafe dispatchToPath(io) else { return unsafe takeBack([io]) }
    }
  }

  /// Puts requests of a path that broke before all others.
  func takeBack(_ requests: [UnsafeMutablePointer<BlockIO>]) {
    for index in unsafe requests.indices.reversed() {
      let io = unsafe requests[index]
      unsafe io.pointee.next = unsafe waitingFirst
      if unsafe waitingFirst == nil { unsafe waitingLast = unsafe io }
      unsafe waitingFirst = unsafe io
    }
  }

  private func failWaiting(_ error: CInt) {
    var next = unsafe waitingFirst
    unsafe waitingFirst = nil
    unsafe waitingLast = nil
    while let io = unsafe next {
      unsafe next = unsafe io.pointee.next
      unsafe io.pointee.next = nil
      unsafe finish(io, error, reactor.core)
    }
  }

  // MARK: Loss

  var hasPath: Bool { paths.contains(where: \.isReady) }

  private var hasGivenUp: Bool {
    guard lostSince > 0, !hasPath else { return false }
    guard let limit = failTime else { return false }
    return clinux_monotonic_nanoseconds() &- lostSince >= limit
  }

  /// How long requests wait for a path, in nanoseconds; nil is for ever.
  private var failTime: UInt64? {
    let seconds = options.fastFailTimeout > 0 ? options.fastFailTimeout : options.lossTimeout
    return seconds < 0 ? nil : UInt64(seconds) * 1_000_000_000
  }

  /// A path came or went.
  func pathChanged() {
    report()
    if hasPath {
      lostSince = 0
      serveWaiting()
      return
    }
    guard lostSince == 0, !isEnded else { return }
    lostSince = clinux_monotonic_nanoseconds()
    guard let limit = failTime else { return }
    unsafe reactor.core.pointee.schedule(
      at: lostSince &+ limit,
      { controller, _ in
        unsafe Unmanaged<InitiatorController>.fromOpaque(controller)._withUnsafeGuaranteedRef { controller in
          if controller.hasGivenUp { controller.failWaiting(-EIO) }
        }
      }, Unmanaged.passUnretained(self).toOpaque())
  }

  /// Whether a path that is lost is tried again: seconds from now, or nil.
  func retryDelay(lostFor nanoseconds: UInt64) -> Int? {
    guard options.reconnectDelay > 0, !isEnded else { return nil }
    guard options.lossTimeout < 0 || nanoseconds < UInt64(options.lossTimeout) * 1_000_000_000 else { return nil }
    return options.reconnectDelay
  }
}
