import CLinux
import Glibc
import Logging

/// One client of an NBD server.
///
/// SAFETY: made, used and destroyed on its reactor's thread only; the hot path's state is freed in `drained`, after the
/// last request and the last watch let go of it.
@safe
final class NBDConnection: Drainable, @unchecked Sendable {
  private let fd: CInt
  private let reactor: Reactor
  private unowned let server: NBDServer
  private var logger: Logger
  private var handshake: NBDHandshake
  /// Bytes of the negotiation that are not a whole message yet.
  private var pending: [UInt8] = []
  private var watch: Watch?
  private var state: UnsafeMutablePointer<NBDState>?
  private var stream: UnsafeMutablePointer<Stream>?
  private(set) var device: BlockDevice?
  private var isClosed = false

  /// How long a client may take to choose an export, in nanoseconds.
  private static let handshakeTime: UInt64 = 30_000_000_000
  /// What is received with one call, at most.
  private static let bufferLength = 256 << 10

  init(fd: CInt, reactor: Reactor, server: NBDServer, logger: Logger) {
    self.fd = fd
    self.reactor = reactor
    self.server = server
    self.logger = logger
    handshake = NBDHandshake(tls: .none)
    unsafe state = nil
    unsafe stream = nil
  }

  private var core: UnsafeMutablePointer<ReactorCore> { unsafe reactor.core }

  func start() {
    guard write(NBDHandshake.greeting) else { return close("the client does not take the greeting") }
    let watch = Watch(fd: fd) { [unowned self] in readable() }
    self.watch = watch
    unsafe watch.arm(core)
    unsafe core.pointee.schedule(
      at: clinux_monotonic_nanoseconds() &+ NBDConnection.handshakeTime,
      { connection, _ in
        unsafe Unmanaged<NBDConnection>.fromOpaque(connection)._withUnsafeGuaranteedRef { connection in
          if unsafe connection.state == nil { connection.close("no export was chosen in time") }
        }
      }, Unmanaged.passUnretained(self).toOpaque())
  }

  /// Takes what the socket has.
  func readable() {
    guard !isClosed else { return }
    if let state = unsafe state, let stream = unsafe stream {
      unsafe transmit(state, stream)
    } else {
      negotiate()
    }
  }

  // MARK: Negotiation

  private func negotiate() {
    // Until the socket is empty: what stays there is not announced again.
    while !isClosed, unsafe state == nil, takeNegotiation() {}
  }

  /// Takes some bytes of the negotiation; false where there are none now.
  private func takeNegotiation() -> Bool {
    var chunk = [UInt8](repeating: 0, count: 4096)
    let room = Int(NBD.maximumOptionLength) + 16 - pending.count
    let count = unsafe recv(fd, &chunk, min(room, chunk.count), CInt(MSG_DONTWAIT))
    guard count > 0 else {
      if count == 0 || errno != EAGAIN { close("the client left") }
      return false
    }
    pending += chunk.prefix(count)
    while true {
      let (consumed, answer, next) = handshake.take(
        pending, find: { [server] in server.export($0)?.description }, names: { [server] in server.names })
      pending.removeFirst(min(consumed, pending.count))
      guard write(answer) else {
        close("the client does not take its answers")
        return false
      }
      switch next {
      case .more: if consumed == 0 || pending.isEmpty { return true }
      case .startTLS, .close:
        close("the negotiation ended")
        return false
      case .serve(let name, let hasStructuredReplies, let hasAllocationContext):
        guard let export = server.export(name) else {
          close("the export went away")
          return false
        }
        serve(export, hasStructuredReplies, hasAllocationContext)
        return false
      }
    }
  }

  /// Writes the few bytes of the negotiation; a client that does not take them is not worth waiting for.
  private func write(_ bytes: [UInt8]) -> Bool {
    guard !bytes.isEmpty else { return true }
    let flags = CInt(MSG_DONTWAIT) | CInt(MSG_NOSIGNAL)
    return unsafe bytes.withUnsafeBytes { unsafe Glibc.send(fd, $0.baseAddress, $0.count, flags) } == bytes.count
  }

