import CLinux
import Glibc

/// A socket with a peer, as a stream of messages in both directions: its set-up, its receiving and sending, and its
/// end. Subclasses bring the protocol; their requests are in states of their own, which the hot path works on.
///
/// SAFETY: made, used and destroyed on its reactor's thread only; the stream is freed with the object, which whoever made
/// it keeps until `gone`, after the last request and the last watch let go of it.
@safe
class StreamConnection: Drainable, @unchecked Sendable {
  /// What became of the bytes that were received.
  enum Progress {
    /// More are wanted.
    case more
    /// They have to wait: `readable` is called again when they can go on.
    case stalled
    /// The connection is over, for this reason.
    case ended(String)
  }

  let reactor: Reactor
  let stream: UnsafeMutablePointer<Stream>
  /// What the peer is called in reasons.
  private let peer: String
  let fd: CInt
  private var watch: Watch?
  /// A message of the connection's own, until it is sent.
  private var message: UnsafeMutablePointer<OutgoingItem>?
  private(set) final var isClosed = false
  private var isGone = false

  /// Why a connection ends that there is no memory for.
  static let noMemory = "there is no memory for the connection"
  /// Others have their turn after so many buffers.
  private static let buffersPerTurn = 8

  /// - Parameters:
  ///   - fd: a non-blocking socket, which the connection takes over.
  ///   - sent: called with the owner of each item whose last byte is with the kernel.
  init(fd: CInt, reactor: Reactor, peer: String, sent: @escaping Stream.Sent) {
    self.fd = fd
    self.reactor = reactor
    self.peer = peer
    unsafe stream = UnsafeMutablePointer<Stream>.allocate(capacity: 1)
    unsafe message = nil
    unsafe stream.initialize(
      to: Stream(
        fd: fd, connection: Unmanaged.passUnretained(self).toOpaque(), sent: sent,
        told: { connection, _ in
          unsafe Unmanaged<StreamConnection>.fromOpaque(connection)._withUnsafeGuaranteedRef { $0.messageSent() }
        },
        broken: { connection, _ in
          unsafe Unmanaged<StreamConnection>.fromOpaque(connection)._withUnsafeGuaranteedRef {
            $0.close("the \($0.peer) takes no bytes")
          }
        }))
  }

  deinit {
    unsafe clinux_tls_free(stream.pointee.tls)
    unsafe stream.pointee.deallocate()
    unsafe stream.deinitialize(count: 1)
    unsafe stream.deallocate()
    unsafe message?.deallocate()
  }

  final var core: UnsafeMutablePointer<ReactorCore> { unsafe reactor.core }

  // MARK: What a protocol brings

  /// Takes what was received.
  func take() -> Progress { .more }

  /// Receives the next bytes: how many, 0 at the end, or a negative error number.
  func receive() -> Int {
    unsafe stream.pointee.tls == nil
      ? stream.pointee.receive() : receiveEncrypted(stream, into: stream.pointee.buffer, 0, core)
  }

  /// The message of `tell` is with the kernel.
  func told() {}

  /// The connection has just ended.
  func ended(_ reason: String) {}

  /// Whether nothing is under way that holds on to the connection's memory.
  var isIdle: Bool { true }

  /// The last one that held on to the connection has let go.
  func gone() {}

  // MARK: Bytes

  /// Begins to receive.
  final func watchReadable() {
    let watch = Watch(fd: fd) { [unowned self] in readable() }
    self.watch = watch
    unsafe watch.arm(core)
  }

  /// Called when the socket has bytes, or ends.
  func readable() {
    guard !isClosed else { return }
    transfer()
  }

  /// Receives until the socket is empty: what stays there is not announced again.
  final func transfer() {
    var budget = StreamConnection.buffersPerTurn
    while !isClosed {
      switch take() {
      case .more: break
      case .stalled: return
      case .ended(let reason): return close(reason)
      }
      guard budget > 0 else { return yield() }
      budget -= 1
      let count = receive()
      guard count > 0 else { return receivedNothing(count) }
    }
  }

  /// Goes on in the reactor's next turn.
  final func yield() { reactor.post { [weak self] in self?.readable() } }

  /// Bytes straight to where they belong, as far as they are there.
  final func receive(into destination: UnsafeMutableRawPointer, _ length: Int) -> Int {
    unsafe stream.pointee.tls == nil
      ? stream.pointee.receive(into: destination, length) : receiveEncrypted(stream, into: destination, length, core)
  }

  /// Ends the connection where a call that received has failed.
  final func receivedNothing(_ count: Int) {
    switch CInt(-count) {
    case 0: close("the \(peer) left")
    case EAGAIN, EINTR: break
    case EPROTO where unsafe stream.pointee.tls != nil: close("TLS: \(StreamConnection.tlsReason)")
    case let error: close(systemText(error))
    }
  }

  private static var tlsReason: String {
    var text = [CChar](repeating: 0, count: 128)
    unsafe clinux_tls_reason(&text, text.count)
    return String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  // MARK: Messages of the connection's own

  /// Whether a message of `tell` is not with the kernel yet.
  final var isTelling: Bool { unsafe message != nil }

  /// Sends a few bytes behind what waits, one such message at a time; `told` is called when they are with the kernel, which
  /// may be before this returns.
  final func tell(_ bytes: [UInt8]) {
    guard unsafe message == nil, !bytes.isEmpty, !isClosed else { return }
    let head = unsafe MemoryLayout<OutgoingItem>.stride
    let memory = UnsafeMutableRawPointer.allocate(byteCount: head + bytes.count, alignment: 16)
    unsafe bytes.withUnsafeBytes { bytes in
      if let base = bytes.baseAddress { unsafe (memory + head).copyMemory(from: base, byteCount: bytes.count) }
    }
    let item = unsafe memory.bindMemory(to: OutgoingItem.self, capacity: 1)
    unsafe item.initialize(to: OutgoingItem(owner: stream.pointee.connection))
    unsafe item.pointee.append(memory + head, bytes.count)
    unsafe message = unsafe item
    unsafe send(item, stream, core)
    unsafe flush(stream, core)
  }

  private func messageSent() {
    unsafe message?.deallocate()
    unsafe message = nil
    told()
  }

  // MARK: The end

  /// Ends the connection: at once for the peer, and its memory when nothing holds on to it any more.
  final func close(_ reason: String) {
    guard !isClosed else { return }
    isClosed = true
    unsafe watch?.cancel(core.pointee.ring)
    unsafe finishEncrypted(stream, core)
    shutdown(fd, CInt(SHUT_RDWR))
    ended(reason)
    // Not at once: the caller may still hold on to what would go away.
    reactor.whenDrained(self)
    reactor.post {}
  }

  final var isDrained: Bool { unsafe !stream.pointee.isBlocked && !stream.pointee.isDeferred && isIdle }

  final func drained() {
    guard !isGone else { return }
    isGone = true
    // What waits in the submission queue names the descriptor that is closed below.
    unsafe core.pointee.ring.submit()
    unsafe releaseCiphertext(stream, core)
    _ = Glibc.close(fd)
    gone()
  }
}
