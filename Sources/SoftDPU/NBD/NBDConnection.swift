import CLinux
import Glibc
import Logging

/// One client of an NBD server.
///
/// SAFETY: made, used and destroyed on its reactor's thread only; the hot path's state is freed in `gone`, after the last
/// request and the last watch let go of it.
@safe
final class NBDConnection: StreamConnection, AcceptedConnection, @unchecked Sendable {
  private unowned let server: NBDServer
  private var logger: Logger
  private var handshake: NBDHandshake
  /// Bytes of the negotiation that are not a whole message yet.
  private var pending: [UInt8] = []
  /// What was decided, to be done when the answer is sent.
  private var next = NBDHandshake.Next.more
  /// The rest of a list of exports that is being sent.
  private var listing: NBDListing?
  /// TLS was agreed on, and the client's first byte has not come.
  private var awaitsTLS = false
  private var isInHandshake = false
  private var isNegotiating = false
  private var state: UnsafeMutablePointer<NBDState>?
  /// What the state will be made in, once the export has been granted.
  private var memory: UnsafeMutableRawPointer?
  private(set) var device: BlockDevice?
  /// By what the reactor's ledger knows the connection.
  private var tally: QueueLedger.Key?

  /// What is received with one call, at most.
  private static let bufferLength = 256 << 10
  /// Others have their turn after so many messages of a negotiation.
  private static let messagesPerTurn = 64

  init(fd: CInt, server: NBDServer, logger: Logger) {
    self.server = server
    self.logger = logger
    handshake = NBDHandshake(tls: server.tlsPolicy)
    unsafe state = nil
    unsafe memory = nil
    unsafe super.init(
      fd: fd, reactor: server.reactor, peer: "client",
      sent: { slot, core in
        unsafe slotSent(slot.assumingMemoryBound(to: NBDSlot.self), core.assumingMemoryBound(to: ReactorCore.self))
      })
  }

  func start() {
    tell(NBDHandshake.greeting)
    if !isClosed { watchReadable() }
  }

  func timeIsOver() {
    if unsafe state == nil { close("no export was chosen in time") }
  }

  override func readable() {
    guard !isClosed else { return }
    if unsafe state != nil { transfer() } else { negotiate() }
  }

  // MARK: Negotiation

  override func told() {
    if !isClosed, !isNegotiating { negotiate() }
  }

  /// Takes message by message, each when the answer to the one before is sent: a client that does not take its answers
  /// gets no more of them.
  private func negotiate() {
    guard !isNegotiating else { return }
    isNegotiating = true
    defer { isNegotiating = false }
    var budget = NBDConnection.messagesPerTurn
    while !isClosed, unsafe state == nil, !isTelling {
      guard budget > 0 else { return yield() }
      budget -= 1
      if let part = listing?.next() {
        tell(part)
        continue
      }
      listing = nil
      if next != .more {
        perform(next)
        continue
      }
      let (consumed, answer, next) = handshake.take(
        pending, find: { [server] in server.export($0)?.description }, names: { [server] in server.names })
      guard consumed > 0 || next != .more else {
        guard receiveNegotiation() else { return }
        continue
      }
      pending.removeFirst(min(consumed, pending.count))
      // What came in clear text behind the option could be anybody's, and must not count as said under TLS.
      if next == .startTLS, !pending.isEmpty { return close("bytes between the option of TLS and its handshake") }
      if case .serve = next, !reserve() { return close(StreamConnection.noMemory) }
      self.next = next
      tell(answer)
    }
    if !isClosed, unsafe state != nil { transfer() }
  }

  private func perform(_ step: NBDHandshake.Next) {
    next = .more
    switch step {
    case .more: break
    case .list(let names): listing = NBDListing(names)
    case .startTLS: awaitsTLS = true
    case .serve(let name, let hasStructuredReplies, let hasAllocationContext):
      guard let export = server.export(name), unsafe !export.requiresTLS || stream.pointee.tls != nil else {
        return close("the export went away")
      }
      serve(export, hasStructuredReplies, hasAllocationContext)
    case .close: close("the negotiation ended")
    }
  }

  /// Takes some bytes of the negotiation; false where there are none now.
  private func receiveNegotiation() -> Bool {
    if awaitsTLS, !beginTLS() { return false }
    let messages = unsafe core.pointee.scratch.messages
    let isEncrypted = unsafe stream.pointee.tls != nil
    let room = unsafe isEncrypted ? SocketScratch.messagesLength : NBDHandshake.maximumMessage - pending.count
    let count = unsafe receive(into: messages, room)
    if isInHandshake, let tls = unsafe stream.pointee.tls, unsafe clinux_tls_is_ready(tls) != 0 { endHandshake() }
    guard count > 0 else {
      receivedNothing(count)
      return false
    }
    unsafe pending.append(contentsOf: UnsafeRawBufferPointer(start: messages, count: count))
    return true
  }

