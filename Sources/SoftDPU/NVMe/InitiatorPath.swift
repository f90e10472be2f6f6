import CLinux
import Glibc
import Logging

/// One way to a remote subsystem: an admin queue and I/O queues at one address, connected again after they broke.
///
/// SAFETY: the controller's reactor only. What the hot path has without counting references is kept by others: the
/// controller by the devices whose requests are under way, the queues' states by `queues`.
@safe
final class InitiatorPath {
  enum State: String, Sendable { case connecting, enabled, reconnecting, failed }

  /// What clients are told.
  struct Report: Sendable, Hashable {
    var place: NVMfTarget.ListenAddress
    var state: String
    var controllerID: UInt16
    /// The address that its connections come from, where one was chosen.
    var source: String
  }

  let place: NVMfTarget.ListenAddress
  unowned let controller: InitiatorController
  let owner: Unmanaged<InitiatorController>
  let core: UnsafeMutablePointer<ReactorCore>
  let hostID: [UInt8]
  var admin: HostQueue?
  var queues: [HostQueue] = []
  /// Of `queues`, in their order.
  var states: [UnsafeMutablePointer<HostQueueState>] = unsafe []
  var connected = 0
  var state = State.connecting
  var controllerID: UInt16 = 0
  var maximumTransfer = 131_072
  var inCapsuleLength = 0
  var hasWriteZeroes = true
  var namespaces: [InitiatorController.Namespace] = []
  private var shifts: [UInt32: UInt64] = [:]
  var onFirst: ((Result<[InitiatorController.Namespace], SoftDPUError>) -> Void)?
  /// Wants to know how a reset ends.
  var onReset: ((SoftDPUError?) -> Void)?
  /// What was done over this path: an entry for each namespace that was seen.
  var counters: UnsafeMutableBufferPointer<IOCounters>
  var lostAt: UInt64 = 0
  var answersKeepAlive = true
  var isEnded = false
  /// Tells callbacks of an earlier connection from those of this one.
  var generation = 0

  init(place: NVMfTarget.ListenAddress, controller: InitiatorController, hostID: [UInt8]) {
    self.place = place
    self.controller = controller
    unsafe owner = unsafe Unmanaged.passUnretained(controller)
    unsafe core = unsafe controller.reactor.core
    self.hostID = hostID
    unsafe counters = .allocate(capacity: 0)
  }

  deinit { unsafe counters.deallocate() }

  var isReady: Bool { state == .enabled }
  /// Nobody tries to connect it any more.
  var isGivenUp: Bool { state == .failed }
  /// It has just refused a request that another path may take.
  var isShunned: Bool { unsafe shunnedUntil > core.pointee.now }
  var shunnedUntil: UInt64 = 0
  /// How many entries an I/O queue has.
  var depth = 128
  var report: Report {
    Report(
      place: place, state: state.rawValue, controllerID: controllerID, source: controller.options.sourceAddress ?? "")
  }
  var context: UnsafeMutableRawPointer { unsafe Unmanaged.passUnretained(self).toOpaque() }

  func start(_ done: @escaping (Result<[InitiatorController.Namespace], SoftDPUError>) -> Void) {
    onFirst = done
    connect()
  }

  /// Connects anew, whatever state the path is in. `done` gets EBUSY where it is just being connected, or why it failed:
  /// then it is as after a loss.
  func reset(_ done: @escaping (SoftDPUError?) -> Void) {
    guard !isEnded, onReset == nil, onFirst == nil, admin == nil || isReady else {
      return done(.system(EBUSY, "reset the path to \(place.address):\(place.port)"))
    }
    controller.logger.info("resetting a path", metadata: ["address": "\(place.address):\(place.port)"])
    onReset = done
    takeDown("reset")
    connect()
    controller.report()
  }

  func end() {
    isEnded = true
    lose("the path is taken away")
    unsafe core.pointee.timers.remove(context: context)
  }

  // MARK: Counting

  func counters(of tally: Int) -> IOCounters {
    unsafe counters.indices.contains(tally) ? counters[tally] : IOCounters()
  }

