import CLinux
import Glibc

/// A vhost-user-blk front end: what QEMU is to a target, without a guest. One thread.
///
/// Its wire format is written out here once more, on purpose: tests of the target must not share its mistakes.
public final class VhostFrontend {
  public enum Message {
    public static let getFeatures: UInt32 = 1
    public static let setFeatures: UInt32 = 2
    public static let setOwner: UInt32 = 3
    public static let setMemTable: UInt32 = 5
    public static let setVringNum: UInt32 = 8
    public static let setVringAddr: UInt32 = 9
    public static let setVringBase: UInt32 = 10
    public static let getVringBase: UInt32 = 11
    public static let setVringKick: UInt32 = 12
    public static let setVringCall: UInt32 = 13
    public static let getProtocolFeatures: UInt32 = 15
    public static let setProtocolFeatures: UInt32 = 16
    public static let getQueueNum: UInt32 = 17
    public static let setVringEnable: UInt32 = 18
    public static let setBackendReqFD: UInt32 = 21
    public static let getConfig: UInt32 = 24
    public static let getInflightFD: UInt32 = 31
    public static let setInflightFD: UInt32 = 32
  }

  public static let readType: UInt32 = 0
  public static let writeType: UInt32 = 1
  public static let flushType: UInt32 = 4
  public static let identityType: UInt32 = 8
  public static let discardType: UInt32 = 11
  public static let writeZeroesType: UInt32 = 13

  public let path: String
  public let ram: GuestRAM
  public let queues: [FrontendQueue]
  /// The connection; -1 while there is none.
  public private(set) var socket: CInt = -1
  public private(set) var features: UInt64 = 0
  public private(set) var protocolFeatures: UInt64 = 0
  /// This side's end of the channel on which the target sends.
  public private(set) var backendChannel: CInt = -1
  private var inflight: (fd: CInt, length: UInt64)?

  public init(path: String, queues count: Int = 1, queueSize: UInt16 = 128, slotLength: Int = 65536) throws {
    self.path = path
    let length = FrontendQueue.length(size: queueSize, slots: Int(queueSize) / 3, slotLength: slotLength)
    let ram = try GuestRAM(length: length * count)
    self.ram = ram
    queues = try (0..<count).map {
      try FrontendQueue(index: $0, size: queueSize, slotLength: slotLength, ram: ram, offset: $0 * length)
    }
  }

  deinit {
    disconnect()
    if let inflight { close(inflight.fd) }
  }

  /// Drops the connection as a process that dies does: nothing is said.
  public func disconnect() {
    if socket >= 0 { close(socket) }
    if backendChannel >= 0 { close(backendChannel) }
    socket = -1
    backendChannel = -1
  }

  // MARK: Set-up