  private func serve(_ export: NBDServer.Export, _ hasStructuredReplies: Bool, _ hasAllocationContext: Bool) {
    device = export.device
    logger[metadataKey: "export"] = "\(export.name)"
    logger.info("client connected")
    let connection = unsafe Unmanaged.passUnretained(self).toOpaque()
    let stream = UnsafeMutablePointer<Stream>.allocate(capacity: 1)
    unsafe stream.initialize(
      to: Stream(
        fd: fd, capacity: NBDConnection.bufferLength, connection: connection,
        sent: { slot, core in
          unsafe slotSent(
            slot.assumingMemoryBound(to: NBDSlot.self), core.assumingMemoryBound(to: ReactorCore.self))
        },
        broken: { connection, _ in
          unsafe Unmanaged<NBDConnection>.fromOpaque(connection)._withUnsafeGuaranteedRef {
            $0.close("the client takes no answers")
          }
        }))
    let state = UnsafeMutablePointer<NBDState>.allocate(capacity: 1)
    unsafe state.initialize(
      to: NBDState(
        stream: stream, target: export.device.target, connection: connection,
        asker: "NBD \(export.name)\(IOLabel.peer(of: fd))", hasStructuredReplies: hasStructuredReplies,
        hasAllocationContext: hasAllocationContext))
    unsafe NBDState.prepare(state)
    unsafe self.stream = unsafe stream
    unsafe self.state = unsafe state
    // What came with the last message of the negotiation.
    unsafe pending.withUnsafeBytes { bytes in
      if let base = bytes.baseAddress { unsafe stream.pointee.buffer.copyMemory(from: base, byteCount: bytes.count) }
    }
    unsafe stream.pointee.end = pending.count
    pending = []
    readable()
  }

  // MARK: Transmission

  private func transmit(_ state: UnsafeMutablePointer<NBDState>, _ stream: UnsafeMutablePointer<Stream>) {
    // Others have their turn after so many buffers.
    var budget = 8
    var isDry = false
    while !isClosed {
      switch unsafe takeRequests(state, core) {
      case .more: break
      case .stalled: return
      case .finished: return close("the client is done")
      case .broken: return close("the client broke the protocol")
      }
      if isDry { return }
      guard budget > 0 else {
        reactor.post { [weak self] in self?.readable() }
        return
      }
      budget -= 1
      let count: Int
      if let slot = unsafe state.pointee.receiving, let buffer = unsafe slot.pointee.buffer,
        unsafe stream.pointee.available == 0, unsafe slot.pointee.length - state.pointee.received > 65536
      {
        let done = unsafe state.pointee.received
        count = unsafe stream.pointee.receive(into: buffer + done, slot.pointee.length - done)
        if count > 0 { unsafe state.pointee.received += count }
      } else {
        count = unsafe stream.pointee.receive()
      }
      isDry = unsafe stream.pointee.isDry
      guard count > 0 else {
        if count == 0 { close("the client left") }
        if count < 0, count != -Int(EAGAIN), count != -Int(EINTR) { close(systemText(CInt(-count))) }
        return
      }
    }
  }

  // MARK: The end

  /// Ends the connection: at once for the client, and its memory when every request is back.
  func close(_ reason: String) {
    guard !isClosed else { return }
    isClosed = true
    logger.info("client disconnected", metadata: ["reason": "\(reason)"])
    unsafe watch?.cancel(core.pointee.ring)
    shutdown(fd, CInt(SHUT_RDWR))
    // Not at once: the caller may still hold on to what would go away.
    reactor.whenDrained(self)
    reactor.post {}
  }

  var isDrained: Bool {
    guard let state = unsafe state, let stream = unsafe stream else { return true }
    return unsafe state.pointee.inflight == 0 && !state.pointee.isResuming && !stream.pointee.isBlocked
      && !stream.pointee.isDeferred
  }

  func drained() {
    unsafe core.pointee.ring.submit()
    unsafe core.pointee.forget(Unmanaged.passUnretained(self).toOpaque())
    if let state = unsafe state {
      for index in unsafe 0..<NBDState.depth {
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
    _ = Glibc.close(fd)
    server.closed(self)
  }
}
