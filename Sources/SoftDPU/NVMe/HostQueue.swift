import CLinux
import Glibc

/// A queue pair on the host's side: one TCP connection.
///
/// SAFETY: made, used and destroyed on its reactor's thread only; the hot path's state is freed in `drained`.
@safe
final class HostQueue: Drainable, @unchecked Sendable {
  private let fd: CInt
  private let reactor: Reactor
  private let stream: UnsafeMutablePointer<Stream>
  let state: UnsafeMutablePointer<HostQueueState>
  private let hello: UnsafeMutablePointer<OutgoingItem>
  private let helloBytes: UnsafeMutableRawPointer
  private var watch: Watch?
  private(set) var isClosed = false
  private var isGone = false
  /// The target answered the first PDU.
  var onInitialized: () -> Void = {}
  /// Takes the ends of requests' commands. Kept until the last byte of this connection has been looked at, so that the
  /// hot path needs not count references to it.
  var path: InitiatorPath? {
    didSet { unsafe taker = unsafe path.map { unsafe Unmanaged.passUnretained($0) } }
  }
  private var taker: Unmanaged<InitiatorPath>?
  /// The connection is gone. Open commands are still in their slots.
  var onLost: (String) -> Void = { _ in }

  private static let bufferLength = 256 << 10

  /// - Parameter fd: a connecting socket, which the queue takes over.
  init(fd: CInt, reactor: Reactor, depth: Int, hasHeaderDigest: Bool, hasDataDigest: Bool) {
    self.fd = fd
    self.reactor = reactor
    unsafe taker = nil
    unsafe stream = UnsafeMutablePointer<Stream>.allocate(capacity: 1)
    unsafe state = UnsafeMutablePointer<HostQueueState>.allocate(capacity: 1)
    unsafe hello = UnsafeMutablePointer<OutgoingItem>.allocate(capacity: 1)
    unsafe helloBytes = UnsafeMutableRawPointer.allocate(byteCount: NVMeTCP.initializeLength, alignment: 8)
    let queue = unsafe Unmanaged.passUnretained(self).toOpaque()
    unsafe stream.initialize(
      to: Stream(
        fd: fd, capacity: HostQueue.bufferLength, connection: queue,
        sent: { slot, core in
          // The first PDU belongs to no slot: its owner is a number that is no address.
          guard UInt(bitPattern: slot) != 1 else { return }
          unsafe hostItemSent(
            slot.assumingMemoryBound(to: HostSlot.self), core.assumingMemoryBound(to: ReactorCore.self))
        },
        broken: { queue, _ in
          unsafe Unmanaged<HostQueue>.fromOpaque(queue)._withUnsafeGuaranteedRef {
            $0.close("the target takes no commands")
          }
        }))
    unsafe state.initialize(
      to: HostQueueState(
        stream: stream, queue: queue, depth: depth, hasHeaderDigest: hasHeaderDigest, hasDataDigest: hasDataDigest))
    unsafe HostQueueState.prepare(state)
    // The first PDU (NVMe TCP 1.0, section 3.6.2.2): the version, no alignment, the digests, one request for data.
    unsafe memset(helloBytes, 0, NVMeTCP.initializeLength)
    unsafe helloBytes.storeBytes(of: UInt8(NVMeTCP.initializeLength), toByteOffset: 2, as: UInt8.self)
    unsafe helloBytes.storeBytes(of: UInt32(NVMeTCP.initializeLength).littleEndian, toByteOffset: 4, as: UInt32.self)
    unsafe helloBytes.storeBytes(
      of: (hasHeaderDigest ? 1 : 0) | (hasDataDigest ? 2 : 0), toByteOffset: 11, as: UInt8.self)
    guard let nobody = unsafe UnsafeMutableRawPointer(bitPattern: 1) else { return }
    unsafe hello.initialize(to: OutgoingItem(owner: nobody))
    unsafe hello.pointee.append(helloBytes, NVMeTCP.initializeLength)
  }

  deinit {
    unsafe state.pointee.deallocate()
    unsafe state.deinitialize(count: 1)
    unsafe state.deallocate()
    unsafe stream.pointee.deallocate()
    unsafe stream.deallocate()
    unsafe hello.deallocate()
    unsafe helloBytes.deallocate()
  }

  private var core: UnsafeMutablePointer<ReactorCore> { unsafe reactor.core }

  func start() {
    let watch = Watch(fd: fd) { [weak self] in self?.readable() }
    self.watch = watch
    unsafe watch.arm(core)
    unsafe send(hello, stream, core)
  }

  func initialized() { onInitialized() }