  /// Connects, waiting for a target for as long as `milliseconds`.
  public func connect(milliseconds: Int = 5000) throws {
    let deadline = clinux_monotonic_nanoseconds() + UInt64(milliseconds) * 1_000_000
    while true {
      socket = Glibc.socket(AF_UNIX, CInt(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
      var address = sockaddr_un()
      address.sun_family = sa_family_t(AF_UNIX)
      let bytes = Array(path.utf8)
      guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else { throw FrontendError("path too long") }
      withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
      let result = withUnsafePointer(to: &address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          Glibc.connect(socket, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
        }
      }
      if result == 0 { return }
      close(socket)
      socket = -1
      guard clinux_monotonic_nanoseconds() < deadline else { throw FrontendError("nobody listens at \(path)") }
      usleep(2000)
    }
  }

  /// Connects and starts every queue. With `resume`, as QEMU does after its target died: the rings stay as they are.
  public func start(wanted: UInt64 = ~0, resume: Bool = false) throws {
    try connect()
    try negotiate(wanted: wanted)
    if protocolFeatures & 1 << 12 != 0 { try shareInflight() }
    try shareMemory()
    for queue in queues { try start(queue, base: resume ? queue.usedIndex : 0) }
  }

  /// Agrees on features: all that are offered and in `wanted`.
  public func negotiate(wanted: UInt64 = ~0) throws {
    try send(Message.setOwner)
    features = try u64(Message.getFeatures) & wanted
    if features & 1 << 30 != 0 {
      protocolFeatures = try u64(Message.getProtocolFeatures)
      // What this front end knows: several queues, acknowledged requests, the channel, configuration, in-flight record.
      protocolFeatures &= 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 12
      try send(Message.setProtocolFeatures, word(protocolFeatures))
      if protocolFeatures & 1 << 5 != 0 { try openBackendChannel() }
    }
    try send(Message.setFeatures, word(features))
    for queue in queues { queue.hasEventIndex = features & 1 << 29 != 0 }
  }

  private func openBackendChannel() throws {
    var pair: [CInt] = [-1, -1]
    let type = CInt(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue)
    guard socketpair(AF_UNIX, type, 0, &pair) == 0 else { throw FrontendError("no socket pair") }
    backendChannel = pair[0]
    defer { close(pair[1]) }
    try acknowledged(Message.setBackendReqFD, [], [pair[1]])
  }

  private func shareInflight() throws {
    let count = UInt16(queues.count)
    let size = queues[0].size
    if inflight == nil {
      try send(Message.getInflightFD, word(0) + word(0) + half(count) + half(size) + [0, 0, 0, 0])
      let (reply, fds) = try receive(Message.getInflightFD)
      guard reply.count == 24, let fd = fds.first else { throw FrontendError("no in-flight record") }
      inflight = (fd, load(reply, 0))
    }
    guard let inflight else { return }
    try send(
      Message.setInflightFD, word(inflight.length) + word(0) + half(count) + half(size) + [0, 0, 0, 0],
      [inflight.fd])
  }

  /// Shares the memory as one region.
  public func shareMemory() throws {
    let region = word(GuestRAM.guestStart) + word(UInt64(ram.length)) + word(ram.userAddress(0)) + word(0)
    try acknowledged(Message.setMemTable, int(1) + int(0) + region, [ram.fd])
  }

  public func start(_ queue: FrontendQueue, base: UInt16) throws {
    let index = UInt32(queue.index)
    try send(Message.setVringNum, int(index) + int(UInt32(queue.size)))
    try send(Message.setVringBase, int(index) + int(UInt32(base)))
    try send(
      Message.setVringAddr,
      int(index) + int(0) + word(ram.userAddress(queue.descriptorOffset)) + word(ram.userAddress(queue.usedOffset))
        + word(ram.userAddress(queue.availableOffset)) + word(0))
    try send(Message.setVringCall, word(UInt64(index)), [queue.callFD])
    try acknowledged(Message.setVringKick, word(UInt64(index)), [queue.kickFD])
    if features & 1 << 30 != 0 { try send(Message.setVringEnable, int(index) + int(1)) }
  }

  /// Stops a queue and returns where it would go on.
  public func stop(_ queue: FrontendQueue) throws -> UInt32 {
    try send(Message.getVringBase, int(UInt32(queue.index)) + int(0))
    let (reply, _) = try receive(Message.getVringBase)
    guard reply.count == 8 else { throw FrontendError("a ring base of \(reply.count) bytes") }
    return load(reply, 4)
  }

  /// The configuration space.
  public func configuration(length: Int = 60) throws -> [UInt8] {
    let zeros = [UInt8](repeating: 0, count: length)
    try send(Message.getConfig, int(0) + int(UInt32(length)) + int(0) + zeros)
    let (reply, _) = try receive(Message.getConfig)
    guard reply.count == 12 + length else { throw FrontendError("no configuration space") }
    return Array(reply.dropFirst(12))
  }

  /// The number of 512-byte sectors.
  public func sectors() throws -> UInt64 { load(try configuration(), 0) }

  /// Waits for a message of the target on its channel, and returns its number; nil where none came.
  public func backendMessage(milliseconds: CInt) -> UInt32? {
    var entry = pollfd(fd: backendChannel, events: Int16(POLLIN), revents: 0)
    guard poll(&entry, 1, milliseconds) == 1 else { return nil }
    var header = [UInt8](repeating: 0, count: 12)
    guard recv(backendChannel, &header, 12, CInt(MSG_WAITALL)) == 12 else { return nil }
    return load(header, 0)
  }

  // MARK: Messages

  /// Sends a message and waits until the target says that it carried it out.
  public func acknowledged(_ request: UInt32, _ payload: [UInt8] = [], _ fds: [CInt] = []) throws {
    guard protocolFeatures & 1 << 3 != 0 else { return try send(request, payload, fds) }
    try send(request, payload, fds, flags: 1 | 1 << 3)
    let (reply, _) = try receive(request)
    guard reply.count == 8, load(reply, 0) as UInt64 == 0 else {
      throw FrontendError("the target refused request \(request)")
    }
  }

  public func send(_ request: UInt32, _ payload: [UInt8] = [], _ fds: [CInt] = [], flags: UInt32 = 1) throws {
    let message = int(request) + int(flags) + int(UInt32(payload.count)) + payload
    let count = message.withUnsafeBytes { clinux_send_with_fds(socket, $0.baseAddress, $0.count, fds, CInt(fds.count)) }
    guard count == message.count else { throw FrontendError("sending request \(request) failed: errno \(errno)") }
  }

  public func receive(_ request: UInt32) throws -> (payload: [UInt8], fds: [CInt]) {
    var fds = [CInt](repeating: -1, count: 8)
    let header = try take(12, &fds)
    guard load(header, 0) as UInt32 == request else { throw FrontendError("an answer to another request") }
    var none: [CInt] = []
    let payload = try take(Int(load(header, 8) as UInt32), &none)
    return (payload, fds.filter { $0 >= 0 })
  }

  private func take(_ length: Int, _ fds: inout [CInt]) throws -> [UInt8] {
    var buffer = [UInt8](repeating: 0, count: length)
    var done = 0
    while done < length {
      var entry = pollfd(fd: socket, events: Int16(POLLIN), revents: 0)
      guard poll(&entry, 1, 10_000) == 1 else { throw FrontendError("the target does not answer") }
      var received = [CInt](repeating: -1, count: 8)
      var count = CInt(fds.isEmpty ? 0 : 8)
      let result = buffer.withUnsafeMutableBytes {
        clinux_recv_with_fds(socket, $0.baseAddress.map { $0 + done }, length - done, 0, &received, &count)
      }
      guard result > 0 else { throw FrontendError("the target closed the connection") }
      for index in 0..<Int(count) where index < fds.count { fds[index] = received[index] }
      done += result
    }
    return buffer
  }

  private func u64(_ request: UInt32) throws -> UInt64 {
    try send(request)
    let (reply, _) = try receive(request)
    guard reply.count == 8 else { throw FrontendError("an answer of \(reply.count) bytes") }
    return load(reply, 0)
  }

  private func bytes(_ value: some FixedWidthInteger) -> [UInt8] {
    (0..<(value.bitWidth / 8)).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) }
  }
  private func word(_ value: UInt64) -> [UInt8] { bytes(value) }
  private func int(_ value: UInt32) -> [UInt8] { bytes(value) }
  private func half(_ value: UInt16) -> [UInt8] { bytes(value) }
  private func load<Value: FixedWidthInteger>(_ from: [UInt8], _ offset: Int) -> Value {
    (0..<(Value.bitWidth / 8)).reduce(0) { $0 | Value(from[offset + $1]) << Value($1 * 8) }
  }
}

