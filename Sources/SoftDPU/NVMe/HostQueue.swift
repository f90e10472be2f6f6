import CLinux
import Glibc

/// A queue pair on the host's side: one TCP connection.
///
/// SAFETY: made, used and destroyed on its reactor's thread only; the slots live as long as the object, because requests
/// are taken out of them after its end.
@safe
final class HostQueue: StreamConnection, @unchecked Sendable {
  let state: UnsafeMutablePointer<HostQueueState>
  /// Counts this queue's memory, until it is gone.
  private var controller: InitiatorController?
  private let hasHeaderDigest: Bool
  private let hasDataDigest: Bool
  /// `onLost` is still to be called.
  private var isLosing = false
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
  init(
    fd: CInt, reactor: Reactor, depth: Int, controller: InitiatorController, hasHeaderDigest: Bool, hasDataDigest: Bool
  ) {
    self.controller = controller
    unsafe taker = nil
    self.hasHeaderDigest = hasHeaderDigest
    self.hasDataDigest = hasDataDigest
    unsafe state = UnsafeMutablePointer<HostQueueState>.allocate(capacity: 1)
    unsafe super.init(
      fd: fd, reactor: reactor, peer: "target",
      sent: { slot, core in
        unsafe hostItemSent(slot.assumingMemoryBound(to: HostSlot.self), core.assumingMemoryBound(to: ReactorCore.self))
      })
    unsafe state.initialize(
      to: HostQueueState(
        stream: stream, queue: Unmanaged.passUnretained(self).toOpaque(), depth: depth,
        held: controller.held, hasHeaderDigest: hasHeaderDigest, hasDataDigest: hasDataDigest))
    unsafe HostQueueState.prepare(state)
  }

  deinit {
    unsafe state.pointee.deallocate()
    unsafe state.deinitialize(count: 1)
    unsafe state.deallocate()
  }

  func start() {
    guard unsafe stream.pointee.reserve(HostQueue.bufferLength) else { return close(StreamConnection.noMemory) }
    watchReadable()
    // The first PDU (NVMe TCP 1.0, section 3.6.2.2): the version, no alignment, the digests, one request for data.
    var page = LittleEndianPage(NVMeTCP.initializeLength)
    page.set(NVMeTCP.PDU.initializeRequest, at: 0)
    page.set(UInt8(NVMeTCP.initializeLength), at: 2)
    page.set(UInt32(NVMeTCP.initializeLength), at: 4)
    page.set((hasHeaderDigest ? UInt8(1) : 0) | (hasDataDigest ? 2 : 0), at: 11)
    tell(page.bytes)
  }

  func initialized() { onInitialized() }

  override func take() -> Progress {
    let progress = unsafe takeAnswers(state, core) { slot, status, word0, word1 in
      unsafe completed(slot, status, word0, word1)
    }
    switch progress {
    case .more: return .more
    case .broken(let reason): return .ended("the target broke the protocol: \(reason)")
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

  /// `onLost` is called, once.
  override func ended(_ reason: String) {
    isLosing = true
    // Not at once: the caller may be in the middle of this queue's bytes.
    reactor.post { [self] in
      let onLost = self.onLost
      self.onLost = { _ in }
      onLost(reason)
      onInitialized = {}
      path = nil
      isLosing = false
    }
  }

  override var isIdle: Bool { !isLosing }

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

  override func gone() {
    for index in unsafe 0..<state.pointee.depth {
      let slot = unsafe state.pointee.slots + index
      unsafe slot.pointee.done = nil
      unsafe giveBuffer(slot, core)
    }
    // Requests that wait for memory may have waited for this queue's.
    controller?.serveWaiting()
    controller = nil
  }
}
