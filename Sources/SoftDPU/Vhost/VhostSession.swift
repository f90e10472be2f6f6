import CLinux
import Glibc
import Logging

/// One connected front end of a controller: its socket, its memory and its queues.
///
/// SAFETY: made, used and destroyed on its reactor's thread only. The plain values that the hot path works on are
/// allocated here and freed in `destroy`, after the last request and the last watch let go of them. That confinement is
/// what makes the class sendable to its reactor.
@safe
final class VhostSession: AcceptedConnection, Drainable, @unchecked Sendable {
  /// The controller's.
  let name: String
  let reactor: Reactor
  let device: BlockDevice
  let isReadOnly: Bool
  let logger: Logger
  let fd: CInt
  let state: UnsafeMutablePointer<SessionState>
  var queues: [QueueControl?] = Array(repeating: nil, count: VhostUser.maximumQueues)
  var features: UInt64 = 0
  var protocolFeatures: UInt64 = 0
  var backendFD: CInt = -1
  var inflight: InflightRegion?
  /// Descriptors of a message that waits for the requests in flight.
  var heldFDs: [CInt] = []

  /// A front end that sends without end must not keep the reactor from its other volumes.
  private static let messagesPerTurn = 64

  private var watch: Watch?
  private var received: [UInt8] = []
  private var receivedFDs: [CInt] = []
  /// What runs once no request is in the kernel's hands; meanwhile no message is taken.
  private var afterDrain: (() -> Void)?
  private(set) var isClosed = false
  private var onClosed: ((VhostSession) -> Void)?

  init(
    name: String, reactor: Reactor, device: BlockDevice, isReadOnly: Bool, fd: CInt, logger: Logger,
    onClosed: @escaping (VhostSession) -> Void
  ) {
    self.name = name
    self.reactor = reactor
    self.device = device
    self.isReadOnly = isReadOnly || device.isReadOnly
    self.fd = fd
    self.logger = logger
    self.onClosed = onClosed
    unsafe state = UnsafeMutablePointer<SessionState>.allocate(capacity: 1)
    unsafe state.initialize(
      to: SessionState(
        memory: GuestMemory(), target: device.target, asker: IOLabel.make("vhost \(name)"),
        isReadOnly: self.isReadOnly))
  }

  var core: UnsafeMutablePointer<ReactorCore> { unsafe reactor.core }
  var ring: Ring { unsafe reactor.core.pointee.ring }

  func start() {
    let watch = Watch(fd: fd) { [unowned self] in receive() }
    self.watch = watch
    unsafe watch.arm(core)
  }

  func timeIsOver() {}

  // MARK: Messages

  /// Takes whole messages from the socket until there are none, or one has to wait for the requests in flight.
  private func receive() {
    var budget = VhostSession.messagesPerTurn
    while !isClosed, afterDrain == nil {
      guard budget > 0 else {
        reactor.post { [weak self] in self?.receive() }
        return
      }
      budget -= 1
      let header = received.count >= VhostUser.headerLength ? VhostUserHeader(received) : nil
      if received.count >= VhostUser.headerLength, header == nil { return close("a message with a bad header") }
      let wanted = VhostUser.headerLength + (header?.payloadLength ?? 0)
      if let header, received.count == wanted {
        let payload = Array(received[VhostUser.headerLength...])
        let descriptors = receivedFDs
        received = []
        receivedFDs = []
        take(header, payload, descriptors)
        continue
      }
      guard receive(upTo: wanted - received.count) else { return }
    }
  }

  /// Takes bytes from the socket; false where there are none now.
  private func receive(upTo count: Int) -> Bool {
    var buffer = [UInt8](repeating: 0, count: count)
    var descriptors = [CInt](repeating: -1, count: VhostUser.maximumDescriptors)
    var descriptorCount = CInt(VhostUser.maximumDescriptors)
    let result = unsafe buffer.withUnsafeMutableBytes { buffer in
      unsafe clinux_recv_with_fds(fd, buffer.baseAddress, count, CInt(MSG_DONTWAIT), &descriptors, &descriptorCount)
    }
    receivedFDs += descriptors.prefix(Int(max(0, descriptorCount)))
    if result < 0 {
      if errno == EAGAIN { return false }
      close("reading from the front end failed: \(systemText(errno))")
      return false
    }
    if result == 0 {
      close("the front end closed the connection")
      return false
    }
    guard receivedFDs.count <= VhostUser.maximumDescriptors else {
      close("more descriptors than a message may bring")
      return false
    }
    received += buffer.prefix(result)
    return true
  }

