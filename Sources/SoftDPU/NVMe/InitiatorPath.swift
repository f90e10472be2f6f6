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
  private unowned let controller: InitiatorController
  private let owner: Unmanaged<InitiatorController>
  private let core: UnsafeMutablePointer<ReactorCore>
  private let hostID: [UInt8]
  private var admin: HostQueue?
  private var queues: [HostQueue] = []
  /// Of `queues`, in their order.
  private var states: [UnsafeMutablePointer<HostQueueState>] = unsafe []
  private var connected = 0
  private var state = State.connecting
  private var controllerID: UInt16 = 0
  private var maximumTransfer = 131_072
  private var inCapsuleLength = 0
  private var hasWriteZeroes = true
  private var namespaces: [InitiatorController.Namespace] = []
  private var shifts: [UInt32: UInt64] = [:]
  private var onFirst: ((Result<[InitiatorController.Namespace], SoftDPUError>) -> Void)?
  /// Wants to know how a reset ends.
  private var onReset: ((SoftDPUError?) -> Void)?
  /// What was done over this path: an entry for each namespace that was seen.
  private var counters: UnsafeMutableBufferPointer<IOCounters>
  private var lostAt: UInt64 = 0
  private var answersKeepAlive = true
  private var isEnded = false
  /// Tells callbacks of an earlier connection from those of this one.
  private var generation = 0

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
  private var shunnedUntil: UInt64 = 0
  /// How many entries an I/O queue has.
  private var depth = 128
  var report: Report {
    Report(
      place: place, state: state.rawValue, controllerID: controllerID, source: controller.options.sourceAddress ?? "")
  }
  private var context: UnsafeMutableRawPointer { unsafe Unmanaged.passUnretained(self).toOpaque() }

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

  private func reserveCounters(_ count: Int) {
    guard unsafe count > counters.count else { return }
    let larger = UnsafeMutableBufferPointer<IOCounters>.allocate(capacity: count)
    unsafe larger.initialize(repeating: IOCounters())
    for index in unsafe counters.indices { unsafe larger[index] = unsafe counters[index] }
    unsafe counters.deallocate()
    unsafe counters = unsafe larger
  }

  // MARK: Requests

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

  // MARK: Connecting

  private func connect() {
    guard !isEnded else { return }
    generation += 1
    let generation = generation
    state = onFirst == nil ? .reconnecting : .connecting
    connected = 0
    guard let admin = makeQueue(depth: 32) else { return lose("no socket", error: EMFILE) }
    self.admin = admin
    admin.onInitialized = { [weak self] in self?.connectAdmin(generation) }
    admin.start()
    unsafe core.pointee.schedule(
      at: clinux_monotonic_nanoseconds() &+ controller.options.connectTime,
      { path, _ in
        unsafe Unmanaged<InitiatorPath>.fromOpaque(path)._withUnsafeGuaranteedRef { path in
          if path.state == .connecting || path.state == .reconnecting, path.admin != nil {
            path.lose("not ready in time", error: ETIMEDOUT)
          }
        }
      }, context)
  }

  private func makeQueue(depth: Int) -> HostQueue? {
    let options = controller.options
    let fd: CInt
    if let source = options.sourceAddress {
      fd = unsafe clinux_tcp_connect_from(source, options.sourcePort, place.address, place.port)
    } else {
      fd = unsafe clinux_tcp_connect(place.address, place.port)
    }
    guard fd >= 0 else { return nil }
    clinux_tune_tcp(fd)
    // A write that the kernel still holds when the path is given up will be sent by another one, and answered: it must
    // not arrive once more, over what was written since, when the network is back.
    clinux_discard_on_close(fd)
    let queue = HostQueue(
      fd: fd, reactor: controller.reactor, depth: depth, controller: controller,
      hasHeaderDigest: controller.options.hasHeaderDigest,
      hasDataDigest: controller.options.hasDataDigest)
    let generation = generation
    queue.onLost = { [weak self] reason in
      guard let self, self.generation == generation else { return }
      lose(reason, error: ECONNREFUSED)
    }
    queue.path = self
    return queue
  }

  private static func fabrics(_ type: UInt8) -> [UInt8] {
    var command = [UInt8](repeating: 0, count: 64)
    command[0] = NVMe.Admin.fabrics
    command[4] = type
    return command
  }

  private func connectCommand(queue: UInt16, depth: Int) -> (command: [UInt8], data: [UInt8]) {
    var command = LittleEndianPage(64)
    command.set(InitiatorPath.fabrics(NVMe.Fabrics.connect), at: 0)
    command.set(queue, at: 42)
    command.set(UInt16(depth - 1), at: 44)
    command.set(queue == 0 ? controller.options.keepAliveMilliseconds : 0, at: 48)
    var data = LittleEndianPage(1024)
    data.set(hostID, at: 0)
    data.set(queue == 0 ? UInt16(0xFFFF) : controllerID, at: 16)
    data.set(controller.subsystemNQN, at: 256, width: 256, filler: 0)
    data.set(controller.hostNQN, at: 512, width: 256, filler: 0)
    return (command.bytes, data.bytes)
  }

  /// Sends an admin command of this connection; a failure ends the path.
  private func ask(
    _ step: String, _ command: [UInt8], output: [UInt8] = [], input: Int = 0,
    then: @escaping (UInt32, UInt32, [UInt8]) -> Void
  ) {
    let generation = generation
    admin?.command(command, output: output, input: input) { [weak self] status, word0, word1, bytes in
      guard let self, self.generation == generation else { return }
      guard status & 0x7FF == NVMe.Status.success else {
        return lose("\(step): status \(String(status & 0x7FF, radix: 16))", error: EIO)
      }
      then(word0, word1, bytes)
    }
  }

  private func connectAdmin(_ generation: Int) {
    guard self.generation == generation else { return }
    let (command, data) = connectCommand(queue: 0, depth: 32)
    ask("connect", command, output: data) { [self] word0, _, _ in
      controllerID = UInt16(truncatingIfNeeded: word0)
      readCapabilities()
    }
  }

  /// How long queues may be (CAP.MQES, a number that is one less).
  private func readCapabilities() {
    var get = LittleEndianPage(64)
    get.set(InitiatorPath.fabrics(NVMe.Fabrics.propertyGet), at: 0)
    get.set(UInt8(1), at: 40)  // 8 bytes
    get.set(NVMe.Property.capabilities, at: 44)
    ask("read the capabilities", get.bytes) { [self] word0, _, _ in
      depth = min(controller.options.queueDepth, Int(word0 & 0xFFFF) + 1)
      guard depth >= 2 else { return lose("queues of \(depth) entries") }
      enable()
    }
  }

  private func enable() {
    var enable = LittleEndianPage(64)
    enable.set(InitiatorPath.fabrics(NVMe.Fabrics.propertySet), at: 0)
    enable.set(NVMe.Property.configuration, at: 44)
    // Enabled; entries of 64 and 16 bytes.
    enable.set(UInt64(1 | 6 << 16 | 4 << 20), at: 48)
    ask("enable", enable.bytes) { [self] _, _, _ in waitUntilReady() }
  }

  private func waitUntilReady() {
    var get = LittleEndianPage(64)
    get.set(InitiatorPath.fabrics(NVMe.Fabrics.propertyGet), at: 0)
    get.set(NVMe.Property.status, at: 44)
    ask("read the status", get.bytes) { [self] word0, _, _ in
      guard word0 & 1 != 0 else { return lose("the controller is not ready", error: EIO) }
      identify()
    }
  }

  private static func identifyCommand(_ selector: UInt32, _ namespace: UInt32) -> [UInt8] {
    var command = LittleEndianPage(64)
    command.set(NVMe.Admin.identify, at: 0)
    command.set(namespace, at: 4)
    command.set(selector, at: 40)
    return command.bytes
  }

  private func identify() {
    ask("identify", InitiatorPath.identifyCommand(1, 0), input: 4096) { [self] _, _, page in
      let shift = Int(page[77])
      maximumTransfer = shift == 0 || shift > 8 ? 1 << 20 : 4096 << shift
      let capsule = Int(page[1792]) | Int(page[1793]) << 8 | Int(page[1794]) << 16
      inCapsuleLength = max(0, min(capsule * 16 - 64, 65536))
      hasWriteZeroes = page[520] & 1 << 3 != 0
      var features = LittleEndianPage(64)
      features.set(NVMe.Admin.setFeatures, at: 0)
      features.set(UInt32(NVMe.Feature.numberOfQueues), at: 40)
      let wanted = UInt32(controller.options.ioQueues - 1)
      features.set(wanted | wanted << 16, at: 44)
      ask("ask for queues", features.bytes) { [self] word0, _, _ in
        let granted = Int(min(word0 & 0xFFFF, word0 >> 16)) + 1
        listNamespaces { [self] in connectQueues(min(granted, controller.options.ioQueues)) }
      }
    }
  }

  private func listNamespaces(_ then: @escaping () -> Void) {
    ask("list namespaces", InitiatorPath.identifyCommand(2, 0), input: 4096) { [self] _, _, page in
      var ids: [UInt32] = []
      for index in 0..<1024 {
        let id = (0..<4).reversed().reduce(UInt32(0)) { $0 << 8 | UInt32(page[4 * index + $1]) }
        if id == 0 { break }
        ids.append(id)
      }
      namespaces = []
      identifyNamespaces(ids[...], then)
    }
  }

  private func identifyNamespaces(_ ids: ArraySlice<UInt32>, _ then: @escaping () -> Void) {
    guard let id = ids.first else { return then() }
    ask("identify namespace \(id)", InitiatorPath.identifyCommand(0, id), input: 4096) { [self] _, _, page in
      ask("describe namespace \(id)", InitiatorPath.identifyCommand(3, id), input: 4096) { [self] _, _, names in
        if var namespace = InitiatorPath.namespace(id, page, names) {
          namespace.tally = controller.tally(of: id)
          reserveCounters(namespace.tally + 1)
          namespaces.append(namespace)
        } else {
          controller.logger.warning("a namespace of a format that is not known", metadata: ["nsid": "\(id)"])
        }
        identifyNamespaces(ids.dropFirst(), then)
      }
    }
  }

  /// Reads what a target says of a namespace; nil where that makes no sense.
  static func namespace(_ id: UInt32, _ page: [UInt8], _ names: [UInt8]) -> InitiatorController.Namespace? {
    let blocks = (0..<8).reversed().reduce(UInt64(0)) { $0 << 8 | UInt64(page[$1]) }
    let format = 128 + 4 * Int(page[26] & 15)
    let shift = page[format + 2]
    let metadata = UInt16(page[format]) | UInt16(page[format + 1]) << 8
    guard (9...16).contains(shift), metadata == 0, blocks > 0, blocks <= UInt64.max >> 20 else { return nil }
    var uuid = Array(page[104..<120])
    var offset = 0
    while offset + 4 <= names.count, names[offset] != 0 {
      let length = Int(names[offset + 1])
      guard offset + 4 + length <= names.count else { break }
      if names[offset] == 3, length == 16 { uuid = Array(names[offset + 4..<offset + 20]) }
      offset += 4 + length
    }
    let isIdentified = uuid.contains { $0 != 0 }
    return InitiatorController.Namespace(
      id: id, blocks: blocks, blockSize: 1 << UInt32(shift),
      uuid: isIdentified ? UniqueID.format(uuid) : UniqueID.random(), isIdentified: isIdentified,
      isReadOnly: page[99] & 1 != 0)
  }

  private func connectQueues(_ count: Int) {
    let generation = generation
    let depth = depth
    for number in 1...count {
      guard let queue = makeQueue(depth: depth) else { return lose("no socket", error: EMFILE) }
      queues.append(queue)
      unsafe states.append(queue.state)
      queue.onInitialized = { [weak self, weak queue] in
        guard let self, let queue, self.generation == generation else { return }
        unsafe queue.state.pointee.inCapsuleLength = inCapsuleLength
        let (command, data) = connectCommand(queue: UInt16(number), depth: depth)
        queue.command(command, output: data) { [weak self] status, _, _, _ in
          guard let self, self.generation == generation else { return }
          guard status & 0x7FF == NVMe.Status.success else {
            return lose("connect queue \(number): status \(String(status & 0x7FF, radix: 16))", error: EIO)
          }
          connected += 1
          if connected == count { ready() }
        }
      }
      queue.start()
    }
  }

  /// Ends the path where a namespace is another one than it was; false then.
  private func recognizesNamespaces() -> Bool {
    guard let stranger = controller.stranger(among: namespaces) else { return true }
    lose("namespace \(stranger) is another one than before")
    return false
  }

  private func ready() {
    guard recognizesNamespaces() else { return }
    state = .enabled
    unsafe core.pointee.timers.remove(context: context)
    controller.logger.info("connected", metadata: ["address": "\(place.address):\(place.port)"])
    lostAt = 0
    answersKeepAlive = true
    scheduleKeepAlive()
    watchEvents()
    let first = onFirst
    onFirst = nil
    first?(.success(namespaces))
    if first == nil { controller.tell(namespaces) }
    controller.pathChanged()
    let reset = onReset
    onReset = nil
    reset?(nil)
  }

  // MARK: While connected

  private func scheduleKeepAlive() {
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
  private func watchEvents() {
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
  private func lose(_ reason: String, error: CInt = EIO) {
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
