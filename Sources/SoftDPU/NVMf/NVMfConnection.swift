import CLinux
import Glibc
import Logging

/// One queue pair: a TCP connection of a host.
///
/// SAFETY: made, used and destroyed on the target's reactor only; the hot path's state is freed in `drained`, after the
/// last command and the last watch let go of it.
@safe
final class NVMfConnection: Drainable, @unchecked Sendable {
  private let fd: CInt
  private let listener: NVMfListener
  let target: NVMfTarget
  let transport: NVMfTarget.Transport
  var logger: Logger
  private var watch: Watch?
  /// Bytes of the first PDU, until it is whole.
  private var pending: [UInt8] = []
  private var stream: UnsafeMutablePointer<Stream>?
  private(set) var state: UnsafeMutablePointer<NVMfState>?
  /// Once the queue is connected.
  var controller: NVMfController?
  var queueID: UInt16?
  private var table: NamespaceTable?
  /// Every slot needs a target from the start; this one is never started.
  private let placeholder = unsafe BlockTarget.make(
    .null, name: "", reactor: 0, capacity: 0, blockSize: 512, isReadOnly: true, canUnmap: false,
    canWriteZeroes: false)
  private(set) var isClosed = false

  /// How long a host may take until its queue is connected, in nanoseconds.
  private static let connectTime: UInt64 = 30_000_000_000
  private static let bufferLength = 256 << 10

  init(
    fd: CInt, listener: NVMfListener, target: NVMfTarget, transport: NVMfTarget.Transport, logger: Logger
  ) {
    self.fd = fd
    self.listener = listener
    self.target = target
    self.transport = transport
    self.logger = logger
    unsafe state = nil
    unsafe stream = nil
  }

  deinit { unsafe BlockTarget.destroy(placeholder) }

  var core: UnsafeMutablePointer<ReactorCore> { unsafe target.reactor.core }
  var place: NVMfTarget.ListenAddress { listener.place }

  func start() {
    let watch = Watch(fd: fd) { [unowned self] in readable() }
    self.watch = watch
    unsafe watch.arm(core)
    unsafe core.pointee.schedule(
      at: clinux_monotonic_nanoseconds() &+ NVMfConnection.connectTime,
      { connection, _ in
        unsafe Unmanaged<NVMfConnection>.fromOpaque(connection)._withUnsafeGuaranteedRef { connection in
          if connection.queueID == nil { connection.close("no queue was connected in time") }
        }
      }, Unmanaged.passUnretained(self).toOpaque())
  }

  /// Takes what the socket has.
  func readable() {
    guard !isClosed else { return }
    guard let state = unsafe state, let stream = unsafe stream else { return initialize() }
    // Others have their turn after so many buffers.
    var budget = 8
    var isDry = false
    while !isClosed {
      switch unsafe takePDUs(state, core) {
      case .more: break
      case .finished: return close("the host ended the connection")
      case .broken(let reason, let field): return terminate(reason, field)
      }
      if isDry { return }
      guard budget > 0 else {
        target.reactor.post { [weak self] in self?.readable() }
        return
      }
      budget -= 1
      let count = unsafe stream.pointee.receive()
      isDry = unsafe stream.pointee.isDry
      guard count > 0 else {
        if count == 0 { close("the host left") }
        if count < 0, count != -Int(EAGAIN), count != -Int(EINTR) { close(systemText(CInt(-count))) }
        return
      }
    }
  }

  // MARK: The first PDU

  private func initialize() {
    var chunk = [UInt8](repeating: 0, count: NVMeTCP.initializeLength - pending.count)
    let count = unsafe recv(fd, &chunk, chunk.count, CInt(MSG_DONTWAIT))
    guard count > 0 else {
      if count == 0 || errno != EAGAIN { close("the host left") }
      return
    }
    pending += chunk.prefix(count)
    if let type = pending.first, type != NVMeTCP.PDU.initializeRequest {
      return terminate(NVMeTCP.FatalError.sequence, 0)
    }
    guard pending.count == NVMeTCP.initializeLength else { return }
    let format = UInt16(pending[8]) | UInt16(pending[9]) << 8
    // The host asks for data at multiples of four bytes, a number that is one less.
    let alignment = 4 * (Int(pending[10]) + 1)
    let length = pending[4..<8].reversed().reduce(0) { $0 << 8 | Int($1) }
    guard pending[2] == UInt8(NVMeTCP.initializeLength), length == NVMeTCP.initializeLength else {
      return terminate(NVMeTCP.FatalError.invalidHeader, 2)
    }
    guard format == 0 else { return terminate(NVMeTCP.FatalError.unsupported, 8) }
    guard alignment <= 32, alignment & (alignment - 1) == 0 else {
      return terminate(NVMeTCP.FatalError.unsupported, 10)
    }
    let digests = pending[11]
    pending = []
    prepare(alignment: alignment, hasHeaderDigest: digests & 1 != 0, hasDataDigest: digests & 2 != 0)
    var page = LittleEndianPage(NVMeTCP.initializeLength)
    page.set(NVMeTCP.PDU.initializeResponse, at: 0)
    page.set(UInt8(NVMeTCP.initializeLength), at: 2)
    page.set(UInt32(NVMeTCP.initializeLength), at: 4)
    page.set(digests & 3, at: 11)
    page.set(UInt32(transport.maximumTransfer), at: 12)
    guard write(page.bytes) else { return close("the host does not take its answers") }
    readable()
  }