  private func take(_ header: VhostUserHeader, _ payload: [UInt8], _ descriptors: [CInt]) {
    guard let request = VhostUser.Request(rawValue: header.request) else {
      descriptors.forEach { _ = Glibc.close($0) }
      return finish(header, .refused("request \(header.request) is not known"))
    }
    let outcome = handle(request, payload, descriptors) { [unowned self] outcome in
      finish(header, outcome)
      // Never from here: a front end that sends a thousand such messages would nest as many calls.
      reactor.post { [weak self] in self?.receive() }
    }
    if let outcome { finish(header, outcome) }
  }

  /// What became of a message.
  enum Outcome {
    case done
    case reply([UInt8], descriptor: CInt? = nil)
    case refused(String)
  }

  private func finish(_ header: VhostUserHeader, _ outcome: Outcome) {
    guard !isClosed else { return }
    let wantsAck = header.needsReply && protocolFeatures & VhostUser.ProtocolFeature.replyAck != 0
    switch outcome {
    case .done:
      if wantsAck { reply(header, ByteWriter.u64Bytes(0)) }
    case .reply(let payload, let descriptor):
      reply(header, payload, descriptor: descriptor)
    case .refused(let reason):
      logger.warning("refused a vhost-user message", metadata: ["request": "\(header.request)", "reason": "\(reason)"])
      // A front end that does not ask for an answer would go on as if the message had been carried out.
      if wantsAck { reply(header, ByteWriter.u64Bytes(1)) } else { close(reason) }
    }
  }

  private func reply(_ header: VhostUserHeader, _ payload: [UInt8], descriptor: CInt? = nil) {
    let message =
      VhostUserHeader(request: header.request, isReply: true, payloadLength: payload.count).bytes + payload
    if !send(message, to: fd, descriptor: descriptor) { close("the front end does not take its answers") }
  }

  private func send(_ message: [UInt8], to socket: CInt, descriptor: CInt? = nil) -> Bool {
    var descriptors = [descriptor ?? -1]
    let result = unsafe message.withUnsafeBytes {
      unsafe clinux_send_with_fds(socket, $0.baseAddress, $0.count, &descriptors, descriptor == nil ? 0 : 1)
    }
    return result == message.count
  }

  /// Tells the front end that the configuration space changed: the guest sees the disk grow.
  func announceConfiguration() {
    guard !isClosed, backendFD >= 0 else { return }
    let message = VhostUserHeader(request: VhostUser.backendConfigChange, payloadLength: 0).bytes
    if !send(message, to: backendFD) {
      logger.warning("the front end does not take the notice of a new size")
    }
  }

  // MARK: Draining

  var isDrained: Bool { unsafe state.pointee.inflight == 0 }

  /// Takes nothing new from the rings, and runs `work` when every request is back.
  func freeze(then work: @escaping () -> Void) {
    unsafe state.pointee.isFrozen = true
    afterDrain = work
    if isDrained { drained() } else { reactor.whenDrained(self) }
  }

  func drained() {
    guard let work = afterDrain else { return }
    for case let queue? in queues { unsafe publish(queue.state, core) }
    afterDrain = nil
    unsafe state.pointee.isFrozen = false
    work()
    guard !isClosed else { return }
    for case let queue? in queues { unsafe core.pointee.touch(queue.state) }
  }

  // MARK: The end

  /// Ends the session: the connection at once, the memory when every request is back.
  func close(_ reason: String) {
    guard !isClosed else { return }
    isClosed = true
    logger.info("front end disconnected", metadata: ["reason": "\(reason)"])
    watch?.cancel(ring)
    for case let queue? in queues { queue.kickWatch?.cancel(ring) }
    unsafe state.pointee.isFrozen = true
    afterDrain = { [self] in destroy() }
    // Not at once, even with nothing in flight: the caller still holds on to what would go away.
    reactor.whenDrained(self)
    reactor.post {}
  }

  private func destroy() {
    unsafe state.pointee.isFrozen = true
    // Bells that wait in the submission queue name descriptors that are closed below.
    ring.submit()
    for case let queue? in queues { unsafe queue.destroy(core) }
    queues = []
    unsafe state.pointee.memory.destroy()
    unsafe state.pointee.asker.deallocate()
    unsafe state.deinitialize(count: 1)
    unsafe state.deallocate()
    inflight = nil
    (receivedFDs + heldFDs).forEach { _ = Glibc.close($0) }
    if backendFD >= 0 { _ = Glibc.close(backendFD) }
    _ = Glibc.close(fd)
    let onClosed = self.onClosed
    self.onClosed = nil
    onClosed?(self)
  }
}

extension ByteWriter {
  static func u64Bytes(_ value: UInt64) -> [UInt8] {
    var writer = ByteWriter()
    writer.u64(value)
    return writer.bytes
  }
}