  private func readable() {
    guard !isClosed else { return }
    var budget = 8
    while !isClosed {
      let count = unsafe stream.pointee.receive()
      guard count > 0 else {
        if count == 0 { close("the target closed the connection") }
        if count < 0, count != -Int(EAGAIN), count != -Int(EINTR) { close(systemText(CInt(-count))) }
        return
      }
      let progress = unsafe takeAnswers(state, core) { slot, status, word0, word1 in
        unsafe completed(slot, status, word0, word1)
      }
      if case .broken(let reason) = progress { return close("the target broke the protocol: \(reason)") }
      if unsafe stream.pointee.isDry { return }
      budget -= 1
      if budget == 0 {
        reactor.post { [weak self] in self?.readable() }
        return
      }
    }
  }

  private func completed(
    _ slot: UnsafeMutablePointer<HostSlot>, _ status: UInt16, _ word0: UInt32, _ word1: UInt32
  ) {
    if let done = unsafe slot.pointee.done {
      unsafe slot.pointee.done = nil
      done(status, word0, word1)
      unsafe release(slot, core)
    } else if let taker = unsafe taker {
      unsafe taker._withUnsafeGuaranteedRef { unsafe $0.completed(slot, status) }
    }
  }

  /// Sends a command of the queue's own.
  ///
  /// - Parameters:
  ///   - command: the 64 bytes of the command; the identifier and the data's place are filled in.
  ///   - output: data that goes with it, at most 8192 bytes.
  ///   - input: how many bytes it brings, which `done` gets.
  func command(
    _ command: [UInt8], output: [UInt8] = [], input: Int = 0, done: @escaping (UInt16, UInt32, UInt32, [UInt8]) -> Void
  ) {
    guard !isClosed, let slot = unsafe state.pointee.take() else {
      return done(NVMe.Status.internalError, 0, 0, [])
    }
    let length = max(output.count, input)
    if length > 0 {
      guard let buffer = unsafe core.pointee.buffers.take(length) else {
        unsafe release(slot, core)
        return done(NVMe.Status.internalError, 0, 0, [])
      }
      unsafe memset(buffer, 0, length)
      unsafe slot.pointee.buffer = unsafe buffer
      unsafe slot.pointee.bufferLength = length
      unsafe output.withUnsafeBytes { bytes in
        if let base = bytes.baseAddress { unsafe buffer.copyMemory(from: base, byteCount: bytes.count) }
      }
    }
    unsafe command.withUnsafeBytes { bytes in
      guard let base = bytes.baseAddress else { return }
      unsafe (slot.pointee.header + NVMeTCP.commonLength).copyMemory(from: base, byteCount: min(64, bytes.count))
    }
    unsafe slot.pointee.transfer = length
    unsafe slot.pointee.done = { status, word0, word1 in
      var bytes: [UInt8] = []
      if input > 0, let buffer = unsafe slot.pointee.buffer {
        bytes = unsafe Array(UnsafeRawBufferPointer(start: buffer, count: input))
      }
      done(status, word0, word1, bytes)
    }
    unsafe sendCommand(slot, inline: output.count, core)
  }

  // MARK: The end

  /// Ends the connection. `onLost` is called, once.
  func close(_ reason: String) {
    guard !isClosed else { return }
    isClosed = true
    unsafe state.pointee.isClosed = true
    unsafe watch?.cancel(core.pointee.ring)
    shutdown(fd, CInt(SHUT_RDWR))
    // Not at once: the caller may be in the middle of this queue's bytes.
    reactor.post { [self] in
      let onLost = self.onLost
      self.onLost = { _ in }
      onLost(reason)
      onInitialized = {}
      path = nil
      reactor.whenDrained(self)
      reactor.post {}
    }
  }

  /// Takes the requests out of the open commands, in the order of the slots.
  func takeRequests() -> [UnsafeMutablePointer<BlockIO>] {
    var requests: [UnsafeMutablePointer<BlockIO>] = unsafe []
    for index in unsafe 0..<state.pointee.depth {
      let slot = unsafe state.pointee.slots + index
      guard unsafe slot.pointee.isOpen, let io = unsafe slot.pointee.io else { continue }
      unsafe slot.pointee.io = nil
      unsafe requests.append(io)
    }
    return unsafe requests
  }

  var isDrained: Bool { unsafe !stream.pointee.isBlocked && !stream.pointee.isDeferred }

  func drained() {
    guard !isGone else { return }
    isGone = true
    unsafe core.pointee.ring.submit()
    unsafe core.pointee.forget(UnsafeMutableRawPointer(stream))
    for index in unsafe 0..<state.pointee.depth {
      let slot = unsafe state.pointee.slots + index
      unsafe slot.pointee.done = nil
      if let buffer = unsafe slot.pointee.buffer {
        unsafe core.pointee.buffers.give(buffer, slot.pointee.bufferLength)
        unsafe slot.pointee.buffer = nil
      }
    }
    _ = Glibc.close(fd)
  }
}