  private func prepare(alignment: Int, hasHeaderDigest: Bool, hasDataDigest: Bool) {
    let connection = unsafe Unmanaged.passUnretained(self).toOpaque()
    let stream = UnsafeMutablePointer<Stream>.allocate(capacity: 1)
    unsafe stream.initialize(
      to: Stream(
        fd: fd, capacity: NVMfConnection.bufferLength, connection: connection,
        sent: { slot, core in
          unsafe slotSent(
            slot.assumingMemoryBound(to: NVMfSlot.self), core.assumingMemoryBound(to: ReactorCore.self))
        },
        broken: { connection, _ in
          unsafe Unmanaged<NVMfConnection>.fromOpaque(connection)._withUnsafeGuaranteedRef {
            $0.close("the host takes no answers")
          }
        }))
    let state = UnsafeMutablePointer<NVMfState>.allocate(capacity: 1)
    unsafe state.initialize(
      to: NVMfState(
        stream: stream, connection: connection, hasHeaderDigest: hasHeaderDigest, hasDataDigest: hasDataDigest,
        alignment: alignment, transport: transport))
    unsafe NVMfState.prepare(state, placeholder)
    unsafe self.stream = unsafe stream
    unsafe self.state = unsafe state
  }

  /// Writes a few bytes outside of the queue of answers.
  private func write(_ bytes: [UInt8]) -> Bool {
    let flags = CInt(MSG_DONTWAIT) | CInt(MSG_NOSIGNAL)
    return unsafe bytes.withUnsafeBytes { unsafe Glibc.send(fd, $0.baseAddress, $0.count, flags) } == bytes.count
  }

  /// Tells the host why it is cut off, and cuts it off (NVMe TCP 1.0, section 3.5).
  private func terminate(_ reason: UInt16, _ field: UInt32) {
    var page = LittleEndianPage(24)
    page.set(NVMeTCP.PDU.controllerTerminate, at: 0)
    page.set(UInt8(24), at: 2)
    page.set(UInt32(24), at: 4)
    page.set(reason, at: 8)
    page.set(field, at: 10)
    // Only where nothing is half sent.
    if unsafe stream?.pointee.isBlocked != true { _ = write(page.bytes) }
    close("the host broke the protocol: reason \(reason), field \(field)")
  }

  /// Lets I/O commands through to the namespaces of a controller.
  func open(_ table: NamespaceTable, queueSize: UInt16) {
    self.table = table
    guard let state = unsafe state else { return }
    unsafe state.pointee.namespaces = unsafe Unmanaged.passUnretained(table)
    unsafe state.pointee.isIOQueue = true
    unsafe state.pointee.queueSize = queueSize
    let host = controller?.hostNQN ?? ""
    unsafe state.pointee.asker.pointee = IOLabel("NVMe/TCP\(IOLabel.peer(of: fd)) \(host)")
  }

  // MARK: The end

  /// Ends the connection: at once for the host, and its memory when every command is back.
  func close(_ reason: String) {
    guard !isClosed else { return }
    isClosed = true
    logger.info("host disconnected", metadata: ["reason": "\(reason)"])
    unsafe watch?.cancel(core.pointee.ring)
    shutdown(fd, CInt(SHUT_RDWR))
    if let controller {
      if controller.admin === self {
        controller.end()
        target.forget(controller)
      } else {
        controller.remove(self)
      }
    }
    // Not at once: the caller may still hold on to what would go away.
    target.reactor.whenDrained(self)
    target.reactor.post {}
  }

  var isDrained: Bool {
    guard let state = unsafe state, let stream = unsafe stream else { return true }
    return unsafe state.pointee.inflight == 0 && !stream.pointee.isBlocked && !stream.pointee.isDeferred
  }

  /// Commands so far.
  var commands: UInt64 { unsafe state?.pointee.commands ?? 0 }

  func drained() {
    let commands = self.commands
    target.record { $0.commands &+= commands }
    unsafe core.pointee.ring.submit()
    unsafe core.pointee.forget(Unmanaged.passUnretained(self).toOpaque())
    if let state = unsafe state {
      for index in unsafe 0..<NVMfState.depth {
        let slot = unsafe state.pointee.slots + index
        if let buffer = unsafe slot.pointee.buffer { unsafe core.pointee.buffers.give(buffer, slot.pointee.length) }
      }
      unsafe state.pointee.deallocate()
      unsafe state.deallocate()
    }
    if let stream = unsafe stream {
      unsafe stream.pointee.deallocate()
      unsafe stream.deallocate()
    }
    unsafe state = nil
    unsafe stream = nil
    controller = nil
    _ = Glibc.close(fd)
    listener.closed(self)
  }
}
