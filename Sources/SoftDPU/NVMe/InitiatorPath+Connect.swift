import CLinux
import Glibc
import Logging

/// How a path comes to be: queues, the controller's properties, and what it has.
extension InitiatorPath {
  func connect() {
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
  func ask(
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

  func listNamespaces(_ then: @escaping () -> Void) {
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
  func recognizesNamespaces() -> Bool {
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
}
