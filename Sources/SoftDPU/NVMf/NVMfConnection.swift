import CLinux
import Glibc
import Logging

/// One queue pair: a TCP connection of a host.
///
/// SAFETY: made, used and destroyed on the target's reactor only; the hot path's state is freed in `gone`, after the last
/// command and the last watch let go of it.
@safe
final class NVMfConnection: StreamConnection, AcceptedConnection, @unchecked Sendable {
  private let listener: NVMfListener
  let target: NVMfTarget
  let transport: NVMfTarget.Transport
  var logger: Logger
  /// Bytes of the first PDU, until it is whole.
  private var pending: [UInt8] = []
  private(set) var state: UnsafeMutablePointer<NVMfState>?
  /// Once the queue is connected.
  var controller: NVMfController?
  var queueID: UInt16?
  /// By what the reactor's ledger knows the queue.
  private var tally: QueueLedger.Key?
  private var table: NamespaceTable?
  /// Every slot needs a target from the start; this one is never started.
  private var placeholder: UnsafeMutablePointer<BlockTarget>?

  /// What is received with one call, at most: of admin commands, and of a queue that is connected for I/O.
  private static let adminBufferLength = 16 << 10
  private static let bufferLength = 256 << 10

  init(
    fd: CInt, listener: NVMfListener, target: NVMfTarget, transport: NVMfTarget.Transport, logger: Logger
  ) {
    self.listener = listener
    self.target = target
    self.transport = transport
    self.logger = logger
    unsafe state = nil
    unsafe placeholder = nil
    unsafe super.init(
      fd: fd, reactor: target.reactor, peer: "host",
      sent: { slot, core in
        unsafe slotSent(slot.assumingMemoryBound(to: NVMfSlot.self), core.assumingMemoryBound(to: ReactorCore.self))
      })
  }

  var place: NVMfTarget.ListenAddress { listener.place }

  func start() { watchReadable() }

  func timeIsOver() {
    if queueID == nil { close("no queue was connected in time") }
  }

  override func readable() {
    guard !isClosed else { return }
    if unsafe state == nil { return initialize() }
    // What comes while a command waits for memory stays with the host.
    if unsafe state?.pointee.isStalled != true { transfer() }
  }

  override func take() -> Progress {
    guard let state = unsafe state else { return .stalled }
    switch unsafe takePDUs(state, core) {
    case .more: return .more
    case .stalled: return .stalled
    case .finished: return .ended("the host ended the connection")
    case .broken(let reason, let field):
      terminate(reason, field)
      return .stalled
    }
  }

  // MARK: The first PDU

  private func initialize() {
    var chunk = [UInt8](repeating: 0, count: NVMeTCP.initializeLength - pending.count)
    let count = unsafe receive(into: &chunk, chunk.count)
    guard count > 0 else { return receivedNothing(count) }
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
    guard prepare(alignment: alignment, hasHeaderDigest: digests & 1 != 0, hasDataDigest: digests & 2 != 0) else {
      return close(StreamConnection.noMemory)
    }
    var page = LittleEndianPage(NVMeTCP.initializeLength)
    page.set(NVMeTCP.PDU.initializeResponse, at: 0)
    page.set(UInt8(NVMeTCP.initializeLength), at: 2)
    page.set(UInt32(NVMeTCP.initializeLength), at: 4)
    page.set(digests & 3, at: 11)
    page.set(UInt32(transport.maximumTransfer), at: 12)
    tell(page.bytes)
    readable()
  }

  /// Makes what commands need; false where there is no memory.
  private func prepare(alignment: Int, hasHeaderDigest: Bool, hasDataDigest: Bool) -> Bool {
    guard unsafe stream.pointee.reserve(NVMfConnection.adminBufferLength),
      let memory = unsafe PageMemory.allocate(NVMfState.length)
    else { return false }
    let placeholder = unsafe BlockTarget.make(
      .null, name: "", reactor: 0, capacity: 0, blockSize: 512, isReadOnly: true, canUnmap: false,
      canWriteZeroes: false)
    unsafe self.placeholder = unsafe placeholder
    let state = UnsafeMutablePointer<NVMfState>.allocate(capacity: 1)
    unsafe state.initialize(
      to: NVMfState(
        memory: memory, stream: stream, connection: Unmanaged.passUnretained(self).toOpaque(),
        hasHeaderDigest: hasHeaderDigest, hasDataDigest: hasDataDigest, alignment: alignment, transport: transport))
    unsafe NVMfState.prepare(state, placeholder)
    unsafe self.state = unsafe state
    return true
  }

  /// Tells the host why it is cut off, and cuts it off (NVMe TCP 1.0, section 3.5).
  private func terminate(_ reason: UInt16, _ field: UInt32) {
    var page = LittleEndianPage(24)
    page.set(NVMeTCP.PDU.controllerTerminate, at: 0)
    page.set(UInt8(24), at: 2)
    page.set(UInt32(24), at: 4)
    page.set(reason, at: 8)
    page.set(field, at: 10)
    tell(page.bytes)
    close("the host broke the protocol: reason \(reason), field \(field)")
  }

  /// Lets I/O commands through to the namespaces of a controller; false where there is no memory for them.
  func open(_ table: NamespaceTable, queue: UInt16, queueSize: UInt16) -> Bool {
    guard let state = unsafe state, unsafe stream.pointee.reserve(NVMfConnection.bufferLength) else { return false }
    self.table = table
    unsafe state.pointee.namespaces = unsafe Unmanaged.passUnretained(table)
    unsafe state.pointee.isIOQueue = true
    if tally == nil {
      let (key, counters) = unsafe reactor.ledger.begin(
        .nvmeTCP, peer: IOLabel.host(of: fd), queue: Int(queue))
      tally = key
      unsafe state.pointee.counters = unsafe counters
    }
    if let controller { unsafe state.pointee.held = unsafe controller.held }
    unsafe state.pointee.queueSize = queueSize
    let host = controller?.hostNQN ?? ""
    unsafe state.pointee.asker.pointee = IOLabel("NVMe/TCP\(IOLabel.peer(of: fd)) \(host)")
    return true
  }

  /// Some memory was given back: what waits for it is tried again.
  func memoryIsBack() {
    guard let state = unsafe state, !isClosed else { return }
    unsafe resumeWaiting(state, core)
    guard unsafe state.pointee.isStalled else { return }
    unsafe state.pointee.isStalled = false
    transfer()
  }

  // MARK: The end

  override func ended(_ reason: String) {
    logger.info("host disconnected", metadata: ["reason": "\(reason)"])
    guard let controller else { return }
    if controller.admin === self {
      controller.end()
      target.forget(controller)
    } else {
      controller.remove(self)
    }
  }

  override var isIdle: Bool { unsafe (state?.pointee.inflight ?? 0) == 0 }

  /// Commands so far.
  var commands: UInt64 { unsafe state?.pointee.commands ?? 0 }

  override func gone() {
    let commands = self.commands
    target.record { $0.commands &+= commands }
    if let state = unsafe state {
      for index in unsafe 0..<NVMfState.depth {
        let slot = unsafe state.pointee.slots + index
        unsafe giveBuffer(slot, core)
      }
      unsafe core.pointee.forget(state.pointee.waiter)
      if let tally { reactor.ledger.end(tally) }
      unsafe state.pointee.deallocate()
      unsafe state.deallocate()
    }
    if let placeholder = unsafe placeholder { unsafe BlockTarget.destroy(placeholder) }
    unsafe state = nil
    unsafe placeholder = nil
    controller = nil
    listener.hosts.ended(self)
  }
}