  /// A session is tens of kilobytes: whoever sends nothing does not get one.
  private func beginTLS() -> Bool {
    var byte: UInt8 = 0
    let count = unsafe recv(stream.pointee.fd, &byte, 1, CInt(MSG_DONTWAIT) | CInt(MSG_PEEK))
    guard count > 0 else {
      receivedNothing(count < 0 ? -Int(errno) : 0)
      return false
    }
    guard let session = unsafe server.tls?.makeSession() else {
      close("there is no memory for TLS")
      return false
    }
    awaitsTLS = false
    unsafe stream.pointee.tls = unsafe session
    isInHandshake = true
    server.beginHandshake(self)
    return true
  }

  private func endHandshake() {
    guard isInHandshake else { return }
    isInHandshake = false
    server.endHandshake(self)
  }

  /// Has memory for transmission, before the export is granted; false where there is none.
  private func reserve() -> Bool {
    guard unsafe stream.pointee.reserve(NBDConnection.bufferLength) else { return false }
    unsafe memory = PageMemory.allocate(NBDState.length)
    return unsafe memory != nil
  }

  private func serve(_ export: NBDServer.Export, _ hasStructuredReplies: Bool, _ hasAllocationContext: Bool) {
    guard let memory = unsafe memory else { return close(StreamConnection.noMemory) }
    unsafe self.memory = nil
    device = export.device
    logger[metadataKey: "export"] = "\(export.name)"
    if let tls = unsafe stream.pointee.tls {
      unsafe clinux_tls_keep_buffers(tls)
      logger[metadataKey: "tls"] = unsafe "\(String(cString: clinux_tls_version(tls)))"
    }
    logger.info("client connected")
    let (tally, counters) = unsafe reactor.ledger.begin(.nbd, peer: IOLabel.host(of: fd))
    self.tally = tally
    let state = UnsafeMutablePointer<NBDState>.allocate(capacity: 1)
    unsafe state.initialize(
      to: NBDState(
        memory: memory, stream: stream, target: export.device.target,
        connection: Unmanaged.passUnretained(self).toOpaque(),
        asker: "NBD \(export.name)\(IOLabel.peer(of: fd))", counters: counters,
        hasStructuredReplies: hasStructuredReplies,
        hasAllocationContext: hasAllocationContext))
    unsafe NBDState.prepare(state)
    unsafe self.state = unsafe state
    // What came with the last message of the negotiation.
    unsafe pending.withUnsafeBytes { unsafe stream.pointee.put($0) }
    pending = []
  }

  // MARK: Transmission

  override func take() -> Progress {
    guard let state = unsafe state else { return .stalled }
    switch unsafe takeRequests(state, core) {
    case .more: return .more
    case .stalled: return .stalled
    case .finished: return .ended("the client is done")
    case .broken: return .ended("the client broke the protocol")
    }
  }

  /// The bytes of a large write go straight to its memory.
  override func receive() -> Int {
    guard let state = unsafe state, let slot = unsafe state.pointee.receiving, let buffer = unsafe slot.pointee.buffer,
      unsafe stream.pointee.available == 0, unsafe slot.pointee.length - state.pointee.received > 65536
    else { return super.receive() }
    let done = unsafe state.pointee.received
    let count = unsafe receive(into: buffer + done, slot.pointee.length - done)
    if count > 0 { unsafe state.pointee.received += count }
    return count
  }

  /// Some memory was given back: the request that found none is tried again.
  func memoryIsBack() {
    guard let state = unsafe state, unsafe state.pointee.isStalled, !isClosed else { return }
    unsafe state.pointee.isStalled = false
    transfer()
  }

  // MARK: The end

  override func ended(_ reason: String) {
    endHandshake()
    logger.info("client disconnected", metadata: ["reason": "\(reason)"])
  }

  override var isIdle: Bool {
    guard let state = unsafe state else { return true }
    return unsafe state.pointee.inflight == 0 && !state.pointee.isResuming
  }

  override func gone() {
    if let state = unsafe state {
      for index in unsafe 0..<NBDState.depth {
        let slot = unsafe state.pointee.slots + index
        if let buffer = unsafe slot.pointee.buffer {
          unsafe core.pointee.give(buffer, slot.pointee.length, peer: &state.pointee.held)
        }
      }
      unsafe core.pointee.forget(state.pointee.waiter)
      if let tally { reactor.ledger.end(tally) }
      unsafe state.pointee.deallocate()
      unsafe state.deallocate()
    }
    if let memory = unsafe memory { unsafe PageMemory.deallocate(memory, NBDState.length) }
    unsafe memory = nil
    unsafe state = nil
    server.clients.ended(self)
  }
}