extension VhostFrontend {
  /// Changes the record of requests in flight, as a target that died would have left it.
  public func editInflight(_ body: (UnsafeMutableRawPointer) -> Void) throws {
    guard let inflight,
      let mapping = mmap(nil, Int(inflight.length), PROT_READ | PROT_WRITE, MAP_SHARED, inflight.fd, 0),
      mapping != MAP_FAILED
    else { throw FrontendError("no in-flight record") }
    body(mapping)
    munmap(mapping, Int(inflight.length))
  }

  /// Does one request and waits for it: its status, and the data that was read.
  public func perform(
    _ type: UInt32, sector: UInt64 = 0, write: [UInt8]? = nil, read length: Int = 0, queue index: Int = 0
  ) throws -> (status: UInt8, data: [UInt8], written: UInt32) {
    let queue = queues[index]
    if let write { queue.data(0).copyBytes(from: write) }
    queue.submit(slot: 0, type: type, sector: sector, length: write?.count ?? length, writable: write == nil)
    queue.kick()
    var result: UInt32?
    while result == nil {
      queue.reap { _, written in result = written }
      if result == nil, !queue.wait(milliseconds: 10_000) { throw FrontendError("no completion") }
    }
    return (queue.status(0), Array(queue.data(0).prefix(length)), result ?? 0)
  }
}