  func reserveCounters(_ count: Int) {
    guard unsafe count > counters.count else { return }
    let larger = UnsafeMutableBufferPointer<IOCounters>.allocate(capacity: count)
    unsafe larger.initialize(repeating: IOCounters())
    for index in unsafe counters.indices { unsafe larger[index] = unsafe counters[index] }
    unsafe counters.deallocate()
    unsafe counters = unsafe larger
  }

  // MARK: While connected

  func scheduleKeepAlive() {
    let interval = UInt64(controller.options.keepAliveMilliseconds) * 1_000_000 / 2
    unsafe core.pointee.schedule(
      at: clinux_monotonic_nanoseconds() &+ interval,
      { path, _ in
        unsafe Unmanaged<InitiatorPath>.fromOpaque(path)._withUnsafeGuaranteedRef { $0.keepAlive() }
      }, context)
  }

  private func keepAlive() {
    guard state == .enabled else { return }
    guard answersKeepAlive else { return lose("no answer to a keep-alive", error: ETIMEDOUT) }
    answersKeepAlive = false
    var command = LittleEndianPage(64)
    command.set(NVMe.Admin.keepAlive, at: 0)
    ask("keep alive", command.bytes) { [self] _, _, _ in answersKeepAlive = true }
    scheduleKeepAlive()
  }

  /// Has the target tell when namespaces change.
  func watchEvents() {
    var features = LittleEndianPage(64)
    features.set(NVMe.Admin.setFeatures, at: 0)
    features.set(UInt32(NVMe.Feature.asyncEventConfiguration), at: 40)
    features.set(UInt32(1 << 8), at: 44)
    ask("ask for events", features.bytes) { [self] _, _, _ in requestEvent() }
  }

  private func requestEvent() {
    var command = LittleEndianPage(64)
    command.set(NVMe.Admin.asyncEventRequest, at: 0)
    ask("wait for events", command.bytes) { [self] word0, _, _ in
      guard word0 & 7 == 2, word0 >> 16 & 0xFF == UInt32(NVMe.LogPage.changedNamespaces) else { return requestEvent() }
      var log = LittleEndianPage(64)
      log.set(NVMe.Admin.getLogPage, at: 0)
      log.set(NVMe.allNamespaces, at: 4)
      log.set(UInt32(NVMe.LogPage.changedNamespaces) | 1023 << 16, at: 40)
      ask("read what changed", log.bytes, input: 4096) { [self] _, _, _ in
        listNamespaces { [self] in
          guard recognizesNamespaces() else { return }
          controller.tell(namespaces)
          requestEvent()
        }
      }
    }
  }

  // MARK: Loss

  /// Ends the connections, gives the requests back, and tries again where that is wanted.
  func lose(_ reason: String, error: CInt = EIO) {
    guard state != .failed || isEnded else { return }
    let wasReady = state == .enabled
    if !isEnded {
      controller.logger.warning(
        "path lost", metadata: ["address": "\(place.address):\(place.port)", "reason": "\(reason)"])
    }
    takeDown(reason)
    let failure = SoftDPUError(
      code: .system(error == ETIMEDOUT ? ETIMEDOUT : EIO), operation: "connect to \(place.address):\(place.port)",
      message: reason)
    if let first = onFirst {
      onFirst = nil
      controller.report()
      return first(.failure(failure))
    }
    let reset = onReset
    onReset = nil
    defer { reset?(failure) }
    let now = clinux_monotonic_nanoseconds()
    if wasReady || lostAt == 0 { lostAt = now }
    controller.pathChanged()
    guard !isEnded, let delay = controller.retryDelay(lostFor: now &- lostAt) else { return }
    state = .reconnecting
    controller.report()
    unsafe core.pointee.schedule(
      at: now &+ UInt64(delay) * 1_000_000_000,
      { path, _ in unsafe Unmanaged<InitiatorPath>.fromOpaque(path)._withUnsafeGuaranteedRef { $0.connect() } },
      context)
  }

  /// Ends the connections, and gives the requests back.
  private func takeDown(_ reason: String) {
    generation += 1
    unsafe core.pointee.timers.remove(context: context)
    state = .failed
    var requests: [UnsafeMutablePointer<BlockIO>] = unsafe []
    for queue in queues {
      unsafe requests += queue.takeRequests()
      queue.close(reason)
    }
    admin?.close(reason)
    admin = nil
    queues = []
    unsafe states = unsafe []
    unsafe controller.takeBack(requests)
  }
}
